"""HugeTLB pools, subpools, and restructuring: huge folios that are split and merged in place.

Mirrors mm/hugetlb.c, mm/hugetlb_vmemmap.c and mm/hugetlb_restructuring.c of the tree that v3 is
posted on, as callers in guest_memfd see them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.errno import ENOMEM
from septum.abi.types import Pfn
from septum.linux.mm.folio import Folio, Subpool
from septum.linux.mm.state import PMD_ORDER, PUD_ORDER, HugetlbPool, MmState, Restructured
from septum.linux.unit import Unit

if TYPE_CHECKING:
    from septum.linux.host import Host
    from septum.sim import Memo


class MmHugetlb(Unit):
    """The hugetlb half of `Mm`."""

    __slots__ = ("_choice_names", "state")

    state: MmState
    _choice_names: Memo[str, str]

    def __init__(self, host: Host) -> None:
        super().__init__(host)

    def fails(self, site: str) -> bool:
        """See `Mm.fails`."""
        raise NotImplementedError

    def set_nr_hugepages(self, order: int, nr: int) -> int:
        """Write `nr` to nr_hugepages of the pool of `order` (9 or 18); returns what it has now.

        As with the kernel command line, fewer pages than asked for are no error.
        """
        pool = self.state.pools.get(order)
        if pool is None:
            pool = self.state.pools[order] = HugetlbPool(order)
        fresh: list[int] = []
        while pool.max_huge_pages < nr:
            pfn = self.state.take_huge(order)
            if pfn is None:
                break
            fresh.append(pfn)
            pool.max_huge_pages += 1
        # The last one is the head of the free list: the lowest is given out first.
        pool.free[:0] = reversed(fresh)
        return pool.max_huge_pages

    def hugetlb_order_to_hstate(self, order: int) -> HugetlbPool | None:
        """The pool of huge pages of `order`, or None where there is none."""
        return self.state.pools.get(order)

    def hugepage_new_subpool(self, order: int, hpages: int) -> Subpool | None:
        """hugepage_new_subpool(h, hpages, hpages): reserve `hpages` now; None when short."""
        pool = self.state.pools.get(order)
        if pool is None or pool.free_huge_pages - pool.resv_huge_pages < hpages:
            return None
        if self.fails("hugetlb_subpool"):
            return None
        pool.resv_huge_pages += hpages
        return Subpool(order, hpages)

    def hugepage_put_subpool(self, subpool: Subpool) -> None:
        """The inode is gone. What it reserved is given up when its last huge page is back."""
        subpool.count -= 1
        self._release_subpool(subpool)

    def _release_subpool(self, subpool: Subpool) -> None:
        """unlock_or_release_subpool()."""
        if not subpool.count and subpool.rsv_hpages == subpool.min_hpages:
            self.state.pools[subpool.order].resv_huge_pages -= subpool.rsv_hpages
            subpool.min_hpages = subpool.rsv_hpages = 0

    def hugetlb_alloc_folio(self, subpool: Subpool, site: str) -> Folio | None:
        """A huge folio from the subpool's reservation, with one reference; None when short.

        The restructuring metadata is recorded with it.
        Source: guest_memfd_hugetlb.c gmem_hugetlb_alloc_folio.
        """
        self.sim.might_sleep(site)
        self.sim.point("alloc")
        pool = self.state.pools[subpool.order]
        if self.fails(site) or not subpool.rsv_hpages or not pool.free:
            return None
        subpool.rsv_hpages -= 1
        pool.resv_huge_pages -= 1
        folio = Folio(Pfn(pool.free.pop()), subpool.order)
        folio.site = site
        folio.hugetlb = subpool
        folio.hugetlb_vmemmap_optimized = True
        self.state.folios[folio.pfn] = folio
        if not self.hugetlb_restructuring_metadata_store(folio):
            self.free_huge_folio(folio)
            return None
        return folio

    def hugetlb_restructuring_metadata_store(self, folio: Folio) -> bool:
        """Remember how large the folio was allocated; false without memory."""
        if self.fails("hugetlb_restructuring_metadata"):
            return False
        return self.hugetlb_restructuring_metadata_register(folio.pfn)

    def hugetlb_restructuring_metadata_register(self, pfn: int) -> bool:
        """A WARN when there is something about the PFN already; false without memory.

        SUSPECT: an error of the xarray WARNs, too, as the kernel tests what xa_store_order()
        returned for "an entry was there" before it tests it for an error.
        """
        known = self.state.restructuring_metadata
        failed = self.fails("hugetlb_restructuring_register")
        if failed or pfn in known:
            self.warn_on(
                "Unexpected duplicate metadata registered",
                "hugetlb_restructuring_metadata_register",
            )
        if not failed:
            known.add(pfn)
        return not failed

    def hugetlb_restructuring_metadata_restore(self, pfn: int) -> None:
        """The folio goes back to its pool as it came."""
        self.state.restructuring_metadata.discard(pfn)

    def free_huge_folio(self, folio: Folio) -> None:
        """free_huge_folio(): back to the pool; the reservation goes back to the subpool."""
        subpool = folio.hugetlb
        assert subpool is not None
        pool = self.state.pools[subpool.order]
        self.state.folios.pop(folio.pfn, None)
        pool.free.append(folio.pfn)
        subpool.rsv_hpages += 1
        pool.resv_huge_pages += 1
        self._release_subpool(subpool)

    # Restructuring: the struct page side. The page cache side is guest_memfd's.

    def hugetlb_vmemmap_restore_folio(self, folio: Folio) -> int:
        """Undo HVO: the tail struct pages need memory again. 0 or -ENOMEM."""
        if not folio.hugetlb_vmemmap_optimized:
            return 0
        if self.fails("hugetlb_vmemmap_restore"):
            return -ENOMEM
        folio.hugetlb_vmemmap_optimized = False
        return 0

    def restructure_forget_huge(self, folio: Folio) -> None:
        """The huge folio is now small folios: page_folio() of its pages is of order 0."""
        self.state.folios.pop(folio.pfn, None)
        assert folio.hugetlb is not None
        self.state.restructured[folio.pfn] = Restructured(folio.order, folio.hugetlb, folio.site)

    def restructure_put_small(self, pfn: int, nr_pages: int) -> None:
        """`nr_pages` small folios around `pfn` lost their last reference: with the last of all,
        the huge folio is made again and goes back to its pool.

        MODEL: at once, where the kernel has a workqueue do it.
        Source: hugetlb_restructuring.c maybe_merge_unreferenced_folio().
        """
        head = self._restructured_head(pfn)
        meta = self.state.restructured[head]
        meta.nr_pages_waiting_to_be_merged += nr_pages
        if meta.nr_pages_waiting_to_be_merged < 1 << meta.order:
            return
        folio = self.restructure_make_huge(head, meta.subpool, meta.site)
        self.hugetlb_restructuring_metadata_restore(head)
        self.free_huge_folio(folio)

    def _restructured_head(self, pfn: int) -> int:
        """First PFN of the split huge folio that holds `pfn`; -1 when there is none."""
        for order in (PMD_ORDER, PUD_ORDER):
            head = pfn >> order << order
            meta = self.state.restructured.get(head)
            if meta is not None and meta.order == order:
                return head
        return -1

    def restructure_make_huge(self, pfn: int, subpool: Subpool, site: str) -> Folio:
        """merge_unreferenced_folio(): one huge folio again, HVO applied. Cannot fail."""
        folio = Folio(Pfn(pfn), subpool.order)
        folio.site = site
        folio.hugetlb = subpool
        folio.hugetlb_vmemmap_optimized = True
        self.state.restructured.pop(pfn, None)
        self.state.folios[pfn] = folio
        return folio
