"""The promise `mirror`."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from septum.abi.kvm import KVM_LPAGE_GUEST_INHIBIT_FLAG, PAGES_PER_HPAGE, PG_LEVEL_2M
from septum.abi.spte import (
    FROZEN_SPTE,
    SPTE_BASE_ADDR_MASK,
    SPTE_MMU_PRESENT_MASK,
    is_last_spte,
)
from septum.checks.agree import PRESENT_SHIFT, Difference, TwoTables
from septum.checks.promise import Promise
from septum.checks.sept import (
    ALL_ONES,
    END_GFN,
    MEMO_MAX,
    NR,
    Tree,
    as_int,
    entries_of,
)
from septum.checks.text import entry_text, level_text

if TYPE_CHECKING:
    from septum.checks.checker import Checker
    from septum.checks.sept import Content
    from septum.checks.view import VmView
    from septum.linux.kvm.types import KvmMmuPage
    from septum.module.state import Td

_STATS = ("pages_4k", "pages_2m", "pages_1g")
Leaves = tuple[int, int, int]
"""Numbers of leaves of 4 KB, 2 MB and 1 GB."""


class Mirror(Promise):
    """Outside a frozen transition, the mirror page table and the Secure EPT agree: presence, level,
    pfn.

    On real hardware KVM then zaps, splits or maps what is not there: a SEAMCALL fails, KVM_BUG_ON
    ends the VM, and pages that the TD still owns go back to the host.
    """

    # An entry is in transition
    #  - while it is frozen: the reader of mmu_lock who froze it is between its compare-exchange
    #    and the write that ends the freeze. The entry and all below it are not compared;
    #  - from the moment when the holder of mmu_lock for writing writes it in the mirror to the
    #    moment when the S-EPT has followed, which takes several SEAMCALLs (tdp_mmu_set_spte()).
    #    The entry and all below it may differ; everything else agrees, lock or no lock.
    # A VM that is bugged has broken `no-bug` already, and its two sides may differ for ever. Once
    # the key is blocked the S-EPT is dead: then the mirror may have no leaf.

    __slots__ = ("_counted", "_tables")
    name = "mirror"

    def __init__(self, checker: Checker) -> None:
        super().__init__(checker)
        self._tables: dict[str, TwoTables] = {}  # by VM
        # By PFN of a root of KVM: its tables, and the leaves that were counted in them.
        self._counted: dict[int, tuple[Tree, Leaves]] = {}

    def look(self, vm: VmView, first_gfn: int = 0, end_gfn: int = END_GFN) -> None:
        """Walk both tables in step; then see KVM's statistics and inhibit flags."""
        kvm = vm.kvm
        if kvm.vm_bugged:
            return
        td = vm.td
        root = vm.mirror_root()
        writing = kvm.mmu_lock.writer is not None
        if td is None or td.root is None:
            return
        if not vm.has_key():
            if not writing:
                self._check_no_leaf(vm)
            return
        if root is None:
            self._check_sept_empty(vm)
            return
        if root.level != td.root_level + 1:
            self.broken(
                (vm.name, "levels"),
                f"{vm.name}: the mirror has {root.level} levels, and the S-EPT has "
                f"{td.root_level + 1}",
            )
            return
        for found in self._differences(vm, td, root, (first_gfn, end_gfn)):
            if not any(_covers(entry, found) for entry in self.checker.changing(vm)):
                self.broken((vm.name, found.gfn, found.level), self._text(vm, found))
        if first_gfn == 0 and end_gfn >= END_GFN and not writing and not kvm.mmu_lock.readers:
            self._check_stats(vm, root)
        if not writing:
            self._check_inhibit(vm, first_gfn, end_gfn)

    def _differences(
        self, vm: VmView, td: Td, root: KvmMmuPage, window: tuple[int, int]
    ) -> list[Difference]:
        assert td.root is not None
        both = self._tables.get(vm.name)
        if both is None:
            both = self._tables[vm.name] = TwoTables(vm)
        return both.differences(td.root, root.spt, td.root_level, window)

    def changed(self, vm: VmView) -> list[tuple[int, int]]:
        """Mirror tables that do not hold what they held when they were compared last."""
        both = self._tables.get(vm.name)
        if both is None or vm.kvm.vm_bugged or vm.mirror_root() is None:
            return []  # a look would not compare them
        return both.changed()

    def _text(self, vm: VmView, found: Difference) -> str:
        spte, level = found.spte, found.level
        if spte == FROZEN_SPTE:
            belief = "frozen"
        elif not spte & SPTE_MMU_PRESENT_MASK:
            belief = "not present"
        else:
            kind = "leaf" if is_last_spte(spte, level) else "table"
            belief = f"a {kind}, PFN {(spte & SPTE_BASE_ADDR_MASK) >> 12:#x}"
        truth = entry_text(found.sept, vm.hpa_mask)
        return (
            f"{vm.name}: GFN {found.gfn:#x} at {level_text(level)}: the mirror has {belief} "
            f"({spte:#x}), the S-EPT has {truth} ({found.sept:#x}){found.why}"
        )

    def _check_no_leaf(self, vm: VmView) -> None:
        root = vm.mirror_root()
        if root is None:
            return
        counts = leaf_counts(vm, root)
        if any(counts.values()):
            self.broken(
                (vm.name, "leaf without key"),
                f"{vm.name}: the HKID is released, and the mirror still has leaves "
                f"({_counts_text(counts)})",
            )

    def _check_sept_empty(self, vm: VmView) -> None:
        runs = vm.runs()
        if runs:
            gfn, _, level, _, pfn = runs[0]
            self.broken(
                (vm.name, "no mirror root"),
                f"{vm.name}: there is no mirror root, and the S-EPT maps GFN {gfn:#x} at "
                f"{level_text(level)} to PFN {pfn:#x}",
            )

    def _check_stats(self, vm: VmView, mirror: KvmMmuPage) -> None:
        """pages_4k, pages_2m and pages_1g count the leaves of all roots."""
        nr_4k, nr_2m, nr_1g = self._count(vm, mirror)
        for root in vm.kvm.arch.tdp_mmu_roots:
            if root is not mirror:
                more_4k, more_2m, more_1g = self._count(vm, root)
                nr_4k += more_4k
                nr_2m += more_2m
                nr_1g += more_1g
        get = vm.kvm.stat.get
        if (get("pages_4k"), get("pages_2m"), get("pages_1g")) != (nr_4k, nr_2m, nr_1g):
            counts = dict(zip(_STATS, (nr_4k, nr_2m, nr_1g), strict=True))
            stat = {name: get(name) for name in counts}
            self.broken(
                (vm.name, "stats"),
                f"{vm.name}: KVM's statistics say {_counts_text(stat)}, its page tables have "
                f"{_counts_text(counts)}",
            )

    def _count(self, vm: VmView, root: KvmMmuPage) -> Leaves:
        """The leaves of a root, counted again when a table of it was written."""
        known = self._counted.get(root.spt.pfn)
        if known is not None and known[0].is_as_read(root.spt):
            return known[1]
        tree, leaves = count_leaves(vm, root)
        if tree is not None:
            self._counted[root.spt.pfn] = (tree, leaves)
        else:
            self._counted.pop(root.spt.pfn, None)
        return leaves

    def _check_inhibit(self, vm: VmView, first_gfn: int, end_gfn: int) -> None:
        """Where the guest's accept level forbids 2 MB, there is no 2 MB leaf."""
        huge = [run for run in vm.runs(first_gfn, end_gfn) if run[2] == PG_LEVEL_2M]
        if not huge:
            return
        for slot in vm.kvm.memslots.values():
            base = slot.base_gfn >> 9
            for idx, value in slot.lpage_info[PG_LEVEL_2M - 2].items():
                if not value & KVM_LPAGE_GUEST_INHIBIT_FLAG:
                    continue
                gfn = (base + idx) << 9
                if any(start <= gfn < start + nr for start, nr, _, _, _ in huge):
                    self.broken(
                        (vm.name, "inhibit", gfn),
                        f"{vm.name}: GFN {gfn:#x} is mapped at 2M although lpage_info has the "
                        f"guest-inhibit flag there ({value:#x})",
                    )


def _covers(entry: tuple[int, int], found: Difference) -> bool:
    """Whether a difference is at the entry (GFN, level) or below it."""
    gfn, level = entry
    return found.level <= level and gfn <= found.gfn < gfn + PAGES_PER_HPAGE[level]


def _counts_text(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {nr}" for name, nr in counts.items())


def leaf_counts(vm: VmView, root: KvmMmuPage) -> dict[str, int]:
    """Leaves of one of KVM's page tables, by the name of the statistic."""
    return dict(zip(_STATS, count_leaves(vm, root)[1], strict=True))


def count_leaves(vm: VmView, root: KvmMmuPage) -> tuple[Tree | None, Leaves]:
    """Leaves of one of KVM's page tables by level, and the tables that were read for that; None
    when one is missing, so that it may appear."""
    counts = [0, 0, 0, 0, 0, 0]
    tables = vm.world.machine.tables
    contents = vm.reader.contents
    todo = [(root.spt, root.level)]
    tree = Tree()
    whole = True
    while todo:
        page, level = todo.pop()
        held = contents.of(page)
        tree.add(page, held)
        nr, below = _count(held, level)
        counts[level] += nr
        for pfn in below:
            child = tables.get(pfn)
            if child is not None:
                todo.append((child, level - 1))
            else:
                whole = False
    return tree if whole else None, (counts[1], counts[2], counts[3])


@lru_cache(MEMO_MAX)
def _count(held: Content, level: int) -> tuple[int, tuple[int, ...]]:
    """(leaves, PFNs of tables below) of one of KVM's tables of level `level` that holds this."""
    if not isinstance(held, bytes):
        spte = held[0]
        if not spte & SPTE_MMU_PRESENT_MASK:
            return 0, ()
        if is_last_spte(spte, level):
            return NR, ()
    elif level == 1:
        return (as_int(held) >> PRESENT_SHIFT & ALL_ONES).bit_count(), ()
    nr = 0
    below: list[int] = []
    for spte in entries_of(held):
        if not spte & SPTE_MMU_PRESENT_MASK:
            continue
        if is_last_spte(spte, level):
            nr += 1
        else:
            below.append((spte & SPTE_BASE_ADDR_MASK) >> 12)
    return nr, tuple(below)
