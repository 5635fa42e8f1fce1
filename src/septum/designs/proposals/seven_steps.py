"""A conversion in seven steps, of which those that may fail come before the zap.

What guest_memfd was trying, as told by Ackerley Tng (guest_memfd), 2026-01-06 21:26, with the S-EPT
split where he would insert it: after the invalidation has begun.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.kvm import KVM_MEMORY_ATTRIBUTE_PRIVATE
from septum.designs.proposals.folio_first import FolioFirstByPfn
from septum.designs.proposals.pfn_wrappers import PfnTdxArch
from septum.designs.registry import Design, on_v3

if TYPE_CHECKING:
    from septum.linux.kvm.types import GmemInode


class SevenSteps(FolioFirstByPfn):
    """guest_memfd in this order: (1) memory for the attributes, (2) references or folio split, (3)
    begin, S-EPT split, (4) zap, (5) attributes, (6) end, (7) merge.

    Assumed: wrappers that do not look at folios, which is what the message asks for.
    """

    __slots__ = ()

    def _kvm_gmem_convert_commit(
        self, inode: GmemInode, start: int, nr_pages: int, attrs: int
    ) -> int:
        end = start + nr_pages
        self._kvm_gmem_store_attributes(inode, start, end, attrs)
        self.kvm_gmem_invalidate_end(
            inode, *self._kvm_gmem_compute_invalidate_range(inode, start, end)
        )
        if attrs & KVM_MEMORY_ATTRIBUTE_PRIVATE:
            return self.kvm_gmem_restructure(inode, start, nr_pages, True)
        return 0


DESIGN = Design(
    "seven-steps",
    "Ackerley Tng (guest_memfd), 2026-01-06, review of 00/24",
    "conversion: what may fail, then zap, attributes, end of the invalidation, merge",
    on_v3(gmem=SevenSteps, x86_tdx=PfnTdxArch),
    scenarios=("finding-folio-split-enomem", "finding-attributes-late", "folio-1g-convert-4k"),
)
