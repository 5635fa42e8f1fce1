"""Reading page tables as the hardware has them: the S-EPT's leaves, as runs of alike pages.

A run stands for as many neighbouring leaves of one level and state as map neighbouring frames, so
that a table held as a template is one run, and 64 GiB are a few thousand. Tables that are not
templates are compared as one integer of 512 x 64 bits.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from functools import cache, lru_cache
from typing import TYPE_CHECKING, cast

from septum.abi.sept import (
    BLOCKED,
    HP,
    LOCK,
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
    from collections.abc import Sequence

    from septum.machine import MachineConfig, TablePage

NR = 512
_ENTRY_BITS = 64
ALL_ONES = int.from_bytes(b"\1\0\0\0\0\0\0\0" * NR, "little")
"""Bit 0 of each of 512 entries; times a 64-bit value it is a table full of that value."""
RAMP = int.from_bytes(b"".join(i.to_bytes(8, "little") for i in range(NR)), "little")
"""Entry i is i."""
_FRAMES = RAMP << 12
"""What 512 neighbouring frames add to the HPA of their first one."""
END_GFN = 1 << 40
EVERYTHING = (0, END_GFN)
_FEW = 64

_NO_LOCKS = (1 << _ENTRY_BITS) - 1 & ~(LOCK | HP)

PENDING_STATE = PENDING
"""The state bit of a leaf that the guest has not accepted."""
BLOCKED_STATE = BLOCKED

NOT_PRESENT_STATES = frozenset((STATE_FREE, STATE_REMOVED))
NON_LEAF_STATES = frozenset((STATE_NL_MAPPED, STATE_NL_BLOCKED))

LeafRun = tuple[int, int, int, int, int]
"""(first GFN, number of 4 KB pages, KVM level of each leaf, state bits, first PFN)."""
Below = tuple[int, int]
"""(first GFN, PFN) of a table below."""
Content = tuple[int, int] | bytes
"""What a table holds: its template, or its entries."""

MEMO_MAX = 512
"""So many contents of tables are remembered with what follows from them: the same come again, in a
run and in the next. What is remembered is a function of the content alone."""


def frame_mask(config: MachineConfig) -> int:
    """The HPA bits of an S-EPT entry without the HKID."""
    return ((1 << config.hkid_shift) - 1) & ~0xFFF


@cache
def every_entry(value: int) -> int:
    """A table full of `value`, as one integer."""
    return ALL_ONES * value


def content(page: TablePage) -> Content:
    """What the table holds, to be compared with what it held before."""
    entries = page.entries
    return (page.base, page.stride) if entries is None else entries.tobytes()


def entries_of(held: Content) -> Sequence[int]:
    """The 512 entries of a table that holds this."""
    if isinstance(held, bytes):
        return memoryview(held).cast("Q")
    base, stride = held
    return range(base, base + NR * stride, stride) if stride else (base,) * NR


def as_int(held: bytes) -> int:
    """The 512 entries as one integer, entry 0 in the lowest 64 bits."""
    return int.from_bytes(held, "little")


@lru_cache(MEMO_MAX)
def _is_unlike(held: Content, now: Content) -> bool:
    """Whether two contents of a table of the S-EPT differ in more than the locks of entries."""
    if held == now:
        return False
    return bool((_all_of(held) ^ _all_of(now)) & every_entry(_NO_LOCKS))


def _all_of(held: Content) -> int:
    """The 512 entries as one integer."""
    if isinstance(held, bytes):
        return as_int(held)
    base, stride = held
    return ALL_ONES * base + RAMP * stride


class Tree:
    """All tables of a page table, as they were when they were read; the root is the first."""

    __slots__ = ("_nr_writes", "_pages")

    def __init__(self) -> None:
        # Each with the number of its last write, and what it held.
        self._pages: list[tuple[TablePage, int, Content]] = []
        self._nr_writes = -1

    def add(self, page: TablePage, held: Content) -> None:
        """`page` was read."""
        self._pages.append((page, page.written, held))
        self._nr_writes = page.writes.nr

    def is_few(self) -> bool:
        """Looking at each costs less than a look at a few leaves."""
        return len(self._pages) <= _FEW

    def is_as_read(self, root: TablePage) -> bool:
        """Whether this is the page table with this root, and none of it was written since."""
        pages = self._pages
        if not pages or pages[0][0] is not root:
            return False
        nr_writes = root.writes.nr
        if nr_writes == self._nr_writes:
            return True
        for page, written, _ in pages:
            if page.written != written:
                return False
        self._nr_writes = nr_writes
        return True

    def is_but_for_locks(self, root: TablePage, reader: SeptReader) -> bool:
        """`is_as_read` of an S-EPT, but for locks of entries, by which nothing is judged: each
        SEAMCALL takes and drops those of the entries that it works on. From now on it counts as
        read like that."""
        pages = self._pages
        if not pages or pages[0][0] is not root:
            return False
        for at, (page, written, held) in enumerate(pages):
            if page.written != written:
                if reader.tables.get(page.pfn) is not page:
                    return False
                if _is_unlike(held, reader.contents.of(page)):
                    return False
                pages[at] = (page, page.written, held)
        self._nr_writes = root.writes.nr
        return True


class Contents:
    """What page tables hold. One that was not written since it was read is not read again."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        # By PFN: the number of the last write when it was read, and what was there.
        self._held: dict[int, tuple[int, Content]] = {}

    def of(self, page: TablePage) -> Content:
        """What `page` holds: the same object as long as that is the same."""
        written = page.written
        held = self._held.get(page.pfn)
        if held is not None and held[0] == written:
            return held[1]
        now = content(page)
        if held is not None and held[1] == now:
            now = held[1]
        self._held[page.pfn] = (written, now)
        return now


@lru_cache(MEMO_MAX)
def parts_of(held: Content, level: int, hpa_mask: int) -> tuple[LeafRun | Below, ...]:
    """Leaf runs and tables below, ascending, of a table of TDX level `level` that holds this and
    maps from GFN 0."""
    step = 1 << 9 * level
    leaf_mask = hpa_mask & -(step << 12)
    if not isinstance(held, bytes):
        base, stride = held
        if stride == step << 12 and base & PS:
            run = (0, NR * step, level + 1, base & STATE_MASK, (base & leaf_mask) >> 12)
            return (run,)
        if stride == 0 and base & STATE_MASK in NOT_PRESENT_STATES:
            return ()
    elif level == 0:
        mask = STATE_MASK | hpa_mask
        first = int.from_bytes(held[:8], "little") & mask
        if first & PS and as_int(held) & every_entry(mask) == ALL_ONES * first + _FRAMES:
            return ((0, NR, 1, first & STATE_MASK, (first & hpa_mask) >> 12),)
    return tuple(read_entries(entries_of(held), level, hpa_mask, 0))


def read_entries(
    entries: Sequence[int], level: int, hpa_mask: int, gfn: int
) -> list[LeafRun | Below]:
    """Leaf runs and tables below, of neighbouring entries of which the first maps `gfn`."""
    step = 1 << 9 * level
    leaf_mask = hpa_mask & -(step << 12)
    found: list[LeafRun | Below] = []
    start = nr = state = pfn = 0
    for entry in entries:
        if entry & PS:
            this_state = entry & STATE_MASK
            this_pfn = (entry & leaf_mask) >> 12
            if nr and this_state == state and this_pfn == pfn + nr:
                nr += step
            else:
                if nr:
                    found.append((start, nr, level + 1, state, pfn))
                start, nr, state, pfn = gfn, step, this_state, this_pfn
        else:
            if nr:
                found.append((start, nr, level + 1, state, pfn))
                nr = 0
            if level and entry & STATE_MASK in NON_LEAF_STATES:
                found.append((gfn, (entry & hpa_mask) >> 12))
        gfn += step
    if nr:
        found.append((start, nr, level + 1, state, pfn))
    return found


class _Record:
    """What a table held when it was last read: leaf runs and tables below it, by GFN.

    `written` is the number of the table's last write when it was seen to hold that.
    """

    __slots__ = ("children", "content", "first_gfns", "gfn", "parts", "written")

    def __init__(
        self, gfn: int, written: int, content: Content | None, parts: list[LeafRun | Below]
    ) -> None:
        self.gfn = gfn
        self.written = written
        self.content = content
        self.parts = parts
        self.first_gfns = [part[0] for part in parts]
        self.children = [part for part in parts if len(part) == 2]


class SeptReader:
    """The leaves of one S-EPT. Tables that have not changed are not read again."""

    __slots__ = ("_all", "_records", "contents", "hpa_mask", "tables")

    def __init__(self, tables: dict[int, TablePage], hpa_mask: int) -> None:
        self._all: tuple[Tree, list[LeafRun]] | None = None  # all leaves, when they were read last
        self.tables = tables
        self.hpa_mask = hpa_mask
        self.contents = Contents()
        self._records: dict[int, _Record] = {}

    def runs(
        self, root: TablePage, root_level: int, first_gfn: int = 0, end_gfn: int = END_GFN
    ) -> list[LeafRun]:
        """The leaves that overlap [first_gfn, end_gfn), ascending. A leaf is never cut.

        `root_level` is the TDX level of the root's entries (3: PML4).
        """
        if (first_gfn, end_gfn) == EVERYTHING and NR << 9 * root_level <= END_GFN:
            return self._all_runs(root, root_level)
        known = self._all
        if known is not None and known[0].is_few() and known[0].is_as_read(root):
            return [
                clip(run, first_gfn, end_gfn)
                for run in known[1]
                if run[0] < end_gfn and run[0] + run[1] > first_gfn
            ]
        found: list[LeafRun] = []
        self._collect(root, root_level, 0, (first_gfn, end_gfn), found)
        return found

    def _all_runs(self, root: TablePage, root_level: int) -> list[LeafRun]:
        """`runs` without a window: the same list as long as it holds the same."""
        known = self._all
        if known is not None and known[0].is_as_read(root):
            return known[1]
        tree = Tree()
        found: list[LeafRun] = []
        whole = self._collect_all(root, root_level, 0, found, tree)
        if known is not None and known[1] == found:
            found = known[1]
        self._all = (tree, found) if whole else None
        return found

    def _collect_all(
        self, page: TablePage, level: int, base_gfn: int, found: list[LeafRun], tree: Tree
    ) -> bool:
        """`_collect` without a window. False: a table is missing."""
        record = self._record(page, level, base_gfn)
        assert record.content is not None
        tree.add(page, record.content)
        if not record.children:
            # Without tables below, all parts are leaf runs.
            found += cast("list[LeafRun]", record.parts)
            return True
        whole = True
        for part in record.parts:
            if len(part) == 5:
                found.append(part)
                continue
            child = self.tables.get(part[1])
            if child is None or not self._collect_all(child, level - 1, part[0], found, tree):
                whole = False
        return whole

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
        entries = page.entries
        if entries is not None and hi - lo == 1:
            self._collect_one(entries[lo], level, base_gfn + (lo << shift), window, found)
            return
        if entries is not None and hi - lo <= _FEW:
            # A look at a few entries: read them, and leave the record of the table alone.
            gfn = base_gfn + (lo << shift)
            parts = read_entries(entries[lo:hi], level, self.hpa_mask, gfn)
            record = _Record(base_gfn, -1, None, parts)
        else:
            record = self._record(page, level, base_gfn)
        if hi - lo == NR and not record.children:
            # Without tables below, all parts are leaf runs.
            found += cast("list[LeafRun]", record.parts)
            return
        starts = record.first_gfns
        first = max(0, bisect_right(starts, first_gfn) - 1)
        last = bisect_left(starts, end_gfn)
        for part in record.parts[first:last]:
            if len(part) == 5:
                part = clip(part, *window)
                if part[1] > 0:
                    found.append(part)
                continue
            gfn, pfn = part
            child = self.tables.get(pfn)
            if child is not None and gfn + (1 << shift) > first_gfn:
                self._collect(child, level - 1, gfn, window, found)

    def _collect_one(
        self, entry: int, level: int, gfn: int, window: tuple[int, int], found: list[LeafRun]
    ) -> None:
        """A single entry, that for `gfn`."""
        if entry & PS:
            step = 1 << 9 * level
            pfn = (entry & self.hpa_mask & -(step << 12)) >> 12
            found.append(clip((gfn, step, level + 1, entry & STATE_MASK, pfn), *window))
        elif level and entry & STATE_MASK in NON_LEAF_STATES:
            child = self.tables.get((entry & self.hpa_mask) >> 12)
            if child is not None:
                self._collect(child, level - 1, gfn, window, found)

    def _record(self, page: TablePage, level: int, base_gfn: int) -> _Record:
        record = self._records.get(page.pfn)
        written = page.written
        if record is not None and record.gfn == base_gfn:
            if record.written == written:
                return record
            if record.content == self.contents.of(page):
                record.written = written
                return record
        now = self.contents.of(page)
        parts = parts_of(now, level, self.hpa_mask)
        if base_gfn:
            # Each is as long as it was.
            here = [(part[0] + base_gfn, *part[1:]) for part in parts]
            record = _Record(base_gfn, written, now, cast("list[LeafRun | Below]", here))
        else:
            record = _Record(base_gfn, written, now, list(parts))
        self._records[page.pfn] = record
        return record

    def changed(self, root: TablePage, root_level: int) -> list[tuple[int, int]]:
        """[first, end) GFNs of the tables that do not hold what they held when last read, but for
        locks."""
        known = self._all
        if known is not None and (
            known[0].is_as_read(root) or known[0].is_but_for_locks(root, self)
        ):
            return []
        spans: list[tuple[int, int]] = []
        todo = [(root, root_level, 0)]
        while todo:
            page, level, gfn = todo.pop()
            record = self._records.get(page.pfn)
            if (
                record is None
                or record.gfn != gfn
                or (
                    record.written != page.written
                    and _is_unlike(record.content, self.contents.of(page))
                )
            ):
                spans.append((gfn, gfn + (NR << 9 * level)))
                continue
            for child_gfn, pfn in record.children:
                if pfn in self.tables:
                    todo.append((self.tables[pfn], level - 1, child_gfn))
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
