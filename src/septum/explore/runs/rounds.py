"""Tasks that go round, in runs that nobody looks at as a search does: what their switches cost.

A search lets others run at no cost where a task goes round; each kind of search sees that in its
own way, and says at which switches of the run that it found. Smaller runs are tried by their
schedules alone: there a task goes round when it has stood, with nobody in between, as often as the
search demands at a place where the search saw it go round.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from septum.explore.runs.plan import Following
from septum.explore.runs.sampling import MODEL_FRAMES, ROUNDS_MAX
from septum.explore.runs.steering import Replaying, Steering
from septum.sim import Sim

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import FrameType

    from septum.explore.runs.plan import Plan
    from septum.sim import Task

Place = tuple[int, ...]
"""A task by index, and where its scheduling point is in the code."""

TIMES_MIN = 2
"""Who is at a place for the first time has not gone round."""

_POINT = Sim.point.__code__


def place_of(task: Task) -> Place:
    """Where the running task stands; called by its scheduling point."""
    at: FrameType | None = sys._getframe()
    while at is not None and at.f_code is not _POINT:
        at = at.f_back
    place = [task.index]
    for _ in range(MODEL_FRAMES):
        at = at.f_back if at is not None else None
        if at is None:
            break
        place += (id(at.f_code), at.f_lasti)
    return tuple(place)


class Rounds:
    """How often tasks have stood where they stand, since they last began to run. `times`: how often
    a task stands at a place to go round there."""

    __slots__ = ("_stood", "_tasks", "_turn", "times")

    def __init__(self) -> None:
        self.times: dict[Place, int] = {}
        self._tasks: set[int] = set()
        self.begin()

    def begin(self) -> None:
        """A run begins."""
        self._turn = (0, 0)
        self._stood: dict[Place, int] = {}

    def stands(self, sim: Sim) -> tuple[Place, int]:
        """Where the current task stands, and for which time in its turn."""
        turn = (sim.current.index, sim.nr_switches)
        if turn != self._turn:
            self._turn = turn
            self._stood.clear()
        place = place_of(sim.current)
        nr = self._stood[place] = self._stood.get(place, 0) + 1
        return place, nr

    def learn(self, place: Place, nr: int) -> None:
        """A search saw a task go round when it stood there for the `nr`th time."""
        nr = max(TIMES_MIN, min(nr, ROUNDS_MAX))
        self.times[place] = min(nr, self.times.get(place, nr))
        self._tasks.add(place[0])

    def goes_round(self, sim: Sim) -> bool:
        """Whether the current task does."""
        if sim.current.index not in self._tasks:
            return False
        place, nr = self.stands(sim)
        return place in self.times and nr >= self.times[place]


class Repeating(Replaying):
    """Replays the run that a search found, and learns where tasks go round in it."""

    __slots__ = ("rounds",)

    def __init__(self, answers: list[int], free: Iterable[int], rounds: Rounds) -> None:
        self.rounds = rounds
        super().__init__(answers, free)

    def reset(self) -> None:
        super().reset()
        self.rounds.begin()

    def pick_task(self, n: int, forced: bool, spins: bool) -> int:
        answer = super().pick_task(n, forced, spins)
        if self._for_nothing and not forced:
            place, nr = self.rounds.stands(self.sim)
            if answer and self.yields:
                self.rounds.learn(place, nr)
        return answer


class _Trying(Steering):
    """Who goes round lets others run, and that costs nothing."""

    __slots__ = ()
    rounds: Rounds

    def reset(self) -> None:
        super().reset()
        self.rounds.begin()

    def pick_task(self, n: int, forced: bool, spins: bool) -> int:
        if not forced and self.rounds.goes_round(self.sim):
            self.yields = spins = True
        return super().pick_task(n, forced, spins)


class Trying(_Trying, Replaying):
    """Replays answers."""

    __slots__ = ("rounds",)

    def __init__(self, answers: list[int], rounds: Rounds) -> None:
        self.rounds = rounds
        super().__init__(answers)


class TryingPlan(_Trying, Following):
    """Follows a plan."""

    __slots__ = ("rounds",)

    def __init__(self, plan: Plan, rounds: Rounds) -> None:
        self.rounds = rounds
        super().__init__(plan)
