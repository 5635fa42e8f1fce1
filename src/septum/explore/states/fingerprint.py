"""The state that a run is in, as a search knows it: equal where the same can follow.

A task goes by its *chain*: a hash of where it stands and of what it alone has, or, where that
cannot be told, of all that it observed. Everything that tasks share goes by its content. So runs
that came in different ways to the same contents, with tasks that stand in the same places, are in
the same state, whatever the order was in which it came to be.

Where a content cannot be told, the step that wrote it stands for it, which tells apart more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from septum.explore.tracking.footprint import IX, S, X
from septum.explore.tracking.locations import RESULTS
from septum.explore.tracking.mix import spread

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping

    from septum.explore.tracking.footprint import Footprints
    from septum.explore.tracking.track import Tracker

MASK = 0xFFFFFFFFFFFFFFFF
"""Fingerprints are sums of so many bits."""
ZERO = 0x5A45524F
"""The content of what has the content 0."""

CHAINS, CONTENTS, WHOLES, SHOWN, DIGESTS = range(5)
"""The tables: of tasks, of locations, of locations that have parts, of what promises can see of
what each task alone has, and of all parts of a whole together, which follows from the others."""

Write = tuple[int, int, int | None]
"""(table, key, new value); None: as at the beginning."""

Mark = tuple[int, int, int]
"""How many changes were made, and both fingerprints then."""


class Change:
    """What a step does to every state that it can be made in.

    `writes`: entries whose old values are the same in all of them; so they change the fingerprints
    by the same (`value`, `shown`, and `digests` by whole). `afresh`: entries that may have held
    anything before. `emptied`: wholes whose parts, if there are any, are gone first.
    """

    __slots__ = ("afresh", "digests", "emptied", "shown", "value", "writes")

    def __init__(
        self, writes: tuple[Write, ...], afresh: tuple[Write, ...], emptied: tuple[int, ...]
    ) -> None:
        self.writes = writes
        self.afresh = afresh
        self.emptied = emptied
        self.value = 0
        self.shown = 0
        self.digests: tuple[tuple[int, int], ...] = ()

    def like(
        self, event: int, other: int, task: int, writes: Mapping[tuple[int, int], int]
    ) -> Change:
        """The same by another `event`, where what stands for `task` changes as in `writes`. What
        comes of it is not known yet."""
        mine = ((CHAINS, task), (SHOWN, task))
        same = [one for one in self.writes if one[:2] not in mine]
        same += [(*at, new) for at, new in writes.items()]
        return Change(
            tuple(sorted([_by(one, event, other) for one in same])),
            tuple([_by(one, event, other) for one in self.afresh]),
            self.emptied,
        )

    def effect(self) -> tuple[object, ...]:
        """All that it does, for a comparison."""
        return (self.writes, self.afresh, self.emptied)

    def locations(self, whole_of: dict[int, int]) -> frozenset[int]:
        """What it writes to, with all that is part of."""
        found = set(self.emptied)
        for table, at, _ in (*self.writes, *self.afresh):
            if table in (CONTENTS, WHOLES):
                while at not in found:
                    found.add(at)
                    at = whole_of.get(at, at)
        return frozenset(found)


def _by(write: Write, event: int, other: int) -> Write:
    """A write that the event `other` has made instead."""
    table, key, new = write
    return (table, key, other) if new == event else write


NO_CHANGE = Change((), (), ())


class Fingerprint:
    """A state. `rewind` takes changes back. `value` is the fingerprint of all that decides how it
    goes on, `shown` of all that promises can see."""

    __slots__ = (
        "_footprints",
        "_journal",
        "_parts",
        "_watched",
        "_whole_of",
        "shown",
        "tables",
        "value",
    )

    def __init__(self, footprints: Footprints, watched: Mapping[int, bool]) -> None:
        """`footprints` say what is part of what; `watched`: whether promises read a location."""
        self._footprints = footprints
        self._parts = footprints.parts
        self._whole_of = footprints.whole_of
        self._watched = watched
        self.tables: list[dict[int, int]] = [{}, {}, {}, {}, {}]
        self._journal: list[Write] = []  # with old values
        self.value = 0
        self.shown = 0

    def copy(self) -> Fingerprint:
        """The same state, with nothing to take back."""
        twin = Fingerprint(self._footprints, self._watched)
        twin.tables = [entries.copy() for entries in self.tables]
        twin.value = self.value
        twin.shown = self.shown
        return twin

    def mark(self) -> Mark:
        """A place to come back to."""
        return (len(self._journal), self.value, self.shown)

    def rewind(self, mark: Mark) -> None:
        """Take back all changes since `mark`."""
        length, self.value, self.shown = mark
        journal = self._journal
        tables = self.tables
        while len(journal) > length:
            table, key, old = journal.pop()
            if old is None:
                tables[table].pop(key, None)
            else:
                tables[table][key] = old

    def since(self, mark: Mark) -> list[Write]:
        """What was changed since `mark`, as it is now."""
        keys = dict.fromkeys((table, key) for table, key, _ in self._journal[mark[0] :])
        return [
            (table, key, self.tables[table].get(key)) for table, key in keys if table != DIGESTS
        ]

    def set(self, table: int, key: int, new: int | None) -> None:
        """Change one entry of a table."""
        if new == 0:
            new = ZERO  # 0 stands for what is not in a table
        old = self.tables[table].get(key)
        if old == new:
            return
        self._put(table, key, new)
        change = 0
        if old is not None:
            change -= spread(hash((table, key, old)))
        if new is not None:
            change += spread(hash((table, key, new)))
        if table != SHOWN:
            self.value = self.value + change & MASK
        if table == SHOWN or (table != CHAINS and key < RESULTS and self._watched[key]):
            self.shown = self.shown + change & MASK
        if table in (CONTENTS, WHOLES):
            digests = self.tables[DIGESTS]
            whole = self._whole_of.get(key)
            while whole is not None:
                self._put(DIGESTS, whole, digests.get(whole, 0) + change & MASK)
                whole = self._whole_of.get(whole)

    def _put(self, table: int, key: int, new: int | None) -> None:
        entries = self.tables[table]
        self._journal.append((table, key, entries.get(key)))
        if new is None:
            entries.pop(key, None)
        else:
            entries[key] = new

    def apply(self, change: Change) -> None:
        """Make a change that is known."""
        tables = self.tables
        note = self._journal.append
        for table, key, new in change.writes:
            entries = tables[table]
            note((table, key, entries.get(key)))
            if new is None:
                entries.pop(key, None)
            else:
                entries[key] = new
        self.value = self.value + change.value & MASK
        self.shown = self.shown + change.shown & MASK
        for whole, difference in change.digests:
            self._put(DIGESTS, whole, tables[DIGESTS].get(whole, 0) + difference & MASK)
        self._apply_afresh(change)

    def _apply_afresh(self, change: Change) -> None:
        for whole in change.emptied:
            if self.tables[DIGESTS].get(whole):
                self._drop_parts(whole)
        for table, key, new in change.afresh:
            self.set(table, key, new)

    def learn(self, change: Change, mark: Mark) -> None:
        """Take back what was done since `mark`, and make the change; keep what comes of it."""
        self.rewind(mark)
        for table, key, new in change.writes:
            self.set(table, key, new)
        digests = self.tables[DIGESTS]
        old = {
            key: was or 0
            for table, key, was in reversed(self._journal[mark[0] :])
            if table == DIGESTS
        }
        change.value = self.value - mark[1]
        change.shown = self.shown - mark[2]
        change.digests = tuple([(key, digests[key] - was) for key, was in old.items()])
        self._apply_afresh(change)

    def is_sound(self) -> bool:
        """Whether the fingerprints are those of what the tables hold."""
        twin = Fingerprint(self._footprints, self._watched)
        for table, entries in enumerate(self.tables[:DIGESTS]):
            for key, content in entries.items():
                twin.set(table, key, content)
        digests = [
            {whole: digest for whole, digest in state.tables[DIGESTS].items() if digest}
            for state in (self, twin)
        ]
        return (self.value, self.shown, digests[0]) == (twin.value, twin.shown, digests[1])

    def chain(self, task: int) -> int:
        """What stands for where a task is."""
        return self.tables[CHAINS].get(task, 0)

    def content(self, location: int) -> int:
        """The content of a location, with that of all its parts."""
        _, contents, wholes, _, _ = self.tables
        now = hash((wholes.get(location, 0), contents.get(location, 0)))
        return (
            hash((now, self.tables[DIGESTS].get(location, 0))) if location in self._parts else now
        )

    # Steps of a real run

    def observe(self, kinds: dict[int, int], untold: Container[int] = ()) -> tuple[int, Seen]:
        """(what a step that touches `kinds` saw of them, as one number; on what that rests).
        `untold`: what it leaves there cannot be told."""
        wholes = self.tables[WHOLES]
        parts = self._parts
        observed = 0
        seen: dict[int, int] = {}
        for location, kind in kinds.items():
            # The step stands for what it leaves untold, so it must stand for what was there, too.
            if kind in (S, X) or location in untold:
                now = self.content(location)
                at = ~location if location in parts else location
            else:
                now = wholes.get(location, 0)
                # What comes of a change depends on what was there, if not for the one who makes it.
                at = location
            seen[at] = self.as_seen(at)
            observed += spread(hash((location, kind, now)))
        return observed & MASK, self.seen(seen)

    def seen(self, contents: dict[int, int]) -> Seen:
        """What a step rests on that saw these `contents`, told as by `as_seen`."""
        parts = self._parts
        plain = {at: content for at, content in contents.items() if at >= 0 and at not in parts}
        return Seen(
            frozenset([(at, content) for at, content in plain.items() if content]),
            frozenset([at for at, content in plain.items() if not content]),
            tuple([(at, content) for at, content in contents.items() if at not in plain]),
        )

    def as_seen(self, location: int) -> int:
        """What is at a location (complemented: with all of its parts); 0 where nothing is told."""
        if location < 0:
            return self.content(~location)
        _, contents, wholes, _, _ = self.tables
        now = contents.get(location, 0)
        return hash((wholes.get(location, 0), now)) if location in self._parts else now

    def sees(self, seen: Seen) -> bool:
        """Whether a step that saw `seen` would see the same now."""
        contents = self.tables[CONTENTS]
        if not (contents.items() >= seen.told and contents.keys().isdisjoint(seen.untold)):
            return False
        for location, now in seen.divided:  # noqa: SIM110 - this is called too often for `all`
            if self.as_seen(location) != now:
                return False
        return True

    def written(self, kinds: dict[int, int], tracker: Tracker) -> list[int]:
        """The locations that a step which touches `kinds` leaves with contents of its making."""
        found = [
            location
            for location, kind in kinds.items()
            if kind == X
            or (location not in self._parts and (kind == IX or location in tracker.waiting_at))
        ]
        for whole in [at for at in found if tracker.places.is_in_parts(at)]:
            found += self._told_in(whole)
        return found

    def _told_in(self, whole: int) -> Iterable[int]:
        """The parts of it, and parts of parts, that are not as it was built or last written."""
        _, contents, wholes, _, _ = self.tables
        for part in self._parts.get(whole, ()):
            if part in contents or part in wholes:
                yield part
            yield from self._told_in(part)

    def write(
        self,
        kinds: dict[int, int],
        event: int,
        contents: dict[int, int | None],
        tracker: Tracker,
    ) -> None:
        """The step `event` touched `kinds`, and left the `contents` of what it has `written`."""
        parts = self._parts
        for location, content in contents.items():
            if location not in parts:
                self._write_one(location, event, content, tracker)
            else:
                self.set(WHOLES, location, event if content is None else content)
                self._drop_parts(location)
        # Parts that were written together with their whole have their content again.
        for location, content in contents.items():
            if kinds.get(location, X) == X and location not in parts:
                self._write_one(location, event, content, tracker)

    def _write_one(self, location: int, event: int, content: int | None, tracker: Tracker) -> None:
        new = event if content is None else content
        if (
            content is not None
            and tracker.is_as_built(location, content)
            and not self._is_in_written(location)
        ):
            self.set(CONTENTS, location, None)
        else:
            self.set(CONTENTS, location, new)

    def _is_in_written(self, part: int) -> bool:
        """Whether a part that is not in the table is as what it is part of was last written, and
        not as it was built."""
        wholes = self.tables[WHOLES]
        whole = self._whole_of.get(part)
        while whole is not None and whole not in wholes:
            whole = self._whole_of.get(whole)
        return whole is not None

    def _drop_parts(self, whole: int) -> None:
        _, contents, wholes, _, _ = self.tables
        parts = self._parts
        for part in parts[whole]:
            if part in contents:
                self.set(CONTENTS, part, None)
            if part in wholes:
                self.set(WHOLES, part, None)
            if part in parts:
                self._drop_parts(part)


class Seen(NamedTuple):
    """What a step saw: locations that have a content, those of which none is told, and locations
    that have parts (complemented: with all of these)."""

    told: frozenset[tuple[int, int]]
    untold: frozenset[int]
    divided: tuple[tuple[int, int], ...]

    def entries(self) -> Iterable[tuple[int, int]]:
        """All of it, as `Fingerprint.as_seen` tells it."""
        yield from self.told
        for location in self.untold:
            yield location, 0
        yield from self.divided


def kinds_of(accesses: Iterable[int]) -> dict[int, int]:
    """The strongest kind of access to each location."""
    kinds: dict[int, int] = {}
    for access in sorted(accesses):
        location = access >> 2
        kind = access & 3
        have = kinds.get(location)
        kinds[location] = kind if have is None or have == kind else _STRONGER[have << 2 | kind]
    return kinds


def _stronger(a: int, b: int) -> int:
    """The kind of two accesses of different kinds together: the weakest that depends on all that
    either depends on."""
    if X in (a, b) or {a, b} == {S, IX}:
        return X
    return IX if IX in (a, b) else S


_STRONGER = {a << 2 | b: _stronger(a, b) for a in range(4) for b in range(4) if a != b}
