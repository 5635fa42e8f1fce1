"""Reading KVM's direct roots, which a TD's vCPUs have as the shared EPT: leaves, as runs of pages.

The walk is over all of it: shared memory is little, and what tables hold is mostly known.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from septum.abi.spte import SPTE_MMU_PRESENT_MASK, is_last_spte, spte_to_pfn
from septum.checks.sept import MEMO_MAX, Tree, entries_of

if TYPE_CHECKING:
    from septum.checks.sept import Below, Content, LeafRun
    from septum.checks.view import VmView
    from septum.linux.kvm.types import KvmMmuPage
    from septum.machine import TablePage


class SharedEpt:
    """The leaves of the direct roots of one VM. What was not written is not read again."""

    __slots__ = ("_known", "_vm")

    def __init__(self, vm: VmView) -> None:
        self._vm = vm
        # By PFN of a root: its tables, and the leaves that they have.
        self._known: dict[int, tuple[Tree, list[LeafRun]]] = {}

    def runs(self) -> list[LeafRun]:
        """The leaves of all roots that are valid; GFNs are without the shared bit."""
        found: list[LeafRun] = []
        for root in self._vm.kvm.arch.tdp_mmu_roots:
            if not root.is_mirror and not root.invalid:
                found += self._of_root(root)
        return found

    def _of_root(self, root: KvmMmuPage) -> list[LeafRun]:
        known = self._known.get(root.spt.pfn)
        if known is not None and known[0].is_as_read(root.spt):
            return known[1]
        tree = Tree()
        runs: list[LeafRun] = []
        if self._collect(root.spt, root.level, 0, tree, runs):
            self._known[root.spt.pfn] = (tree, runs)
        else:
            self._known.pop(root.spt.pfn, None)
        return runs

    def _collect(
        self, page: TablePage, level: int, gfn: int, tree: Tree, runs: list[LeafRun]
    ) -> bool:
        """Add what is at `page` and below it. False: a table is missing, and may appear."""
        held = self._vm.reader.contents.of(page)
        tree.add(page, held)
        direct_bits = self._vm.kvm.arch.gfn_direct_bits
        whole = True
        for part in _parts_of(held, level):
            at = (gfn + part[0]) & ~direct_bits
            if len(part) == 5:
                runs.append((at, *part[1:]))
                continue
            child = self._vm.world.machine.tables.get(part[1])
            if child is None or not self._collect(child, level - 1, at, tree, runs):
                whole = False
        return whole


@lru_cache(MEMO_MAX)
def _parts_of(held: Content, level: int) -> tuple[LeafRun | Below, ...]:
    """Leaf runs and tables below, ascending, of a table of KVM level `level` that holds this and
    maps from GFN 0."""
    if not isinstance(held, bytes) and not held[0] & SPTE_MMU_PRESENT_MASK:
        return ()
    pages = 1 << 9 * (level - 1)
    found: list[LeafRun | Below] = []
    start = nr = first_pfn = 0
    for nr_entry, spte in enumerate(entries_of(held)):
        gfn = nr_entry * pages
        leaf = spte & SPTE_MMU_PRESENT_MASK != 0 and is_last_spte(spte, level)
        pfn = spte_to_pfn(spte)
        if leaf and nr and start + nr == gfn and first_pfn + nr == pfn:
            nr += pages
            continue
        if nr:
            found.append((start, nr, level, 0, first_pfn))
            nr = 0
        if leaf:
            start, nr, first_pfn = gfn, pages, pfn
        elif spte & SPTE_MMU_PRESENT_MASK:
            found.append((gfn, pfn))
    if nr:
        found.append((start, nr, level, 0, first_pfn))
    return tuple(found)
