"""Pages and folios: allocation with named failures, accounting, and struct page look-ups.

Mirrors what callers see of mm/page_alloc.c and mm/huge_memory.c. Each allocation is the choice
point `alloc:<site>`; outcome 1 is failure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.types import Pfn
from septum.linux.mm.folio import Folio
from septum.linux.mm.state import PMD_ORDER, PUD_ORDER, MmState, SplitBlock, free_regions
from septum.linux.mm.user import MmUser
from septum.sim import Memo, RwSem, WaitQueue

if TYPE_CHECKING:
    from collections.abc import Iterator

    from septum.linux.host import Host


class Mm(MmUser):
    """The page allocator over the memory of the TDMRs."""

    __slots__ = ()

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.state = MmState(
            WaitQueue(self.sim, "folio references"),
            RwSem(self.sim, "mmap_lock"),
            self.machine.config.num_lps,
        )
        self._choice_names = Memo[str, str](lambda site: f"alloc:{site}")
        for start, end in free_regions(self.machine.config):
            self.state.add_region(start, end)

    def fails(self, site: str) -> bool:
        """Whether the allocation at `site` fails this time: the choice point `alloc:<site>`.

        Also for allocations whose memory Septum does not model (maple nodes, vmemmap, headers).
        """
        return self.sim.choose(self._choice_names[site]) != 0

    # 4 KB pages

    def alloc_page(self, site: str, atomic: bool = False) -> Pfn | None:
        """alloc_page(GFP_KERNEL_ACCOUNT), or GFP_ATOMIC if `atomic`: a PFN, or None.

        The content is whatever the last owner left.
        """
        if not atomic:
            self.sim.might_sleep(site)
        self.sim.point("alloc")
        if self.fails(site):
            return None
        pfn = self.state.pcp.take(self.sim.current.cpu)
        if pfn is None:
            return None
        self.state.site_of[pfn] = site
        return Pfn(pfn)

    def get_zeroed_page(self, site: str, atomic: bool = False) -> Pfn | None:
        """get_zeroed_page(): as `alloc_page`, and the page is cleared by the host."""
        pfn = self.alloc_page(site, atomic)
        if pfn is not None:
            self.machine.mem.write(pfn, 0, 0)
        return pfn

    def free_page(self, pfn: int) -> None:
        """__free_page(). Freeing what is not allocated is a bad page state: finding `no-bug`."""
        state = self.state
        if state.site_of.pop(pfn, None) is not None:
            state.pcp.give(self.sim.current.cpu, pfn)
            return
        if not self._free_part_of_split_block(pfn):
            self.sim.find("no-bug", f"BUG: bad page state, free of free pfn {pfn:#x}", where="mm")

    def _free_part_of_split_block(self, pfn: int) -> bool:
        state = self.state
        for order in (PMD_ORDER, PUD_ORDER):
            head = pfn >> order << order
            block = state.split_blocks.get(head)
            if block is None or block.order != order:
                continue
            if pfn in block.freed:
                return False
            block.freed.add(pfn)
            block.remaining -= 1
            if not block.remaining:
                del state.split_blocks[head]
            state.pcp.give(self.sim.current.cpu, pfn)
            return True
        return False

    # Folios

    def alloc_folio(self, order: int, site: str) -> Folio | None:
        """folio_alloc(GFP_HIGHUSER, order) for order 0, 9 or 18, with one reference; or None."""
        self.sim.might_sleep(site)
        self.sim.point("alloc")
        if self.fails(site):
            return None
        state = self.state
        if order == 0:
            pfn = state.pcp.take(self.sim.current.cpu)
        else:
            pfn = state.take_huge(order)
        if pfn is None:
            return None
        folio = Folio(Pfn(pfn), order)
        folio.site = site
        if order == 0:
            state.site_of[pfn] = site
            state.small_folios[pfn] = folio
        else:
            state.folios[pfn] = folio
        return folio

    def free_folio(self, folio: Folio) -> None:
        """The last reference of a folio is gone: back to the allocator or to its hugetlb pool."""
        state = self.state
        if folio.order == 0:
            state.small_folios.pop(folio.pfn, None)
            if folio.hugetlb is not None:
                self.restructure_put_small(folio.pfn, 1)
                return
            self.free_page(folio.pfn)
            return
        if folio.hugetlb is not None:
            self.free_huge_folio(folio)
            return
        if state.folios.pop(folio.pfn, None) is None:
            self.sim.find(
                "no-bug", f"BUG: bad page state, free of free folio {folio.pfn:#x}", where="mm"
            )
            return
        if folio.order == PMD_ORDER:
            state.give_2m(folio.pfn)
        else:
            state.give_1g(folio.pfn)

    def folio_put(self, folio: Folio) -> None:
        """folio_put(): drop one reference. Of one that has none it is a bad page state, as
        put_page_testzero() asserts where the kernel debugs its memory: finding `no-bug`."""
        if folio.refcount <= 0:
            self.sim.find(
                "no-bug",
                f"BUG: bad page state, folio_put() of {folio.pfn:#x}, which has no references",
                where="mm",
            )
            return
        folio.refcount -= 1
        if folio.refcount == 0:
            self.free_folio(folio)
        self.state.wq.wake_up_all()

    def put_page(self, pfn: int) -> None:
        """put_page(): drop one reference to the folio that holds the page."""
        self.folio_put(self.page_folio(pfn))

    def get_hwpoison_page(self, folio: Folio) -> None:
        """The reference that memory_failure() takes to a folio in use and never drops: from then
        on the folio has one more than the page cache's.

        unpoison_memory() would drop it, but refuses once real memory has failed.
        Source: mm/memory-failure.c __get_huge_page_for_hwpoison(), get_hwpoison_page(),
        has_extra_refcount().
        """
        folio.refcount += 1
        self.state.poisoned.add(folio.pfn)

    def split_folio(self, folio: Folio, site: str) -> bool:
        """split_folio() of a folio with no users but its page cache: true when it was split.

        The pages are then freed one by one with `free_page`. Fails with an unexpected reference
        (-EAGAIN in the kernel) or for want of memory (-ENOMEM).
        """
        self.sim.point("folio_ref_freeze", folio)
        if folio.refcount != folio.nr_pages + 1 or self.fails(site):
            return False
        self.state.folios.pop(folio.pfn)
        self.state.split_blocks[folio.pfn] = SplitBlock(folio.order, folio.site)
        return True

    # struct page

    def page_folio(self, pfn: int) -> Folio:
        """page_folio(pfn_to_page(pfn)): the folio that holds the page.

        MODEL: a page outside any page cache has no folio object; one is made up for it.
        """
        folios = self.state.folios
        folio = folios.get(pfn >> PMD_ORDER << PMD_ORDER)
        if folio is not None:
            return folio
        folio = self.state.small_folios.get(pfn)
        if folio is not None:
            return folio
        folio = folios.get(pfn >> PUD_ORDER << PUD_ORDER)
        if folio is not None and folio.order == PUD_ORDER:
            return folio
        return Folio(Pfn(pfn), 0)

    def is_allocated(self, pfn: int) -> bool:
        """Whether the page frame has an owner: it is neither free nor in a pool of huge pages."""
        state = self.state
        if pfn in state.site_of or pfn in state.small_folios:
            return True
        for order in (PMD_ORDER, PUD_ORDER):
            head = pfn >> order << order
            folio = state.folios.get(head)
            if folio is not None and folio.order >= order:
                return True
            block = state.split_blocks.get(head)
            if block is not None and block.order == order:
                return pfn not in block.freed
            if head in state.restructured:
                return True
        return False

    # Accounting

    def outstanding(self) -> Iterator[tuple[int, int, str]]:
        """(pfn, pages, call site) of every allocation that was not freed, by PFN."""
        return self.state.outstanding()

    @property
    def nr_free_pages(self) -> int:
        """Free 4 KB pages, those in per-CPU lists and hugetlb pools included."""
        pooled = sum(len(p.free) << p.order for p in self.state.pools.values())
        return self.state.nr_free_pages + self.state.pcp.nr_pages + pooled
