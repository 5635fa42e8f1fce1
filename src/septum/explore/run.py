"""One run of a subject under one schedule, as often and as cheaply as needed.

The world is built once. Before each run what runs change is put back; what that is, is learned,
and verified every so often, so that a run never depends on the runs before it.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, cast

from septum import __version__
from septum.explore.adopt import parts_apart
from septum.explore.track import Tracker
from septum.sim import (
    Coroutine,
    Finding,
    ListSchedule,
    RunStopped,
    Schedule,
    encode_token,
)
from septum.sim.state import Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from septum.explore.subject import Built, Options, Subject
    from septum.sim import Event, Sim, Task

VERIFY_ALWAYS = 8
VERIFY_EVERY = 64


class Abandoned(Exception):
    """A searcher gives up a run, to begin again with what it has learned."""


class StateMissed(Abandoned):
    """State was found changed that restoring did not put back: runs since `since` do not count.

    It has been learned, so that the same runs can be made again.
    """

    def __init__(self, since: int, paths: list[str]) -> None:
        super().__init__(f"runs since {since} changed {', '.join(paths[:3])}")
        self.since = since


class Cut(RunStopped):
    """The run need not go on: the rest of it is known, or a budget is used up."""


class Steering(Schedule):
    """A schedule that knows the simulator it steers, and counts.

    `pick` and `choose` are final: subclasses say `pick_task` and `choose_value`. The counts are
    those of the run so far: scheduling `points` asked about, `preemptions` (a task that could go
    on did not), `failures` (choice points that came out other than the ordinary way).
    """

    __slots__ = (
        "_in_row",
        "_row_task",
        "_skipped",
        "broken",
        "decisions",
        "failures",
        "is_failure",
        "max_points",
        "preempting",
        "preemptions",
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
        self.failures = 0
        self.decisions = 0
        self.stopped = False
        self.broken = False  # the run has a finding
        self.max_points = 0
        self.spin_points = 0
        self._in_row = 0
        self._row_task: Task | None = None
        self._skipped = 0

    def begin(self, sim: Sim, runner: Runner) -> None:
        """A run begins."""
        self.reset()
        self.sim = sim
        self.max_points = runner.options.max_points
        self.spin_points = runner.options.spin_points
        self.is_failure = runner.subject.is_failure

    def ended(self) -> None:
        """The last step was made, or broken off by a finding. Not called when cut."""

    def stop(self) -> None:
        """End the run here."""
        self.stopped = True
        raise Cut

    def pick(self, n: int, forced: bool) -> int:
        if self.stopped:
            raise Cut
        sim = self.sim
        sim.alarm_at = sim.nr_points + ALONE_MAX
        skipped = sim.nr_skipped - self._skipped
        if skipped:
            self._skipped += skipped
            self._in_row += skipped
            self.decisions += skipped
            self.was_skipped(skipped)
        self.decisions += 1
        if self.decisions > self.max_points:
            self._no_end()
        current = sim.current
        if current is self._row_task and not forced:
            self._in_row += 1
        else:
            self._in_row = 0
            self._row_task = current
        spins = not forced and self._in_row >= self.spin_points
        self.yields = spins
        answer = self.pick_task(n, forced, spins)
        self.preempting = bool(answer) and not forced and not self.yields
        if self.preempting:
            self.preemptions += 1
        if answer:
            self._in_row = 0
        return answer

    def alone(self) -> None:
        """A task has passed ALONE_MAX scheduling points at which nobody was asked: nobody goes on
        alone for ever."""
        self._no_end()

    def only_one(self) -> None:
        """A task that goes on alone is no endless one, up to a limit."""
        if self.stopped:
            raise Cut
        self.sim.alarm_at = self.sim.nr_points + ALONE_MAX
        self.decisions += 1
        if self.decisions > self.max_points:
            self._no_end()

    def was_skipped(self, count: int) -> None:
        """At `count` scheduling points the current task went on, as was said (Sim.skip_points)."""

    def _no_end(self) -> None:
        sim = self.sim
        self.stopped = True
        names = ", ".join(t.name for t in sim.tasks if not t.done)
        sim.find(
            "progress",
            f"no end after {self.decisions - 1} scheduling decisions; still running: {names}",
            where="scheduler",
        )
        raise Cut

    def choose(self, name: str, n: int) -> int:
        if self.stopped:
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


ALONE_MAX = 400_000
"""So many scheduling points a task may pass while it is the only one that could run."""

STANDING_DEPTH = 14


def standing(skip: int, depth: int = STANDING_DEPTH) -> tuple[int, ...]:
    """Where the running task is: the places in the code on its stack, `depth` of them, without the
    innermost `skip` frames."""
    places: list[int] = []
    at: FrameType | None = sys._getframe(skip)
    while at is not None and depth:
        places += (id(at.f_code), at.f_lasti)
        at = at.f_back
        depth -= 1
    return tuple(places)


class Findings(list[Finding]):
    """The findings of a run, which ends with the first that is news, also where no other task is
    ready and no schedule is asked."""

    __slots__ = ("_is_news",)

    def __init__(self, is_news: Callable[[Finding], bool]) -> None:
        super().__init__()
        self._is_news = is_news

    def append(self, finding: Finding) -> None:
        """Raises RunStopped after news."""
        super().append(finding)
        if self._is_news(finding):
            raise RunStopped(finding)


class Replaying(Steering):
    """Given answers, then the undisturbed ones: the current task goes on, no failures."""

    __slots__ = ("_at", "answers", "misfits")

    def __init__(self, answers: list[int]) -> None:
        self.answers = answers
        super().__init__()

    def reset(self) -> None:
        super().reset()
        self._at = 0
        self.misfits = 0

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
        return self._next(n, 1 if spins else 0)

    def choose_value(self, name: str, n: int) -> int:
        return self._next(n, 0)


class Run:
    """How one run went."""

    __slots__ = ("answers", "cut", "failures", "finding", "preemptions", "steps")

    def __init__(
        self,
        finding: Finding | None,
        cut: bool,
        answers: list[int],
        steering: Steering,
        steps: int,
    ) -> None:
        self.finding = finding
        self.cut = cut  # ended before its end, without a finding
        self.answers = answers
        self.preemptions = steering.preemptions
        self.failures = steering.failures
        self.steps = steps  # scheduling points and choices met


class Runner:
    """Runs one subject again and again."""

    __slots__ = (
        "_captured_at",
        "_coroutines",
        "_verified_at",
        "built",
        "nr_runs",
        "nr_steps",
        "options",
        "sink",
        "snapshot",
        "subject",
        "tracker",
        "verify_every",
    )

    def __init__(self, subject: Subject, options: Options) -> None:
        self.subject = subject
        self.options = options
        self.built: Built = subject.build()
        self.nr_runs = 0
        self.nr_steps = 0
        self.sink: Callable[[Event], None] | None = None  # where the events of runs go
        self._verified_at = self._captured_at = 0
        self.tracker: Tracker | None = None
        self.verify_every = VERIFY_EVERY  # runs; a judge that must not err looks after each
        self._capture()

    def _capture(self) -> None:
        # The schedule is the searcher's, and a bound method in it would lead there.
        sim = self.built.sim
        sim.schedule = Replaying([])
        self.snapshot = Snapshot(self.built.roots, skip=[sim.schedule, self.subject])
        self._coroutines = [
            part.obj for part in self.snapshot.parts if isinstance(part.obj, Coroutine)
        ]
        self._captured_at = self._verified_at = self.nr_runs
        self.snapshot.add_hot(
            part
            for part in self.snapshot.parts
            if part.obj is sim
            or part.obj in self._coroutines
            or (part.owner is not None and part.owner.obj is sim)
        )

    def track(self) -> Tracker:
        """From now on see what each step touches. Raises NotTrackable.

        Ends with `untrack`: the tracker patches the model's classes for the whole process.
        """
        self.clean()
        tracker = Tracker(self.built.sim)
        tracker.adopt(self.snapshot)
        self._capture()
        tracker.install(self.snapshot)
        self.snapshot.add_hot(parts_apart(self.snapshot))
        self.tracker = tracker
        return tracker

    def untrack(self) -> None:
        """Stop seeing."""
        if self.tracker is not None:
            self.clean()
            self.tracker.uninstall()
            self.tracker.release(self.snapshot)
            self.tracker = None
            self._capture()

    def run(self, steering: Steering) -> Run:
        """One run from the beginning. Raises whatever the model raises: a defect of Septum.

        Raises StateMissed when this run and some before it must be made again.
        """
        sim = self.built.sim
        subject = self.subject
        self.begin(steering)
        finished = False
        try:
            subject.start(self.built)
            sim.run()
            finished = not steering.stopped
            if finished:
                steering.ended()
                subject.finish(self.built)
        except RunStopped:
            if not finished and not steering.stopped:
                steering.ended()
        except Abandoned:
            raise
        except Exception:
            self._judge_defect(steering)
        finding = self._first_finding()
        steering.broken = finding is not None
        run = Run(finding, not finished and finding is None, sim.answers, steering, sim.nr_points)
        self.nr_steps += steering.decisions
        return run

    def _judge_defect(self, steering: Steering) -> None:
        """The model raised. Unless it does so again from a world that is surely as it was built,
        the world was not, and runs must be made again; else it is a defect of Septum."""
        if isinstance(steering, Replaying) and self._verified_at == self.nr_runs - 1:
            # Called from an except block, which the linter does not see.
            raise  # noqa: PLE0704
        answers = list(self.built.sim.answers)
        since = self._verified_at
        self.clean()
        try:
            self.run(Replaying(answers))
        except Exception as error:
            token = encode_token(__version__, self.subject.recipe, ListSchedule(answers))
            error.add_note(f"scenario {self.subject.name}; replay with: septum replay {token}")
            raise
        raise StateMissed(since, ["something that made the model raise"])

    def begin(self, steering: Steering) -> None:
        """Put the world back and make it ready for a run."""
        self.clear()
        sim = self.built.sim
        if self.tracker is not None:
            self.tracker.begin()
        sim.answers = []
        sim.skip_points(0)
        sim.nr_skipped = 0
        sim.findings = Findings(self.is_news)
        sim.schedule = steering
        sim.stop_on_finding = False  # Findings stops at the first that is news
        sim.set_sink(self.sink)
        steering.begin(sim, self)
        sim.alarm_at = sim.nr_points + ALONE_MAX
        sim.set_alarm(steering.alone)
        self.nr_runs += 1

    def clear(self, verify: bool = False) -> None:
        """Put the world back as it was built."""
        self._kill()
        if self.tracker is not None:
            self.tracker.restore()
        snapshot = self.snapshot
        snapshot.restore()
        early = self.nr_runs - self._captured_at <= VERIFY_ALWAYS
        due = early or self.nr_runs - self._verified_at >= self.verify_every
        if due or verify:
            missed = snapshot.verify()
            since = self._verified_at
            self._verified_at = self.nr_runs
            if self.tracker is not None:
                self.tracker.check_missed(missed)
            if missed and not early and self.verify_every > 1:
                raise StateMissed(since, [part.path for part in missed])

    def clean(self) -> None:
        """Put the world back for sure, whatever is to be said of the runs before."""
        try:
            self.clear(verify=True)
        except StateMissed:
            self.clear(verify=True)

    def settle(self) -> None:
        """Make sure that all runs so far count. Raises StateMissed when some do not."""
        self.clear(verify=True)

    def _first_finding(self) -> Finding | None:
        return next(filter(self.is_news, self.built.sim.findings), None)

    def is_news(self, finding: Finding) -> bool:
        """Whether a finding counts: neither the scenario nor the user knows of it."""
        return not self.options.ignores(finding) and not self.subject.expects(finding)

    def _kill(self) -> None:
        """End what is left of the last run. Its unwinding may touch the world, so this is before
        the world is put back."""
        sim = self.built.sim
        for task in sim.tasks:
            sim.current = task
            _quietly(task.kill)
        for coroutine in self._coroutines:
            _quietly(coroutine.kill)


def _quietly(kill: Callable[[], None]) -> None:
    # A task that is cut off in the middle unwinds its `with` blocks in a world that is about to
    # be put back: what they complain about means nothing.
    try:
        kill()
    except (Exception, RunStopped):
        return
