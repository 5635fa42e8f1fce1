"""A counterexample told: its run once more, where the damage is done in it, and the story."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.explore.stories.damage import Damage, damage_of
from septum.explore.stories.recording import Recording
from septum.explore.stories.setup import SetupRecording
from septum.explore.stories.story import consequence_of, story_lines, untold_lines

if TYPE_CHECKING:
    from septum.explore.runs.run import Runner
    from septum.explore.verdict import Counterexample


def tell(
    runner: Runner,
    example: Counterexample,
    heading: str,
    *,
    schedule: str = "The shortest schedule found",
    searched: bool = True,
    near: bool = True,
) -> list[str]:
    """The lines of its story, in the world of `runner`. `heading`, `schedule`: what it is, and its
    schedule; `searched`: a search found it; `near`: its neighbours were tried."""
    if example.finding in runner.before or example.finding.text in runner.built.wrong:
        return _tell_setup(runner, example, heading)
    try:
        recording = Recording(runner, example.answers, example.finding, example.free, example.steps)
        damage = damage_of(runner, example, recording, searched=searched, near=near)
    except KeyboardInterrupt:
        # To look at the world at each of many steps takes its time; the token has it all.
        return untold_lines(example, heading)
    consequence = consequence_of(damage.example.finding, runner.subject.design)
    return story_lines(damage, heading, consequence, schedule=schedule, near=near)


def _tell_setup(runner: Runner, example: Counterexample, heading: str) -> list[str]:
    """The same of what is broken before any schedule has a say."""
    recorded = SetupRecording(runner, example.finding)
    lines = story_lines(
        Damage(example, recorded),
        heading,
        consequence_of(example.finding, runner.subject.design),
        schedule=f"Broken by the setup, {recorded.place}, before the programs begin.",
        near=False,
        scheduled=False,
    )
    return [*lines, "", "No schedule passes: each of them begins with the setup."]
