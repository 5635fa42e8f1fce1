"""Tasks that go round a loop without change: seen, put aside, and woken by what they look at.

A task that retries sees the same again and again until another task changes something that it
looks at. Until then it need not run. When all that are ready go round like that, nobody will ever
change anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from septum.explore.fingerprint import Fingerprint
    from septum.explore.transitions import Step

PERIOD_MAX = 60
"""Steps of the longest loop that is recognised."""

TIMES = 3
"""So often a task does the same before it is taken to go round."""

STATES_MAX = 400
"""Among the states after so many steps one that comes again is looked for."""

RowEntry = tuple[int, int, int, tuple[int, ...], int]
"""(what a step saw, where the task stood after it, its chain before it, what it looked at, the
state after it)."""

Spinning = dict[int, tuple[tuple[int, int], ...]]
"""Tasks that go round: what they look at, and its content."""


def entry_of(step: Step, chain: int, state: int) -> RowEntry:
    """What a row of steps keeps of one."""
    return (step.observed, step.place, chain, step.looks_at, state)


class Row:
    """The last steps of a task that no other one came between."""

    __slots__ = ("_places", "entries")

    def __init__(self) -> None:
        self.entries: list[RowEntry] = []
        self._places: list[int] = []

    def cut(self, length: int) -> None:
        """Go back to the first `length` steps."""
        del self.entries[length:]
        del self._places[length:]

    def extend(self, entries: list[RowEntry]) -> bool:
        """More steps, unless they go round with those before: whether they were added."""
        length = len(self.entries)
        for entry in entries:
            if self.add(entry):
                self.cut(length)
                return False
        return True

    def add(self, entry: RowEntry) -> int:
        """Another step. The length of the loop that the task has gone round, see period_of."""
        self.entries.append(entry)
        place = entry[1]
        # Most steps lead to a place where the task did not stand before.
        been = place in self._places
        self._places.append(place)
        return period_of(self.entries) if been else 0


def period_of(row: list[RowEntry]) -> int:
    """The length of the loop that the task whose last steps are `row` has gone round; 0: it gets
    on. It is in a loop when a state comes again, or when it has seen the same TIMES times, at the
    same places in the code."""
    last = row[-1][:2]
    length = len(row)
    state = row[-1][4]
    for back in range(2, min(length, STATES_MAX) + 1):
        if row[-back][4] == state:
            return back - 1
    for period in range(1, min(PERIOD_MAX, length // TIMES) + 1):
        if row[-1 - period][:2] == last and all(
            row[at][:2] == row[at - period][:2]
            for at in range(length - 2, length - 1 - (TIMES - 1) * period, -1)
        ):
            return period
    return 0


def looks_at(row: list[RowEntry], period: int, state: Fingerprint) -> tuple[tuple[int, int], ...]:
    """What a task looks at in a loop of `period` steps, and how it is now."""
    locations = sorted({location for entry in row[-period:] for location in entry[3]})
    return tuple((location, state.content(location)) for location in locations)


def still_spinning(spinning: Spinning, state: Fingerprint) -> Spinning:
    """Those that would see what they saw."""
    return {
        task: saw
        for task, saw in spinning.items()
        if all(state.content(location) == content for location, content in saw)
    }
