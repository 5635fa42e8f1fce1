"""What is read of page tables at once, by template or as one integer, is what is there by entry."""

from __future__ import annotations

from itertools import product
from random import Random

import pytest

from septum.abi.sept import (
    BLOCKED,
    FREE_ENTRY,
    LOCK,
    MAPPED_ENTRY,
    NL_MAPPED_ENTRY,
    PENDING_ENTRY,
    PS,
    RWX,
    STATE_MASK,
    STATE_NL_BLOCKED,
    STATE_NL_MAPPED,
    STATE_REMOVED,
    SVE,
)
from septum.abi.spte import FROZEN_SPTE, SHADOW_NONPRESENT_VALUE, make_nonleaf_spte, make_spte
from septum.checks.agree import compare
from septum.checks.sept import END_GFN, SeptReader, content, frame_mask, walk
from septum.machine import TablePage

ROOT = 3
PFN = 0x400000
HPA_MASK = (1 << 40) - 1 & ~0xFFF
NL_BLOCKED_ENTRY = NL_MAPPED_ENTRY & ~RWX | BLOCKED
REMOVED_ENTRY = SVE | STATE_REMOVED
Leaves = dict[int, tuple[int, int, int]]


def leaves_by_entry(tables: dict[int, TablePage], page: TablePage, level: int, gfn: int) -> Leaves:
    """First GFN of each leaf -> (KVM level, state, PFN)."""
    found: Leaves = {}
    for index, entry in enumerate(page.values()):
        at = gfn + (index << 9 * level)
        pfn = (entry & HPA_MASK) >> 12
        if entry & PS:
            found[at] = (level + 1, entry & STATE_MASK, pfn >> 9 * level << 9 * level)
        elif level and entry & STATE_MASK in (STATE_NL_MAPPED, STATE_NL_BLOCKED) and pfn in tables:
            found |= leaves_by_entry(tables, tables[pfn], level - 1, at)
    return found


def leaves_read(reader: SeptReader, root: TablePage, first_gfn: int, end_gfn: int) -> Leaves:
    """The same, of those that overlap the window, as a reader has it."""
    found: Leaves = {}
    last = 0
    for gfn, nr, level, state, pfn in reader.runs(root, ROOT, first_gfn, end_gfn):
        assert gfn >= last and nr > 0
        last = gfn + nr
        for at in range(0, nr, 1 << 9 * (level - 1)):
            found[gfn + at] = (level, state, pfn + at)
    return found


def in_window(leaves: Leaves, first_gfn: int, end_gfn: int) -> Leaves:
    return {
        gfn: leaf
        for gfn, leaf in leaves.items()
        if gfn < end_gfn and gfn + (1 << 9 * (leaf[0] - 1)) > first_gfn
    }


def change(world, random: Random) -> None:
    """One of the things that become of an S-EPT."""
    gfn = random.choice((0, 1, 2, 3, 7, 63, 64, 255, 510, 511)) + 512 * random.choice(
        (0, 1, 511, 512)
    )
    level = random.choice((1, 1, 1, 2, 2, 3))
    table, _, index = world.tables_for(gfn, level)
    before = table.entry(index)
    pages = 1 << 9 * (level - 1)
    leaf = world.leaf(PFN + gfn // pages * pages)
    what = random.randrange(8)
    if level > 1 and not before & PS and before & STATE_MASK == STATE_NL_MAPPED:
        if what == 0:
            table.set_entry(index, before & ~RWX | BLOCKED)
        elif what == 1:
            world.machine.free_table((before & HPA_MASK) >> 12)
            world.set_mirror(gfn, level, SHADOW_NONPRESENT_VALUE)
            table.set_entry(index, FREE_ENTRY)
        return
    if not before & PS and before & STATE_MASK == STATE_NL_BLOCKED:
        table.set_entry(index, before & ~BLOCKED | RWX)
    elif what < 3:
        table.set_entry(index, leaf)
    elif what == 3:
        table.set_entry(index, leaf & ~RWX | BLOCKED)
    elif what == 4:
        table.set_entry(index, before ^ LOCK)
    elif what == 5 and level == 1:
        table.fill(world.leaf(PFN + gfn // 512 * 512), 4096)
    elif what == 6 and level == 1:
        table.fill(leaf)  # all map one frame
    else:
        table.set_entry(index, FREE_ENTRY)


WINDOWS = ((0, 1), (1, 3), (0, 64), (1, 66), (63, 511), (510, 514), (511, 512), (0, 512))
WINDOWS += ((512, 1024), (3, 0x40001), (0x3FE00, 0x40200), (0, 1 << 30), (0x40000, END_GFN))


@pytest.mark.parametrize("seed", range(4))
def test_leaves_are_those_that_are_there_by_entry(tiny, seed):
    """In each window, after each of many changes, by a reader that has read before, or has not;
    what it says has changed contains what has."""
    world = tiny()
    tables, root = world.machine.tables, world.td.root
    assert frame_mask(world.machine.config) == HPA_MASK
    random = Random(seed)
    often, seldom = (SeptReader(tables, HPA_MASK) for _ in range(2))
    before: Leaves = {}
    most = 0
    for _ in range(60):
        seldom.runs(root, ROOT)
        for _ in range(random.randrange(1, 4)):
            change(world, random)
        leaves = leaves_by_entry(tables, root, ROOT, 0)
        changed = {gfn for gfn in before.keys() | leaves if before.get(gfn) != leaves.get(gfn)}
        spans = seldom.changed(root, ROOT)
        assert all(any(start <= gfn < end for start, end in spans) for gfn in changed)
        before = leaves
        most = max(most, len(leaves))
        for window in (random.choice(WINDOWS), random.choice(WINDOWS), (0, END_GFN)):
            assert leaves_read(often, root, *window) == in_window(leaves, *window)
        for gfn in (0, 64, 511, 513, 0x40000, 0x401FF):
            level, entry = walk(tables, root, ROOT, HPA_MASK, gfn)
            at = gfn >> 9 * (level - 1) << 9 * (level - 1)
            assert bool(entry & PS) == (at in leaves)
            if entry & PS:
                assert leaves[at][:2] == (level, entry & STATE_MASK)
    assert most > 512


def test_a_reader_that_has_read_nothing_knows_nothing(tiny):
    """All may have changed; and another root is not the one that it has read."""
    world = tiny()
    world.map(0, 1)
    reader = SeptReader(world.machine.tables, HPA_MASK)
    root = world.td.root
    assert reader.changed(root, ROOT) == [(0, 512 << 9 * ROOT)]
    assert len(leaves_read(reader, root, 0, END_GFN)) == 1
    assert reader.changed(root, ROOT) == []
    other = TablePage(root.pfn + 0x1000, FREE_ENTRY)
    other.writes = root.writes
    assert reader.changed(other, ROOT) != []
    assert leaves_read(reader, other, 0, END_GFN) == {}


def test_a_table_that_is_linked_elsewhere(tiny):
    """What it holds is as it was, and is mapped at other GFNs."""
    world = tiny()
    for gfn in range(4):
        world.map(gfn, 1)
    reader = SeptReader(world.machine.tables, HPA_MASK)
    root = world.td.root
    before = leaves_read(reader, root, 0, END_GFN)
    above, _, _ = world.tables_for(0, 2)
    above.set_entry(3, above.entry(0))
    above.set_entry(0, FREE_ENTRY)
    assert any(start <= 3 << 9 < end for start, end in reader.changed(root, ROOT))
    after = leaves_read(reader, root, 0, END_GFN)
    assert after == {gfn + (3 << 9): leaf for gfn, leaf in before.items()}
    assert leaves_read(reader, root, 3 << 9, 4 << 9) == after


def mirror_entries(level: int) -> list[int]:
    pages = 1 << 9 * level
    leaves = [make_spte(pfn, level + 1, False, True) for pfn in (PFN, PFN + pages)]
    return [SHADOW_NONPRESENT_VALUE, FROZEN_SPTE, *leaves] + [make_nonleaf_spte(0x100)] * (
        level > 0
    )


def sept_entries(level: int) -> list[int]:
    pages = 1 << 9 * level
    leaves = [MAPPED_ENTRY | pfn << 12 for pfn in (PFN, PFN + pages)]
    pending = PENDING_ENTRY | PFN << 12
    blocked = leaves[0] & ~RWX | BLOCKED
    tables = [entry | 0x200 << 12 for entry in (NL_MAPPED_ENTRY, NL_BLOCKED_ENTRY)]
    return [FREE_ENTRY, REMOVED_ENTRY, *leaves, pending, blocked] + tables * (level > 0)


def agree(mirror: int, sept: int, level: int) -> str:
    """What is to be said of one entry on both sides."""
    if mirror == FROZEN_SPTE:
        return "unlike"
    if mirror == SHADOW_NONPRESENT_VALUE:
        return "" if sept in (FREE_ENTRY, REMOVED_ENTRY) else "unlike"
    if level and mirror == make_nonleaf_spte(0x100):
        return "below"
    same = sept & PS and not sept & BLOCKED and not (mirror ^ sept) & HPA_MASK
    return "" if same else "unlike"


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize(
    "held_as", ["all alike", "one among free ones", "one among leaves", "mixed"]
)
def test_two_tables_agree_as_their_entries_do(level, held_as):
    """By template or by entry, whichever of the two is held as what."""
    stride = 1 << 9 * level + 12
    at = 0 if held_as == "all alike" else 5
    for m, s in product(mirror_entries(level), sept_entries(level)):
        mirror, sept = TablePage(1, SHADOW_NONPRESENT_VALUE), TablePage(2, FREE_ENTRY)
        if held_as in ("all alike", "mixed"):
            mirror.fill(m)
            sept.fill(s)
            if held_as == "mixed":
                sept._expand()
        else:
            if held_as == "one among leaves":
                first = PFN - at * (stride >> 12)
                mirror.fill(make_spte(first, level + 1, False, True), stride)
                sept.fill(MAPPED_ENTRY | first << 12, stride)
            mirror.set_entry(at, m)
            sept.set_entry(at, s)
        found = compare(content(mirror), content(sept), level, HPA_MASK)
        where = range(512) if held_as in ("all alike", "mixed") else (at,)
        each = tuple((i << 9 * level, m, s) for i in where)
        told = agree(m, s, level)
        assert found.unlike == (each if told == "unlike" else ()), (hex(m), hex(s))
        assert found.children == (each if told == "below" else ()), (hex(m), hex(s))


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("shift", [0, 1])
def test_two_templates_agree_as_their_entries_do(level, shift):
    """Neighbouring leaves on both sides, or on one of them one leaf again and again."""
    stride = 1 << 9 * level + 12
    for strides in product((0, stride), (0, stride)):
        mirror, sept = TablePage(1, SHADOW_NONPRESENT_VALUE), TablePage(2, FREE_ENTRY)
        mirror.fill(make_spte(PFN, level + 1, False, True), strides[0])
        sept.fill(MAPPED_ENTRY | PFN + (shift << 9 * level) << 12, strides[1])
        unlike = [
            i << 9 * level
            for i, (m, s) in enumerate(zip(mirror.values(), sept.values(), strict=True))
            if agree(m, s, level)
        ]
        found = compare(content(mirror), content(sept), level, HPA_MASK)
        assert [gfn for gfn, _, _ in found.unlike] == unlike
