"""A conversion splits the S-EPT first, then the folio, and zaps last.

Proposed by Yan Zhao (author of v3), 2026-01-12 02:12, as the way out of "who may be smaller for a
while, the mapping or the folio?": whatever may fail comes before the zap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.kvm import KVM_MIRROR_ROOTS, PG_LEVEL_4K
from septum.designs.registry import Design, on_v3
from septum.linux.kvm.guest_memfd import GuestMemfd

if TYPE_CHECKING:
    from septum.linux.kvm.types import GmemInode, Kvm, KvmGfnRange


class SplitSeptFirst(GuestMemfd):
    """guest_memfd whose conversion to shared goes S-EPT split, folio split, zap.

    As hugetlb folios are split to 4 KB at once, this is flow (b) of the message: every leaf over
    the original folio becomes 4 KB, also of a range that is zapped whole. A folio split that fails
    leaves the S-EPT split, and nothing is undone.

    Assumed: attributes are stored after the end of the invalidation, as in v3 (the message is
    silent about it); where guest_memfd splits no folio (order 0), v3's split is kept, and so it is
    for holes, of which the messages do not speak and which split no folio; the result is kept in
    an int.
    """

    __slots__ = ()

    def _kvm_gmem_convert_mappings(
        self, inode: GmemInode, start: int, end: int, to_private: bool
    ) -> int:
        if to_private or not inode.page_order:
            return super()._kvm_gmem_convert_mappings(inode, start, end, to_private)
        ret = self.kvm_gmem_split_private(inode, *self._range_made_small(inode, start, end))
        if not ret:
            ret = self.kvm_gmem_restructure(inode, start, end - start, to_private)
        if not ret:
            self.kvm_gmem_zap(inode, start, end)
        return ret

    def _range_made_small(self, inode: GmemInode, start: int, end: int) -> tuple[int, int]:
        """Where folios become 4 KB when [start, end) becomes shared."""
        return self._kvm_gmem_compute_invalidate_range(inode, start, end)

    def _kvm_gmem_split_range(self, kvm: Kvm, gfn_range: KvmGfnRange) -> int:
        file = gfn_range.slot.gmem_file
        converts = self.host.main.current_cause() == "conversion"
        if file is None or not file.inode.page_order or not converts:
            return super()._kvm_gmem_split_range(kvm, gfn_range)
        return self.host.tdp_mmu._split_huge_pages_in_roots(
            kvm, KVM_MIRROR_ROOTS, gfn_range.start, gfn_range.end, PG_LEVEL_4K, False, False
        )


DESIGN = Design(
    "split-sept-first",
    "Yan Zhao (author of v3), 2026-01-12, review of 00/24",
    "conversion splits the S-EPT over the whole folio, then the folio, and zaps last",
    on_v3(gmem=SplitSeptFirst),
    scenarios=(
        "finding-folio-split-enomem",
        "folio-1g-convert-4k",
        "finding-fault-meets-leaf",
        "convert-aligned-2m",
    ),
)
