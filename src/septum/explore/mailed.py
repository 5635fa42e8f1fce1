"""A token that somebody sent, as a pytest test: beside it the scenario, where that is not of the
library."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import TYPE_CHECKING

from septum.errors import InputError
from septum.explore.artefacts import EmittedFile
from septum.explore.emit import Emitted
from septum.explore.runs.run import Runner
from septum.explore.scenario import ScenarioSubject
from septum.explore.stories.retell import example_of, usual_options
from septum.explore.subject import Options
from septum.scenarios.run import SUFFIX
from septum.scenarios.source import read_text

if TYPE_CHECKING:
    from pathlib import Path

    from septum.checks.modes import Mode
    from septum.scenarios.scenario import Scenario
    from septum.sim import Schedule

SOURCE = "Made by `septum replay` of this token; `again` is a search with the usual bounds."


def write_test(
    scenario: Scenario, design: str, schedule: Schedule, check: Mode, path: Path
) -> None:
    """Write a test of the run of `schedule` to `path`.

    Raises InputError when the run breaks nothing but what the scenario foresees, when the file
    cannot be written, or when another scenario is where this one's file is to be.
    """
    subject = ScenarioSubject(scenario, design, check)
    with closing(Runner(subject, Options(preemptions=None))) as runner:
        example = example_of(runner, schedule)
    if example is None:
        raise InputError(
            "--emit-test: the run breaks nothing that its scenario does not foresee, so that there"
            " is nothing to test"
        )
    file = EmittedFile(path)
    name = subject.name
    if not subject.of_library:
        name = str(_beside(scenario, path))
    options = usual_options(subject)
    emitted = Emitted(subject.name, subject.design, example, name, check, options, SOURCE)
    file.write([emitted])


def _beside(scenario: Scenario, path: Path) -> Path:
    """The scenario's file beside the test at `path`; it is written if it is not there."""
    file = path.parent / f"{scenario.name}{SUFFIX}"
    try:
        if not file.exists():
            file.write_text(scenario.text, encoding="utf-8")
            print(f"septum: the scenario is in {file}", file=sys.stderr)
        there = read_text(file)
    except (OSError, InputError) as error:
        raise InputError(f"--emit-test: {file} cannot be used ({error})") from None
    if there != scenario.text:
        raise InputError(
            f"--emit-test: {file} is there and is not the token's scenario; name a test in another"
            " folder"
        )
    return file
