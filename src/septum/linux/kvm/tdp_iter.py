"""The walk over a page table of the TDP MMU: pre-order, from a first GFN on.

Source: arch/x86/kvm/mmu/tdp_iter.c, tdp_iter.h.

    it = TdpIter(...)                  for_each_tdp_pte_min_level(iter, kvm, root, min, start, end)
    while it.valid and it.gfn < end:
        ...
        it.next()

A task that drops mmu_lock in the loop sets `yielded`; the next `next()` then walks down from the
root again to where it was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.kvm import HPAGE_GFN_SHIFT, PAGES_PER_HPAGE, PG_LEVEL_4K
from septum.abi.spte import PT_PAGE_SIZE_MASK, SPTE_BASE_ADDR_MASK, SPTE_MMU_PRESENT_MASK

if TYPE_CHECKING:
    from septum.linux.kvm.types import KvmMmuPage
    from septum.machine.tables import TablePage


class TdpIter:
    """struct tdp_iter: where the walk is. `table` and `index` are `sptep`."""

    __slots__ = (
        "gfn",
        "gfn_bits",
        "index",
        "level",
        "min_level",
        "next_last_level_gfn",
        "old_spte",
        "pt_path",
        "root",
        "root_level",
        "table",
        "tables",
        "valid",
        "yielded",
        "yielded_gfn",
    )

    def __init__(
        self,
        tables: dict[int, TablePage],
        root: KvmMmuPage,
        min_level: int,
        next_last_level_gfn: int,
        gfn_bits: int,
    ) -> None:
        """tdp_iter_start(): stand on the root's entry that covers `next_last_level_gfn`.

        `gfn_bits` (the shared bit, for a direct root) selects the entry but is in no GFN.
        """
        self.tables = tables  # page frames as page tables: __va()
        self.root = root
        self.root_level = root.level
        self.min_level = min_level
        self.gfn_bits = gfn_bits
        self.next_last_level_gfn = next_last_level_gfn
        self.pt_path: list[TablePage] = [root.spt] * (root.level + 1)  # by level
        self.valid = not (gfn_bits and next_last_level_gfn >= gfn_bits)
        self.restart()

    def restart(self) -> None:
        """tdp_iter_restart(): from the root down again, to the last GFN reached."""
        self.yielded = False
        self.yielded_gfn = gfn = self.next_last_level_gfn
        self.level = level = self.root_level
        self._refresh_sptep(self.root.spt, gfn & -PAGES_PER_HPAGE[level], level)

    def _refresh_sptep(self, table: TablePage, gfn: int, level: int) -> None:
        """tdp_iter_refresh_sptep(): the entry for `gfn` in `table`, of `level`."""
        self.table = table
        self.gfn = gfn
        self.index = index = ((gfn | self.gfn_bits) >> HPAGE_GFN_SHIFT[level]) & 511
        self.old_spte = table.entry(index)

    def next(self) -> None:
        """tdp_iter_next(): down if there is a table below, else along, else up and along."""
        if self.yielded:
            self.restart()
            return
        level = self.level
        if level != self.min_level and self._try_step_down():
            return
        while True:
            # try_step_side()
            index = self.index
            if index != 511:
                self.gfn = self.next_last_level_gfn = self.gfn + PAGES_PER_HPAGE[level]
                self.index = index = index + 1
                self.old_spte = self.table.entry(index)
                return
            # try_step_up()
            if level == self.root_level:
                self.valid = False
                return
            self.level = level = level + 1
            self._refresh_sptep(self.pt_path[level], self.gfn & -PAGES_PER_HPAGE[level], level)

    def _try_step_down(self) -> bool:
        # Read again: the entry may have been changed since it was last read.
        self.old_spte = spte = self.table.entry(self.index)
        if not spte & SPTE_MMU_PRESENT_MASK or spte & PT_PAGE_SIZE_MASK:
            return False
        level = self.level
        if level == PG_LEVEL_4K:
            return False
        child = self.tables.get((spte & SPTE_BASE_ADDR_MASK) >> 12)
        if child is None:
            return False
        self.level = level = level - 1
        self.pt_path[level] = self.table = child
        self.gfn = gfn = self.next_last_level_gfn & -PAGES_PER_HPAGE[level]
        self.index = index = ((gfn | self.gfn_bits) >> HPAGE_GFN_SHIFT[level]) & 511
        self.old_spte = child.entry(index)
        return True

    def skip_nonpresent(self, end: int) -> None:
        """From an entry that is not present, on to the next entry that is, or past `end`.

        As many `next()` that nobody looks at. A table that is uniformly not present is left at
        once.
        """
        while True:
            table = self.table
            index = self.index
            entries = table.entries
            level = self.level
            step = PAGES_PER_HPAGE[level]
            last = min(511, index + (end - 1 - self.gfn) // step) if end > self.gfn else index
            found = -1
            if entries is not None:
                for at in range(index, last + 1):
                    if entries[at] & SPTE_MMU_PRESENT_MASK:
                        found = at
                        break
            elif table.base & SPTE_MMU_PRESENT_MASK:
                found = index
            at = found if found >= 0 else last
            if at != index:
                self.gfn = self.next_last_level_gfn = self.gfn + (at - index) * step
                self.index = at
                self.old_spte = table.entry(at)
            if found >= 0:
                return
            self.next()
            if not self.valid or self.gfn >= end or self.old_spte & SPTE_MMU_PRESENT_MASK:
                return
