"""Which random schedules to draw next: more of the kind that lately showed something new.

No kind of dice is the best for all that may go wrong: PCT hits what needs a few switches at the
right places, a walk that may switch at every point what needs many, one that mostly stays what lies
deep in a run. So schedules are drawn in rounds, some of each kind; how many of which in the next
round goes by what the last one brought. A run brings something if it came out as none before
(`Subject.came_out`). When few do, drawing pays no more, and the search goes over to looking at all.

What a round is to draw follows from the outcomes of those before, and from nothing else: not from
the clock, nor from who made which runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from septum.explore.subject import Strategy

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

BATCH_RUNS = 25
ROUND_BATCHES = 8
BATCH_MAX = 250
"""Runs of one batch where only one kind is drawn: each batch is verified when it is through, which
costs what a run does."""

POINTS_MAX = 150_000
"""After so many scheduling points no round begins."""
RUNS_MAX = 1600
PAYS_FROM = 0.05
"""A round pays if this part of the runs of some kind came out as none before."""


class Dice(msgspec.Struct, frozen=True):
    """A kind of random schedules: those of `strategy` with the numbers `first`, `first` + `stride`
    and so on."""

    name: str
    strategy: Strategy
    first: int
    stride: int


PCT = Dice("PCT", Strategy.PCT, 0, 1)
WALK = Dice("uniform walk", Strategy.RANDOM, 1, 2)
STAYING_WALK = Dice("walk that mostly stays", Strategy.RANDOM, 0, 2)


class Batch(msgspec.Struct, frozen=True):
    """`count` schedules of one kind, from the `first` of that kind on."""

    dice: Dice
    first: int
    count: int

    def number(self) -> int:
        """The number of the first schedule."""
        return self.dice.first + self.first * self.dice.stride


def batch_sizes(limit: int | None) -> Iterator[int]:
    """Of batches that have `limit` runs together; None: without an end. They grow with what was
    drawn, so that several processes have something to do to the last."""
    drawn = 0
    while limit is None or drawn < limit:
        count = min(max(BATCH_RUNS, drawn // ROUND_BATCHES), BATCH_MAX)
        if limit is not None:
            count = min(count, limit - drawn)
        yield count
        drawn += count


def nr_batches(limit: int) -> int:
    """How many batches have `limit` runs together, however large that is."""
    nr = drawn = 0
    for count in batch_sizes(None):
        if drawn >= limit:
            break
        if count == BATCH_MAX:  # as are all after it
            return nr + -(-(limit - drawn) // BATCH_MAX)
        nr += 1
        drawn += count
    return nr


class Portfolio:
    """Draws rounds of batches, at most `limit` schedules in all."""

    __slots__ = ("_drawn", "_limit", "_nr_points", "_pay", "_seen")

    def __init__(
        self, limit: int = RUNS_MAX, kinds: Sequence[Dice] = (PCT, WALK, STAYING_WALK)
    ) -> None:
        self._limit = limit
        self._drawn = dict.fromkeys(kinds, 0)
        self._pay = dict.fromkeys(kinds, 1.0)  # in the last round, of each run; at first all may
        self._seen: set[int] = set()
        self._nr_points = 0

    def draw(self) -> list[Batch]:
        """The next round; nothing when drawing pays no more, or enough were drawn."""
        batches: list[Batch] = []
        left = self._limit - sum(self._drawn.values())
        if max(self._pay.values()) < PAYS_FROM or self._nr_points >= POINTS_MAX:
            return batches
        for dice in self._shares():
            count = min(BATCH_RUNS, left)
            if count > 0:
                batches.append(Batch(dice, self._drawn[dice], count))
                self._drawn[dice] += count
                left -= count
        return batches

    def _shares(self) -> list[Dice]:
        """Of which kinds the batches of a round are. Every kind has one, so that nobody is given
        up for good; the rest goes by what they brought, in turns."""
        kinds = list(self._pay)
        shares = list(kinds)
        given = dict.fromkeys(kinds, 1)
        while len(shares) < ROUND_BATCHES:
            # Who is owed most: as votes become seats (Sainte-Lague).
            dice = max(kinds, key=lambda kind: self._pay[kind] / (2 * given[kind] + 1))
            given[dice] += 1
            shares.append(dice)
        return shares

    def learn(self, results: Iterable[tuple[Batch, Sequence[int], int]]) -> None:
        """A round was made: of each batch, in order, how its runs came out, and how many scheduling
        points they passed."""
        runs = dict.fromkeys(self._pay, 0)
        fresh = dict.fromkeys(self._pay, 0)
        for batch, outcomes, nr_points in results:
            runs[batch.dice] += batch.count
            fresh[batch.dice] += len(set(outcomes) - self._seen)
            self._seen.update(outcomes)
            self._nr_points += nr_points
        self._pay = {dice: fresh[dice] / runs[dice] if runs[dice] else 0.0 for dice in runs}
