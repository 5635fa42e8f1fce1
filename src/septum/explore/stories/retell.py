"""The story of a run that somebody else made: by a token, in a trace, or of a scenario as it is."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import msgspec

from septum.designs.own import is_own, unsteady_text
from septum.errors import InputError
from septum.explore.reproduce import replayed_lines
from septum.explore.runs.run import DidNotRepeat, Runner
from septum.explore.runs.shrink import nearest_passing
from septum.explore.runs.steering import Replaying
from septum.explore.scenario import ScenarioSubject
from septum.explore.stories.story import heading
from septum.explore.stories.telling import tell
from septum.explore.subject import Options
from septum.explore.verdict import Counterexample
from septum.scenarios.run import run_scenario
from septum.sim import ListSchedule, decode_token, encode_token
from septum.sim.schedule import SEARCHED
from septum.stamp import stamp
from septum.words import wrap

if TYPE_CHECKING:
    from septum.checks.modes import Mode
    from septum.explore.subject import Built, Subject
    from septum.scenarios.outcome import ScenarioOutcome
    from septum.scenarios.scenario import Scenario
    from septum.sim import Schedule

NEAR_MAX = 20_000
"""Of runs of so many scheduling points a passing one is looked for near them, also where no search
has found them: each try takes as long as the run."""

_NOT_TOLD = (
    "How long the schedule was before it was shrunk, and the seed and the bounds of the search, are"
    " not in the token."
)


class _AnyBreak(ScenarioSubject):
    """The scenario, with every broken promise as news, also those that it foresees, but not what
    the user ignores; of its setup there would be no steps to tell."""

    __slots__ = ()

    def build(self) -> Built:
        built = super().build()
        built.sim.findings = []
        return built

    def foresees(self, promise: str, text: str) -> bool:
        return False


def retell(scenario: Scenario, design: str, schedule: Schedule, check: Mode) -> list[str]:
    """The lines of the story, up to the first promise that the run breaks and the scenario does not
    foresee, or else to the first that it breaks; none if it breaks none.

    Nothing is shrunk: the run is told as it was made.
    """
    return retell_outcome(scenario, design, run_scenario(scenario, design, schedule, check), check)


def retell_outcome(
    scenario: Scenario, design: str, outcome: ScenarioOutcome, check: Mode
) -> list[str]:
    """`retell` of a run that came to `outcome`."""
    _, _, schedule = decode_token(outcome.token)
    foreseen = all(outcome.foreseen)
    subject = (_AnyBreak if foreseen else ScenarioSubject)(scenario, design, check)
    said = ", as the scenario foresees" * (foreseen and outcome.ok)
    return retell_subject(subject, schedule, said)


def retell_subject(subject: Subject, schedule: Schedule, said: str = "") -> list[str]:
    """The story of the run of `schedule`, up to its first news; none if it breaks nothing. Of the
    schedule of a search it is what `septum explore` says, as far as the token knows it.

    `said` stands behind the verdict. Raises InputError for a user's design that does not do the
    same twice.
    """
    with closing(Runner(subject, Options(preemptions=None))) as runner:
        runner.verify_every = 1  # what is said of neighbours must not come from what runs leave
        return _retold(runner, schedule, said)


def _retold(runner: Runner, schedule: Schedule, said: str) -> list[str]:
    subject = runner.subject
    example = example_of(runner, schedule)
    if example is None:
        return []
    searched = schedule.spec() == ("list", SEARCHED)
    near = searched or example.steps <= NEAR_MAX
    if near:
        passing = nearest_passing(runner, example.answers, example.free)
        example = msgspec.structs.replace(example, passing=passing)
    try:
        lines = tell(
            runner,
            example,
            heading(example.finding, subject.name, subject.design, None) + said,
            schedule="The schedule of the token" if searched else "The run",
            searched=searched,
            near=near,
        )
    except DidNotRepeat:
        if not is_own(subject.design):
            raise
        raise InputError(unsteady_text(subject.design)) from None
    if searched:
        lines += ["", *replayed_lines(subject.design), *wrap(_NOT_TOLD)]
    return lines


def example_of(runner: Runner, schedule: Schedule) -> Counterexample | None:
    """The run of `schedule` up to its first news, as it was made; None if it breaks nothing."""
    run = runner.run(Replaying(schedule.given(), schedule.for_nothing()))
    if run.finding is None:
        return None
    numbers = (run.steps, run.preemptions, run.failures)
    answers = list(run.answers)
    recipe = runner.subject.recipe
    token = encode_token(stamp(), recipe, ListSchedule(answers, SEARCHED, run.free))
    return Counterexample(run.finding, answers, *numbers, *numbers, token=token, free=run.free)


def usual_options(subject: Subject) -> Options:
    """Those of a search that would find such a run, as far as a token knows them."""
    if not isinstance(subject, ScenarioSubject):
        return Options(failures=int(subject.may_fail))
    asked = subject.scenario
    return Options(failures=int(subject.may_fail), fail=asked.also_fail, ignore=asked.ignored)
