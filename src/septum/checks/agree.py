"""Whether the S-EPT of a VM and KVM's mirror of it agree, table by table.

Two tables that did are not compared again before one of them is written; what comes of comparing
two contents is remembered, because the same come again and again.
"""

from __future__ import annotations

from array import array
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from septum.abi.sept import BLOCKED, PS, STATE_MASK
from septum.abi.spte import (
    FROZEN_SPTE,
    PT_PAGE_SIZE_MASK,
    SHADOW_NONPRESENT_VALUE,
    SPTE_BASE_ADDR_MASK,
    SPTE_MMU_PRESENT_MASK,
)
from septum.checks.sept import (
    ALL_ONES,
    EVERYTHING,
    MEMO_MAX,
    NOT_PRESENT_STATES,
    NR,
    as_int,
    entries_of,
    every_entry,
    is_linked_table,
    is_mapped_leaf,
)

if TYPE_CHECKING:
    from septum.checks.sept import Content
    from septum.checks.view import VmView
    from septum.linux.kvm.types import KvmMmuPage
    from septum.machine import TablePage

MAX_DIFFERENCES = 4
FEW_TABLES = 64
_Child = tuple[int, int, int]
"""(GFN relative to the table's, mirror entry, S-EPT entry)."""
_Link = tuple[int, "KvmMmuPage", "TablePage", int, "TablePage"]
"""(PFN, KVM's record of a table, the table; PFN, table) of two tables at the same place."""
PRESENT_SHIFT = SPTE_MMU_PRESENT_MASK.bit_length() - 1
_FROZEN_SHIFT = (FROZEN_SPTE & ~SHADOW_NONPRESENT_VALUE).bit_length() - 1
"""A bit that no other entry has that is not present."""
_PS_SHIFT = PS.bit_length() - 1
_BLOCKED_SHIFT = BLOCKED.bit_length() - 1


class Difference(NamedTuple):
    """An entry that KVM and the S-EPT see differently; `level` is KVM's."""

    gfn: int
    level: int
    spte: int
    sept: int
    why: str


class Compared(NamedTuple):
    """Two tables entry by entry: tables below both, and what is not alike. Offsets are in GFNs."""

    children: tuple[_Child, ...]
    unlike: tuple[_Child, ...]
    """Also entries that are frozen, which may be anything while somebody holds mmu_lock."""


_ALIKE = Compared((), ())


@lru_cache(MEMO_MAX)
def compare(mirror: Content, sept: Content, level: int, hpa_mask: int) -> Compared:
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
    return Compared(tuple(children), tuple(unlike))


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
    present = m_all >> PRESENT_SHIFT & ALL_ONES
    if present != s_all >> _PS_SHIFT & ~(s_all >> _BLOCKED_SHIFT) & ALL_ONES:
        return False
    if m_all >> _FROZEN_SHIFT & ~present & ALL_ONES:
        return False  # an entry may be frozen, which has no PFN either
    # Entries that are not present have no PFN on either side.
    return not (s_all ^ m_all) & every_entry(hpa_mask)


def _table_as_int(held: Content) -> int:
    return as_int(held if isinstance(held, bytes) else array("Q", entries_of(held)).tobytes())


class Pair:
    """Two tables of TDX level `level` from `gfn` on, as they were when they were compared last:
    what they held, the numbers of their last writes, tables below and what was not alike."""

    __slots__ = (
        "children",
        "gfn",
        "held",
        "level",
        "sept",
        "sept_written",
        "spt",
        "spt_written",
        "unlike",
    )

    def __init__(self, sept: TablePage, spt: TablePage, level: int, gfn: int) -> None:
        self.sept = sept
        self.spt = spt
        self.level = level
        self.gfn = gfn
        self.sept_written = self.spt_written = -1
        self.held: tuple[Content, Content] = ((0, 0), (0, 0))  # by the mirror, and by the S-EPT
        self.children: tuple[_Child, ...] = ()
        self.unlike: tuple[_Child, ...] = ()

    def is_read(self) -> bool:
        """Neither was written since."""
        return self.sept_written == self.sept.written and self.spt_written == self.spt.written


class TwoTables:
    """The S-EPT of a VM beside KVM's mirror of it."""

    __slots__ = ("_compared", "_found", "_links", "_pairs", "_unlike", "_vm", "_whole")

    def __init__(self, vm: VmView) -> None:
        self._vm = vm
        # By PFN of the S-EPT page: tables as they were compared last.
        self._compared: dict[int, Pair] = {}
        # All tables that the last walk came to, each before those below, and what led there; none
        # when it did not come everywhere.
        self._pairs: list[Pair] = []
        self._unlike: list[Pair] = []  # those of them in which something was not alike
        self._links: list[_Link] = []
        self._whole = False
        self._found: list[Difference] = []

    def changed(self) -> list[tuple[int, int]]:
        """[first, end) GFNs of the mirror tables that do not hold what they held when they were
        compared with the S-EPT."""
        tables = self._vm.world.machine.tables
        contents = self._vm.reader.contents
        spans = []
        for pair in self._compared.values():
            spt = pair.spt
            if spt.written == pair.spt_written:
                continue
            now = tables.get(spt.pfn)
            if now is not None and contents.of(now) != pair.held[0]:
                spans.append((pair.gfn, pair.gfn + (NR << 9 * pair.level)))
        return spans

    def differences(
        self, sept: TablePage, spt: TablePage, level: int, window: tuple[int, int]
    ) -> list[Difference]:
        """Where the page tables with these roots, of TDX level `level`, differ within the window:
        the first few."""
        self._found = []
        everything = window == EVERYTHING
        if self._as_walked(sept, spt, everything):
            if not self._unlike:
                return []
            if everything:
                for pair in self._unlike:
                    self._add_unlike(pair)
                return self._found
        if everything:
            self._pairs = []
            self._links = []
            self._whole = True
        self._walk(sept, spt, level, 0, window)
        if everything:
            # Of tables that are not there any more nothing is remembered.
            self._compared = {pair.sept.pfn: pair for pair in self._pairs}
            if not self._whole:
                self._pairs = []
            self._note_unlike()
        return self._found

    def _as_walked(self, sept: TablePage, spt: TablePage, everything: bool) -> bool:
        """Whether a walk would come to the same tables as the last one that came everywhere. Of one
        that is to look at everything, tables that were written are compared."""
        pairs = self._pairs
        if not pairs or pairs[0].sept is not sept or pairs[0].spt is not spt:
            return False
        if not everything and len(pairs) > FEW_TABLES:
            return False  # a walk of the window costs less
        page_private = self._vm.world.host.page_private
        tables = self._vm.world.machine.tables
        for spt_pfn, sp, below, pfn, child in self._links:
            if (
                page_private.get(spt_pfn) is not sp
                or sp.spt is not below
                or sp.external_spt != pfn
                or tables.get(pfn) is not child
            ):
                return False
        read = False
        for pair in pairs:
            # As `is_read`, which would be called for all tables at each look.
            if pair.spt_written != pair.spt.written or pair.sept_written != pair.sept.written:
                children = pair.children
                if not everything:
                    return False
                self._read(pair)
                read = True
                if pair.children != children:
                    return False
        if read:
            self._note_unlike()
        return True

    def _note_unlike(self) -> None:
        self._unlike = [pair for pair in self._pairs if pair.unlike]

    def _read(self, pair: Pair) -> None:
        """Compare two tables of which one was written."""
        contents = self._vm.reader.contents
        mirror, sept = contents.of(pair.spt), contents.of(pair.sept)
        pair.held = (mirror, sept)
        pair.sept_written, pair.spt_written = pair.sept.written, pair.spt.written
        pair.children, pair.unlike = compare(mirror, sept, pair.level, self._vm.hpa_mask)
        self._compared[pair.sept.pfn] = pair

    def _walk(
        self, sept: TablePage, spt: TablePage, level: int, base_gfn: int, window: tuple[int, int]
    ) -> None:
        """Two tables of TDX level `level` that map from `base_gfn`, and all below them."""
        pair = self._compared.get(sept.pfn)
        if (
            pair is None
            or pair.sept is not sept
            or pair.spt is not spt
            or pair.gfn != base_gfn
            or not pair.is_read()
        ):
            pair = Pair(sept, spt, level, base_gfn)
            self._read(pair)
        if pair.unlike:
            self._add_unlike(pair)
        if window == EVERYTHING:
            self._pairs.append(pair)
        size = 1 << 9 * level
        first_gfn, end_gfn = window
        for offset, m, s in pair.children:
            gfn = base_gfn + offset
            if gfn < end_gfn and gfn + size > first_gfn:
                self._walk_below(gfn, level, (m, s), window)

    def _walk_below(
        self, gfn: int, level: int, entries: tuple[int, int], window: tuple[int, int]
    ) -> None:
        """From the mirror's and the S-EPT's entry of level `level` for `gfn`."""
        m, s = entries
        spt_pfn = (m & SPTE_BASE_ADDR_MASK) >> 12
        sp = self._vm.world.host.page_private.get(spt_pfn)
        if not is_linked_table(s) or sp is None:
            self._cannot_go(gfn, level, entries, "")
            return
        pfn = (s & self._vm.hpa_mask) >> 12
        if sp.external_spt != pfn:
            external = "none" if sp.external_spt is None else f"{sp.external_spt:#x}"
            self._cannot_go(gfn, level, entries, f"; KVM believes the S-EPT page is {external}")
            return
        child = self._vm.world.machine.tables.get(pfn)
        if child is None:
            self._cannot_go(gfn, level, entries, "; that page is no table")
            return
        if window == EVERYTHING:
            self._links.append((spt_pfn, sp, sp.spt, pfn, child))
        self._walk(child, sp.spt, level - 1, gfn, window)

    def _cannot_go(self, gfn: int, level: int, entries: tuple[int, int], why: str) -> None:
        self._whole = False
        self._add(gfn, level, *entries, why)

    def _add_unlike(self, pair: Pair) -> None:
        lock = self._vm.kvm.mmu_lock
        for offset, m, s in pair.unlike:
            if m != FROZEN_SPTE:
                self._add(pair.gfn + offset, pair.level, m, s, "")
            elif not lock.readers and not lock.writer:
                self._add(pair.gfn + offset, pair.level, m, s, ", and nobody holds mmu_lock")

    def _add(self, gfn: int, level: int, spte: int, sept: int, why: str) -> None:
        """Note a difference; `level` is TDX's."""
        if len(self._found) < MAX_DIFFERENCES:
            self._found.append(Difference(gfn, level + 1, spte, sept, why))
