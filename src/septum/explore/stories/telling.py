"""A counterexample told: its run once more, where the damage is done in it, and the story."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from septum.designs.own import is_own
from septum.errors import InputError
from septum.explore.runs.run import DidNotRepeat
from septum.explore.stories.damage import Damage, damage_of
from septum.explore.stories.recording import Recording
from septum.explore.stories.setup import SetupRecording
from septum.explore.stories.story import consequence_of, story_lines, untold_lines
from septum.explore.stories.untold import why_untold

if TYPE_CHECKING:
    from septum.explore.runs.run import Runner
    from septum.explore.verdict import Counterexample

INTERRUPTED = "Interrupted before its story was told: `septum report TOKEN` tells it."


def tell(
    runner: Runner,
    example: Counterexample,
    heading: str,
    *,
    schedule: str = "The shortest schedule found",
    searched: bool = True,
    near: bool = True,
    defects: list[Exception] | None = None,
) -> list[str]:
    """The lines of its story, in the world of `runner`. `heading`, `schedule`: what it is, and its
    schedule; `searched`: a search found it; `near`: its neighbours were tried.

    Where a user's design has left what cannot be looked at, the story says what it does not tell
    for that. With another design that is a defect of Septum: it goes into `defects`, for the caller
    to raise once the verdict is told; without `defects` it is raised here.
    """
    design = runner.subject.design
    try:
        return _told(runner, example, heading, schedule, searched=searched, near=near)
    except KeyboardInterrupt:
        # To look at the world at each of many steps takes its time; the token has it all.
        return untold_lines(example, heading, INTERRUPTED)
    except (DidNotRepeat, InputError):
        raise
    except Exception as error:
        if not is_own(design):
            if defects is None:
                raise
            defects.append(error)
        return untold_lines(example, heading, f"Its story {why_untold(error, design)}")


def _told(
    runner: Runner,
    example: Counterexample,
    heading: str,
    schedule: str,
    *,
    searched: bool,
    near: bool,
) -> list[str]:
    if example.finding in runner.before or example.finding.text in runner.built.wrong:
        return _tell_setup(runner, example, heading)
    design = runner.subject.design
    recording = Recording(runner, example.answers, example.finding, example.free, example.steps)
    try:
        damage = damage_of(runner, example, recording, searched=searched, near=near)
    except (DidNotRepeat, InputError):
        raise
    except Exception as error:
        if not is_own(design):
            raise
        untold = f"Where the damage is done {why_untold(error, design)}"
        damage = Damage(example, recording, untold=untold)
    damage = _with_unseen(damage, design)
    consequence = consequence_of(damage.example.finding, design)
    return story_lines(damage, heading, consequence, schedule=schedule, near=near)


def _with_unseen(damage: Damage, design: str) -> Damage:
    """With the words for what no look at the world tells. Raises what that raised where no user's
    design has a part in it."""
    unseen = damage.recording.unseen()
    if unseen is None:
        return damage
    if not is_own(design):
        raise unseen
    return msgspec.structs.replace(damage, unseen=why_untold(unseen, design))


def _tell_setup(runner: Runner, example: Counterexample, heading: str) -> list[str]:
    """The same of what is broken before any schedule has a say."""
    recorded = SetupRecording(runner, example.finding)
    design = runner.subject.design
    lines = story_lines(
        _with_unseen(Damage(example, recorded), design),
        heading,
        consequence_of(example.finding, design),
        schedule=f"Broken by the setup, {recorded.place}, before the programs begin.",
        near=False,
        scheduled=False,
    )
    return [*lines, "", "No schedule passes: each of them begins with the setup."]
