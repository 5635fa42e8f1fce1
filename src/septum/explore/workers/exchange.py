"""What workers learn, told to each other: a step that one has learned need not be made by another.

The workers are forks of one that has begun the search: objects of the built world, classes and
code are at the same places in all of them. What goes by numbers that each gives by itself (bits of
masks) is worked out anew where it is heard. Every worker appends to a file of its own, and reads
those of the others; nobody waits.

A step rests on what is known to be shared. So with each goes what was touched in it, which is
learned as if the step had been made here; and it is taken over only where the same turned out to be
shared since the fork as where it was made.
"""

from __future__ import annotations

import os
import pickle
import tempfile
from typing import IO, TYPE_CHECKING, NamedTuple

from septum.explore.tracking.locations import EVERYWHERE
from septum.explore.workers import been
from septum.explore.workers.been import Inbox, Outbox

if TYPE_CHECKING:
    from septum.explore.exhaustive.heard import Key, Told
    from septum.explore.exhaustive.known import Look, Step
    from septum.explore.exhaustive.visited import Visit
    from septum.explore.tracking.footprint import Footprints, Opened
    from septum.explore.tracking.track import Tracker
    from septum.explore.workers.been import Been
    from septum.sim import Finding

TELL_AT = 12
"""So many steps and looks are told together."""

_HEAD = 8


def make_files(count: int) -> list[IO[bytes]]:
    """One file for each of `count` workers, gone when they are."""
    # They are open for as long as the workers are.
    return [tempfile.TemporaryFile() for _ in range(count)]


class Batch(NamedTuple):
    """What is told together. `tag`: what its teller took to be shared; `opened`: what it came to
    look at since the fork; `looks` in which no promise broke; `been`: where it has been."""

    tag: int
    opened: set[Opened]
    steps: list[Told]
    ends: list[tuple[int, Finding | None]]
    looks: list[Look]
    been: Been | None


class Exchange:
    """One worker's end. `files`: of all workers, the one of number `index` is its own."""

    __slots__ = (
        "_ends",
        "_files",
        "_footprints",
        "_full",
        "_index",
        "_looks",
        "_news",
        "_opened",
        "_read_to",
        "_steps",
        "_visits",
        "_written",
        "inbox",
    )

    def __init__(self, files: list[IO[bytes]], index: int, footprints: Footprints) -> None:
        self._files = files
        self._index = index
        self._footprints = footprints
        self._opened = footprints.opened
        self._written = 0
        self._full = False  # there is no room for more
        self._read_to = [0] * len(files)
        self._steps: list[Told] = []
        self._ends: list[tuple[int, Finding | None]] = []
        self._looks: list[Look] = []
        self._visits = Outbox(index, footprints)
        self.inbox = Inbox(footprints)  # where the others have been
        self._news: set[int] = set()  # what turned out to be shared since the fork

    @property
    def tag(self) -> int:
        """Stands for what turned out to be shared since the fork."""
        return hash((frozenset(self._news), frozenset(self._opened)))

    def learned(self, news: set[int]) -> None:
        """More turned out to be shared: what was not told yet lacks it."""
        self._steps.clear()
        self._ends.clear()
        self._looks.clear()
        self._visits.begin()
        self._news |= news - {EVERYWHERE}

    def parts_company(self) -> None:
        """Something was missed, and nobody knows what: no other will agree any more."""
        self._news.add(~self._index << 64)

    def tell(self, key: Key, step: Step, tracker: Tracker) -> None:
        """Another step was learned: the last that `tracker` has seen."""
        steps = tracker.steps
        whole_of = tracker.footprints.whole_of
        segments = [
            (context.held, context.exclusive, list(accesses))
            for context, accesses in steps.accesses
        ]
        touched = {access >> 2 for _, _, accesses in segments for access in accesses}
        parts: dict[int, int] = {}
        for location in touched & whole_of.keys():
            at = location
            while at in whole_of and at not in parts:
                parts[at] = whole_of[at]
                at = whole_of[at]
        self._steps.append((key, step, segments, list(steps.makes), parts))

    def tell_end(self, end: int, finding: Finding | None) -> None:
        """An end was judged."""
        self._ends.append((end, finding))

    def tell_look(self, look: Look) -> None:
        """Promises looked, and none was broken."""
        self._looks.append(look)

    def tell_visit(self, key: int, visit: Visit) -> bool:
        """A state was explored to the end. Whether it is time to hear what others have told."""
        self._visits.put(key, visit)
        if len(self._visits) < been.TELL_AT:
            return False
        # Where more turned out to be shared the search is about to start over.
        if not self._footprints.news:
            self._write(self._visits.take())
        return True

    def flush(self) -> None:
        """Write what was told of steps and looks, if it is enough."""
        if len(self._steps) + len(self._looks) >= TELL_AT:
            self._write(None)

    def _write(self, visits: Been | None) -> None:
        batch = Batch(self.tag, self._opened, self._steps, self._ends, self._looks, visits)
        data = pickle.dumps(batch, protocol=pickle.HIGHEST_PROTOCOL)
        data = len(data).to_bytes(_HEAD, "little") + data
        if not self._full:
            try:
                written = os.pwrite(self._files[self._index].fileno(), data, self._written)
            except OSError:
                written = 0
            # Where there is no room the others do without.
            self._full = written < len(data)
            self._written += written
        self._steps.clear()
        self._ends.clear()
        self._looks.clear()

    def hear(self) -> list[Batch]:
        """What the others have told since the last time."""
        heard: list[Batch] = []
        for index, file in enumerate(self._files):
            if index == self._index:
                continue
            number = file.fileno()
            size = os.fstat(number).st_size
            at = self._read_to[index]
            while size - at > _HEAD:
                length = int.from_bytes(os.pread(number, _HEAD, at), "little")
                if size - at - _HEAD < length:
                    break
                heard.append(pickle.loads(os.pread(number, length, at + _HEAD)))
                at += _HEAD + length
            self._read_to[index] = at
        return heard
