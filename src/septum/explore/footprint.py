"""What a step touches, as sets of small integers, and when two steps depend on each other.

An access is a location with a kind. Besides reading and writing there are the intentions of
multi-granularity locking: whoever writes one element of a container "changes a part of it", and
whoever reads one "reads a part of it".

               S     X     IX    IS       S  reads all of it      IX  changes a part of it
        S      -     dep   dep   -        X  writes all of it     IS  reads a part of it
        X      dep   dep   dep   dep
        IX     dep   dep   -     -
        IS     -     dep   -     -

IX also stands for changes that commute, such as two readers that take a shared lock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

S = 0
X = 1
IX = 2
IS = 3

Masks = tuple[int, int, int, int]
"""Locations as bits: any access, written, read as a whole, changed in part."""

NOTHING: Masks = (0, 0, 0, 0)
Summary = dict[int, Masks]
"""What each task (by index) touches in a part of the search."""


def depend(a: Masks, b: Masks) -> bool:
    """Whether two steps (or sets of steps) touch something in kinds that do not commute."""
    return bool(a[1] & b[0] or b[1] & a[0] or a[2] & b[3] or a[3] & b[2])


def join(a: Masks, b: Masks) -> Masks:
    """The accesses of both."""
    return (a[0] | b[0], a[1] | b[1], a[2] | b[2], a[3] | b[3])


def join_into(total: Summary, more: Summary) -> None:
    """Add the accesses of `more` to `total`."""
    for task, masks in more.items():
        have = total.get(task)
        total[task] = masks if have is None or have == masks else join(have, masks)


def add_to(total: Summary, task: int, masks: Masks) -> None:
    """Add one step of `task` to `total`."""
    if masks is not NOTHING:
        have = total.get(task)
        total[task] = masks if have is None else join(have, masks)


class Footprints:
    """Numbers the locations that tasks share, and turns accesses into masks.

    An access is an int: location << 2 | kind. Locations that only one task ever touches, or that
    all only read, do not count. `grown` is set when a location begins to count: what was
    computed before then lacks it, and a search that used it starts over.
    """

    __slots__ = ("_bits", "_known", "_masks", "_users", "grown", "shared")

    def __init__(self) -> None:
        self._users: dict[int, list[int]] = {}  # location -> tasks that touched it, by kind
        self._bits: dict[int, int] = {}
        self._masks: dict[int, Masks] = {}
        self._known: dict[int, set[int]] = {}  # task -> accesses registered
        self.shared: set[int] = set()  # accesses of locations that count
        self.grown = False

    def known(self, task: int) -> set[int]:
        """The accesses of `task` that are registered."""
        found = self._known.get(task)
        if found is None:
            found = self._known[task] = set()
        return found

    def register(self, task: int, accesses: Iterable[int]) -> None:
        """Accesses that `task` has not made before."""
        known = self.known(task)
        bit = 1 << task
        for access in accesses:
            known.add(access)
            location = access >> 2
            users = self._users.get(location)
            if users is None:
                users = self._users[location] = [0, 0, 0, 0]
            users[access & 3] |= bit
            if location not in self._bits and _clash(users):
                self._count(location)

    def _count(self, location: int) -> None:
        number = 1 << len(self._bits)
        self._bits[location] = number
        self.grown = True
        at = location << 2
        self._masks[at | S] = (number, 0, number, 0)
        self._masks[at | X] = (number, number, 0, 0)
        self._masks[at | IX] = (number, 0, 0, number)
        self._masks[at | IS] = (number, 0, 0, 0)
        self.shared.update((at | S, at | X, at | IX, at | IS))

    def masks(self, accesses: Iterable[int]) -> Masks:
        """The masks of accesses that are all in `shared`."""
        every = written = read = changed = 0
        table = self._masks
        for access in accesses:
            a, w, r, c = table[access]
            every |= a
            written |= w
            read |= r
            changed |= c
        return (every, written, read, changed) if every else NOTHING


def _clash(users: list[int]) -> bool:
    """Whether two tasks touch a location in kinds that depend on each other."""
    readers, writers, changers, part_readers = users
    everybody = readers | writers | changers | part_readers
    for writer in _bits_of(writers):
        if everybody & ~writer:
            return True
    return any(changers & ~reader for reader in _bits_of(readers)) or any(
        readers & ~changer for changer in _bits_of(changers)
    )


def _bits_of(value: int) -> Iterable[int]:
    while value:
        bit = value & -value
        yield bit
        value ^= bit


class TraceHash:
    """The hash of a run so far as a partial order: equal for runs that differ only in the order
    of steps that do not depend on each other, and therefore stand in the same state.
    """

    __slots__ = ("_changes", "_part_reads", "_reads", "_tasks", "_writes", "value")

    def __init__(self) -> None:
        self._tasks: dict[int, int] = {}
        self._writes: dict[int, int] = {}
        self._reads: dict[int, int] = {}
        self._changes: dict[int, int] = {}
        self._part_reads: dict[int, int] = {}
        self.value = 0

    def copy(self) -> TraceHash:
        """The same, to go on from here in another way."""
        twin = TraceHash.__new__(TraceHash)
        twin._tasks = self._tasks.copy()
        twin._writes = self._writes.copy()
        twin._reads = self._reads.copy()
        twin._changes = self._changes.copy()
        twin._part_reads = self._part_reads.copy()
        twin.value = self.value
        return twin

    def step(self, task: int, accesses: Iterable[int], choices: tuple[int, ...]) -> None:
        """Add a step: what it touched, and how its choice points came out."""
        kinds: dict[int, int] = {}
        for access in accesses:
            location = access >> 2
            kind = access & 3
            have = kinds.get(location)
            kinds[location] = kind if have is None or have == kind else _STRONGER[have << 2 | kind]
        writes, reads, changes = self._writes, self._reads, self._changes
        part_reads = self._part_reads
        before = 0
        for location, kind in kinds.items():
            before += hash((location, writes.get(location, 0)))
            if kind == X:
                before += reads.get(location, 0) + changes.get(location, 0)
                before += part_reads.get(location, 0)
            elif kind == S:
                before += changes.get(location, 0)
            elif kind == IX:
                before += reads.get(location, 0)
        event = hash((task, self._tasks.get(task, 0), before, choices))
        self._tasks[task] = event
        for location, kind in kinds.items():
            if kind == X:
                writes[location] = event
                reads[location] = changes[location] = part_reads[location] = 0
            elif kind == S:
                reads[location] = reads.get(location, 0) + event
            elif kind == IX:
                changes[location] = changes.get(location, 0) + event
            else:
                part_reads[location] = part_reads.get(location, 0) + event
        self.value = (self.value + event) & 0xFFFFFFFFFFFFFFFF


_STRONGER = {
    a << 2 | b: (
        a if a == b else X if X in (a, b) or {a, b} == {S, IX} else IX if IX in (a, b) else S
    )
    for a in range(4)
    for b in range(4)
}
