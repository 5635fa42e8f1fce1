"""One run of a subject under one schedule, as often and as cheaply as needed.

The world is built once. Before each run what runs change is put back; what that is, is learned,
and verified every so often, so that a run never depends on the runs before it.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from septum.errors import NotBegun
from septum.explore import budget
from septum.explore.runs.steering import Replaying, Steering
from septum.explore.tracking.adopt import parts_apart
from septum.explore.tracking.track import Tracker
from septum.sim import Coroutine, Finding, ListSchedule, RunStopped, encode_token
from septum.sim.state import Snapshot
from septum.stamp import stamp

if TYPE_CHECKING:
    from collections.abc import Callable

    from septum.explore.covering.coverage import Coverage
    from septum.explore.subject import Built, Options, Subject
    from septum.sim import Event

VERIFY_ALWAYS = 8
VERIFY_EVERY = 64
PATIENCE_MAX = 8
"""At most so many times VERIFY_EVERY runs are believed: twice as many each time that nothing was
missed."""

REDONE_MAX = 50
"""At most so often runs are made again because state was missed."""
LEFT_BEHIND = "runs keep changing state that restoring does not put back"


class Abandoned(Exception):
    """A searcher gives up a run, to begin again with what it has learned."""


class StateMissed(Abandoned):
    """State was found changed that restoring did not put back: runs since `since` do not count.

    It has been learned, so that the same runs can be made again.
    """

    def __init__(self, since: int, paths: list[str]) -> None:
        super().__init__(f"runs since {since} changed {', '.join(paths[:3])}")
        self.since = since


class DidNotRepeat(RuntimeError):
    """One schedule came out in two ways: the host, or what is done to repeat runs, is not sound."""


class OutOfTime(Abandoned):
    """The time of the search has come while a run was under way."""


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


class Run:
    """How one run went."""

    __slots__ = (
        "answers",
        "cut",
        "failures",
        "fair_from",
        "finding",
        "free",
        "preemptions",
        "steps",
    )

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
        self.fair_from = steering.fair_from if steering.fair_from >= 0 else len(answers)
        self.preemptions = steering.preemptions
        self.free = steering.free
        self.failures = steering.failures
        self.steps = steps  # scheduling points and choices met


class Runner:
    """Runs one subject again and again."""

    __slots__ = (
        "_broken_off",
        "_captured_at",
        "_coroutines",
        "_patience",
        "_verified_at",
        "before",
        "built",
        "foreseen",
        "ignored",
        "nr_runs",
        "nr_steps",
        "options",
        "sink",
        "snapshot",
        "subject",
        "tracker",
        "until",
        "verify_every",
    )

    def __init__(self, subject: Subject, options: Options) -> None:
        """Raises NotBegun where the world does not come to where runs begin, and nobody wants to
        hear of what keeps it from that."""
        self.subject = subject
        self.options = options
        self.built: Built = subject.build()
        # What is broken already, by the setup, is a finding of every run.
        self.before = tuple(self.built.sim.findings)
        if self.built.unready and not any(map(self.is_news, self.before)):
            raise NotBegun(
                f"scenario {subject.name}: before its programs begin: {self.built.unready}; nothing"
                " can be run or searched"
            )
        self.nr_runs = 0
        self.nr_steps = 0
        # What broke as the scenario says, as (promise, text), since somebody emptied it.
        self.foreseen: dict[tuple[str, str], None] = {}
        self.ignored: dict[tuple[str, str], None] = {}  # the same of what the user ignores
        self.sink: Callable[[Event], None] | None = None  # where the events of runs go
        self.until = 0.0  # by `budget.now`: when runs are broken off; 0: never
        self._verified_at = self._captured_at = 0
        self.tracker: Tracker | None = None
        self._patience = 1
        self._broken_off = False  # the last run was
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

    def track(self, coverage: Coverage) -> Tracker:
        """From now on see what each step touches, and tell `coverage` what it reaches. Raises
        NotTrackable.

        Ends with `untrack`: the tracker patches the model's classes for the whole process.
        """
        self.clean()
        for coroutine in self._coroutines:
            coroutine.kill()
        tracker = Tracker(self.built.sim, coverage)
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

        Raises StateMissed when this run and some before it must be made again, and OutOfTime when
        it is `until`.
        """
        if budget.passed(self.until):
            raise OutOfTime
        sim = self.built.sim
        subject = self.subject
        self.begin(steering)
        finished = False
        try:
            for known in self.before:
                sim.findings.append(known)
            subject.start(self.built)
            sim.run()
            finished = not steering.stopped
            if finished:
                steering.ended()
                subject.finish(self.built)
        except RunStopped:
            if not finished and not steering.stopped:
                # Where it has ended may be known.
                with suppress(RunStopped):
                    steering.ended()
        except Abandoned:
            self._broken_off = True
            raise
        except Exception as error:
            self._blame_world(steering, error)
            raise
        if steering.late:
            raise OutOfTime
        finding = self._first_finding()
        for other in sim.findings:
            if not self.is_news(other):
                told = self.ignored if self.options.ignores(other) else self.foreseen
                told[other.promise, other.text] = None
        steering.broken = finding is not None
        run = Run(finding, not finished and finding is None, sim.answers, steering, sim.nr_points)
        self.nr_steps += steering.decisions
        return run

    def _blame_world(self, steering: Steering, error: Exception) -> None:
        """The model raised `error`. Raises StateMissed if it does not raise again from a world that
        is surely as it was built: then this one was not, and runs must be made again. Else it is a
        defect of Septum: raises what the model raises, with the token of the run, or returns if
        this was such a second time."""
        if isinstance(steering, Replaying) and self._verified_at == self.nr_runs - 1:
            return
        answers = list(self.built.sim.answers)
        since = self._verified_at
        self.clean()
        try:
            self.run(Replaying(answers))
        except Exception as again:
            token = encode_token(stamp(), self.subject.recipe, ListSchedule(answers))
            again.add_note(f"scenario {self.subject.name}; replay with: septum replay {token}")
            raise
        what = type(error).__name__
        raise StateMissed(since, [f"something that made the model raise {what}"])

    def begin(self, steering: Steering) -> None:
        """Put the world back and make it ready for a run."""
        self.clear()
        self.built.is_over = False
        sim = self.built.sim
        if self.tracker is not None:
            self.tracker.begin()
        sim.answers = []
        sim.skip_points(0)
        sim.findings = Findings(self.is_news)
        sim.schedule = steering
        sim.stop_on_finding = False  # Findings stops at the first that is news
        sim.set_sink(self.sink)
        steering.begin(sim, self)
        self.nr_runs += 1

    def at_start(self, look: Callable[[], None]) -> None:
        """`look`, once tasks have been spawned and none has run: what is done to spawn them is done
        in every run, before the first step."""
        self.begin(Replaying([]))
        self.subject.start(self.built)
        look()

    def clear(self, verify: bool = False) -> None:
        """Put the world back as it was built. Where there is reason to, and every so often, or now
        if `verify`, see that nothing has changed but what was put back: raises StateMissed if
        something has, and the runs since it was seen last count no more."""
        # What waits when a run ends is left in lists of waiters, where the next run finds it, and
        # takes it out: then is too late to see that it was not put back. And few runs take the VMs
        # down, which changes what no other run does.
        rare = self.built.is_over or any(
            not task.done and not task.daemon for task in self.built.sim.tasks
        )
        self._kill()
        if self.tracker is not None:
            self.tracker.restore()
            rare = False
        self.snapshot.restore()
        # A run that did not come out as it was known to may have changed anything while nobody
        # listened.
        broken_off, self._broken_off = self._broken_off, False
        early = self.nr_runs - self._captured_at <= VERIFY_ALWAYS
        patience = self._patience if self.verify_every > 1 else 1
        regular = self.nr_runs - self._verified_at >= self.verify_every * patience
        special = early or rare or broken_off
        if not (verify or regular or special):
            return
        missed = self.snapshot.verify()
        if missed:
            self._patience = 1
        elif regular and not special:
            self._patience = min(2 * self._patience, PATIENCE_MAX)
        since = self._verified_at
        self._verified_at = self.nr_runs
        if self.tracker is not None and not broken_off:
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
        if self._verified_at != self.nr_runs:
            self.clear(verify=True)

    def _first_finding(self) -> Finding | None:
        return next(filter(self.is_news, self.built.sim.findings), None)

    def is_news(self, finding: Finding) -> bool:
        """Whether a finding counts: neither the scenario nor the user knows of it."""
        return not self.options.ignores(finding) and not self.subject.expects(finding)

    def _kill(self) -> None:
        """End what is left of the last run. Its unwinding may touch the world, so this is before
        the world is put back."""
        # Who sees what each step touches must see it of a stack that is made anew.
        anew = self.tracker is not None
        self.built.sim.break_off(each.kill if anew else each.rest for each in self._coroutines)

    def close(self) -> None:
        """No run is wanted for now. What a stack holds that waits is never freed, and a guest's
        holds all of the world: so none waits."""
        self.built.sim.set_sink(None)
        self.built.sim.break_off(each.kill for each in self._coroutines)
