"""`septum report`: one run, recorded or made again, in the forms that people and tools read.

A run is a trace file, a replay token, or a scenario. The last two are run here and recorded in a
file that goes away with the command, so that every form is made from the same event stream.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from septum.cli.exits import BROKEN, OK
from septum.cli.run import bare_token, decode_run, firmware_of, record_boot
from septum.cli.scenario import check_fit, record_scenario
from septum.designs.own import own_file
from septum.errors import InputError
from septum.outputs import check_outputs
from septum.scenarios.boot import Boot
from septum.scenarios.run import ScenarioRecipe, load_scenario, scenario_of_recipe
from septum.scenarios.source import is_file, shown
from septum.scenarios.states import scenario_states
from septum.sim import RoundRobin
from septum.sim.events import FindingEvent
from septum.sim.schedule import TOKEN_PREFIX
from septum.stdout import read_or_not
from septum.trace.command import render, write_pieces
from septum.trace.filters import make_filter, parse_only
from septum.trace.itf import itf_chunks
from septum.trace.reader import TraceReader

if TYPE_CHECKING:
    from septum.scenarios.scenario import Scenario
    from septum.sim import Schedule

SCENARIO_SUFFIX = ".toml"


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """What `septum report` was asked for: a file for each form, None for those not wanted.

    `only` are categories of events, as `septum trace --only` takes them. `firmware` is the image
    of a boot that runs again.
    """

    mermaid: Path | None = None
    ftrace: Path | None = None
    perfetto: Path | None = None
    itf: Path | None = None
    html: Path | None = None
    text: bool = False
    only: str = ""
    design: str | None = None
    firmware: Path | None = None

    def files(self) -> list[tuple[str, Path]]:
        """(format of `septum trace`, file) of what was asked for."""
        native = self.perfetto is not None and self.perfetto.suffix != ".json"
        asked = (
            ("mermaid", self.mermaid),
            ("ftrace", self.ftrace),
            ("pftrace" if native else "perfetto", self.perfetto),
        )
        return [(fmt, path) for fmt, path in asked if path is not None]


class _Played(NamedTuple):
    """The run of a scenario."""

    recipe: ScenarioRecipe
    scenario: Scenario
    schedule: Schedule


def report_run(run: str, options: ReportOptions) -> int:
    """Make the forms that were asked for; 1 when a promise was broken in the run that its scenario
    does not foresee, else 0.

    Raises InputError for a run that is none, and for files that cannot be written.
    """
    wanted = make_filter(parse_only(options.only))
    check_outputs(
        [
            (f"--{name}", getattr(options, name))
            for name in ("mermaid", "ftrace", "perfetto", "itf", "html")
        ],
        [run, options.firmware, own_file(options.design or "v3")],
    )
    with tempfile.TemporaryDirectory(prefix="septum-") as folder:
        path = trace_of(run, Path(folder) / "run.jsonl", options.design, options.firmware)
        for fmt, target in options.files():
            with TraceReader(path) as reader:
                events = (event for event in reader if wanted(event))
                write_pieces(render(events, reader.header, fmt, via=reader.via), target)
            print(f"septum: {fmt} is in {target}", file=sys.stderr)
        if options.itf is not None:
            _write_states(path, options.itf)
        if options.html is not None:
            _write_page(path, options.html)
        findings = findings_in(path)
        played = _played(path) if findings else None
        if options.text or not (options.files() or options.itf or options.html):
            story = _story(played) if played is not None and not options.only else []
            with TraceReader(path) as reader, read_or_not():
                events = (event for event in reader if wanted(event))
                ladder = render(events, reader.header, "ladder")
                write_pieces([line.encode() for line in story] or ladder, None)
        return OK if _foreseen(findings, played) else BROKEN


def _played(trace: Path) -> _Played | None:
    """What was run where a trace was recorded; None for a boot."""
    with TraceReader(trace) as reader:
        recipe, schedule = decode_run(reader.header.token)
    if not isinstance(recipe, ScenarioRecipe):
        return None
    return _Played(recipe, scenario_of_recipe(recipe), schedule)


def _foreseen(findings: list[FindingEvent], played: _Played | None) -> bool:
    """Whether all that broke in a run is what its scenario says of this design."""
    from septum.explore.scenario import ScenarioSubject

    if not findings or played is None:
        return not findings
    recipe = played.recipe
    subject = ScenarioSubject(played.scenario, recipe.design, recipe.check)
    return all(subject.foresees(finding.promise, finding.text) for finding in findings)


def _story(played: _Played) -> list[str]:
    """What broke in the run of a scenario, as a search would tell it, as lines; none where only the
    ladder tells."""
    from septum.explore.stories.retell import retell

    recipe, scenario, schedule = played
    lines = retell(scenario, recipe.design, schedule, recipe.check)
    return [f"{line}\n" for line in lines]


def _write_page(trace: Path, target: Path) -> None:
    from septum.report.html import write_page

    write_page(trace, target)
    print(f"septum: the page is in {target}", file=sys.stderr)


def write_token_page(token: str, target: Path) -> None:
    """The page of the run that `token` stands for. Raises InputError."""
    with tempfile.TemporaryDirectory(prefix="septum-") as folder:
        trace = Path(folder) / "run.jsonl"
        record_token(token, trace)
        _write_page(trace, target)


def trace_of(run: str, into: Path, design: str | None = None, firmware: Path | None = None) -> Path:
    """The trace of `run`: its own file, or `into`, where it is recorded. `design` is of a scenario,
    `firmware` of a boot's token: others have it.

    Raises InputError when `run` is no trace file, no token and no scenario.
    """
    if bare_token(run).startswith(TOKEN_PREFIX):
        _only_of("a token", design=design)
        record_token(run, into, firmware)
        return into
    if is_file(Path(run)) and not run.endswith(SCENARIO_SUFFIX):
        _only_of("a trace", design=design, firmware=firmware)
        return Path(run)
    _only_of("a scenario", firmware=firmware)
    try:
        scenario = load_scenario(run)
    except InputError as error:
        if run.endswith(SCENARIO_SUFFIX) or is_file(Path(run)):
            raise
        raise InputError(f"{shown(run)} is no trace file, no replay token, and {error}") from None
    record_scenario(scenario, design or "v3", RoundRobin(), "quiet", into)
    return into


def _only_of(run: str, **options: str | Path | None) -> None:
    """Raises InputError for an option that says nothing of such a run."""
    for name, value in options.items():
        if value is not None:
            why = "its VMs boot none" if run == "a scenario" else "that of the run is in it"
            raise InputError(f"--{name} {value}: this is {run}, and {why}; leave the option out")


def record_token(token: str, into: Path, firmware: Path | None = None) -> None:
    """Run again what a token stands for, with its events written to `into`. Raises InputError."""
    recipe, schedule = decode_run(token)
    if isinstance(recipe, ScenarioRecipe):
        _only_of("a scenario", firmware=firmware)
        check = recipe.check
        record_scenario(scenario_of_recipe(recipe), recipe.design, schedule, check, into)
        check_fit(recipe, schedule)
        return
    image = firmware_of(recipe, firmware).image
    record_boot(Boot(recipe, image, schedule=schedule), token, into)


def _write_states(trace: Path, target: Path) -> None:
    """Run the trace's token again, and look at the whole world at every event.

    Raises InputError for a boot: its states are too many and too large.
    """
    with TraceReader(trace) as reader:
        header = reader.header
    recipe, schedule = decode_run(header.token)
    if not isinstance(recipe, ScenarioRecipe):
        raise InputError(
            "--itf writes the states of a scenario; those of a boot are too many, take --perfetto"
        )
    check = recipe.check
    steps = scenario_states(scenario_of_recipe(recipe), recipe.design, schedule, check)
    write_pieces(itf_chunks(steps, header), target)
    print(f"septum: itf is in {target} ({len(steps)} states)", file=sys.stderr)


def findings_in(path: Path) -> list[FindingEvent]:
    """The broken promises that the trace tells of."""
    with TraceReader(path) as reader:
        return [event for event in reader if isinstance(event, FindingEvent)]
