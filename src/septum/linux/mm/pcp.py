"""Per-CPU lists of free 4 KB pages in front of the allocator, as in mm/page_alloc.c.

So which page an allocation gets depends on what its own CPU took and freed before, and on other
CPUs only when a list runs out or overflows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from septum.linux.mm.state import MmState

PCP_BATCH = 64
PCP_HIGH = 6 * PCP_BATCH


class PcpLists:
    """struct per_cpu_pages of every CPU. The page that came last is handed out first."""

    __slots__ = ("_lists", "_state")

    def __init__(self, state: MmState, nr_cpus: int) -> None:
        self._state = state
        self._lists: list[list[int]] = [[] for _ in range(nr_cpus)]

    @property
    def nr_pages(self) -> int:
        """Free pages in all lists."""
        return sum(map(len, self._lists))

    def take(self, cpu: int) -> int | None:
        """rmqueue_pcplist(): the PFN of a free page for `cpu`, or None when memory is used up."""
        pages = self._lists[cpu]
        if not pages:
            self.refill(cpu)
            if not pages:
                self.drain_all()
                return self._state.take_4k()
        return pages.pop()

    def give(self, cpu: int, pfn: int) -> None:
        """free_frozen_page_commit(): `cpu` frees a page."""
        pages = self._lists[cpu]
        pages.append(pfn)
        if len(pages) > PCP_HIGH:
            for oldest in pages[:PCP_BATCH]:
                self._state.give_4k(oldest)
            del pages[:PCP_BATCH]

    def refill(self, cpu: int) -> None:
        """rmqueue_bulk(): a batch from the allocator, if it has as much."""
        pages = self._lists[cpu]
        batch: list[int] = []
        while len(batch) + len(pages) < PCP_BATCH:
            pfn = self._state.take_4k()
            if pfn is None:
                break
            batch.append(pfn)
        # Handed out in the order in which the allocator gave them.
        pages[:0] = reversed(batch)

    def refill_all(self) -> None:
        """Every CPU has a batch, as on a machine that has been up for a while."""
        for cpu in range(len(self._lists)):
            self.refill(cpu)

    def drain_all(self) -> None:
        """drain_all_pages(): everything back to the allocator, where it is joined."""
        for pages in self._lists:
            for pfn in pages:
                self._state.give_4k(pfn)
            pages.clear()
