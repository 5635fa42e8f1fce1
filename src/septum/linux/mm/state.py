"""Which page frames are free and who has the others.

Free memory is kept in blocks of 4 KB, 2 MB and 1 GB. A broken block is used up before the next one
is broken, and freed parts are joined again, so that the memory of a VM is whole when the VM is
gone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.linux.mm.pcp import PcpLists

if TYPE_CHECKING:
    from collections.abc import Iterator

    from septum.linux.mm.folio import Folio, Subpool
    from septum.machine.config import MachineConfig
    from septum.sim import RwSem, WaitQueue

PMD_ORDER = 9
PUD_ORDER = 18
PMD_PAGES = 1 << PMD_ORDER
PUD_PAGES = 1 << PUD_ORDER


class SplitBlock:
    """A folio that was split to order 0 in place: how many of its pages are still allocated."""

    __slots__ = ("freed", "order", "remaining", "site")

    def __init__(self, order: int, site: str) -> None:
        self.order = order
        self.site = site
        self.remaining = 1 << order
        self.freed: set[int] = set()


class HugetlbPool:
    """struct hstate of one page order: huge pages set aside at boot."""

    __slots__ = ("free", "max_huge_pages", "order", "resv_huge_pages")

    def __init__(self, order: int) -> None:
        self.order = order
        self.max_huge_pages = 0
        self.resv_huge_pages = 0
        # PFNs of free huge pages; the last is the head of the list, where pages are freed to and
        # taken from.
        self.free: list[int] = []

    @property
    def free_huge_pages(self) -> int:
        """Huge pages in the pool, reserved or not."""
        return len(self.free)


class Restructured:
    """struct hugetlb_restructuring_metadata of a huge folio that is split in place."""

    __slots__ = ("nr_pages_waiting_to_be_merged", "order", "site", "subpool")

    def __init__(self, order: int, subpool: Subpool, site: str) -> None:
        self.order = order
        self.subpool = subpool
        self.site = site
        self.nr_pages_waiting_to_be_merged = 0


class MmState:
    """The allocator's state."""

    __slots__ = (
        "folios",
        "free_1g",
        "mmap_lock",
        "nr_free_pages",
        "nr_total_pages",
        "partial_1g",
        "partial_2m",
        "pcp",
        "poisoned",
        "pools",
        "restructured",
        "restructuring_metadata",
        "site_of",
        "small_folios",
        "split_blocks",
        "user_next",
        "user_pages",
        "wq",
    )

    def __init__(self, wq: WaitQueue, mmap_lock: RwSem, nr_cpus: int) -> None:
        self.wq = wq  # whoever waits for a folio's references to go
        self.mmap_lock = mmap_lock  # of the one user address space
        self.pcp = PcpLists(self, nr_cpus)
        self.free_1g: list[int] = []  # PFNs of free 1 GB blocks
        self.partial_1g: dict[int, list[int]] = {}  # 1 GB block -> PFNs of its free 2 MB blocks
        self.partial_2m: dict[int, list[int]] = {}  # 2 MB block -> PFNs of its free 4 KB pages
        self.nr_free_pages = 0  # without those in per-CPU lists
        self.nr_total_pages = 0
        self.site_of: dict[int, str] = {}  # allocated 4 KB page -> call site
        self.folios: dict[int, Folio] = {}  # first PFN -> folio of order > 0
        self.small_folios: dict[int, Folio] = {}  # PFN -> folio of order 0 in a page cache
        self.user_pages: dict[int, int] = {}  # virtual page number -> PFN, of user space
        self.user_next = 1 << 40  # where the next mapping goes
        self.split_blocks: dict[int, SplitBlock] = {}  # first PFN -> what is left of it
        self.pools: dict[int, HugetlbPool] = {}  # by order
        self.restructured: dict[int, Restructured] = {}  # first PFN -> split hugetlb folio
        # First PFNs in the xarray hugetlb_restructuring_metadata.
        self.restructuring_metadata: set[int] = set()
        self.poisoned: set[int] = set()  # first PFNs of folios that memory_failure() has kept

    def add_region(self, start_pfn: int, end_pfn: int) -> None:
        """Give the frames [start_pfn, end_pfn) to the allocator, as the boot code does."""
        self.nr_total_pages += end_pfn - start_pfn
        pfn = start_pfn
        while pfn < end_pfn:
            left = end_pfn - pfn
            if not pfn & (PUD_PAGES - 1) and left >= PUD_PAGES:
                self.free_1g.append(pfn)
                size = PUD_PAGES
            elif not pfn & (PMD_PAGES - 1) and left >= PMD_PAGES:
                self.partial_1g.setdefault(pfn >> PUD_ORDER, []).append(pfn)
                size = PMD_PAGES
            else:
                self.partial_2m.setdefault(pfn >> PMD_ORDER, []).append(pfn)
                size = 1
            self.nr_free_pages += size
            pfn += size

    def take_huge(self, order: int) -> int | None:
        """Take a free block of order 9 or 18: the PFN of its first frame, or None."""
        take = self.take_1g if order == PUD_ORDER else self.take_2m
        pfn = take()
        if pfn is None:
            self.pcp.drain_all()
            pfn = take()
        return pfn

    def take_1g(self) -> int | None:
        """Take a free 1 GB block: the PFN of its first frame, or None."""
        if not self.free_1g:
            return None
        self.nr_free_pages -= PUD_PAGES
        return self.free_1g.pop(0)

    def take_2m(self) -> int | None:
        """Take a free 2 MB block: the PFN of its first frame, or None."""
        if not self.partial_1g:
            if not self.free_1g:
                return None
            base = self.free_1g.pop(0)
            self.partial_1g[base >> PUD_ORDER] = list(
                range(base + PUD_PAGES - PMD_PAGES, base - 1, -PMD_PAGES)
            )
        pud = next(iter(self.partial_1g))
        blocks = self.partial_1g[pud]
        pfn = blocks.pop()
        if not blocks:
            del self.partial_1g[pud]
        self.nr_free_pages -= PMD_PAGES
        return pfn

    def take_4k(self) -> int | None:
        """Take a free 4 KB page: its PFN, or None."""
        partial = self.partial_2m
        if not partial:
            base = self.take_2m()
            if base is None:
                return None
            self.nr_free_pages += PMD_PAGES
            partial[base >> PMD_ORDER] = list(range(base + PMD_PAGES - 1, base - 1, -1))
        pmd = next(iter(partial))
        pages = partial[pmd]
        pfn = pages.pop()
        if not pages:
            del partial[pmd]
        self.nr_free_pages -= 1
        return pfn

    def give_4k(self, pfn: int) -> None:
        """A 4 KB page is free again."""
        self.nr_free_pages += 1
        pmd = pfn >> PMD_ORDER
        pages = self.partial_2m.get(pmd)
        if pages is None:
            self.partial_2m[pmd] = [pfn]
            return
        pages.append(pfn)
        if len(pages) == PMD_PAGES:
            del self.partial_2m[pmd]
            self.nr_free_pages -= PMD_PAGES
            self.give_2m(pmd << PMD_ORDER)

    def give_2m(self, pfn: int) -> None:
        """A 2 MB block is free again."""
        self.nr_free_pages += PMD_PAGES
        pud = pfn >> PUD_ORDER
        blocks = self.partial_1g.get(pud)
        if blocks is None:
            self.partial_1g[pud] = [pfn]
            return
        blocks.append(pfn)
        if len(blocks) == PUD_PAGES // PMD_PAGES:
            del self.partial_1g[pud]
            self.free_1g.append(pud << PUD_ORDER)

    def give_1g(self, pfn: int) -> None:
        """A 1 GB block is free again."""
        self.nr_free_pages += PUD_PAGES
        self.free_1g.append(pfn)

    def outstanding(self) -> Iterator[tuple[int, int, str]]:
        """(pfn, number of pages, call site) of everything that is allocated, by PFN.

        Huge pages that sit in a hugetlb pool are not outstanding.
        """
        rows = [(pfn, 1, site) for pfn, site in self.site_of.items()]
        rows += [(pfn, f.nr_pages, f.site) for pfn, f in self.folios.items()]
        rows += [(pfn, b.remaining, b.site) for pfn, b in self.split_blocks.items()]
        rows += [(pfn, 1 << r.order, r.site) for pfn, r in self.restructured.items()]
        yield from sorted(rows)


def free_regions(config: MachineConfig) -> list[tuple[int, int]]:
    """[start PFN, end PFN) of the memory that the page allocator manages: the TDMRs without
    their reserved areas, and without frame 0."""
    regions: list[tuple[int, int]] = []
    for tdmr in config.tdmrs:
        at = tdmr.base
        end = tdmr.base + tdmr.size
        for offset, size in sorted(tdmr.reserved):
            if tdmr.base + offset > at:
                regions.append((at >> 12, (tdmr.base + offset) >> 12))
            at = max(at, tdmr.base + offset + size)
        if at < end:
            regions.append((at >> 12, end >> 12))
    return [(max(start, 1), end) for start, end in regions if end > 1]
