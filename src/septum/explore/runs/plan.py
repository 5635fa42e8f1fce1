"""A schedule as a plan: which task runs for how many points, and how its choices come out.

Answers mean something else when an earlier one changes; a plan does not. So it is plans that the
shrinker takes apart: without a segment, with two of them merged, with one that runs on until its
task must wait. The points that a task passes while it is the only one that can run count as the
others: in a simpler plan somebody else may be ready there. A choice is known by its task, its name,
and how many of that name the task had before: in a simpler plan it may do more or less in between.
"""

from __future__ import annotations

from itertools import pairwise, permutations
from typing import TYPE_CHECKING

from septum.explore.runs.steering import Replaying, Steering

if TYPE_CHECKING:
    from collections.abc import Iterator

    from septum.explore.runs.run import Runner
    from septum.sim import Sim

FOREVER = 1 << 30
Segment = tuple[int, int]
"""A task by index, and at how many scheduling points in a row it is the one to run."""
Choice = tuple[int, str, int]
"""A task by index, what is chosen, and how often that task had to choose it before."""


class Plan:
    """Who runs for how long, and how choices come out: those that are not in `choices` as 0."""

    __slots__ = ("choices", "segments")

    def __init__(self, segments: list[Segment], choices: dict[Choice, int]) -> None:
        self.segments = segments
        self.choices = choices

    def variants(self) -> Iterator[Plan]:
        """Plans that are simpler, the boldest first."""
        segments, choices = self.segments, self.choices
        for at in range(len(segments) - 1, 0, -1):
            yield Plan(segments[:at], choices)
        for at in range(len(segments)):
            yield self._with(at, 1)
        for at, (task, count) in enumerate(segments):
            if count != FOREVER:
                yield self._with(at, 1, (task, FOREVER))
        for at, (first, second) in enumerate(pairwise(segments)):
            yield self._with(at, 2, second, first)
            # Who comes first now may have more to do than when the other had begun.
            yield self._with(at, 2, (second[0], FOREVER), first)
        for at, (task, count) in enumerate(segments):
            again = next((k for k in range(at + 1, len(segments)) if segments[k][0] == task), None)
            if again is not None:
                both = min(FOREVER, count + segments[again][1])
                yield self._with(again, 1)._with(at, 1, (task, both))
        for key in choices:
            yield Plan(segments, {k: v for k, v in choices.items() if k != key})
        for at, (task, count) in enumerate(segments):
            for other in (count // 2, count - 1, count + 1):
                if 0 < other < FOREVER // 2 and count < FOREVER:
                    yield self._with(at, 1, (task, other))

    def preempted_once(self) -> Iterator[Iterator[Plan]]:
        """Plans of the same tasks with a single preemption: for each task that it may be, and each
        order of those who run then, the preemption at one place after the other."""
        tasks = sorted({task for task, _ in self.segments})
        length = sum(count for _, count in self.segments)
        for first in tasks:
            for then in permutations(tasks):
                if then[0] != first:
                    rest = [(task, FOREVER) for task in then]
                    yield (Plan([(first, at), *rest], self.choices) for at in range(1, length))

    def _with(self, at: int, nr: int, *instead: Segment) -> Plan:
        """The plan with other segments in place of `nr`, from number `at` on."""
        segments = self.segments
        return Plan([*segments[:at], *instead, *segments[at + nr :]], self.choices)


class _Chosen:
    """Counts the choices of a run."""

    __slots__ = ("_nr",)

    def __init__(self) -> None:
        self._nr: dict[tuple[int, str], int] = {}

    def next(self, task: int, name: str) -> Choice:
        """The choice that `task` is at."""
        nr = self._nr.get((task, name), 0)
        self._nr[task, name] = nr + 1
        return task, name, nr


class _Passed:
    """Counts the scheduling points at which nobody was asked."""

    __slots__ = ("_seen",)

    def __init__(self, sim: Sim) -> None:
        self._seen = sim.nr_points

    def count(self, sim: Sim, forced: bool) -> int:
        """So many since the last call, without the point (if not `forced`) that this call is at."""
        passed = sim.nr_points - self._seen - (0 if forced else 1)
        self._seen = sim.nr_points
        return max(0, passed)


class Planning(Replaying):
    """Replays answers and writes down the plan that they amount to."""

    __slots__ = ("_choices", "_chosen", "_passed", "_segments")

    def reset(self) -> None:
        super().reset()
        self._segments: list[list[int]] = []
        self._choices: dict[Choice, int] = {}
        self._chosen = _Chosen()

    def begin(self, sim: Sim, runner: Runner) -> None:
        super().begin(sim, runner)
        self._passed = _Passed(sim)

    def pick_task(self, n: int, forced: bool, spins: bool) -> int:
        answer = super().pick_task(n, forced, spins)
        self._note(self.sim.ready_ring()[answer].index, forced)
        return answer

    def only_one(self) -> None:
        super().only_one()
        self._note(self.sim.ready_ring()[0].index, True)

    def _note(self, task: int, forced: bool) -> None:
        """`task` is the one to run; until now it was that of the last segment."""
        passed = self._passed.count(self.sim, forced)
        if self._segments:
            self._segments[-1][1] += passed
        if self._segments and self._segments[-1][0] == task:
            self._segments[-1][1] += 1
        else:
            self._segments.append([task, 1])

    def choose_value(self, name: str, n: int) -> int:
        value = super().choose_value(name, n)
        choice = self._chosen.next(self.sim.current.index, name)
        if value:
            self._choices[choice] = value
        return value

    def plan(self) -> Plan:
        """The plan of the run that was replayed."""
        return Plan([(task, count) for task, count in self._segments], dict(self._choices))


class Following(Steering):
    """Runs a plan as far as it fits: a segment is over when its task goes round or is not ready."""

    __slots__ = ("_at", "_chosen", "_left", "_passed", "plan")

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        super().__init__()

    def reset(self) -> None:
        super().reset()
        self._at = -1
        self._left = 0
        self._chosen = _Chosen()

    def begin(self, sim: Sim, runner: Runner) -> None:
        super().begin(sim, runner)
        self._passed = _Passed(sim)

    def only_one(self) -> None:
        super().only_one()
        self._left -= self._passed.count(self.sim, True)
        # Who runs alone does so in its own segment, if that is the one to come.
        task = self.sim.ready_ring()[0].index
        segments = self.plan.segments
        if not (0 <= self._at < len(segments) and segments[self._at][0] == task):
            if self._at + 1 >= len(segments) or segments[self._at + 1][0] != task:
                return
            self._at += 1
            self._left = segments[self._at][1]
        self._left -= 1

    def pick_task(self, n: int, forced: bool, spins: bool) -> int:
        self._left -= self._passed.count(self.sim, forced)
        ring = [task.index for task in self.sim.ready_ring()]
        segments = self.plan.segments
        while self._at < len(segments):
            if self._left > 0 and segments[self._at][0] in ring[1 if spins else 0 :]:
                self._left -= 1
                return ring.index(segments[self._at][0])
            self._at += 1
            if self._at < len(segments):
                self._left = segments[self._at][1]
        return 1 if spins else 0

    def choose_value(self, name: str, n: int) -> int:
        choice = self._chosen.next(self.sim.current.index, name)
        return self.plan.choices.get(choice, 0) % n
