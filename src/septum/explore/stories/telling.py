"""A counterexample told: its run once more, where the damage is done in it, and the story."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.explore.stories.damage import damage_of
from septum.explore.stories.recording import Recording
from septum.explore.stories.story import consequence_of, story_lines, untold_lines
from septum.scenarios.world import ScenarioWorld

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
) -> list[str]:
    """The lines of its story, in the world of `runner`. `heading`, `schedule`: what it is, and its
    schedule; `searched`: its neighbours were tried."""
    try:
        recording = Recording(runner, example.answers, example.finding, example.free, example.steps)
        damage = damage_of(runner, example, recording, searched=searched)
    except KeyboardInterrupt:
        # To look at the world at each of many steps takes its time; the token has it all.
        return untold_lines(example, heading)
    consequence = consequence_of(damage.example.finding, runner.subject.design)
    if example.finding not in runner.before:
        return story_lines(damage, heading, consequence, schedule=schedule, searched=searched)
    schedule = f"Broken by the setup{_setup_step(runner, example)}, before the programs begin"
    lines = story_lines(damage, heading, consequence, schedule=schedule, searched=False)
    return [*lines, "", "No schedule passes: each of them begins with the setup."]


def _setup_step(runner: Runner, example: Counterexample) -> str:
    """The step of the setup that broke it."""
    world = runner.built.world
    if not isinstance(world, ScenarioWorld):
        return ""
    at = runner.before.index(example.finding)
    step = sum(nr <= at for nr in world.setup_findings)
    steps = world.scenario.document.setup
    return f", in `{steps[step - 1]}`" if 0 < step <= len(steps) else ""
