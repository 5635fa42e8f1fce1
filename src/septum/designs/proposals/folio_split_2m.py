"""A 1 GB folio is split to 2 MB first, and to 4 KB only where memory is shared.

Yan Zhao (author of v3), 2026-01-12 02:12: flow (a), "if guest_memfd splits 1GB to 2MB first", and
2026-01-14 09:23: it "only splits the converted range to 4KB", so that to split the S-EPT before the
folio costs little. Ackerley Tng (guest_memfd), 2026-01-08 20:11, calls it a non-uniform split, "the
remaining folios are as large as possible (PMD sized as much as possible)", against which speaks
that nobody knows ahead how many pages it takes. He split to 4 KB at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from septum.abi.kvm import KVM_MEMORY_ATTRIBUTE_PRIVATE
from septum.abi.types import Pfn
from septum.designs.proposals.split_sept_first import SplitSeptFirst
from septum.designs.registry import Design, on_v3
from septum.linux.kvm.guest_memfd import GuestMemfd
from septum.linux.kvm.types import Folio
from septum.linux.mm import Mm
from septum.linux.mm.state import PMD_ORDER, PMD_PAGES, PUD_ORDER, PUD_PAGES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from septum.linux.kvm.types import GmemInode
    from septum.linux.mm.folio import Subpool


class FolioSplit2mMm(Mm):
    """Memory management that knows 2 MB folios which are parts of a 1 GB hugetlb folio.

    Assumed: the struct pages of a 2 MB folio are optimised as those of the 1 GB folio were, so that
    each of the two steps of a split takes memory.
    """

    __slots__ = ()

    def is_part(self, folio: Folio) -> bool:
        """Whether it is a part, and still huge."""
        return folio.hugetlb is not None and 0 < folio.order < folio.hugetlb.order

    def make_part(self, pfn: int, hugetlb: Subpool | None, site: str) -> Folio:
        """A 2 MB folio at `pfn`, of a 1 GB folio that was allocated from `hugetlb` at `site`."""
        folio = Folio(Pfn(pfn), PMD_ORDER)
        folio.site = site
        folio.hugetlb = hugetlb
        folio.hugetlb_vmemmap_optimized = True
        self.state.folios[pfn] = folio
        return folio

    def restructure_forget_huge(self, folio: Folio) -> None:
        if self.is_part(folio):
            del self.state.folios[folio.pfn]
        else:
            super().restructure_forget_huge(folio)

    def free_folio(self, folio: Folio) -> None:
        if self.is_part(folio):
            del self.state.folios[folio.pfn]
            self.restructure_put_small(folio.pfn, folio.nr_pages)
        else:
            super().free_folio(folio)

    def outstanding(self) -> Iterator[tuple[int, int, str]]:
        # The 1 GB folio is listed already.
        parts = {(f.pfn, f.nr_pages) for f in self.state.folios.values() if self.is_part(f)}
        return (row for row in super().outstanding() if row[:2] not in parts)


class FolioSplit2m(GuestMemfd):
    """guest_memfd with folios of 1 GB, 2 MB and 4 KB in one file that is backed by 1 GB pages.

    The order of a conversion is v3's. Assumed: what becomes private again is merged as far as all
    around it is private, to 2 MB or to 1 GB; and a 2 MB range that is shared as a whole is 4 KB
    folios, as every shared page has a reference count of its own.
    """

    __slots__ = ()
    split_orders: ClassVar[tuple[int, ...]] = (0, PMD_ORDER)

    def kvm_gmem_restructure(
        self, inode: GmemInode, start: int, nr_pages: int, to_private: bool
    ) -> int:
        if inode.page_order != PUD_ORDER:
            return super().kvm_gmem_restructure(inode, start, nr_pages, to_private)
        end = start + nr_pages
        if to_private:
            if self.host.params.fixup_merge_after_to_private:
                self._merge_around(inode, start, end)
            return 0
        return self._split_1g_folio(inode, start, _blocks(start, end))

    def _restructure_fresh_folio(self, inode: GmemInode, index: int) -> int:
        if inode.page_order != PUD_ORDER:
            return super()._restructure_fresh_folio(inode, index)
        first = index >> PUD_ORDER << PUD_ORDER
        private = KVM_MEMORY_ATTRIBUTE_PRIVATE
        mixed = [
            block
            for block in _blocks(first, first + PUD_PAGES)
            if not self.kvm_gmem_range_has_attributes(inode, block, PMD_PAGES, private)
        ]
        return self._split_1g_folio(inode, first, mixed)

    def _split_1g_folio(self, inode: GmemInode, index: int, small: list[int] | range) -> int:
        """Have no 1 GB folio at `index`, and 4 KB folios in the 2 MB at each of `small`. 0, or
        -ENOMEM with what was split before staying so."""
        folio = self._peek_folio(inode, index)
        if folio is not None and folio.order == PUD_ORDER:
            first = index >> PUD_ORDER << PUD_ORDER
            ret = self.hugetlb_restructuring_split_folio(inode, first, PMD_ORDER)
            if ret:
                return ret
        for block in small:
            ret = self.gmem_hugetlb_restructure_folio(inode, block, 0)
            if ret:
                return ret
        return 0

    def _split_in_place(self, inode: GmemInode, index: int, folio: Folio, to_order: int) -> None:
        if not to_order:
            super()._split_in_place(inode, index, folio, to_order)
            return
        mm = self._mm()
        mm.restructure_forget_huge(folio)
        for block in _blocks(index, index + PUD_PAGES):
            part = mm.make_part(folio.pfn + block - index, folio.hugetlb, folio.site)
            part.refcount = part.nr_pages
            part.uptodate = folio.uptodate
            inode.folios[block] = part
        folio.order = to_order

    # Merging cannot fail.

    def _merge_around(self, inode: GmemInode, start: int, end: int) -> None:
        """[start, end) is about to be private: merge as far as all around it is so."""
        first = start >> PUD_ORDER << PUD_ORDER
        folio = self._peek_folio(inode, first)
        if folio is not None and folio.order == PUD_ORDER:
            return
        for block in _blocks(start, end):
            if self._private_around(inode, block, PMD_PAGES, start, end):
                self.gmem_hugetlb_restructure_folio(inode, block, PMD_ORDER)
        if self._private_around(inode, first, PUD_PAGES, start, end):
            self.gmem_hugetlb_restructure_folio(inode, first, PUD_ORDER)

    def _private_around(
        self, inode: GmemInode, first: int, nr_pages: int, start: int, end: int
    ) -> bool:
        """Whether [first, first + nr_pages) is private but for what [start, end) has of it."""
        private = KVM_MEMORY_ATTRIBUTE_PRIVATE
        head = max(0, start - first)
        tail = max(0, first + nr_pages - end)
        return self.kvm_gmem_range_has_attributes(
            inode, first, head, private
        ) and self.kvm_gmem_range_has_attributes(inode, end, tail, private)

    def hugetlb_restructuring_merge_folio(self, inode: GmemInode, index: int, to_order: int) -> int:
        if inode.page_order != PUD_ORDER:
            return super().hugetlb_restructuring_merge_folio(inode, index, to_order)
        for block in _blocks(index, index + (1 << to_order)):
            if block in inode.split_folios:
                self._merge_to_2m(inode, block)
        if to_order == PUD_ORDER:
            self._merge_to_1g(inode, index)
        return 0

    def _merge_to_2m(self, inode: GmemInode, index: int) -> None:
        split = inode.split_folios[index]
        uptodate = self._take_small_folios(inode, split)
        part = self._mm().make_part(split.pfn, split.hugetlb, split.site)
        self._add_merged_folio(inode, index, part, uptodate)

    def _merge_to_1g(self, inode: GmemInode, index: int) -> None:
        mm = self._mm()
        parts = [inode.folios[block] for block in _blocks(index, index + PUD_PAGES)]
        for part in parts:
            self._freeze_folio(part)
        for block in _blocks(index, index + PUD_PAGES):
            del inode.folios[block]
        for part in parts:
            mm.restructure_forget_huge(part)
        subpool = parts[0].hugetlb
        assert subpool is not None
        folio = mm.restructure_make_huge(parts[0].pfn, subpool, parts[0].site)
        self._add_merged_folio(inode, index, folio, parts[0].uptodate)

    def _mm(self) -> FolioSplit2mMm:
        mm = self.host.mm
        assert isinstance(mm, FolioSplit2mMm)
        return mm


class FolioSplit2mSeptFirst(FolioSplit2m, SplitSeptFirst):
    """The same in the order of split-sept-first: what is split to 4 KB in the S-EPT is what is
    split to 4 KB in the page cache. No leaf of the rest is larger than 2 MB."""

    __slots__ = ()

    def _range_made_small(self, inode: GmemInode, start: int, end: int) -> tuple[int, int]:
        return start & -PMD_PAGES, -(-end // PMD_PAGES) * PMD_PAGES


def _blocks(start: int, end: int) -> range:
    """First indexes of the 2 MB that [start, end) touches."""
    return range(start & -PMD_PAGES, end, PMD_PAGES)


DESIGN = Design(
    "folio-split-2m",
    "Ackerley Tng (guest_memfd), 2026-01-08; Yan Zhao (author of v3), 2026-01-12, review of 00/24",
    "a 1 GB folio is split to 2 MB, and to 4 KB only where memory is shared; the order is v3's",
    on_v3(gmem=FolioSplit2m, mm=FolioSplit2mMm),
    scenarios=("folio-1g-convert-4k", "folio-1g-convert-2m", "finding-fault-meets-leaf"),
)

SEPT_FIRST = Design(
    "folio-split-2m-sept-first",
    "Yan Zhao (author of v3), 2026-01-12 (flow a) and 14, review of 00/24",
    "the same, with the S-EPT split before the folio, and the zap last",
    on_v3(gmem=FolioSplit2mSeptFirst, mm=FolioSplit2mMm),
    scenarios=("folio-1g-convert-4k", "finding-folio-split-enomem", "convert-aligned-2m"),
)
