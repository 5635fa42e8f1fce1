"""Where workers have been: a state that one has explored to the end need not be entered by another.

Told are only states below which nothing was found, was cut short, or went round without a judge. So
what a worker finds, and by which schedule, does not depend on where the others have been.

What was touched below a state is told in bits that the teller numbers by itself; with the locations
that they stand for, whoever hears of it works out its own.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, NamedTuple

from septum.explore.exhaustive.visited import FOUND, Visit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from septum.explore.tracking.footprint import Footprints, Masks, Summary

TELL_AT = 4096
"""So many states are told together."""


class Been(NamedTuple):
    """States of one teller, by key, each with the number of how it was explored. `locations`,
    `hows`: what bits and numbers stand for that were not told before, in their order; `beginning`:
    since when that was told, as a number."""

    teller: int
    beginning: int
    locations: list[int]
    hows: list[Visit]
    keys: array[int]
    numbers: array[int]


class Outbox:
    """What one worker has not told yet."""

    __slots__ = (
        "_beginning",
        "_footprints",
        "_hows",
        "_index",
        "_keys",
        "_nr_hows",
        "_nr_locations",
        "_number_of",
        "_numbers",
    )

    def __init__(self, index: int, footprints: Footprints) -> None:
        self._index = index
        self._footprints = footprints
        self._beginning = 0
        self.begin()

    def begin(self) -> None:
        """What was told so far does not count any more."""
        self._beginning += 1
        self._nr_locations = 0
        self._nr_hows = 0
        self._number_of: dict[Visit, int] = {}
        self._hows: list[Visit] = []
        self._keys = array("q")
        self._numbers = array("I")

    def __len__(self) -> int:
        return len(self._keys)

    def put(self, key: int, visit: Visit) -> None:
        """A state was explored to the end."""
        number = self._number_of.get(visit)
        if number is None:
            number = -1
            if is_through(visit.below):
                number = self._nr_hows
                self._nr_hows += 1
                self._hows.append(visit)
            self._number_of[visit] = number
        if number >= 0:
            self._keys.append(key)
            self._numbers.append(number)

    def take(self) -> Been:
        """All of it."""
        locations = list(self._footprints.bits)
        been = Been(
            self._index,
            self._beginning,
            locations[self._nr_locations :],
            self._hows,
            self._keys,
            self._numbers,
        )
        self._nr_locations = len(locations)
        self._hows = []
        self._keys = array("q")
        self._numbers = array("I")
        return been


def is_through(below: Summary) -> bool:
    """Whether all is known of what follows a state, and nothing was found."""
    return FOUND not in below and all(masks[0] >= 0 for masks in below.values())


class _Teller:
    """What bits and numbers of one teller stand for."""

    __slots__ = ("hows", "known", "locations", "nr_alike")

    def __init__(self) -> None:
        self.locations: list[int] = []
        self.nr_alike = 0  # so many bits, from the first, stand for the same here
        self.hows: list[Visit] = []
        self.known: dict[int, tuple[Visit] | None] = {}  # in own bits; None: not all are known here


class Inbox:
    """What one worker has heard of the others, by teller and beginning."""

    __slots__ = ("_footprints", "_tellers")

    def __init__(self, footprints: Footprints) -> None:
        self._footprints = footprints
        self._tellers: dict[tuple[int, int], _Teller] = {}

    def hear(self, been: Been) -> None:
        """Keep what bits and numbers stand for."""
        teller = self._tellers.setdefault((been.teller, been.beginning), _Teller())
        teller.locations += been.locations
        teller.hows += been.hows

    def visits(self, been: Been) -> Iterator[tuple[int, tuple[Visit]]]:
        """States by key, and how they were explored, as this worker would say it."""
        teller = self._tellers[been.teller, been.beginning]
        self._compare(teller)
        known = teller.known
        for key, number in zip(been.keys, been.numbers, strict=True):
            if number not in known:
                known[number] = self._translated(teller, teller.hows[number])
            visit = known[number]
            if visit is not None:
                yield key, visit

    def _compare(self, teller: _Teller) -> None:
        """See how many of the first bits stand for the same here."""
        own = self._footprints.bits
        at = 0
        for theirs, mine in zip(teller.locations, own, strict=False):
            if theirs != mine:
                break
            at += 1
        teller.nr_alike = at

    def _translated(self, teller: _Teller, visit: Visit) -> tuple[Visit] | None:
        below: Summary = {}
        for task, masks in visit.below.items():
            own = self._masks(teller, masks)
            if own is None:
                return None
            below[task] = own
        sleep = visit.sleep
        return (Visit(visit.current, visit.preemptions_left, visit.failures_left, sleep, below),)

    def _masks(self, teller: _Teller, masks: Masks) -> Masks | None:
        if not masks[0] >> teller.nr_alike:
            return masks
        bits = self._footprints.bits
        every = written = read = changed = 0
        left = masks[0]
        while left:
            bit = left & -left
            left ^= bit
            own = bits.get(teller.locations[bit.bit_length() - 1])
            if own is None:
                return None
            every |= own
            written |= own if masks[1] & bit else 0
            read |= own if masks[2] & bit else 0
            changed |= own if masks[3] & bit else 0
        return (every, written, read, changed)
