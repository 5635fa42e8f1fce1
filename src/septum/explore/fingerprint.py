"""The state that a run is in, as a search knows it: equal where the same can follow.

A task goes by its *chain*: a hash of where it stands and of what it alone has, or, where that
cannot be told, of all that it observed. Everything that tasks share goes by its content. So runs
that came in different ways to the same contents, with tasks that stand in the same places, are in
the same state, whatever the order was in which it came to be.

Where a content cannot be told, the step that wrote it stands for it, which tells apart more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.explore.footprint import IS, IX, S, X
from septum.explore.mix import spread

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from septum.explore.track import Tracker

_MASK = 0xFFFFFFFFFFFFFFFF
ZERO = 0x5A45524F
"""The content of what has the content 0."""

CHAINS, CONTENTS, WHOLES, SHOWN = range(4)
"""The tables: of tasks, of locations, of locations that have parts, and of what promises can see of
what each task alone has."""

RESULTS = 1 << 80
"""Locations of the results of operations: only the end of the run looks at them."""

Tables = tuple[dict[int, int], dict[int, int], dict[int, int], dict[int, int]]

Write = tuple[int, int, int | None]
"""(table, key, new value); None: as at the beginning."""


class Fingerprint:
    """A state. `rewind` takes changes back. `value` is the fingerprint of all that decides how it
    goes on, `shown` of all that promises can see."""

    __slots__ = ("_digests", "_journal", "_watched", "_whole_of", "shown", "tables", "value")

    def __init__(self, whole_of: dict[int, int], watched: Mapping[int, bool]) -> None:
        """`whole_of`: locations of parts, and those of their wholes; `watched`: whether promises
        read a location."""
        self._whole_of = whole_of
        self._watched = watched
        self._digests: dict[int, int] = {}  # of all parts of a whole
        self.tables: Tables = ({}, {}, {}, {})
        self._journal: list[Write] = []
        self.value = 0
        self.shown = 0

    def copy(self) -> Fingerprint:
        """The same state, with nothing to take back."""
        twin = Fingerprint(self._whole_of, self._watched)
        twin._digests = self._digests.copy()
        chains, contents, wholes, shown = self.tables
        twin.tables = (chains.copy(), contents.copy(), wholes.copy(), shown.copy())
        twin.value = self.value
        twin.shown = self.shown
        return twin

    def mark(self) -> int:
        """A place to come back to."""
        return len(self._journal)

    def rewind(self, mark: int) -> None:
        """Take back all changes since `mark`."""
        journal = self._journal
        while len(journal) > mark:
            self._put(*journal.pop())

    def since(self, mark: int) -> list[Write]:
        """What was changed since `mark`, as it is now."""
        keys = dict.fromkeys((table, key) for table, key, _ in self._journal[mark:])
        return [(table, key, self.tables[table].get(key)) for table, key in keys]

    def _put(self, table: int, key: int, new: int | None) -> None:
        entries = self.tables[table]
        old = entries.get(key)
        change = 0
        if old is not None:
            change -= spread(hash((table, key, old)))
        if new is None:
            entries.pop(key, None)
        else:
            entries[key] = new
            change += spread(hash((table, key, new)))
        if table != SHOWN:
            self.value = self.value + change & _MASK
        if table == SHOWN or (table != CHAINS and key < RESULTS and self._watched[key]):
            self.shown = self.shown + change & _MASK
        if table == CONTENTS:
            whole = self._whole_of.get(key)
            if whole is not None:
                digest = self._digests.get(whole, 0)
                if old is not None:
                    digest -= spread(hash((key, old)))
                if new is not None:
                    digest += spread(hash((key, new)))
                self._digests[whole] = digest & _MASK

    def set(self, table: int, key: int, new: int | None) -> None:
        """Change one entry of a table."""
        if new == 0:
            new = ZERO  # 0 stands for what is not in a table
        old = self.tables[table].get(key)
        if old != new:
            self._journal.append((table, key, old))
            self._put(table, key, new)

    def apply(self, writes: Iterable[Write]) -> None:
        """Change several."""
        for table, key, new in writes:
            self.set(table, key, new)

    def chain(self, task: int) -> int:
        """What stands for where a task is."""
        return self.tables[CHAINS].get(task, 0)

    def content(self, location: int, parts: dict[int, list[int]]) -> int:
        """The content of a location, with that of all its parts."""
        _, contents, wholes, _ = self.tables
        now = hash((wholes.get(location, 0), contents.get(location, 0)))
        return hash((now, self._digests.get(location, 0))) if location in parts else now

    # Steps of a real run

    def observe(self, kinds: dict[int, int], parts: dict[int, list[int]]) -> tuple[int, Seen]:
        """(what a step that touches `kinds` saw of them, as one number; on what that rests)."""
        _, contents, wholes, _ = self.tables
        observed = 0
        seen: list[tuple[int, int]] = []
        for location, kind in kinds.items():
            if kind in (S, X):
                now = self.content(location, parts)
                seen.append((~location if location in parts else location, now))
            else:
                now = wholes.get(location, 0)
                # What comes of a change depends on what was there, if not for the one who makes it.
                seen.append((location, hash((now, contents.get(location, 0)))))
            observed += spread(hash((location, kind, now)))
        return observed & _MASK, tuple(seen)

    def sees(self, seen: Seen, parts: dict[int, list[int]]) -> bool:
        """Whether a step that saw `seen` would see the same now."""
        _, contents, wholes, _ = self.tables
        for location, now in seen:
            if location >= 0:
                if hash((wholes.get(location, 0), contents.get(location, 0))) != now:
                    return False
            elif self.content(~location, parts) != now:
                return False
        return True

    def write(self, kinds: dict[int, int], event: int, tracker: Tracker) -> None:
        """What the step `event` touched has the contents now that the tracked world has."""
        parts = tracker.footprints.parts
        for location, kind in kinds.items():
            if kind in (S, IS) and location not in tracker.waiting_at:
                continue
            if location not in parts:
                self.set(CONTENTS, location, self._new_content(location, event, tracker))
            elif kind == X:
                content = tracker.content_of(location)
                self.set(WHOLES, location, event if content is None else content)
                self._drop_parts(location, parts)
        # Parts that were written together with their whole have their content again.
        for location, kind in kinds.items():
            if kind != X or location in parts:
                continue
            self.set(CONTENTS, location, self._new_content(location, event, tracker))

    def _new_content(self, location: int, event: int, tracker: Tracker) -> int | None:
        content = tracker.content_of(location)
        if content is None:
            return event
        # A part that is not in the table is as it was built, or as its whole was last written.
        whole = self._whole_of.get(location)
        if whole is not None and whole in self.tables[WHOLES]:
            return content
        return None if tracker.is_as_built(location, content) else content

    def _drop_parts(self, whole: int, parts: dict[int, list[int]]) -> None:
        _, contents, wholes, _ = self.tables
        for part in parts[whole]:
            if part in contents:
                self.set(CONTENTS, part, None)
            if part in wholes:
                self.set(WHOLES, part, None)
            if part in parts:
                self._drop_parts(part, parts)


Seen = tuple[tuple[int, int], ...]
"""Locations (complemented: with all of their parts) and their contents."""


def kinds_of(accesses: Iterable[int]) -> dict[int, int]:
    """The strongest kind of access to each location."""
    kinds: dict[int, int] = {}
    for access in sorted(accesses):
        location = access >> 2
        kind = access & 3
        have = kinds.get(location)
        kinds[location] = kind if have is None or have == kind else _STRONGER[have << 2 | kind]
    return kinds


_STRONGER = {
    a << 2 | b: (
        a if a == b else X if X in (a, b) or {a, b} == {S, IX} else IX if IX in (a, b) else S
    )
    for a in range(4)
    for b in range(4)
}
