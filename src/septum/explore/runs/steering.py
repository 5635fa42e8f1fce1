"""Schedules that know the simulator they steer: what searches are made of.

A run is steered by answers; here they are counted, and runs that go on and on are brought to an end
or shown to have none.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, cast

from septum.explore import budget
from septum.sim import RunStopped, Schedule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import FrameType

    from septum.explore.runs.run import Runner
    from septum.explore.subject import Options
    from septum.explore.tracking.track import Tracker
    from septum.sim import Sim, Task

ALONE_MAX = 400_000
"""So many scheduling points a task may pass while it is the only one that could run."""

FAIR_TIMES = 4
"""A run with `max_points` decisions goes on for so many times as many, while tasks take turns."""

TURN_POINTS = 24
"""The least number of scheduling points of a turn."""

CLOCK_EVERY = 4096
"""After so many decisions, or scheduling points, a run looks at the clock."""


class Cut(RunStopped):
    """The run need not go on: the rest of it is known, or a budget is used up."""


def standing(skip: int, depth: int) -> tuple[int, ...]:
    """Where the running task is: the places in the code on its stack, `depth` of them, without the
    innermost `skip` frames."""
    places: list[int] = []
    at: FrameType | None = sys._getframe(skip)
    while at is not None and depth:
        places += (id(at.f_code), at.f_lasti)
        at = at.f_back
        depth -= 1
    return tuple(places)


class Steering(Schedule):
    """A schedule that knows the simulator it steers, and counts.

    `pick` and `choose` are final: subclasses say `pick_task` and `choose_value`. The counts are
    those of the run so far: `decisions` (scheduling points asked about or skipped, and choice
    points), `preemptions` (a task that could go on did not), `failures` (choice points that came
    out other than the ordinary way).

    A run that has made `max_points` decisions is no endless one yet: it may be long, or its
    schedule may never have let the one go on for whom all wait. From then on tasks take turns,
    so that none is kept waiting; what has no end in FAIR_TIMES as many decisions has none. Where
    a search follows steps (`lasts` is not set) the run is cut instead.
    """

    __slots__ = (
        "_asked_at",
        "_clock_at",
        "_in_row",
        "_look_at",
        "_no_end_at",
        "_nr_turns",
        "_row_task",
        "_skipped",
        "_traced",
        "_turn_left",
        "_until",
        "broken",
        "decisions",
        "failures",
        "fair_from",
        "free",
        "is_failure",
        "lasts",
        "late",
        "max_points",
        "preempting",
        "preemptions",
        "ran_long",
        "sim",
        "spin_points",
        "stopped",
        "yields",
    )

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget the last run."""
        self.sim: Sim = cast("Sim", None)
        self.preemptions = 0
        self.yields = False  # the current task spins: that another one runs costs nothing
        self.preempting = False  # the last answer took the processor from who could go on
        self.free: list[int] = []  # the numbers of the answers that did so at no cost
        self.ran_long = False  # who ran before the last switch had run for `spin_points`
        self.failures = 0
        self.decisions = 0
        self.stopped = False
        self.broken = False  # the run has a finding
        self.late = False  # the time of the search came in the run
        self.lasts = False
        self.fair_from = -1  # the number of the answer from which on tasks take turns
        self.max_points = 0
        self.spin_points = 0
        self._traced: Tracker | None = None
        self._until = 0.0
        self._no_end_at = 0
        self._clock_at = CLOCK_EVERY
        self._look_at = 0  # the number of the first decision that is not like any other
        self._asked_at = 0  # the number of the scheduling point at which somebody was asked last
        self._turn_left = 0
        self._nr_turns = 0
        self._in_row = 0
        self._row_task: Task | None = None
        self._skipped = 0

    def begin(self, sim: Sim, runner: Runner) -> None:
        """A run begins."""
        self.reset()
        if runner.tracker is not None:
            runner.tracker.patches.hush(self.begins_unheard())
        self.lasts = runner.tracker is None
        self._traced = runner.tracker
        self._until = runner.until
        self.watch(sim, runner.options, runner.subject.is_failure)

    def watch(self, sim: Sim, options: Options, is_failure: Callable[[str], bool]) -> None:
        """From now on steer what runs in `sim`."""
        self.sim = sim
        self.max_points = options.max_points
        self.spin_points = options.spin_points
        self.is_failure = is_failure
        self._no_end_at = self.max_points * (1 + FAIR_TIMES)
        self._look_at = min(self._clock_at, self.max_points + 1)
        self._asked_at = sim.nr_points
        self._skipped = sim.nr_skipped
        sim.set_alarm(self.alone, self._asked_at + CLOCK_EVERY)

    def begins_unheard(self) -> bool:
        """Whether nothing need be logged of what the run begins with."""
        return False

    def ended(self) -> None:
        """The last step was made, or broken off by a finding. Not called when cut."""

    def stop(self) -> None:
        """End the run here."""
        self.stopped = True
        self._look_at = 0
        raise Cut

    def _look_at_clock(self) -> None:
        self._clock_at = self.decisions + CLOCK_EVERY
        self._look_at = min(self._clock_at, self.max_points + 1)
        if budget.passed(self._until):
            self.late = True
            self.stop()

    def pick(self, n: int, forced: bool) -> int:
        sim = self.sim
        self._asked_at = sim.nr_points
        current = sim.current
        anew = current is not self._row_task
        if anew:
            # Before what was skipped is counted: it was this one that went on there.
            self._in_row = 0
            self._row_task = current
        if sim.granted != self._skipped:  # all of which has been used up when somebody is asked
            self.count_skipped()
        decisions = self.decisions = self.decisions + 1
        if decisions >= self._look_at:
            self._maybe_last()
            if decisions > self.max_points:
                return self._take_turns(forced)
        if forced:
            self._in_row = 0
        elif not anew:
            self._in_row += 1
        self.yields = spins = self._in_row >= self.spin_points
        answer = self.pick_task(n, forced, spins)
        self.preempting = False
        if answer:
            self.ran_long = self._in_row >= self.spin_points
            self._in_row = 0
            if not forced:
                if self.yields:
                    self.free.append(len(sim.answers))
                else:
                    self.preempting = True
                    self.preemptions += 1
        return answer

    def _maybe_last(self) -> None:
        """At a decision that may be the last. Raises Cut."""
        if self.stopped:
            self.decisions -= 1
            raise Cut
        if self.decisions >= self._clock_at:
            self._look_at_clock()

    def _take_turns(self, forced: bool) -> int:
        """The next in the run queue, once the current task has had its turn. Turns are of several
        lengths, so that tasks do not meet in step for ever."""
        if self.fair_from < 0:
            if not self.lasts:
                self.stop()
            self.fair_from = len(self.sim.answers)
            self._turn_left = TURN_POINTS
        if self.decisions > self._no_end_at:
            self._no_end()
        self.yields = self.preempting = False
        self._turn_left -= 1
        if not forced and self._turn_left > 0:
            return 0
        self._nr_turns += 1
        self._turn_left = TURN_POINTS + self._nr_turns % TURN_POINTS
        if self._traced is not None:
            self._traced.steps.forget()
        return 0 if forced else 1

    def alone(self) -> None:
        """Many scheduling points have passed. A task that passed them at which nobody was asked
        may go on alone, but not for ever."""
        sim = self.sim
        passed = sim.nr_points - self._asked_at
        if passed >= ALONE_MAX:
            self._no_end(passed)
        if passed >= CLOCK_EVERY:
            self._look_at_clock()
        ahead = min(CLOCK_EVERY - passed % CLOCK_EVERY, ALONE_MAX - passed)
        sim.set_alarm(self.alone, sim.nr_points + ahead)

    def only_one(self) -> None:
        """A task that goes on alone is no endless one, up to a limit."""
        if self.stopped:
            raise Cut
        self._asked_at = self.sim.nr_points
        self.decisions += 1
        if self.decisions >= self._clock_at:
            self._look_at_clock()
        if self.decisions > self._no_end_at or (
            self.decisions > self.max_points and not self.lasts
        ):
            self._no_end()

    def count_skipped(self) -> None:
        """Take note of the points that were skipped since somebody was asked."""
        skipped = self.sim.nr_skipped - self._skipped
        self._skipped += skipped
        self._in_row += skipped
        self.decisions += skipped
        if skipped:
            self.was_skipped(skipped)

    def was_skipped(self, count: int) -> None:
        """At `count` scheduling points the current task went on, as was said (Sim.skip_points)."""

    def _no_end(self, nr_alone: int = 0) -> None:
        """`nr_alone`: so many scheduling points the current task has passed since the last
        decision."""
        sim = self.sim
        self.stopped = True
        self._look_at = 0
        names = ", ".join(t.name for t in sim.tasks if not t.done)
        nr_fair = self.decisions - 1 - self.max_points
        turns = f", the last {nr_fair} in turns" if self.fair_from >= 0 else ""
        if nr_alone:
            turns += f", and {nr_alone} scheduling points of {sim.current.name} after them"
        sim.find(
            "progress",
            f"no end after {self.decisions - 1} scheduling decisions{turns};"
            f" still running: {names}",
            where="scheduler",
        )
        raise Cut

    def choose(self, name: str, n: int) -> int:
        if self.stopped or self.fair_from >= 0:
            return 0
        self.decisions += 1
        answer = self.choose_value(name, n)
        if answer and self.is_failure(name):
            self.failures += 1
        return answer

    def pick_task(self, n: int, forced: bool, spins: bool) -> int:
        """Which of `n` ready tasks. `spins`: the current one has run long enough to yield, so
        that another (not 0) should be taken, and costs nothing."""
        raise NotImplementedError

    def choose_value(self, name: str, n: int) -> int:
        """Which outcome of a choice point."""
        return 0

    def spec(self) -> tuple[str, int]:
        return ("list", 0)


class Replaying(Steering):
    """Given answers, then the undisturbed ones: the current task goes on, no failures. Those with
    the numbers `free` let others run at no cost: the search saw that the task goes round."""

    __slots__ = ("_at", "_for_nothing", "answers", "misfits")

    def __init__(self, answers: list[int], free: Iterable[int] = ()) -> None:
        self.answers = answers
        self._for_nothing = frozenset(free)
        super().__init__()

    def reset(self) -> None:
        super().reset()
        self._at = 0
        self.misfits = 0

    def begin(self, sim: Sim, runner: Runner) -> None:
        super().begin(sim, runner)
        self.lasts = True  # it is made to see how the run comes out

    def fits(self) -> bool:
        if self.misfits:
            return False
        # Where tasks take turns the schedule is not asked any more.
        return self.fair_from >= 0 or not any(self.answers[self._at :])

    def _next(self, n: int, default: int) -> int:
        at = self._at
        if at >= len(self.answers):
            return default
        self._at = at + 1
        answer = self.answers[at]
        if answer >= n:
            self.misfits += 1
            return answer % n
        return answer

    def pick_task(self, n: int, forced: bool, spins: bool) -> int:
        if self._for_nothing and len(self.sim.answers) in self._for_nothing:
            self.yields = True
        return self._next(n, 1 if spins else 0)

    def choose_value(self, name: str, n: int) -> int:
        return self._next(n, 0)


class Lasting(Replaying):
    """Given answers, then turns: what goes round and waits for others comes out soon."""

    __slots__ = ()

    def begin(self, sim: Sim, runner: Runner) -> None:
        super().begin(sim, runner)
        self.spin_points = min(self.spin_points, TURN_POINTS)
