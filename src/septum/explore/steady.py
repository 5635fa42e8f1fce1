"""Whether a user's design does the same whenever a schedule is the same: a search rests on that."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from septum.designs.own import unsteady_text
from septum.errors import InputError
from septum.explore.runs.run import Runner
from septum.explore.runs.sampling import Length, RandomWalk
from septum.explore.runs.steering import Replaying

if TYPE_CHECKING:
    from septum.explore.runs.run import Run
    from septum.explore.subject import Options, Subject

SCHEDULES = 8
STEPS_MAX = 20_000
"""After so many scheduling points no other schedule is tried."""


def check_steady(subject: Subject, options: Options) -> None:
    """A few random schedules, each three times: raises InputError when one comes out in two ways.

    What outlives a run shows here, and what is drawn at every other call. What is seldom drawn is
    seen by `ambient_use`.
    """
    with closing(Runner(subject, options)) as runner:
        runner.verify_every = 1
        _run_thrice(runner)


def _run_thrice(runner: Runner) -> None:
    options = runner.options
    steps = 0
    for number in range(SCHEDULES):
        first = runner.run(RandomWalk(options, number, Length()))
        ends = [_end(runner, first)]
        # The first run takes down a VM that later ones leave: they are like each other in all.
        for _ in range(2):
            again = runner.run(Replaying(list(first.answers)))
            ends.append(_end(runner, again))
            steps += again.steps
        if ends[0] != ends[1] or ends[1] != ends[2]:
            raise InputError(unsteady_text(runner.subject.design))
        if steps > STEPS_MAX:
            return


def _end(runner: Runner, run: Run) -> tuple[object, ...]:
    """What is the same each time; when it was found is not, as only the first run takes down what
    is built."""
    found = run.finding
    what = None if found is None else (found.promise, found.text, found.where, found.task)
    return what, runner.subject.final(runner.built)
