"""What promises read, as looks show it: by class and slot, containers one by one.

Where two states differ in nothing that a promise reads, one look judges both. Entries of tables,
frames, all of memory, values of dicts and locks count as read: who looks at a lock, or at a block
of memory, is not told of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.explore.tracking.locations import (
    CLASS_AND_SLOT,
    EVERYWHERE,
    PART_LOCATION,
    class_of_made,
    is_part,
    made_in_run,
)
from septum.sim.locks import _Lock

if TYPE_CHECKING:
    from collections.abc import Iterable

    from septum.explore.tracking.track import Tracker

_SLOT = 0xFF


class Watched(dict[int, bool]):
    """Location -> whether promises read such a one. Runs that show more than was known tell it as
    news: what was computed before lacks it."""

    __slots__ = ("_asked", "_known", "_read", "_tracker", "counts")

    def __init__(self, tracker: Tracker) -> None:
        super().__init__()
        self._tracker = tracker
        self._read: set[int] = set()
        self._asked: set[int] = set()  # kinds that somebody took for read or not
        self._known: set[int] = set()  # accesses of objects of the built world
        self.counts = False  # promises look before a run has ended: see VIEW

    def __missing__(self, location: int) -> bool:
        if (
            is_part(location)
            or self._is_of_lock(location)
            or self._tracker.places.is_in_parts(location)
        ):
            answer = True
        else:
            kind = self._kind_of(location)
            self._asked.add(kind)
            answer = kind in self._read
        self[location] = answer
        return answer

    def _is_of_lock(self, location: int) -> bool:
        name = location >> 8
        if made_in_run(location):
            return class_of_made(name) in self._tracker.places.locks
        return isinstance(self._tracker.lock_of.get(name), _Lock)

    def note(self, accesses: Iterable[int]) -> None:
        """Promises have read this."""
        tracker = self._tracker
        for access in set(accesses) - self._known:
            if access >= PART_LOCATION << 2:
                continue
            name = tracker.names.name_of(access >> 10)
            if name == access >> 10:
                self._known.add(access)
            if name:
                self.learn(self._kind_of(name << 8 | access >> 2 & _SLOT))

    def learn(self, kind: int) -> None:
        """Promises read such as are of a kind."""
        if kind not in self._read:
            self._read.add(kind)
            if kind in self._asked:
                self.clear()
                self._tracker.footprints.news.add(EVERYWHERE)
            self._tracker.footprints.opened.add(("read", kind, ""))

    def count_views(self) -> None:
        """Promises look before the end: what they can see then depends on who came first."""
        if not self.counts:
            self.counts = True
            self._tracker.footprints.news.add(EVERYWHERE)
            self._tracker.footprints.opened.add(("views", 0, ""))

    def _kind_of(self, location: int) -> int:
        if made_in_run(location):
            return location & CLASS_AND_SLOT
        number = self._tracker.names.class_at(location >> 8)
        return number << 32 | location & _SLOT if number else location
