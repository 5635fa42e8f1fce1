"""Reading page tables as the hardware has them: the S-EPT's leaves, as runs of alike pages.

A run stands for as many neighbouring leaves of one level and state as map neighbouring frames, so
that a table held as a template is one run, and 64 GiB are a few thousand. Tables that are not
templates are compared as one integer of 512 x 64 bits.
"""

from __future__ import annotations

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
    from collections.abc import Iterator

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


def leaf_runs(
    tables: dict[int, TablePage],
    root: TablePage,
    root_level: int,
    hpa_mask: int,
    first_gfn: int = 0,
    end_gfn: int = END_GFN,
) -> Iterator[LeafRun]:
    """The leaves that overlap [first_gfn, end_gfn), ascending. A leaf is never cut.

    `root_level` is the TDX level of the root's entries (3: PML4).
    """
    yield from _runs(tables, root, root_level, 0, hpa_mask, first_gfn, end_gfn)


def _runs(
    tables: dict[int, TablePage],
    page: TablePage,
    level: int,
    base_gfn: int,
    hpa_mask: int,
    first_gfn: int,
    end_gfn: int,
) -> Iterator[LeafRun]:
    shift = 9 * level
    step = 1 << shift
    lo = max(0, (first_gfn - base_gfn) >> shift)
    hi = min(NR, -((base_gfn - end_gfn) >> shift))
    template = page.uniform()
    leaf_mask = hpa_mask & -(step << 12)
    if template is not None:
        base, stride = template
        if stride == step << 12 and base & PS:
            yield (
                base_gfn + lo * step,
                (hi - lo) * step,
                level + 1,
                base & STATE_MASK,
                ((base & leaf_mask) >> 12) + lo * step,
            )
            return
        if stride == 0 and base & STATE_MASK in NOT_PRESENT_STATES:
            return
    elif level == 0 and lo == 0 and hi == NR:
        first = page.entry(0) & (STATE_MASK | hpa_mask)
        if first & PS:
            found = table_as_int(page) & every_entry(STATE_MASK | hpa_mask)
            if found == ALL_ONES * first + _FRAMES:
                yield base_gfn, NR, 1, first & STATE_MASK, (first & hpa_mask) >> 12
                return
    yield from _mixed_runs(tables, page, level, base_gfn, hpa_mask, (lo, hi), (first_gfn, end_gfn))


def _mixed_runs(
    tables: dict[int, TablePage],
    page: TablePage,
    level: int,
    base_gfn: int,
    hpa_mask: int,
    indexes: tuple[int, int],
    window: tuple[int, int],
) -> Iterator[LeafRun]:
    """Runs of a table whose entries differ, and of the tables below it."""
    step = 1 << 9 * level
    leaf_mask = hpa_mask & -(step << 12)
    lo, hi = indexes
    gfn = base_gfn + lo * step
    start = 0
    nr = 0
    state = 0
    pfn = 0
    for entry in page.values()[lo:hi]:
        if entry & PS:
            this_state = entry & STATE_MASK
            this_pfn = (entry & leaf_mask) >> 12
            if nr and this_state == state and this_pfn == pfn + nr:
                nr += step
            else:
                if nr:
                    yield start, nr, level + 1, state, pfn
                start, nr, state, pfn = gfn, step, this_state, this_pfn
        elif nr:
            yield start, nr, level + 1, state, pfn
            nr = 0
        if level and not entry & PS and entry & STATE_MASK in NON_LEAF_STATES:
            child = tables.get((entry & hpa_mask) >> 12)
            if child is not None:
                yield from _runs(tables, child, level - 1, gfn, hpa_mask, *window)
        gfn += step
    if nr:
        yield start, nr, level + 1, state, pfn


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
