"""`septum scenarios`, and `septum run SCENARIO`: small worlds with expected results."""

from __future__ import annotations

import shutil
import sys
import tempfile
from contextlib import suppress
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from septum import __version__
from septum.cli.exits import BROKEN, OK
from septum.designs import find_design
from septum.designs.own import own_file
from septum.errors import InputError
from septum.json_text import json_text
from septum.outputs import ReportFolder, check_outputs, try_folder
from septum.report.ktap import ktap_lines
from septum.scenarios.ktap import outcome_case
from septum.scenarios.outcome import outcome_lines
from septum.scenarios.run import (
    RandomRun,
    ScenarioRecipe,
    load_scenario,
    recipe_for_token,
    run_scenario,
    scenario_file,
    scenario_names,
    scenario_of_recipe,
)
from septum.sim import RoundRobin, Schedule, encode_token
from septum.stamp import stamp
from septum.stdout import read_or_not
from septum.trace.header import TraceHeader
from septum.trace.writer import TraceWriter
from septum.words import wrap

SCHEMA = "septum.scenario-run/1"
LIST_SCHEMA = "septum.scenarios/1"
COLUMNS_MIN = 20
"""Of a narrower terminal nothing is made that anybody could read."""

if TYPE_CHECKING:
    from septum.checks.modes import Mode
    from septum.scenarios.outcome import ScenarioOutcome
    from septum.scenarios.scenario import Scenario


def print_scenarios(*, as_json: bool) -> int:
    """List the library: one line each, which other tools can read; a terminal that has no room for
    that gets it folded."""
    names = scenario_names()
    if as_json:
        print(json_text({"schema": LIST_SCHEMA, "scenarios": names}))
        return OK
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    print("\n".join(list_lines(names, columns)))
    return OK


def list_lines(names: dict[str, str], columns: int) -> list[str]:
    """Names and what they are about, in lines of at most `columns`; 0 for a line each."""
    width = max(len(name) for name in names) + 2
    lines = [f"{name:<{width}}{summary}" for name, summary in names.items()]
    if not columns or all(len(line) <= columns for line in lines):
        return lines
    folded = []
    for name, summary in names.items():
        folded += [name, *wrap(summary, "    ", width=max(columns, COLUMNS_MIN))]
    return folded


def run_one(
    name: str,
    *,
    design: str,
    schedule: str,
    seed: int,
    check: Mode,
    trace: Path | None,
    as_json: bool,
    report: Path | None = None,
    ktap: bool = False,
) -> int:
    """Run the scenario called `name` or in that file; 0 when all is as it says.

    `report`: a folder for its text and its page. Raises InputError for an unknown name, or a
    wrong file or option.
    """
    chosen: Schedule
    if schedule == "round-robin":
        chosen = RoundRobin()
    elif schedule == "random":
        chosen = RandomRun(seed)
    else:
        raise InputError(f"--schedule {schedule!r}: choose from round-robin, random")
    scenario = load_scenario(name)
    names = [f"{escape(scenario.name)}.{kind}" for kind in ("txt", "html")]
    check_outputs(
        [("--trace", trace)],
        [scenario_file(name), own_file(design)],
        ReportFolder(report, names),
    )
    if report is None:
        outcome = _outcome(scenario, design, chosen, check, trace)
    else:
        outcome = _reported(scenario, design, chosen, check, trace, report)
    return _show(outcome, as_json=as_json, ktap=ktap)


def _reported(
    scenario: Scenario,
    design: str,
    schedule: Schedule,
    check: Mode,
    trace: Path | None,
    report: Path,
) -> ScenarioOutcome:
    """Run with the outcome and the page in the folder `report`, too."""
    from septum.report.html import write_page

    try_folder(report)
    with tempfile.TemporaryDirectory(prefix="septum-") as folder:
        path = trace if trace is not None else Path(folder) / "run.jsonl"
        outcome = record_scenario(scenario, design, schedule, check, path)
        try:
            text = "\n".join(outcome_lines(outcome))
            (report / f"{scenario.name}.txt").write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise InputError(
                f"the folder {report} cannot be written ({error.strerror}); name another with"
                " --report"
            ) from None
        write_page(path, report / f"{scenario.name}.html")
    print(f"septum: the report is in {report}", file=sys.stderr)
    return outcome


def replay_one(
    recipe: ScenarioRecipe,
    schedule: Schedule,
    *,
    trace: Path | None,
    as_json: bool,
    emit_test: Path | None = None,
) -> int:
    """Run again what a token stands for, and tell the story of what breaks in it. `emit_test`: a
    file for a test of it.

    Raises InputError when the scenario has changed, and when there is nothing to test.
    """
    scenario = scenario_of_recipe(recipe)
    check = recipe.check
    try:
        outcome = _outcome(scenario, recipe.design, schedule, check, trace)
    except InputError:
        # A run that goes on behind what it breaks may come to what a design has left unreadable.
        if not as_json:
            _tell_broken(recipe, scenario, schedule)
        raise
    check_fit(recipe, schedule)
    try:
        if not as_json and not (outcome.ok and outcome.held):
            from septum.explore.stories.retell import retell_outcome

            story = retell_outcome(scenario, recipe.design, outcome, check)
            with read_or_not():
                print("\n".join([*story, ""]))
    finally:
        # The test is written, too, where a disk has no room for the story.
        if emit_test is not None:
            from septum.explore.mailed import write_test

            write_test(scenario, recipe.design, schedule, check, emit_test)
    return _show(outcome, as_json=as_json, ktap=False)


def _tell_broken(recipe: ScenarioRecipe, scenario: Scenario, schedule: Schedule) -> None:
    """The story of what a run breaks before the model, or a design of the user's, raises in it."""
    from septum.explore.scenario import ScenarioSubject
    from septum.explore.stories.retell import retell_subject

    story: list[str] = []
    with suppress(Exception):  # the caller raises what it has met itself
        story = retell_subject(ScenarioSubject(scenario, recipe.design, recipe.check), schedule)
    with read_or_not():
        print("\n".join([*story, ""] if story else []), end="")


def check_fit(recipe: ScenarioRecipe, schedule: Schedule) -> None:
    """Raises InputError when the run that `schedule` has just steered could not follow it: the host
    is not the one that the token was made with."""
    if schedule.fits():
        return
    from septum.explore.reproduce import explore_words, misfit_text
    from septum.explore.subject import Options

    may_fail = bool(scenario_of_recipe(recipe).may_fail)
    options = Options(failures=int(may_fail), fail=recipe.fail, ignore=recipe.ignore)
    words = explore_words(recipe.name, find_design(recipe.design).name, recipe.check, options)
    raise InputError(misfit_text(words))


def _outcome(
    scenario: Scenario, design: str, schedule: Schedule, check: Mode, trace: Path | None
) -> ScenarioOutcome:
    if trace is None:
        return run_scenario(scenario, design, schedule, check)
    return record_scenario(scenario, design, schedule, check, trace)


def record_scenario(
    scenario: Scenario, design: str, schedule: Schedule, check: Mode, path: Path
) -> ScenarioOutcome:
    """Run a scenario with its event stream written to `path`."""
    recipe = recipe_for_token(scenario, design, check)
    kind, seed = schedule.spec()
    header = TraceHeader(
        septum_version=__version__,
        scenario=scenario.name,
        design=find_design(design).name,
        schedule=kind,
        seed=seed,
        token=encode_token(stamp(), msgspec.msgpack.encode(recipe), schedule),
    )
    with TraceWriter(path, header) as writer:
        return run_scenario(scenario, design, schedule, check, writer.write)


def _show(outcome: ScenarioOutcome, *, as_json: bool, ktap: bool) -> int:
    with read_or_not():
        if ktap:
            print("\n".join(ktap_lines([outcome_case(outcome)])))
        elif as_json:
            print(json_text({"schema": SCHEMA, **msgspec.to_builtins(outcome)}))
        else:
            print("\n".join(outcome_lines(outcome)))
    return OK if outcome.ok else BROKEN
