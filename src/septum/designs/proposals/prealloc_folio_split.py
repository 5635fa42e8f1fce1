"""A conversion has the memory for the folio split before it zaps, so that nothing fails afterwards.

Proposed by Yan Zhao (author of v3), 2026-01-07, to keep both v3's order and what the guest has.
Ackerley Tng (guest_memfd) would look into it, 2026-01-08, and thought it hard: the vmemmap
optimisation of hugetlb would have to take pages that were allocated ahead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.errno import ENOMEM
from septum.abi.kvm import KVM_MEMORY_ATTRIBUTE_PRIVATE
from septum.designs.registry import Design, on_v3
from septum.linux.kvm.guest_memfd import GuestMemfd

if TYPE_CHECKING:
    from septum.linux.kvm.types import Folio, GmemInode


class PreallocFolioSplit(GuestMemfd):
    """guest_memfd whose conversion to shared first allocates what the split of its folio needs:
    nodes of the page cache, and the pages of the tail struct pages.

    The order is v3's else. Assumed: what is not used is freed. A fresh folio is split as in v3.
    MODEL: the vmemmap is restored ahead, instead of its pages being kept aside; it stands for the
    nodes, too.
    """

    __slots__ = ()

    def kvm_gmem_convert(
        self, inode: GmemInode, start: int, nr_pages: int, attrs: int
    ) -> tuple[int, int]:
        folio = None
        if inode.page_order and not attrs & KVM_MEMORY_ATTRIBUTE_PRIVATE:
            folio = self._peek_folio(inode, start)
        if folio is None or not folio.order:
            return super().kvm_gmem_convert(inode, start, nr_pages, attrs)
        if not self._prealloc_split(folio):
            return -ENOMEM, start
        ret, err_index = super().kvm_gmem_convert(inode, start, nr_pages, attrs)
        if ret:
            folio.hugetlb_vmemmap_optimized = True
        return ret, err_index

    def _prealloc_split(self, folio: Folio) -> bool:
        """All that a split of the folio allocates; false, and nothing is kept, without memory."""
        if not self._split_entries_alloc(folio):
            return False
        return not self.host.mm.hugetlb_vmemmap_restore_folio(folio)

    def _split_entries_alloc(self, folio: Folio) -> bool:
        return not folio.hugetlb_vmemmap_optimized or super()._split_entries_alloc(folio)


DESIGN = Design(
    "prealloc-folio-split",
    "Yan Zhao (author of v3), 2026-01-07, review of 00/24",
    "conversion allocates what the folio split needs before it zaps; the order is v3's",
    on_v3(gmem=PreallocFolioSplit),
    scenarios=("finding-folio-split-enomem", "convert-entries-enomem", "convert-aligned-2m"),
)
