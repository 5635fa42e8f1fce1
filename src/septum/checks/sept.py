"""Reading page tables as the hardware has them: the S-EPT's leaves, as runs of alike pages.

A run stands for as many neighbouring leaves of one level and state as map neighbouring frames, so
that a table held as a template is one run, and 64 GiB are a few thousand. Tables that are not
templates are compared as one integer of 512 x 64 bits.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from functools import cache
from typing import TYPE_CHECKING

from septum.abi.sept import (
    BLOCKED,
    NL_MAPPED_ENTRY,
    PENDING,
    PS,
    RWX_HW,
    STATE_FREE,
    STATE_MASK,
    STATE_NL_BLOCKED,
    STATE_NL_MAPPED,
    STATE_REMOVED,
)

if TYPE_CHECKING:
    from septum.machine import MachineConfig, TablePage

NR = 512
_ENTRY_BITS = 64
_TABLE_BYTES = NR * _ENTRY_BITS // 8
ALL_ONES = int.from_bytes(b"\1\0\0\0\0\0\0\0" * NR, "little")
"""Bit 0 of each of 512 entries; times a 64-bit value it is a table full of that value."""
RAMP = int.from_bytes(b"".join(i.to_bytes(8, "little") for i in range(NR)), "little")
"""Entry i is i."""
_FRAMES = RAMP << 12
"""What 512 neighbouring frames add to the HPA of their first one."""
END_GFN = 1 << 40
_FEW = 64

PENDING_STATE = PENDING
"""The state bit of a leaf that the guest has not accepted."""
BLOCKED_STATE = BLOCKED

NOT_PRESENT_STATES = frozenset((STATE_FREE, STATE_REMOVED))
NON_LEAF_STATES = frozenset((STATE_NL_MAPPED, STATE_NL_BLOCKED))

LeafRun = tuple[int, int, int, int, int]
"""(first GFN, number of 4 KB pages, KVM level of each leaf, state bits, first PFN)."""


def frame_mask(config: MachineConfig) -> int:
    """The HPA bits of an S-EPT entry without the HKID."""
    return ((1 << config.hkid_shift) - 1) & ~0xFFF


@cache
def every_entry(value: int) -> int:
    """A table full of `value`, as one integer."""
    return ALL_ONES * value


def table_as_int(page: TablePage) -> int:
    """The 512 entries as one integer, entry 0 in the lowest 64 bits."""
    entries = page.entries
    return int.from_bytes(page.values() if entries is None else entries, "little")


def content(page: TablePage) -> object:
    """What the table holds, to be compared with what it held before."""
    entries = page.entries
    return (page.base, page.stride) if entries is None else entries.tobytes()


class _Record:
    """What a table held when it was last read: leaf runs and tables below it, by GFN."""

    __slots__ = ("children", "content", "first_gfns", "gfn", "parts")

    def __init__(self, gfn: int, content: object) -> None:
        self.gfn = gfn
        self.content = content
        self.parts: list[LeafRun | int] = []  # an int is the PFN of a table
        self.first_gfns: list[int] = []
        self.children = False

    def add(self, gfn: int, part: LeafRun | int) -> None:
        self.first_gfns.append(gfn)
        self.parts.append(part)


class SeptReader:
    """The leaves of one S-EPT. Tables that have not changed are not read again."""

    __slots__ = ("_records", "hpa_mask", "tables")

    def __init__(self, tables: dict[int, TablePage], hpa_mask: int) -> None:
        self.tables = tables
        self.hpa_mask = hpa_mask
        self._records: dict[int, _Record] = {}

    def runs(
        self, root: TablePage, root_level: int, first_gfn: int = 0, end_gfn: int = END_GFN
    ) -> list[LeafRun]:
        """The leaves that overlap [first_gfn, end_gfn), ascending. A leaf is never cut.

        `root_level` is the TDX level of the root's entries (3: PML4).
        """
        found: list[LeafRun] = []
        self._collect(root, root_level, 0, (first_gfn, end_gfn), found)
        return found

    def _collect(
        self,
        page: TablePage,
        level: int,
        base_gfn: int,
        window: tuple[int, int],
        found: list[LeafRun],
    ) -> None:
        first_gfn, end_gfn = window
        shift = 9 * level
        lo = max(0, (first_gfn - base_gfn) >> shift)
        hi = min(NR, -((base_gfn - end_gfn) >> shift))
        if page.entries is not None and hi - lo <= _FEW:
            # A look at a few entries: read them, and leave the record of the table alone.
            record = _Record(base_gfn, None)
            self._read_mixed(page, level, record, lo, hi)
        else:
            record = self._record(page, level, base_gfn)
        if hi - lo == NR and not record.children:
            # A record that is being read has its parts.
            found += record.parts  # type: ignore[arg-type]
            return
        starts = record.first_gfns
        first = max(0, bisect_right(starts, first_gfn) - 1)
        last = bisect_left(starts, end_gfn)
        for gfn, part in zip(starts[first:last], record.parts[first:last], strict=True):
            self._add(gfn, part, level, window, found)

    def _add(
        self,
        gfn: int,
        part: LeafRun | int,
        level: int,
        window: tuple[int, int],
        found: list[LeafRun],
    ) -> None:
        if not isinstance(part, int):
            part = clip(part, *window)
            if part[1] > 0:
                found.append(part)
            return
        child = self.tables.get(part)
        if child is not None and gfn + (1 << 9 * level) > window[0]:
            self._collect(child, level - 1, gfn, window, found)

    def _record(self, page: TablePage, level: int, base_gfn: int) -> _Record:
        now = content(page)
        record = self._records.get(page.pfn)
        if record is None or record.gfn != base_gfn or record.content != now:
            record = self._records[page.pfn] = _Record(base_gfn, now)
            self._read(page, level, record)
        return record

    def _read(self, page: TablePage, level: int, record: _Record) -> None:
        step = 1 << 9 * level
        leaf_mask = self.hpa_mask & -(step << 12)
        template = page.uniform()
        if template is not None:
            base, stride = template
            if stride == step << 12 and base & PS:
                state, pfn = base & STATE_MASK, (base & leaf_mask) >> 12
                record.add(record.gfn, (record.gfn, NR * step, level + 1, state, pfn))
                return
            if stride == 0 and base & STATE_MASK in NOT_PRESENT_STATES:
                return
        elif level == 0:
            mask = STATE_MASK | self.hpa_mask
            first = page.entry(0) & mask
            if first & PS and table_as_int(page) & every_entry(mask) == ALL_ONES * first + _FRAMES:
                pfn = (first & self.hpa_mask) >> 12
                record.add(record.gfn, (record.gfn, NR, 1, first & STATE_MASK, pfn))
                return
        self._read_mixed(page, level, record, 0, NR)

    def _read_mixed(
        self, page: TablePage, level: int, record: _Record, first: int, end: int
    ) -> None:
        """Entries `first` to `end` of a table whose entries differ."""
        step = 1 << 9 * level
        leaf_mask = self.hpa_mask & -(step << 12)
        gfn = record.gfn + first * step
        start = nr = state = pfn = 0
        entries = page.entries
        for entry in page.values() if entries is None else entries[first:end]:
            if entry & PS:
                this_state = entry & STATE_MASK
                this_pfn = (entry & leaf_mask) >> 12
                if nr and this_state == state and this_pfn == pfn + nr:
                    nr += step
                else:
                    if nr:
                        record.add(start, (start, nr, level + 1, state, pfn))
                    start, nr, state, pfn = gfn, step, this_state, this_pfn
            else:
                if nr:
                    record.add(start, (start, nr, level + 1, state, pfn))
                    nr = 0
                if level and entry & STATE_MASK in NON_LEAF_STATES:
                    record.add(gfn, (entry & self.hpa_mask) >> 12)
                    record.children = True
            gfn += step
        if nr:
            record.add(start, (start, nr, level + 1, state, pfn))

    def changed(self, root: TablePage, root_level: int) -> list[tuple[int, int]]:
        """[first, end) GFNs of the tables that do not hold what they held when last read."""
        spans: list[tuple[int, int]] = []
        todo = [(root, root_level, 0)]
        while todo:
            page, level, gfn = todo.pop()
            record = self._records.get(page.pfn)
            if record is None or record.gfn != gfn or record.content != content(page):
                spans.append((gfn, gfn + (NR << 9 * level)))
            elif record.children:
                for child_gfn, part in zip(record.first_gfns, record.parts, strict=True):
                    if isinstance(part, int) and part in self.tables:
                        todo.append((self.tables[part], level - 1, child_gfn))
        return spans


def clip(run: LeafRun, first_gfn: int, end_gfn: int) -> LeafRun:
    """The leaves of a run that overlap [first_gfn, end_gfn); none when its length is 0 or less."""
    gfn, nr, level, state, pfn = run
    pages = 1 << 9 * (level - 1)
    start = max(gfn, first_gfn & -pages)
    end = min(gfn + nr, -(-end_gfn // pages) * pages)
    return start, end - start, level, state, pfn + start - gfn


def walk(
    tables: dict[int, TablePage], root: TablePage, root_level: int, hpa_mask: int, gfn: int
) -> tuple[int, int]:
    """(KVM level, raw entry) where a walk for `gfn` ends: a leaf or what is not present.

    Blocked entries are walked through: what is asked is where the page is, not who may use it.
    """
    page = root
    level = root_level
    while True:
        entry = page.entry(gfn >> 9 * level & 511)
        if level == 0 or entry & PS or entry & STATE_MASK not in NON_LEAF_STATES:
            return level + 1, entry
        child = tables.get((entry & hpa_mask) >> 12)
        if child is None:
            return level + 1, entry
        page = child
        level -= 1


def is_mapped_leaf(entry: int) -> bool:
    """A leaf that a guest can use or accept: not blocked."""
    return bool(entry & PS) and not entry & BLOCKED


def is_linked_table(entry: int) -> bool:
    """An entry that points to a table and is not blocked."""
    return not entry & STATE_MASK and entry & RWX_HW == NL_MAPPED_ENTRY & RWX_HW
