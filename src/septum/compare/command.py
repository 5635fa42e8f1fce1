"""`septum compare`: what the command line calls."""

from __future__ import annotations

import shlex
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from septum import __version__
from septum.codes import BROKEN, DEFECT, INTERRUPTED, OK, UNDETERMINED
from septum.compare.cost import LOADS, measure
from septum.compare.plan import Plan, make_plan
from septum.compare.pool import Pool, Stuck, Unanswered
from septum.compare.result import V3, Bounds, Comparison, Cost, Mark, Searched
from septum.compare.search import search
from septum.compare.table import COLUMNS, Table
from septum.compare.text import comparison_lines
from septum.designs.own import own_file
from septum.errors import InputError
from septum.explore.bounds import check_bounds
from septum.json_text import json_text
from septum.outputs import ReportFolder, check_outputs
from septum.report.lines import print_lines
from septum.report.progress import Progress
from septum.scenarios.run import scenario_file
from septum.sigterm import sigterm_interrupts
from septum.stdout import read_or_not

if TYPE_CHECKING:
    from collections.abc import Sequence

    from septum.compare.result import Example

SAME_NAME = ("preemptions", "failures", "schedules", "seed", "check")

REPORT_FILES = ("compare.json", "compare.txt", "compare.html", "[0-9][0-9]*-*.txt")
"""What is written into the folder: the table, the page, a story of each example."""


class Wanted(msgspec.Struct, frozen=True):
    """What was asked for. `costs`: measure the loads, too."""

    names: Sequence[str] = ()
    kinds: Sequence[str] = ()
    scenarios: Sequence[str] = ()
    bounds: Bounds = Bounds()
    workers: int = 2
    costs: bool = True
    as_json: bool = False
    html: Path | None = None
    report: Path = Path("septum-compare")

    def command(self) -> str:
        """The command line that makes the same table again."""
        bounds = self.bounds
        words = ["septum", "compare", *self.names]
        words += [f"--{kind}s" for kind in self.kinds]
        if self.scenarios:
            words += ["--scenarios", ",".join(self.scenarios)]
        for name, field in (("time", "time_s"), *zip(SAME_NAME, SAME_NAME, strict=True)):
            value = getattr(bounds, field)
            if value != getattr(Bounds(), field):
                words += [f"--{name}", f"{value:g}" if isinstance(value, float) else str(value)]
        if not self.costs:
            words.append("--no-cost")
        return shlex.join(words)


def scenario_names(text: str | None) -> tuple[str, ...]:
    """The names in --scenarios, none when it was not given. Raises InputError for an empty one."""
    if text is None:
        return ()
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise InputError(f"--scenarios {text!r}: give names with a comma between each two")
    return names


def compare_command(wanted: Wanted) -> int:
    """Compare and print; returns the exit code. Raises InputError for what cannot be done."""
    _check(wanted)
    plan = make_plan(wanted.names, wanted.kinds, wanted.scenarios)
    check_outputs(
        [("--html", wanted.html)],
        [*map(own_file, wanted.names), *map(scenario_file, wanted.scenarios)],
        ReportFolder(wanted.report, REPORT_FILES),
    )
    _make_folders(wanted)
    with sigterm_interrupts():
        comparison, defects, unanswered = compare(wanted, plan)
    failed = _write(wanted, comparison)
    with read_or_not():
        if wanted.as_json:
            sys.stdout.buffer.write(json_text(comparison).encode() + b"\n")
            sys.stdout.flush()
        else:
            print_lines(comparison_lines(comparison, str(wanted.report)), sys.stdout)
    for text in defects:
        print(f"{text}\nseptum: this is a defect of Septum; please report it", file=sys.stderr)
    for text in unanswered:
        print(f"septum: {text}", file=sys.stderr)
    if defects:
        return DEFECT
    if failed:
        raise InputError(failed)
    code = _exit_code(comparison)
    return UNDETERMINED if unanswered and code == OK else code


def _check(wanted: Wanted) -> None:
    bounds = wanted.bounds
    check_bounds(
        preemptions=bounds.preemptions,
        failures=bounds.failures,
        schedules=bounds.schedules,
        time_s=bounds.time_s,
        workers=wanted.workers,
        seed=bounds.seed,
    )
    if wanted.html is not None and wanted.html.is_dir():
        raise InputError(f"--html {wanted.html} is a folder; name a file")
    for path in _folders(wanted):
        if path.exists() and not path.is_dir():
            raise InputError(f"{path} is there and is no folder; name another one")


def _folders(wanted: Wanted) -> list[Path]:
    return [wanted.report, *([wanted.html.parent] if wanted.html is not None else [])]


def _make_folders(wanted: Wanted) -> None:
    """Before anything is searched: what cannot be written is known then. Raises InputError."""
    for path in _folders(wanted):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{path}: no folder can be made there ({error.strerror}); name another one"
            ) from None


def compare(wanted: Wanted, plan: Plan) -> tuple[Comparison, list[str], list[str]]:
    """Run the plan: the comparison, the tracebacks of what raised, and what is to be said of what
    came to no answer."""
    pool = Pool(wanted.workers)
    searches, unanswered = _searches(pool, plan, wanted.bounds)
    costs: list[Cost] = []
    defects = [searched.failed for searched in searches if searched.failed]
    loads = [(d.name, load) for load in LOADS for d in plan.designs] if wanted.costs else []
    if not pool.interrupted:
        costs, failed, unanswered_too = _costs(pool, loads)
        defects += failed
        unanswered += unanswered_too
    table = Table(plan.designs, searches)
    comparison = Comparison(
        septum_version=__version__,
        command=wanted.command(),
        bounds=wanted.bounds,
        promises=list(COLUMNS),
        rows=table.rows,
        examples=[
            msgspec.structs.replace(
                example, file=_story_name(example) if example.broken.token else ""
            )
            for example in table.examples
        ],
        searches=searches,
        costs=costs,
        loads=dict(LOADS) if costs else {},
        interrupted=pool.interrupted,
        left_out=len(plan.searches) + len(loads) - len(searches) - len(costs),
    )
    return comparison, defects, unanswered


def _searches(pool: Pool, plan: Plan, bounds: Bounds) -> tuple[list[Searched], list[str]]:
    tasks = [partial(search, design, scenario, bounds) for design, scenario in plan.searches]
    names = [f"{design} in {scenario}" for design, scenario in plan.searches]
    with _Telling("compare", names) as telling:
        answers = pool.run(tasks, Searched, telling.ended)
    found: list[Searched] = []
    unanswered: list[str] = []
    begun = {
        scenario
        for (_, scenario), answer in zip(plan.searches, answers, strict=True)
        if not isinstance(answer, Stuck)
    }
    for (design, scenario), answer in zip(plan.searches, answers, strict=True):
        if scenario not in begun:
            raise InputError(str(answer))
        name = Path(scenario).stem
        if isinstance(answer, Unanswered):
            unanswered.append(f"{design} in {name}: {answer}")
            answer = Searched(design, name, False, -1, str(answer), 0, 0, 0, 0.0)
        elif isinstance(answer, str):
            answer = Searched(design, name, False, -1, "it failed", 0, 0, 0, 0.0, failed=answer)
        if answer is not None:
            found.append(answer)
    return found, unanswered


def _costs(pool: Pool, loads: list[tuple[str, str]]) -> tuple[list[Cost], list[str], list[str]]:
    """The costs, the tracebacks, and what is to be said of what came to none."""
    tasks = [partial(measure, design, load) for design, load in loads]
    with _Telling("cost", [f"{design}, {load}" for design, load in loads]) as telling:
        answers = pool.run(tasks, Cost, telling.ended)
    costs = [answer for answer in answers if isinstance(answer, Cost)]
    unanswered = [
        f"the cost of {load} on {design}: {answer}"
        for (design, load), answer in zip(loads, answers, strict=True)
        if isinstance(answer, Unanswered)
    ]
    defects = [a for a in answers if isinstance(a, str) and not isinstance(a, Unanswered)]
    return costs, defects, unanswered


class _Telling:
    """Progress on stderr: what has ended, at which rate, what is left."""

    __slots__ = ("_names", "_progress", "_started")

    def __init__(self, what: str, names: list[str]) -> None:
        self._names = names
        self._started = time.monotonic()
        stop = "Ctrl-C keeps what is found"
        self._progress = Progress(what, "runs", total=len(names), stop=stop)

    def ended(self, number: int) -> None:
        """The task of that number has ended."""
        progress = self._progress
        progress.nr_done += 1
        minutes = (time.monotonic() - self._started) / 60
        left = len(self._names) - progress.nr_done
        rate = progress.nr_done / max(minutes, 1e-3)
        progress.say(f"{rate:.0f} a minute, about {left / rate:.1f} min left")

    def __enter__(self) -> _Telling:
        self._progress.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.__exit__(None, None, None)


# What is left behind


def _story_name(example: Example) -> str:
    design = "".join(c if c.isalnum() else "-" for c in example.design).strip("-")
    return f"{example.number:02}-{design}-{example.broken.promise}.txt"


def _write(wanted: Wanted, comparison: Comparison) -> str:
    """Write the report's files; "" or an error message. An error does not keep the results from
    being printed."""
    from septum.compare.page import page_html

    folder = wanted.report
    page = page_html(comparison)
    files = {
        folder / example.file: "\n".join(example.broken.story) + "\n"
        for example in comparison.examples
        if example.file
    }
    files[folder / "compare.json"] = json_text(comparison)
    files[folder / "compare.txt"] = comparison_lines(comparison, str(folder)).plain()
    files[folder / "compare.html"] = page
    if wanted.html is not None:
        files[wanted.html] = page
    failed = ""
    for path, text in files.items():
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            failed = failed or (
                f"{path} cannot be written ({error.strerror}); name another place with --report"
                " and --html"
            )
    return failed


def _exit_code(comparison: Comparison) -> int:
    """1 when a design breaks what v3 does not, 130 when interrupted before that, 3 when a cell is
    undetermined."""
    marks = {cell.mark for row in comparison.rows for cell in row.cells.values()}
    unknown = any(
        cell.mark is Mark.BASE and cell.number
        for row in comparison.rows
        for cell in row.cells.values()
        if row.design == V3
    )
    if Mark.BROKEN in marks or unknown:
        return BROKEN
    if comparison.interrupted:
        return INTERRUPTED
    return UNDETERMINED if Mark.UNDETERMINED in marks else OK
