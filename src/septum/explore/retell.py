"""The story of a run that somebody else made: by a token, in a trace, or of a scenario as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum import __version__
from septum.explore.recording import Recording
from septum.explore.run import Replaying, Runner
from septum.explore.scenario import ScenarioSubject
from septum.explore.story import consequence_of, heading, story_lines
from septum.explore.subject import Options
from septum.explore.verdict import Counterexample
from septum.scenarios.run import run_scenario
from septum.sim import ListSchedule, decode_token, encode_token
from septum.sim.schedule import SEARCHED

if TYPE_CHECKING:
    from septum.checks.checker import Mode
    from septum.scenarios.scenario import Scenario
    from septum.sim import Finding, Schedule


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
    outcome = run_scenario(scenario, design, schedule, check)
    _, _, replayed = decode_token(outcome.token)
    assert isinstance(replayed, ListSchedule)
    foreseen = all(outcome.foreseen)
    subject = (_AnyBreak if foreseen else ScenarioSubject)(scenario, design, check)
    runner = Runner(subject, Options(preemptions=None))
    run = runner.run(Replaying(list(replayed.answers)))
    if run.finding is None:
        return []
    numbers = (run.steps, run.preemptions, run.failures)
    answers = list(run.answers)
    token = encode_token(__version__, subject.recipe, ListSchedule(answers, SEARCHED))
    example = Counterexample(run.finding, answers, *numbers, *numbers, token=token, free=run.free)
    said = heading(run.finding, scenario.name, subject.design, None)
    said += ", as the scenario foresees" * foreseen
    consequence = consequence_of(run.finding, subject.design)
    recording = Recording(runner, answers, run.finding, run.free)
    return story_lines(example, recording, said, consequence, searched=False)
