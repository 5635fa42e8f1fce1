"""The promise `mirror`."""

from __future__ import annotations

from array import array
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from septum.abi.kvm import KVM_LPAGE_GUEST_INHIBIT_FLAG, PAGES_PER_HPAGE, PG_LEVEL_2M
from septum.abi.sept import BLOCKED, PS, STATE_MASK
from septum.abi.spte import (
    FROZEN_SPTE,
    PT_PAGE_SIZE_MASK,
    SPTE_BASE_ADDR_MASK,
    SPTE_MMU_PRESENT_MASK,
    is_last_spte,
)
from septum.checks.promise import Promise
from septum.checks.sept import (
    ALL_ONES,
    END_GFN,
    MEMO_MAX,
    NOT_PRESENT_STATES,
    NR,
    as_int,
    entries_of,
    every_entry,
    is_linked_table,
    is_mapped_leaf,
    unwritten,
)
from septum.checks.text import entry_text, level_text

if TYPE_CHECKING:
    from septum.checks.checker import Checker
    from septum.checks.sept import Content, Tree
    from septum.checks.view import VmView
    from septum.linux.kvm.types import KvmMmuPage
    from septum.machine import TablePage

MAX_DIFFERENCES = 4
_STATS = ("pages_4k", "pages_2m", "pages_1g")
Leaves = tuple[int, int, int]
"""Numbers of leaves of 4 KB, 2 MB and 1 GB."""
_Child = tuple[int, int, int]
"""(GFN relative to the table's, mirror entry, S-EPT entry)."""
_PRESENT_SHIFT = SPTE_MMU_PRESENT_MASK.bit_length() - 1
_PS_SHIFT = PS.bit_length() - 1
_BLOCKED_SHIFT = BLOCKED.bit_length() - 1


class Difference(NamedTuple):
    """An entry that KVM and the S-EPT see differently; `level` is KVM's."""

    gfn: int
    level: int
    spte: int
    sept: int
    why: str


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

    __slots__ = ("_alike", "_counted")
    name = "mirror"

    def __init__(self, checker: Checker) -> None:
        super().__init__(checker)
        # By VM and S-EPT page: what two tables held when they agreed. They are not compared again
        # before one of them changes.
        self._alike: dict[str, dict[int, _Pair]] = {}
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
        differences: list[Difference] = []
        if root is None:
            self._check_sept_empty(vm)
            return
        walker = _Walker(vm, differences, self._alike.setdefault(vm.name, {}), first_gfn, end_gfn)
        if root.level != td.root_level + 1:
            why = f"; the S-EPT has {td.root_level + 1} levels"
            differences.append(Difference(0, root.level, 0, 0, why))
        else:
            walker.compare(td.root, root.spt, td.root_level, 0)
        changing = self.checker.changing(vm)
        for found in differences:
            if any(_covers(entry, found) for entry in changing):
                continue
            self.broken((vm.name, found.gfn, found.level), self._text(vm, found))
        if first_gfn == 0 and end_gfn >= END_GFN and not writing and not kvm.mmu_lock.readers:
            self._check_stats(vm, root)
        if not writing:
            self._check_inhibit(vm, first_gfn, end_gfn)

    def changed(self, vm: VmView) -> list[tuple[int, int]]:
        """Mirror tables that do not hold what they held when they agreed with the S-EPT."""
        tables = vm.world.machine.tables
        contents = vm.reader.contents
        spans = []
        for pair in self._alike.get(vm.name, {}).values():
            spt = tables.get(pair.spt_pfn)
            if (
                spt is not None
                and spt.written != pair.spt_written
                and contents.of(spt) != pair.mirror
            ):
                spans.append((pair.gfn, pair.gfn + (NR << 9 * pair.level)))
        return spans

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
            run = runs[0]
            self.broken(
                (vm.name, "no mirror root"),
                f"{vm.name}: there is no mirror root, and the S-EPT maps GFN {run[0]:#x} at "
                f"{level_text(run[2])} to PFN {run[4]:#x}",
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
        if known is not None and known[0][0][0] is root.spt and unwritten(known[0]):
            return known[1]
        tree, leaves = count_leaves(vm, root)
        if tree:
            self._counted[root.spt.pfn] = (tree, leaves)
        else:
            self._counted.pop(root.spt.pfn, None)
        return leaves

    def _check_inhibit(self, vm: VmView, first_gfn: int, end_gfn: int) -> None:
        """Where the guest's accept level forbids 2 MB, there is no 2 MB leaf."""
        for slot in vm.kvm.memslots.values():
            base = slot.base_gfn >> 9
            for idx, value in slot.lpage_info[PG_LEVEL_2M - 2].items():
                if not value & KVM_LPAGE_GUEST_INHIBIT_FLAG:
                    continue
                gfn = (base + idx) << 9
                if not first_gfn < gfn + NR or gfn >= end_gfn:
                    continue
                level, entry = vm.walk(gfn)
                if level == PG_LEVEL_2M and entry & PS:
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


def count_leaves(vm: VmView, root: KvmMmuPage) -> tuple[Tree, Leaves]:
    """Leaves of one of KVM's page tables by level, and the tables that were read for that; none
    when one is missing, so that it may appear."""
    counts = [0, 0, 0, 0, 0, 0]
    tables = vm.world.machine.tables
    contents = vm.reader.contents
    todo = [(root.spt, root.level)]
    tree: Tree = []
    whole = True
    mmio = vm.kvm.arch.shadow_mmio_value
    while todo:
        page, level = todo.pop()
        tree.append((page, page.written))
        nr, below = _count(contents.of(page), level, mmio)
        counts[level] += nr
        for pfn in below:
            child = tables.get(pfn)
            if child is not None:
                todo.append((child, level - 1))
            else:
                whole = False
    return tree if whole else [], (counts[1], counts[2], counts[3])


@lru_cache(MEMO_MAX)
def _count(held: Content, level: int, mmio: int) -> tuple[int, tuple[int, ...]]:
    """(leaves, PFNs of tables below) of one of KVM's tables of level `level` that holds this."""
    if not isinstance(held, bytes):
        spte = held[0]
        if not spte & SPTE_MMU_PRESENT_MASK or spte == mmio:
            return 0, ()
        if is_last_spte(spte, level):
            return NR, ()
    elif level == 1:
        return (as_int(held) >> _PRESENT_SHIFT & ALL_ONES).bit_count(), ()
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


class _Compared(NamedTuple):
    """Two tables entry by entry: tables below both, and what is not alike, with offsets in GFNs."""

    children: tuple[_Child, ...]
    unlike: tuple[_Child, ...]
    """Also entries that are frozen, which may be anything while somebody holds mmu_lock."""


_ALIKE = _Compared((), ())


@lru_cache(MEMO_MAX)
def _compare(mirror: Content, sept: Content, level: int, hpa_mask: int) -> _Compared:
    """A mirror table and an S-EPT table of TDX level `level` that hold this."""
    if _alike_at_once(mirror, sept, level, hpa_mask):
        return _ALIKE
    shift = 9 * level
    leaf_mask = hpa_mask & -(1 << shift + 12)
    children: list[_Child] = []
    unlike: list[_Child] = []
    offset = 0
    for m, s in zip(entries_of(mirror), entries_of(sept), strict=True):
        if not m & SPTE_MMU_PRESENT_MASK:
            if m == FROZEN_SPTE or s & STATE_MASK not in NOT_PRESENT_STATES:
                unlike.append((offset, m, s))
        elif level == 0 or m & PT_PAGE_SIZE_MASK:
            if not is_mapped_leaf(s) or (s ^ m) & leaf_mask:
                unlike.append((offset, m, s))
        else:
            children.append((offset, m, s))
        offset += 1 << shift
    return _Compared(tuple(children), tuple(unlike))


def _alike_at_once(mirror: Content, sept: Content, level: int, hpa_mask: int) -> bool:
    """Templates that agree, and 4 KB tables that agree as one integer, are not walked."""
    if not isinstance(mirror, bytes) and not isinstance(sept, bytes):
        (s, s_stride), (m, m_stride) = sept, mirror
        if not m & SPTE_MMU_PRESENT_MASK:
            return (
                s_stride == m_stride == 0
                and m != FROZEN_SPTE
                and s & STATE_MASK in NOT_PRESENT_STATES
            )
        return (
            is_mapped_leaf(s)
            and s_stride == m_stride == 1 << 9 * level + 12
            and not (s ^ m) & hpa_mask & -(s_stride)
            and (level == 0 or bool(m & PT_PAGE_SIZE_MASK))
        )
    if level:
        return False
    s_all, m_all = _table_as_int(sept), _table_as_int(mirror)
    present = m_all >> _PRESENT_SHIFT & ALL_ONES
    if present != s_all >> _PS_SHIFT & ~(s_all >> _BLOCKED_SHIFT) & ALL_ONES:
        return False
    # Entries that are not present have no PFN on either side, but for frozen ones.
    return not (s_all ^ m_all) & every_entry(hpa_mask)


def _table_as_int(held: Content) -> int:
    return as_int(held if isinstance(held, bytes) else array("Q", entries_of(held)).tobytes())


class _Pair:
    """Two tables of TDX level `level` from `gfn` on that agreed, and the tables below them.

    `sept_written` and `spt_written` are the numbers of their last writes when they were seen to
    hold `sept` and `mirror`.
    """

    __slots__ = (
        "children",
        "gfn",
        "level",
        "mirror",
        "sept",
        "sept_written",
        "spt_pfn",
        "spt_written",
    )

    def __init__(
        self,
        gfn: int,
        level: int,
        sept: Content,
        spt_pfn: int,
        mirror: Content,
        children: tuple[_Child, ...],
    ) -> None:
        self.gfn = gfn
        self.level = level
        self.sept = sept
        self.spt_pfn = spt_pfn
        self.mirror = mirror
        self.children = children
        self.sept_written = self.spt_written = -1


class _Walker:
    """The walk of both tables in step, within a window of GFNs."""

    __slots__ = (
        "alike",
        "contents",
        "end_gfn",
        "first_gfn",
        "found",
        "frozen_allowed",
        "hpa_mask",
        "page_private",
        "tables",
    )

    def __init__(
        self,
        vm: VmView,
        found: list[Difference],
        alike: dict[int, _Pair],
        first_gfn: int,
        end_gfn: int,
    ) -> None:
        self.found = found
        self.alike = alike
        self.first_gfn = first_gfn
        self.end_gfn = end_gfn
        self.hpa_mask = vm.hpa_mask
        self.contents = vm.reader.contents
        self.tables = vm.world.machine.tables
        self.page_private = vm.world.host.page_private
        self.frozen_allowed = bool(vm.kvm.mmu_lock.readers or vm.kvm.mmu_lock.writer)

    def add(self, gfn: int, level: int, spte: int, sept: int, why: str = "") -> None:
        """Note a difference; `level` is TDX's."""
        if len(self.found) < MAX_DIFFERENCES:
            self.found.append(Difference(gfn, level + 1, spte, sept, why))

    def compare(self, sept: TablePage, spt: TablePage, level: int, base_gfn: int) -> None:
        """Two tables of TDX level `level` that map from `base_gfn`."""
        pair = self.alike.get(sept.pfn)
        if (
            pair is not None
            and pair.spt_pfn == spt.pfn
            and pair.spt_written == spt.written
            and pair.sept_written == sept.written
        ):
            children = pair.children
        else:
            children = self._compare_tables(pair, sept, spt, level, base_gfn)
        size = 1 << 9 * level
        for offset, m, s in children:
            gfn = base_gfn + offset
            if gfn < self.end_gfn and gfn + size > self.first_gfn:
                self._compare_child(gfn, level, m, s)

    def _compare_tables(
        self, pair: _Pair | None, sept: TablePage, spt: TablePage, level: int, base_gfn: int
    ) -> tuple[_Child, ...]:
        """Compare two tables of which one was written; returns the tables below."""
        sept_now, spt_now = self.contents.of(sept), self.contents.of(spt)
        if (
            pair is None
            or pair.spt_pfn != spt.pfn
            or pair.sept != sept_now
            or pair.mirror != spt_now
        ):
            children, unlike = _compare(spt_now, sept_now, level, self.hpa_mask)
            if unlike:
                # Not settled: look again next time, but go down now.
                self.alike.pop(sept.pfn, None)
                self._add_unlike(unlike, level, base_gfn)
                return children
            pair = _Pair(base_gfn, level, sept_now, spt.pfn, spt_now, children)
            self.alike[sept.pfn] = pair
        pair.sept_written, pair.spt_written = sept.written, spt.written
        return pair.children

    def _add_unlike(self, unlike: tuple[_Child, ...], level: int, base_gfn: int) -> None:
        for offset, m, s in unlike:
            if m != FROZEN_SPTE:
                self.add(base_gfn + offset, level, m, s)
            elif not self.frozen_allowed:
                self.add(base_gfn + offset, level, m, s, ", and nobody holds mmu_lock")

    def _compare_child(self, gfn: int, level: int, m: int, s: int) -> None:
        sp = self.page_private.get((m & SPTE_BASE_ADDR_MASK) >> 12)
        if not is_linked_table(s) or sp is None:
            self.add(gfn, level, m, s)
            return
        pfn = (s & self.hpa_mask) >> 12
        if sp.external_spt != pfn:
            external = "none" if sp.external_spt is None else f"{sp.external_spt:#x}"
            self.add(gfn, level, m, s, f"; KVM believes the S-EPT page is {external}")
            return
        child = self.tables.get(pfn)
        if child is None:
            self.add(gfn, level, m, s, "; that page is no table")
            return
        self.compare(child, sp.spt, level - 1, gfn)
