"""The steps of a run as a page carries them: steps of the same kind share their words.

A step is a form, which holds all its words, and a row of numbers. Forms are few even in a run of
a million steps; the rows of one form are a table of columns (`columns`).
"""

from __future__ import annotations

import re
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from septum.abi.leaves import GPA_LEAVES, seamcall_name, tdcall_name
from septum.abi.sept import STATE_MASK as SEPT_STATE_MASK
from septum.abi.sept import state_name
from septum.abi.status import status_name
from septum.module.events import SeamcallEvent, TdcallEvent
from septum.sim.events import ChoiceEvent, FindingEvent, SwitchEvent
from septum.trace.describe import describe, seamcall_address
from septum.trace.filters import tag_of
from septum.trace.ladder import is_quiet
from septum.trace.registry import fields_of

if TYPE_CHECKING:
    from septum.report.html.columns import Blob, ColumnSpec
    from septum.sim.events import Event

HEX, DECIMAL = "\ue000", "\ue001"
"""Each stands, in a form's words, for the next number of the row."""
_NUMBER = re.compile(r"\b(?:0x[0-9a-f]+|\d+)\b")
COMMON = frozenset(("time_ns", "task", "cpu"))
PREEMPTED, INJECTED, BROKEN = "preempted", "injected", "broken"
REGISTERS = ("rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "r13")
_registers = attrgetter(*(name for r in REGISTERS for name in (r, f"out_{r}")))
"""Of a SEAMCALL each register before and after."""


class Form(NamedTuple):
    """The words that steps of one kind share.

    `texts`: (name, text) of the event's fields that hold words. `names`: names of its fields that
    hold numbers; in a row these numbers come after those of `detail` and `result`.
    """

    tag: str
    verb: str
    detail: str
    result: str
    where: str
    via: str
    quiet: bool
    mark: str
    texts: tuple[tuple[str, str], ...]
    names: tuple[str, ...]


class FormTable(msgspec.Struct):
    """A form as the page reads it: numbers of strings, then how to read its columns."""

    tag: int
    verb: int
    detail: int
    result: int
    where: int
    via: int
    quiet: bool
    mark: int
    texts: list[int]
    names: list[int]
    rows: int
    columns: list[ColumnSpec]


class StepTable(msgspec.Struct):
    """All steps: the form of each, its task, how long after the task's step before it."""

    nr: int
    form: ColumnSpec
    task: ColumnSpec
    delta_ns: ColumnSpec


class Strings:
    """Every text once."""

    __slots__ = ("_ids", "all")

    def __init__(self) -> None:
        self.all: list[str] = []
        self._ids: dict[str, int] = {}

    def of(self, text: str) -> int:
        """The number of a text."""
        found = self._ids.get(text)
        if found is None:
            found = self._ids[text] = len(self.all)
            self.all.append(text)
        return found


class Steps:
    """Collects steps; `tables` gives them in the page's form."""

    __slots__ = (
        "_delta_ns",
        "_form_ids",
        "_last_ns",
        "_rows",
        "_shapes",
        "_step_forms",
        "_task_ids",
        "_tasks",
    )

    def __init__(self) -> None:
        self._form_ids: dict[Form, int] = {}
        self._rows: list[list[tuple[int, ...]]] = []
        self._shapes: dict[tuple[object, ...], int] = {}
        self._step_forms: list[int] = []
        self._task_ids: dict[str, int] = {}
        self._tasks: list[int] = []
        self._delta_ns: list[int] = []
        self._last_ns: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._step_forms)

    @property
    def task_names(self) -> list[str]:
        """The tasks, in order of their first step."""
        return list(self._task_ids)

    def add(self, event: Event, via: str) -> None:
        """One more step. `via` are the kernel functions that it came from, innermost first."""
        if isinstance(event, SeamcallEvent):
            self._keep(event, *self._seamcall(event, via))
        else:
            self.add_plainly(event, via)

    def add_plainly(self, event: Event, via: str) -> None:
        """As `add`, without the shortcut for SEAMCALLs."""
        self._keep(event, *self._form(event, via))

    def _keep(self, event: Event, number: int, numbers: tuple[int, ...]) -> None:
        self._rows[number].append(numbers)
        self._step_forms.append(number)
        task = self._task_ids.setdefault(event.task, len(self._task_ids))
        self._tasks.append(task)
        self._delta_ns.append(event.time_ns - self._last_ns.get(task, 0))
        self._last_ns[task] = event.time_ns

    def _form(self, event: Event, via: str) -> tuple[int, tuple[int, ...]]:
        """The number of an event's form, which may be new, and its row there."""
        form, numbers = form_of(event, via)
        number = self._form_ids.get(form)
        if number is None:
            number = self._form_ids[form] = len(self._rows)
            self._rows.append([])
        return number, numbers

    def _seamcall(self, event: SeamcallEvent, via: str) -> tuple[int, tuple[int, ...]]:
        """The same, quickly: of a long run most steps are SEAMCALLs, and few of them differ."""
        address = seamcall_address(event)
        registers = _registers(event)
        sept = event.sept
        shape = (
            event.leaf,
            event.version,
            event.status,
            via,
            event.rcx & 7 if event.leaf in GPA_LEAVES else address is None,
            sept & SEPT_STATE_MASK if sept >= 0 else -1,
            event.sept_child & SEPT_STATE_MASK if event.sept_child >= 0 else -1,
            *map(bool, registers),
        )
        number = self._shapes.get(shape)
        if number is None:
            number, numbers = self._form(event, via)
            self._shapes[shape] = number
            return number, numbers
        row = [] if address is None else [address]
        row += [entry for entry in (sept, event.sept_child) if entry >= 0]
        for before, after in zip(registers[::2], registers[1::2], strict=True):
            if before or after:
                row += (before, after)
        return number, tuple(row)

    def tables(self, blob: Blob, strings: Strings) -> tuple[StepTable, list[FormTable]]:
        """The steps and their forms; columns go to `blob`, words to `strings`."""
        forms = [
            FormTable(
                tag=strings.of(form.tag),
                verb=strings.of(form.verb),
                detail=strings.of(form.detail),
                result=strings.of(form.result),
                where=strings.of(form.where),
                via=strings.of(form.via),
                quiet=form.quiet,
                mark=strings.of(form.mark),
                texts=[strings.of(text) for pair in form.texts for text in pair],
                names=[strings.of(name) for name in form.names],
                rows=len(rows),
                columns=blob.table(list(zip(*rows, strict=True))),
            )
            for form, rows in zip(self._form_ids, self._rows, strict=True)
        ]
        steps = StepTable(
            nr=len(self._step_forms),
            form=blob.add(self._step_forms),
            task=blob.add(self._tasks),
            delta_ns=blob.add(self._delta_ns),
        )
        return steps, forms


def form_of(event: Event, via: str) -> tuple[Form, tuple[int, ...]]:
    """The form of a step, and its numbers: those in its words first."""
    step = describe(event)
    numbers: list[int] = []

    def cut(match: re.Match[str]) -> str:
        text = match.group()
        numbers.append(int(text, 0) if text.startswith("0x") else int(text))
        return HEX if text.startswith("0x") else DECIMAL

    detail = _NUMBER.sub(cut, step.detail)
    texts, names, values = _fields(event)
    numbers += values
    where = step.where or via.partition(" < ")[0]
    form = Form(
        tag_of(type(event)),
        step.verb,
        detail,
        step.result,
        where,
        via,
        is_quiet(event),
        _mark(event),
        texts,
        names,
    )
    return form, tuple(numbers)


def _mark(event: Event) -> str:
    if isinstance(event, SwitchEvent):
        return PREEMPTED if event.preempted else ""
    if isinstance(event, ChoiceEvent):
        return INJECTED if not event.name.startswith("choose:") else ""
    return BROKEN if isinstance(event, FindingEvent) else ""


Fields = tuple[tuple[tuple[str, str], ...], tuple[str, ...], list[int]]
"""(name and text of fields that hold words, names of fields that hold numbers, the numbers)."""


def _fields(event: Event) -> Fields:
    if isinstance(event, SeamcallEvent):
        return _seamcall_fields(event)
    texts: list[tuple[str, str]] = []
    names: list[str] = []
    values: list[int] = []
    if isinstance(event, TdcallEvent):
        texts += [("name", tdcall_name(event.leaf)), ("status", status_name(event.status))]
        if event.sept >= 0:
            texts.append(("sept_state", state_name(event.sept)))
    for name in fields_of(type(event)):
        value = getattr(event, name)
        if name in COMMON or (name == "sept" and value < 0):
            continue
        if isinstance(value, bool):
            texts.append((name, "yes" if value else "no"))
        elif isinstance(value, int):
            names.append(name)
            values.append(value)
        else:
            texts.append((name, str(value)))
    return tuple(texts), tuple(names), values


def _seamcall_fields(event: SeamcallEvent) -> Fields:
    """Leaf and status in words; of the registers those that hold something."""
    texts = [
        ("leaf", f"{event.leaf}"),
        ("name", seamcall_name(event.leaf)),
        ("version", f"{event.version}"),
        ("status", status_name(event.status)),
        ("rax", f"{event.status:#x}"),
    ]
    names: list[str] = []
    values: list[int] = []
    for name, entry in (("sept", event.sept), ("sept_child", event.sept_child)):
        if entry >= 0:
            texts.append((f"{name}_state", state_name(entry)))
            names.append(name)
            values.append(entry)
    registers = _registers(event)
    for name, before, after in zip(REGISTERS, registers[::2], registers[1::2], strict=True):
        if before or after:
            names += (name, f"out_{name}")
            values += (before, after)
    return tuple(texts), tuple(names), values
