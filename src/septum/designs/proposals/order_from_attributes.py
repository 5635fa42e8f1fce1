"""guest_memfd says how large a mapping may be by its attributes, not by its folios.

Ackerley Tng (guest_memfd), 2026-01-14: the contiguous range of equal attributes around the index,
clamped to the size of the pages that the file is backed by; folio sizes only remember it. Asked for
by Sean Christopherson (KVM) the same day, who would have the max order decoupled from the folio if
that is simplest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.kvm import KVM_MEMORY_ATTRIBUTE_PRIVATE
from septum.designs.proposals.pfn_wrappers import PfnGuestMemfd, PfnTdxArch
from septum.designs.registry import Design, on_v3
from septum.linux.mm.state import PMD_ORDER, PUD_ORDER

if TYPE_CHECKING:
    from septum.linux.kvm.types import Folio, GmemInode


class OrderFromAttributes(PfnGuestMemfd):
    """guest_memfd whose pages are contiguous up to the size that they were allocated in.

    Assumed: a page that has failed ends the range, as does one that is shared. Files that are not
    backed by hugetlb have no size to clamp to, and keep the order of the folio.
    """

    __slots__ = ()

    def _kvm_gmem_max_order(self, inode: GmemInode, folio: Folio, index: int) -> int:
        if not inode.page_order:
            return super()._kvm_gmem_max_order(inode, folio, index)
        for order in (PUD_ORDER, PMD_ORDER):
            first = index >> order << order
            pages = 1 << order
            if order <= inode.page_order and self._vouches_for(inode, first, pages):
                return order
        return 0

    def _vouches_for(self, inode: GmemInode, first: int, pages: int) -> bool:
        """Whether [first, first + pages) is private and sound."""
        private = KVM_MEMORY_ATTRIBUTE_PRIVATE
        return self.kvm_gmem_range_has_attributes(inode, first, pages, private) and not any(
            first <= failed < first + pages for failed in inode.poisoned
        )


DESIGN = Design(
    "order-from-attributes",
    "Ackerley Tng (guest_memfd) and Sean Christopherson (KVM), 2026-01-14, review of 00/24",
    "a mapping may be as large as the private range around it, whatever the folios are",
    on_v3(gmem=OrderFromAttributes, x86_tdx=PfnTdxArch),
    scenarios=(
        "finding-fault-meets-leaf",
        "finding-fresh-folio-enomem",
        "folio-1g-convert-4k",
    ),
)
