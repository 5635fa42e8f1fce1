"""The two searches as jobs that a process can do: a batch of random runs, a subtree of schedules.

A job's result depends on nothing but the job, so that it does not matter who does it, or when.
"""

from __future__ import annotations

import gc
from contextlib import contextmanager
from functools import partial
from typing import IO, TYPE_CHECKING

import msgspec

from septum.explore import budget
from septum.explore.covering.coverage import Coverage
from septum.explore.exhaustive.graph import GraphSearch
from septum.explore.exhaustive.learn import Learning
from septum.explore.exhaustive.plain import PlainSteering
from septum.explore.exhaustive.real import Restart
from septum.explore.exhaustive.transitions import Transitions, Unfaithful
from septum.explore.runs.run import (
    LEFT_BEHIND,
    REDONE_MAX,
    VERIFY_EVERY,
    OutOfTime,
    Runner,
    StateMissed,
)
from septum.explore.runs.sampling import Length, Measuring, Pct, RandomWalk
from septum.explore.runs.steering import Replaying, Steering
from septum.explore.subject import Strategy
from septum.explore.tracking.adopt import NotTrackable
from septum.explore.tracking.locations import EVERYWHERE
from septum.explore.tracking.track import Tracker
from septum.explore.workers.exchange import Exchange
from septum.sim import Finding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from septum.explore.runs.run import Run
    from septum.explore.subject import Options, Subject

CALIBRATION_RUNS = 24
CALIBRATION_STEPS = 60_000
"""Where runs are long fewer will do: what they change is verified later, too."""
LEARNING_CALM = 32
LEARNING_MAX = 320
LEARNING_STEPS = 40_000
RESTARTS_MAX = 400


class Job(msgspec.Struct, frozen=True):
    """Part of a search. `first`, `count`, `stride`: numbers of random runs; `compares`: it is of
    interest how they come out. `prefix`, `preemptions`: a subtree of the exhaustive search. Jobs
    count in the order of `number`."""

    number: int
    strategy: Strategy
    first: int = 0
    count: int = 0
    stride: int = 1
    compares: bool = False
    preemptions: int = 0
    failures: int = 0
    prefix: list[int] = []
    schedules_max: int = 0
    until: float = 0.0  # by `budget.now`: when to give up; 0: never


class Found(msgspec.Struct, frozen=True):
    """A run that broke a promise. From the answer of number `fair_from` on tasks took turns; those
    of the numbers `free` switched away from a task that goes round, which is no preemption."""

    finding: Finding
    answers: list[int]
    fair_from: int
    steps: int
    preemptions: int
    failures: int
    free: list[int] = []


class JobResult(msgspec.Struct):
    """What a job saw. `complete`: all that it was to do is done. `foreseen`: what broke as the
    scenario says, `ignored`: what the user does not want to hear of, as (promise, text).
    `outcomes`: the ways in which its random runs came out, as numbers that mean the same in all
    forks of a process."""

    number: int
    complete: bool
    schedules: int = 0
    steps: int = 0
    states: int = 0
    found: list[Found] = []
    coverage: dict[str, int] = {}
    outcomes: list[int] = []
    foreseen: list[tuple[str, str]] = []
    ignored: list[tuple[str, str]] = []
    note: str = ""


class Searcher:
    """Does jobs on one world of its own. `until`: when to give up getting ready; 0: never."""

    __slots__ = (
        "_nr_too_long",
        "coverage",
        "decides",
        "length",
        "note",
        "options",
        "runner",
        "subject",
        "told_runs",
        "tracker",
        "transitions",
    )

    def __init__(self, subject: Subject, options: Options, until: float = 0.0) -> None:
        self.subject = subject
        self.options = options
        self.runner = Runner(subject, options)
        self.coverage = Coverage(self.runner.built)
        self.tracker: Tracker | None = None
        self.transitions: Transitions | None = None
        self.note = ""
        self.length = Length()
        self.decides = True  # there is something to decide; if not, there is a single schedule
        self._nr_too_long = 0
        self.told_runs: Callable[[int], None] = _nobody  # is told how many runs were made
        self.runner.until = until
        try:
            self._calibrate()
        except OutOfTime:
            self.runner.clean()

    def _calibrate(self) -> None:
        """Learn how long runs are and what they change. Raises OutOfTime."""
        self.runner.verify_every = 1
        measuring = Measuring(fails=self.options.failures > 0)
        self.runner.run(measuring)
        self.length = measuring.length()
        # Where there is nothing to decide, all runs are like this one.
        self.decides = measuring.decides
        steps = 0
        for number in range(CALIBRATION_RUNS if self.decides else 0):
            steps += self.runner.run(RandomWalk(self.options, number, self.length)).steps
            if steps > CALIBRATION_STEPS:
                break
        self.runner.settle()
        self.runner.verify_every = VERIFY_EVERY

    def close(self) -> None:
        """Put the model's classes back."""
        self.runner.untrack()
        self.tracker = None
        self.transitions = None

    def exchange_by(self, files: list[IO[bytes]], index: int) -> None:
        """From now on others, forks of this, learn what this one does, and the other way round."""
        if self.transitions is not None and self.tracker is not None:
            self.transitions.exchange = Exchange(files, index, self.tracker.footprints)

    def do(self, job: Job) -> JobResult:
        """Do a job."""
        self._forget()
        self.runner.until = job.until
        self.coverage.begin()
        try:
            with collecting_rarely():
                if budget.passed(job.until):
                    result = JobResult(job.number, complete=False)
                elif job.strategy in (Strategy.PCT, Strategy.RANDOM):
                    self.close()  # these runs are faster when nobody sees them
                    result = self._redone(job, self._sample)
                else:
                    result = self._exhaust(job)
        finally:
            self.coverage.end()
        result.coverage = self.coverage.items()
        result.foreseen = sorted(self.runner.foreseen)
        result.ignored = sorted(self.runner.ignored)
        result.note = self.note
        return result

    def _forget(self) -> None:
        """The job begins, or its runs so far do not count."""
        self.runner.foreseen.clear()
        self.runner.ignored.clear()
        self.coverage.forget()

    def one_run(self, steering: Steering, watched: bool = False) -> Run:
        """A run with coverage on when it is its turn, or always."""
        self.runner.sink = self.coverage.sink_for(0 if watched else self.runner.nr_runs)
        self.told_runs(self.runner.nr_runs)
        return self.runner.run(steering)

    def recorded_run(self, steering: Steering) -> Run:
        """A run whose steps are recorded. Nobody watches: who watches looks at more."""
        self.runner.sink = None
        self.told_runs(self.runner.nr_runs)
        run = self.runner.run(steering)
        self._see_length(steering, run)
        return run

    def _see_length(self, steering: Steering, run: Run) -> None:
        """A run that went on by turns and came to an end may have others beside it, which nobody
        looks at."""
        if steering.fair_from >= 0 and run.finding is None:
            self._nr_too_long += 1

    def _complete(self) -> bool:
        """Whether a search that is through has looked at all."""
        if self._nr_too_long:
            most = self.options.max_points
            self.note = f"runs of more than {most} decisions were not searched beyond them"
        return not self._nr_too_long

    def _redone(self, job: Job, search: Callable[[Job, JobResult], None]) -> JobResult:
        """What `search` puts into the result of the job. As often as a run left the world otherwise
        than it was built, all is done once more."""
        for _ in range(REDONE_MAX):
            result = JobResult(job.number, complete=False)
            self._nr_too_long = 0
            try:
                search(job, result)
                return result
            except StateMissed:
                self._forget()
            except OutOfTime:
                return self._leave(result)
        raise RuntimeError(LEFT_BEHIND)

    # Random

    def _sample(self, job: Job, result: JobResult) -> None:
        make = Pct if job.strategy is Strategy.PCT else RandomWalk
        outcomes: dict[int, None] = {}
        result.complete = True
        self.runner.settle()
        for number in range(job.first, job.first + job.count * job.stride, job.stride):
            if budget.passed(job.until):
                result.complete = False
                break
            run = self.one_run(make(self.options, number, self.length))
            result.schedules += 1
            result.steps += run.steps
            if job.compares:
                outcomes[hash(self.subject.came_out(self.runner.built))] = None
            if run.finding is not None and self._repeats(run):
                result.found.append(found_by(run))
                if not self.options.keep_going:
                    break
        self.runner.settle()
        result.outcomes = list(outcomes)

    def _repeats(self, run: Run) -> bool:
        """Whether what a run found comes again from a world that is surely as it was built. Raises
        StateMissed when it was left behind by the runs before, which do not count then."""
        assert run.finding is not None
        self.runner.settle()
        return self._comes_again(run.finding, run.answers)

    def _comes_again(self, finding: Finding, answers: list[int]) -> bool:
        # However late it is: a finding is not to be lost for one run.
        until, self.runner.until = self.runner.until, 0.0
        try:
            again = reproduce(self.runner, list(answers)).finding
        finally:
            self.runner.until = until
        return again is not None and again.promise == finding.promise

    def _leave(self, result: JobResult) -> JobResult:
        """The time has come while a run was under way: keep what is sure."""
        found = result.found
        try:
            self.runner.settle()
        except StateMissed:
            self._forget()
            result = JobResult(result.number, complete=False)
        result.complete = False
        result.found = [f for f in found if self._comes_again(f.finding, f.answers)]
        return result

    # Exhaustive

    def _exhaust(self, job: Job) -> JobResult:
        if job.strategy is not Strategy.PLAIN:
            try:
                return self._graph(job)
            except (NotTrackable, Unfaithful) as error:
                # Nothing is lost but speed: every schedule is run, one by one.
                self.note = f"without reduction: {error}"
                self.close()
                self._forget()
        return self._redone(job, self._plain)

    def _out_of_budget(self, job: Job, schedules: int) -> bool:
        spent = bool(job.schedules_max) and schedules >= job.schedules_max
        return spent or budget.passed(job.until)

    def _plain(self, job: Job, result: JobResult) -> None:
        bounds = {"preemptions": job.preemptions, "failures": job.failures}
        steering = PlainSteering(msgspec.structs.replace(self.options, **bounds), job.prefix)
        while not self._out_of_budget(job, result.schedules):
            run = self.one_run(steering, watched=True)
            result.schedules += 1
            result.steps += run.steps
            self._see_length(steering, run)
            if run.finding is not None and not self._note(run, result):
                break
            if not steering.advance():
                result.complete = self._complete()
                break
        self.runner.settle()

    def _note(self, run: Run, result: JobResult) -> bool:
        """Keep what a run found; whether to go on."""
        assert run.finding is not None
        key = (run.finding.promise, run.finding.text)
        if all(key != (f.finding.promise, f.finding.text) for f in result.found):
            result.found.append(found_by(run))
        return self.options.keep_going

    def _graph(self, job: Job) -> JobResult:
        """The subtree of a job by its graph of states, begun again whenever more turns out to be
        shared than was known. Raises NotTrackable and Unfaithful."""
        result = JobResult(job.number, complete=False)
        try:
            self.prepare()
        except OutOfTime:
            return result
        transitions = self.transitions
        assert transitions is not None and self.tracker is not None
        why = ""
        for nr_restarts in range(RESTARTS_MAX):
            if nr_restarts and self._out_of_budget(job, 0):
                return result
            result = JobResult(job.number, complete=False)
            if self.tracker.footprints.news:
                self._start_over(transitions)
            try:
                self._walk(job, transitions, result)
                return result
            except Restart:
                why = "more turned out to be shared"
            except OutOfTime:
                return self._leave(result)
            except StateMissed as missed:
                why = str(missed)
                self._begin_anew(transitions)
            except Unfaithful as error:
                if not transitions.forgets:
                    raise
                # What it forgets of tasks that have ended may matter after all: go without.
                why = str(error)
                transitions.forgets = False
                self._begin_anew(transitions)
        if not self._out_of_budget(job, result.schedules):
            self.note = f"given up after {RESTARTS_MAX} beginnings: {why}"
        return result

    def _walk(self, job: Job, transitions: Transitions, result: JobResult) -> None:
        """Search the subtree of a job once, and put into `result` what was seen, as far as it went.
        Raises Restart, StateMissed and Unfaithful where that does not count, and OutOfTime."""
        self._nr_too_long = 0
        search = GraphSearch(
            self.runner,
            self.options,
            job,
            transitions,
            self.recorded_run,
            partial(self._note, result=result),
        )
        try:
            search.begin(job.prefix)
            walked = search.walk(partial(self._goes_on, job, search))
            result.complete = walked and self._complete()
            self.runner.settle()
        finally:
            result.schedules = search.nr_paths
            result.states = search.nr_states
            result.steps = search.nr_steps

    def prepare(self) -> None:
        """Learn what tasks share, before the first exhaustive job. Raises NotTrackable and
        OutOfTime."""
        if self.tracker is None:
            self.tracker = self.runner.track(self.coverage)
            self.transitions = Transitions(
                self.tracker, self.subject.forgets, keeps=self.subject.goes_on
            )
            with self.coverage.not_counting():
                self._learn(self.tracker)

    def _start_over(self, transitions: Transitions) -> None:
        """More counts than a search knew of."""
        assert self.tracker is not None
        news = self.tracker.footprints.news
        if transitions.exchange is not None:
            transitions.exchange.learned(news)
        try:
            self.runner.settle()
        except StateMissed:
            self._begin_anew(transitions)
            self.runner.clean()
        self.runner.at_start(partial(self.tracker.learn_as_built, news))
        transitions.drop(news)
        self.tracker.footprints.forget_news()

    def _begin_anew(self, transitions: Transitions) -> None:
        """Nothing that is known counts."""
        assert self.tracker is not None
        self._forget()
        self.tracker.footprints.news.add(EVERYWHERE)
        if transitions.exchange is not None:
            transitions.exchange.parts_company()

    def _goes_on(self, job: Job, search: GraphSearch) -> bool:
        return not self._out_of_budget(job, search.nr_paths)

    def _learn(self, tracker: Tracker) -> None:
        """Random runs until they show nothing new of what tasks share. Raises OutOfTime."""
        options = msgspec.structs.replace(self.options, preemptions=None)
        calm = number = 0
        enough = self.runner.nr_steps + LEARNING_STEPS
        # Where nobody ever meets anybody there is nothing to learn.
        most = LEARNING_MAX if self.length.picks > 1 else 2
        while calm < LEARNING_CALM and number < most:
            tracker.footprints.forget_news()
            number += 1
            try:
                self.runner.run(Learning(options, number, self.length, tracker))
            except StateMissed:
                continue
            if self.runner.nr_steps > enough:
                break
            calm = 0 if tracker.footprints.news else calm + 1
        tracker.footprints.news.add(EVERYWHERE)


def _nobody(count: int) -> None:
    """Nobody wants to know."""


@contextmanager
def collecting_rarely() -> Iterator[None]:
    """An exhaustive search keeps what it makes, a run leaves nothing that refers to itself:
    to look through all that for what nobody has any more finds nothing, again and again, and takes
    a tenth of the time of the one and a fortieth of that of the other."""
    usual = gc.get_threshold()
    gc.set_threshold(100_000, 500, 1000)
    try:
        yield
    finally:
        gc.set_threshold(*usual)


def found_by(run: Run) -> Found:
    """What a run that broke a promise has found."""
    assert run.finding is not None
    return Found(
        run.finding,
        list(run.answers),
        run.fair_from,
        run.steps,
        run.preemptions,
        run.failures,
        list(run.free),
    )


def reproduce(runner: Runner, answers: list[int]) -> Run:
    """The run of `answers`, from a world that is surely as it was built."""
    runner.clean()
    return runner.run(Replaying(answers))
