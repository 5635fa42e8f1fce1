"""One run as one self-contained page, made from its trace.

Everything that the page shows is in it: no network, no other file. The template, styles and
scripts are the files beside this one.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from septum.abi.operands import INPUTS, OUTPUTS, REFUSED_BY_ENTRY
from septum.errors import InputError
from septum.report.html.columns import Blob, ColumnSpec
from septum.report.html.functions import Known, functions_of
from septum.report.html.memory import LAYER_NAMES, Change, MemoryFold
from septum.report.html.steps import FormTable, Steps, StepTable, Strings
from septum.report.html.verdict import VerdictText, verdict_of
from septum.sim.events import FindingEvent
from septum.trace.opening import OPENING
from septum.trace.reader import TraceReader
from septum.words import size_text

if TYPE_CHECKING:
    from septum.trace.header import TraceHeader

HERE = Path(__file__).parent
SCRIPTS = (
    "data",
    "words",
    "memory",
    "rows",
    "locks",
    "ladder",
    "map",
    "details",
    "charts",
    "page",
)
"""The page's own scripts, in order of loading; each is one subject."""
LIBRARIES = ("d3-selection", "uplot")
"""Kept libraries, in vendor/, each with its licence and version."""
COLUMNS = ("step", "vm", "layer", "gfn", "nr", "old", "new")


RECIPE_WORDS = {
    "nr_vcpus": "vCPUs",
    "backing": "backing",
    "module": "TDX module",
    "dynamic_pamt": "Dynamic PAMT",
}
"""Fields of a boot's recipe that the top of the page names."""


class VmHead(msgspec.Struct):
    """A VM: its number, and its slots as (first GFN, number of pages)."""

    id: int
    slots: list[tuple[int, int]]


class Head(msgspec.Struct):
    """What the page reads first; columns are in the bytes that follow it."""

    strings: list[str]
    tasks: list[int]
    steps: StepTable
    forms: list[FormTable]
    changes: list[ColumnSpec]
    nr_changes: int
    layers: tuple[str, ...]
    values: list[tuple[str, int | None]]
    vms: list[VmHead]
    functions: dict[str, Known]
    inputs: dict[str, dict[str, str]]
    outputs: dict[str, dict[str, str]]
    refused: dict[str, str]
    findings: list[int]


class PageData:
    """A trace, folded for a page."""

    __slots__ = ("_changes", "_fold", "_steps", "complete", "findings", "header")

    def __init__(self, path: Path) -> None:
        """Raises InputError when `path` is no trace."""
        self._steps = Steps()
        self._fold = MemoryFold()
        self._changes: list[tuple[int, ...]] = []
        self.findings: list[tuple[int, FindingEvent]] = []
        with TraceReader(path) as reader:
            self.header: TraceHeader = reader.header
            self._read(reader)
            self.complete = reader.complete

    def _read(self, reader: TraceReader) -> None:
        opening = True
        for event in reader:
            opening = opening and isinstance(event, OPENING)
            changes = self._fold.apply(event)
            if opening:
                self._keep(0, changes)
                continue
            if isinstance(event, FindingEvent):
                self.findings.append((len(self._steps), event))
            self._steps.add(event, reader.via())
            self._keep(len(self._steps), changes)

    def _keep(self, nr_steps: int, changes: list[Change]) -> None:
        """Changes with the number of steps that were made then: 0 is the beginning."""
        self._changes += [(nr_steps, *change) for change in changes]

    @property
    def nr_steps(self) -> int:
        """Events from the first step on."""
        return len(self._steps)

    def pack(self) -> str:
        """What the page carries, as base64."""
        blob = Blob()
        strings = Strings()
        steps, forms = self._steps.tables(blob, strings)
        fold = self._fold
        columns = list(zip(*self._changes, strict=True)) or [()] * len(COLUMNS)
        head = Head(
            strings=strings.all,
            tasks=[strings.of(name) for name in self._steps.task_names],
            steps=steps,
            forms=forms,
            changes=blob.table(columns),
            nr_changes=len(self._changes),
            layers=LAYER_NAMES,
            values=fold.values.table,
            vms=[VmHead(vm.id, sorted(vm.slots)) for vm in fold.vms.values()],
            functions=functions_of(
                strings.all[number] for form in forms for number in (form.via, form.where)
            ),
            inputs={f"{leaf}": operands for leaf, operands in INPUTS.items()},
            outputs={f"{leaf}": operands for leaf, operands in OUTPUTS.items()},
            refused=REFUSED_BY_ENTRY,
            findings=[step for step, _ in self.findings],
        )
        return blob.pack(head)


def page_html(data: PageData) -> str:
    """The page as text."""
    verdict = verdict_of(data.header, data.findings, complete=data.complete)
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template("page.html.j2").render(
        header=data.header,
        verdict=verdict,
        title=_title(data.header, verdict),
        facts=facts_of(data),
        replay=f"septum replay {data.header.token}" if data.header.token else "",
        style=_asset("vendor/uplot/uPlot.min.css") + _asset("page.css"),
        libraries=[_library(name) for name in LIBRARIES],
        scripts=[_asset(f"scripts/{name}.js") for name in SCRIPTS],
        packed=data.pack(),
    )


def facts_of(data: PageData) -> list[tuple[str, str]]:
    """What was run, as (name, value) for a reader."""
    header = data.header
    schedule = header.schedule
    if schedule == "random":
        schedule = f"random, seed {header.seed}"
    elif schedule == "list":
        schedule = "as recorded"
    facts = [("scenario", header.scenario), ("design", header.design), ("schedule", schedule)]
    recipe = header.recipe
    memory = recipe.get("memory_bytes")
    if isinstance(memory, int):
        facts.append(("memory", size_text(memory)))
    facts += [
        (words, "yes" if recipe[name] is True else str(recipe[name]))
        for name, words in RECIPE_WORDS.items()
        if recipe.get(name)
    ]
    facts.append(("steps", f"{data.nr_steps:,}"))
    return [(name, value) for name, value in facts if value]


def write_page(trace: Path, target: Path) -> None:
    """Write the page of a trace. Raises InputError for a bad trace, one without steps, and a file
    that cannot be written."""
    data = PageData(trace)
    if not data.nr_steps:
        raise InputError(f"{trace} has no steps, so there is nothing to show; record another run")
    text = page_html(data)
    try:
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"the page {target} cannot be written ({error.strerror}); name another file"
        ) from None


def _title(header: TraceHeader, verdict: VerdictText) -> str:
    on = f" on {header.design}" if header.design else ""
    return f"{verdict.word}: {header.scenario}{on}"


def _asset(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _library(name: str) -> str:
    """A library's released build with its licence before it."""
    folder = HERE / "vendor" / name
    licence = (folder / "LICENSE").read_text(encoding="utf-8").strip().replace("*/", "* /")
    [build] = sorted(folder.glob("*.min.js"))
    version = (folder / "VERSION").read_text(encoding="utf-8").strip()
    return f"/* {name} {version}\n{licence}\n*/\n{build.read_text(encoding='utf-8')}"
