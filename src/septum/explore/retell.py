"""The story of a run that somebody else made: by a token, in a trace, or of a scenario as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.designs.own import is_own, unsteady_text
from septum.errors import InputError
from septum.explore.reproduce import command_lines
from septum.explore.run import DidNotRepeat, Replaying, Runner
from septum.explore.scenario import ScenarioSubject
from septum.explore.shrink import nearest_passing
from septum.explore.story import heading
from septum.explore.subject import Options
from septum.explore.telling import tell
from septum.explore.verdict import Counterexample
from septum.scenarios.run import SUFFIX, run_scenario
from septum.sim import ListSchedule, decode_token, encode_token
from septum.sim.schedule import SEARCHED
from septum.stamp import stamp
from septum.words import wrap

if TYPE_CHECKING:
    from septum.checks.checker import Mode
    from septum.explore.subject import Subject
    from septum.scenarios.outcome import ScenarioOutcome
    from septum.scenarios.scenario import Scenario
    from septum.sim import Finding, Schedule

_NOT_TOLD = (
    "How long the schedule was before it was shrunk, and the seed and the bounds of the search, are"
    " not in the token: the test is of a search with the usual ones."
)


class _AnyBreak(ScenarioSubject):
    """The scenario, with every broken promise as news, also those that it foresees."""

    __slots__ = ()

    def expects(self, finding: Finding) -> bool:
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
    return retell_subject(subject, schedule, check, said)


def retell_subject(
    subject: Subject, schedule: Schedule, check: str = "end", said: str = ""
) -> list[str]:
    """The story of the run of `schedule`, up to its first news; none if it breaks nothing. Of the
    schedule of a search it is what `septum explore` says, as far as the token knows it.

    `said` stands behind the verdict. Raises InputError for a user's design that does not do the
    same twice.
    """
    runner = Runner(subject, Options(preemptions=None))
    runner.verify_every = 1  # what is said of neighbours must not come from what runs leave behind
    run = runner.run(Replaying(schedule.given(), schedule.for_nothing()))
    if run.finding is None:
        return []
    searched = schedule.spec() == ("list", SEARCHED)
    numbers = (run.steps, run.preemptions, run.failures)
    answers = list(run.answers)
    token = encode_token(stamp(), subject.recipe, ListSchedule(answers, SEARCHED, run.free))
    passing = nearest_passing(runner, answers, run.free) if searched else None
    example = Counterexample(
        run.finding, answers, *numbers, *numbers, token=token, free=run.free, passing=passing
    )
    try:
        lines = tell(
            runner,
            example,
            heading(run.finding, subject.name, subject.design, None) + said,
            schedule="The schedule of the token" if searched else "The run",
            searched=searched,
        )
    except DidNotRepeat:
        if not is_own(subject.design):
            raise
        raise InputError(unsteady_text(subject.design)) from None
    if searched:
        asked = subject.scenario if isinstance(subject, ScenarioSubject) else None
        usual = Options(
            failures=int(subject.may_fail),
            fail=asked.also_fail if asked is not None else (),
            ignore=asked.ignored if asked is not None else (),
        )
        name = subject.name
        said = _NOT_TOLD
        if isinstance(subject, ScenarioSubject) and not subject.of_library:
            name += SUFFIX
            said += f" {name} stands for the scenario's file."
        lines += ["", *command_lines(name, subject.design, check, usual), *wrap(said)]
    return lines
