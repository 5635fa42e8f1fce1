"""The two searches as jobs that a process can do: a batch of random runs, a subtree of schedules.

A job's result depends on nothing but the job, so that it does not matter who does it, or when.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from septum.explore.coverage import Coverage
from septum.explore.fast import FastSteering, Restart
from septum.explore.plain import PlainSteering
from septum.explore.run import Replaying, Runner, StateMissed, Steering
from septum.explore.sampling import Length, Measuring, Pct, RandomWalk
from septum.explore.subject import Strategy
from septum.explore.track import NotTrackable, Tracker
from septum.sim import Finding

if TYPE_CHECKING:
    from septum.explore.run import Run
    from septum.explore.subject import Options, Subject

CALIBRATION_RUNS = 24
RESTARTS_MAX = 400
REDONE_MAX = 50


class Job(msgspec.Struct, frozen=True):
    """Part of a search. `first`, `count`: numbers of random runs. `prefix`, `preemptions`: a
    subtree of the exhaustive search. Jobs count in the order of `number`."""

    number: int
    strategy: Strategy
    first: int = 0
    count: int = 0
    preemptions: int = 0
    prefix: list[int] = []
    schedules_max: int = 0
    until: float = 0.0  # time.monotonic() by which to give up; 0: never


class Found(msgspec.Struct, frozen=True):
    """A run that broke a promise."""

    finding: Finding
    answers: list[int]
    steps: int
    preemptions: int
    failures: int


class JobResult(msgspec.Struct):
    """What a job saw. `complete`: all that it was to do is done."""

    number: int
    complete: bool
    schedules: int = 0
    steps: int = 0
    states: int = 0
    found: list[Found] = []
    coverage: dict[str, int] = {}
    note: str = ""


class Searcher:
    """Does jobs on one world of its own."""

    __slots__ = ("coverage", "length", "note", "options", "runner", "subject", "tracker")

    def __init__(self, subject: Subject, options: Options) -> None:
        self.subject = subject
        self.options = options
        self.runner = Runner(subject, options)
        self.coverage = Coverage()
        self.tracker: Tracker | None = None
        self.note = ""
        self.length = Length()
        self._calibrate()

    def _calibrate(self) -> None:
        """Learn how long runs are and what they change."""
        self.runner.verify_every = 1
        measuring = Measuring()
        self.runner.run(measuring)
        self.length = measuring.length()
        for number in range(CALIBRATION_RUNS):
            self.runner.run(RandomWalk(self.options, number, self.length))
        self.runner.settle()
        self.runner.verify_every = 64

    def close(self) -> None:
        """Put the model's classes back."""
        self.runner.untrack()
        self.tracker = None

    def do(self, job: Job) -> JobResult:
        """Do a job."""
        self.coverage.begin()
        if job.strategy in (Strategy.PCT, Strategy.RANDOM):
            result = self._sample(job)
        else:
            result = self._exhaust(job)
        result.coverage = self.coverage.items()
        result.note = self.note
        return result

    def one_run(self, steering: Steering) -> Run:
        """A run with coverage on when it is its turn."""
        self.runner.sink = self.coverage.sink_for(self.runner.nr_runs)
        return self.runner.run(steering)

    # Random

    def _sample(self, job: Job) -> JobResult:
        if self.tracker is not None:
            self.close()
        make = Pct if job.strategy is Strategy.PCT else RandomWalk
        for _ in range(REDONE_MAX):
            result = JobResult(job.number, complete=True)
            try:
                self.runner.settle()
                for number in range(job.first, job.first + job.count):
                    if job.until and time.monotonic() > job.until:
                        result.complete = False
                        break
                    run = self.one_run(make(self.options, number, self.length))
                    result.schedules += 1
                    result.steps += run.steps
                    if run.finding is not None:
                        result.found.append(_found(run.finding, run))
                        if not self.options.keep_going:
                            break
                self.runner.settle()
                return result
            except StateMissed:
                continue
        raise RuntimeError("runs keep changing state that restoring does not put back")

    # Exhaustive

    def _exhaust(self, job: Job) -> JobResult:
        if self.options.reduce and job.strategy is not Strategy.PLAIN and self.tracker is None:
            try:
                self.tracker = self.runner.track()
            except NotTrackable as error:
                self.note = f"without reduction: {error}"
        result = JobResult(job.number, complete=False)
        for _ in range(RESTARTS_MAX):
            result = JobResult(job.number, complete=False, schedules=result.schedules)
            try:
                self._walk(job, result)
                return result
            except Restart:
                assert self.tracker is not None
                self.tracker.footprints.grown = False
            except StateMissed:
                continue
        return result

    def _walk(self, job: Job, result: JobResult) -> None:
        steering: PlainSteering | FastSteering
        if job.strategy is Strategy.PLAIN or not self.options.reduce:
            steering = PlainSteering(self.options)
        else:
            steering = FastSteering(self.options, job.preemptions, self.tracker, job.prefix)
        while True:
            if (job.schedules_max and result.schedules >= job.schedules_max) or (
                job.until and time.monotonic() > job.until
            ):
                break
            run = self.one_run(steering)
            result.schedules += 1
            result.steps += run.steps
            if run.finding is not None:
                key = (run.finding.promise, run.finding.text)
                if all(key != (f.finding.promise, f.finding.text) for f in result.found):
                    result.found.append(_found(run.finding, run))
                if not self.options.keep_going:
                    break
            if not (
                steering.advance()
                if isinstance(steering, PlainSteering)
                else steering.next_schedule()
            ):
                result.complete = True
                break
        if isinstance(steering, FastSteering):
            result.states = steering.nr_states
        self.runner.settle()


def _found(finding: Finding, run: Run) -> Found:
    return Found(finding, list(run.answers), run.steps, run.preemptions, run.failures)


def reproduce(runner: Runner, answers: list[int]) -> Run:
    """The run of `answers`, from a world that is surely as it was built."""
    runner.clean()
    return runner.run(Replaying(answers))
