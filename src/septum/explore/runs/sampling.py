"""Random schedules: PCT with its guarantee, and a uniform walk.

PCT: every task has a random priority and the highest that is ready runs; at d - 1 random points
the running task's priority drops below all others. A bug that needs d ordering constraints in a
run of k points with n tasks is hit with probability at least 1 / (n k^(d-1)) by each schedule.

That is said of runs that end whatever the priorities are. Where tasks retry, one that is kept
waiting may be the one for whom all others wait: so schedules are fair, in two ways that cost no
preemption. A task that goes round and round drops below all others; every other schedule leaves
that be for its first k points, and gives the guarantee. A task that has waited for longer than k
points rises above all others, which no run of k points comes to.

Sources: Burckhardt, Kothari, Musuvathi, Nagarakatte, "A randomized scheduler with probabilistic
guarantees of finding bugs", ASPLOS 2010; Musuvathi, Qadeer, "Fair stateless model checking", PLDI
2008. Failures are placed by the same dice.
"""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

from septum.explore.runs.steering import Steering, standing

if TYPE_CHECKING:
    from septum.explore.subject import Options
    from septum.sim import Task

ROUNDS_MAX = 6
"""So often a task may stand at the same place in the code before others get their turn."""

LOOK_FROM = 48
"""Scheduling points in a row after which a task is looked at."""

MODEL_FRAMES = 9
"""So many places on its stack, from where it called `Sim.point` outwards, say where it stands."""


class Length:
    """How long runs are, as seen in an undisturbed one: what points are drawn from."""

    __slots__ = ("failure_points", "picks")

    def __init__(self, picks: int = 1, failure_points: int = 0) -> None:
        self.picks = max(1, picks)
        self.failure_points = failure_points


class Measuring(Steering):
    """An undisturbed run that counts what could be decided otherwise. `fails`: failures, too."""

    __slots__ = ("choices", "fails", "failure_points", "picks")

    def __init__(self, *, fails: bool = True) -> None:
        self.fails = fails
        super().__init__()

    def reset(self) -> None:
        super().reset()
        self.choices = 0
        self.picks = 0
        self.failure_points = 0

    def pick_task(self, n: int, forced: bool, spins: bool) -> int:
        self.picks += 1
        return 1 if spins else 0

    def choose_value(self, name: str, n: int) -> int:
        failure = self.is_failure(name)
        self.choices += not failure or self.fails
        self.failure_points += failure
        return 0

    @property
    def decides(self) -> bool:
        """Whether there was anything to decide; if not, there is no other schedule."""
        return bool(self.picks or self.choices)

    def length(self) -> Length:
        """What was measured."""
        return Length(self.picks, self.failure_points)


class Sampled(Steering):
    """Dice for run `number` of `seed`; subclasses pick tasks."""

    __slots__ = (
        "_fail_at",
        "_nr_failure_points",
        "_places",
        "_random",
        "_turn",
        "length",
        "options",
    )

    def __init__(self, options: Options, number: int, length: Length) -> None:
        self.options = options
        self.length = length
        self._random = random.Random(options.seed << 40 | number).random
        super().__init__()
        self._nr_failure_points = 0
        self._places: dict[tuple[int, ...], int] = {}  # how often a task stood there, in its turn
        self._turn = (0, 0)
        space = max(1, length.failure_points + length.failure_points // 4)
        count = self._below(min(options.failures, space) + 1)
        self._fail_at = {self._below(space) for _ in range(count)}

    def _below(self, n: int) -> int:
        """One of 0..n-1."""
        return int(self._random() * n)

    def go_on(self, count: int, in_row: int) -> None:
        """The answer at the next `count` points is 0, unless the task that runs there, and has run
        `in_row` of them, goes round."""
        if in_row < LOOK_FROM:
            self.sim.skip_points(min(count, LOOK_FROM - in_row))
        else:
            self.sim.skip_points(max(0, min(count, self.spin_points - in_row - 1)), self._look)

    def _look(self) -> bool:
        """Called by `Sim.point`: whether to ask, because the current task goes round."""
        return self._goes_round(standing(3, MODEL_FRAMES))

    def goes_round(self) -> bool:
        """Whether the current task says that it tries in vain, or has been here ROUNDS_MAX times
        since it was switched to, and ran for a while: where it stands is only looked at from then
        on."""
        if self._in_row < LOOK_FROM:
            return self.sim.current.in_vain
        # `pick_task` calls this; between it and `Sim.point` is one more.
        return self.sim.current.in_vain or self._goes_round(standing(5, MODEL_FRAMES))

    def _goes_round(self, place: tuple[int, ...]) -> bool:
        sim = self.sim
        turn = (sim.current.index, sim.nr_switches)
        if turn != self._turn:
            # Who goes round and round while others wait is made to yield: no others ran since.
            self._turn = turn
            self._places.clear()
        rounds = self._places[place] = self._places.get(place, 0) + 1
        return rounds >= ROUNDS_MAX

    def choose_value(self, name: str, n: int) -> int:
        if not self.is_failure(name):
            return self._below(n)
        at = self._nr_failure_points
        self._nr_failure_points = at + 1
        if at not in self._fail_at or self.failures >= self.options.failures:
            return 0
        return 1 + self._below(n - 1)


class RandomWalk(Sampled):
    """Any ready task at every point, or (every other run) mostly the current one."""

    __slots__ = ("_stay", "_stays")

    def __init__(self, options: Options, number: int, length: Length) -> None:
        super().__init__(options, number, length)
        self._stays = -1  # points to go until a turn comes; -1: not drawn
        # The logarithm of how likely the current task goes on; 0: any task, at every point.
        self._stay = 0.0 if number % 2 else math.log(1.0 - 4.0 / (length.picks + 4))

    def pick_task(self, n: int, forced: bool, spins: bool) -> int:
        if forced:
            return int(self._random() * n)
        # `goes_round`, where there is something to look at.
        looks = self._in_row >= LOOK_FROM or self.sim.current.in_vain
        if looks and not spins and self.goes_round():
            self.yields = spins = True
        if spins:
            return 1 + self._below(n - 1)
        limit = self.options.preemptions
        if limit is not None and self.preemptions >= limit:
            self.go_on(self.spin_points, self._in_row)
            return 0
        if self._stay and not self._turn_comes():
            return 0
        return int(self._random() * n)  # `_below`, at hand where one point in three comes

    def was_skipped(self, count: int) -> None:
        self._stays -= count

    def _turn_comes(self) -> bool:
        """Whether the dice now say that any task may run. How often in a row they say that the
        current one goes on is drawn at once."""
        if self._stays == 0:
            self._stays = -1
            return True
        if self._stays > 0:
            # Asked before its time: a task became ready, or was looked at.
            self._stays -= 1
            self.go_on(self._stays, self._in_row)
            return False
        stays = int(math.log(1.0 - self._random()) / self._stay)
        if not stays:
            return True
        self._stays = stays - 1
        self.go_on(stays - 1, self._in_row)
        return False


class Pct(Sampled):
    """Priorities with d - 1 change points, d = 1 + at most `options.depth`."""

    __slots__ = (
        "_change_at",
        "_highest",
        "_lowest",
        "_nr_picks",
        "_patience",
        "_priorities",
        "_ran_at",
        "_strict_until",
    )

    def __init__(self, options: Options, number: int, length: Length) -> None:
        super().__init__(options, number, length)
        depth = options.depth
        if options.preemptions is not None:
            depth = min(depth, options.preemptions)
        count = self._below(depth + 1)
        space = length.picks + length.picks // 4 + 1
        self._change_at = {self._below(space) for _ in range(count)}
        self._strict_until = 0 if number % 2 else space
        self._patience = max(space, options.spin_points)
        self._priorities: dict[int, float] = {}
        self._highest = 1.0
        self._lowest = 0.0
        self._nr_picks = 0
        self._ran_at: dict[int, int] = {}  # by task: how many picks there were when it ran last

    def was_skipped(self, count: int) -> None:
        self._nr_picks += count

    def _priority(self, task: Task) -> float:
        value = self._priorities.get(task.index)
        if value is None:
            value = self._priorities[task.index] = self._random()
        return value

    def _drop(self, task: Task) -> None:
        self._lowest -= 1.0
        self._priorities[task.index] = self._lowest

    def _raise_who_waits(self, ring: list[Task], at: int) -> bool:
        """Who has waited for too long rises above all others; whether there is such a task."""
        ran_at = self._ran_at
        for task in ring:
            if at - ran_at.setdefault(task.index, at) > self._patience:
                self._highest += 1.0
                self._priorities[task.index] = self._highest
                ran_at[task.index] = at
                return True
        return False

    def pick_task(self, n: int, forced: bool, spins: bool) -> int:
        sim = self.sim
        current = sim.current
        at = self._nr_picks
        self._nr_picks = at + 1
        if not forced:
            self._ran_at[current.index] = at
            if at < self._strict_until:
                spins = False  # nobody drops; what a switch costs is as in every other run
            elif not spins and self.goes_round():
                self.yields = spins = True
            if spins or at in self._change_at:
                self._drop(current)
        ring = sim.ready_ring()
        waited = self._raise_who_waits(ring, at)
        if waited and not forced:
            self.yields = True
        # Priorities are as they are up to the next change point.
        ahead = min([c - at - 1 for c in self._change_at if c > at], default=self.spin_points)
        if not self.yields and not forced and not self._may_preempt():
            self._go_on(ahead, at, self._in_row)
            return 0
        best = 0 if not spins else 1
        for index in range(best + 1, n):
            if self._priority(ring[index]) > self._priority(ring[best]):
                best = index
        self._ran_at[ring[best].index] = at
        self._go_on(ahead, at, 0 if best or forced else self._in_row)
        return best

    def _may_preempt(self) -> bool:
        limit = self.options.preemptions
        return limit is None or self.preemptions < limit

    def _go_on(self, count: int, at: int, in_row: int) -> None:
        """`go_on`; as long as the schedule is strict nobody looks who goes round."""
        if at < self._strict_until:
            self.sim.skip_points(min(count, self._strict_until - at - 1))
        else:
            self.go_on(count, in_row)
