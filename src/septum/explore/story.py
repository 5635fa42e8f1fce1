"""A counterexample as 80 columns of text: who did what when, where it was disturbed, what broke.

The run is made once more with its events on. Each step that shows has a number; quiet steps are
folded; lines that say why follow.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import msgspec

from septum.explore.run import Replaying, Runner
from septum.sim import Finding
from septum.sim.events import ChoiceEvent, Event, FindingEvent, LockEvent, SwitchEvent
from septum.trace.describe import describe
from septum.trace.ladder import is_quiet
from septum.trace.via import kernel_path

if TYPE_CHECKING:
    from collections.abc import Iterable

    from septum.explore.verdict import Counterexample

WIDTH = 80
PREEMPTED = ">>"
INJECTED = "!!"
BROKEN = "XX"


class Beat(msgspec.Struct):
    """An event of the run with what was known when it happened."""

    event: Event
    path: str  # the kernel functions it came from, innermost first
    preempted: bool = False  # the switch was the schedule's wish, not a wait


class Recording:
    """A run, event by event."""

    __slots__ = ("_runner", "_seen_preemptions", "_steering", "beats", "tasks")

    def __init__(self, runner: Runner, answers: list[int]) -> None:
        self._runner = runner
        self.beats: list[Beat] = []
        self._steering = Replaying(answers)
        self._seen_preemptions = 0
        runner.sink = self._see
        try:
            runner.clean()
            runner.run(self._steering)
        finally:
            runner.sink = None
        self._cut_after_finding()
        self.tasks = list(dict.fromkeys(beat.event.task for beat in self.beats))

    def _cut_after_finding(self) -> None:
        """What happens after the promise is broken is no part of the story."""
        for at, beat in enumerate(self.beats):
            event = beat.event
            if isinstance(event, FindingEvent) and self._runner.is_news(
                Finding(event.promise, event.text, "", event.task, event.time_ns)
            ):
                del self.beats[at + 1 :]
                return

    def _see(self, event: Event) -> None:
        if self._steering.sim is None:
            return
        beat = Beat(event, kernel_path(2))
        if isinstance(event, SwitchEvent):
            beat.preempted = self._steering.preempting
        self.beats.append(beat)


def story_lines(
    example: Counterexample, recording: Recording, heading: str, consequence: str = ""
) -> list[str]:
    """The report of a counterexample."""
    finding = example.finding
    lines = _wrap(heading, "")
    lines += _wrap(f"token: {example.token}", "", break_long=True)
    lines.append("")
    lines += _wrap(f"Cause: {finding.text} ({finding.task}, {finding.where or 'the model'}).", "")
    if consequence:
        lines += _wrap(f"On hardware: {consequence}", "")
    lines.append("")
    lines += _wrap(
        f"The shortest schedule found: {example.steps} steps (found with {example.first_steps}), "
        f"{_count(example.preemptions, 'preemption')} (found with {example.first_preemptions}), "
        f"{_count(example.failures, 'injected failure')} (found with {example.first_failures}).",
        "",
    )
    lines += _wrap(
        f"{PREEMPTED} preempted here; {INJECTED} injected; {BROKEN} broken. Changes as old -> new.",
        "",
    )
    lines.append("")
    rows = _rows(recording)
    lines += _lanes(recording.tasks, rows)
    why = _why_lines(rows)
    if why:
        lines += ["", "Why:"]
        for line in why:
            lines += _wrap(line, "  ")
    lines.append("")
    lines += _passing(example)
    return lines


def _passing(example: Counterexample) -> list[str]:
    if example.passing is None:
        return ["No passing schedule was found near it."]
    differs = [
        at
        for at in range(max(len(example.answers), len(example.passing)))
        if _at(example.answers, at) != _at(example.passing, at)
    ]
    first = differs[0] if differs else 0
    return _wrap(
        f"The nearest schedule that passes differs first at decision {first + 1}: answer "
        f"{_at(example.passing, first)} instead of {_at(example.answers, first)}.",
        "",
    )


def _at(answers: list[int], index: int) -> int:
    return answers[index] if index < len(answers) else 0


class Row:
    """A line of the ladder: a step with its number, or a fold (number 0)."""

    __slots__ = ("beat", "mark", "number", "task", "text")

    def __init__(self, number: int, task: str, mark: str, text: str, beat: Beat | None) -> None:
        self.number = number
        self.task = task
        self.mark = mark
        self.text = text
        self.beat = beat


def _rows(recording: Recording) -> list[Row]:
    rows: list[Row] = []
    quiet = 0
    number = 0
    for beat in recording.beats:
        event = beat.event
        mark = _mark(beat)
        if not mark and is_quiet(event):
            quiet += 1
            continue
        if quiet:
            rows.append(Row(0, "", "", f"{_count(quiet, 'quiet step')}", None))
            quiet = 0
        number += 1
        rows.append(Row(number, event.task, mark, _text(beat), beat))
    return rows


def _mark(beat: Beat) -> str:
    event = beat.event
    if isinstance(event, SwitchEvent):
        return PREEMPTED if beat.preempted else ""
    if isinstance(event, ChoiceEvent):
        return INJECTED if not event.name.startswith("choose:") else ""
    if isinstance(event, FindingEvent):
        return BROKEN
    return ""


def _text(beat: Beat) -> str:
    event = beat.event
    if isinstance(event, SwitchEvent):
        return f"{event.to} runs instead, before {event.at}"
    step = describe(event)
    where = step.where or beat.path
    return f"{step.text}  [{where}]" if where else step.text


def _lanes(tasks: list[str], rows: Iterable[Row]) -> list[str]:
    """A column for each task, time downwards, the words to the right."""
    lines = []
    for at, task in enumerate(tasks):
        lines.append(f"        {'| ' * at}+ {task}")
    for row in rows:
        bars = ["|"] * len(tasks)
        if row.task in tasks:
            bars[tasks.index(row.task)] = "*"
        number = f"{row.number:4}" if row.number else "    "
        head = f"{number} {row.mark:2} {' '.join(bars)}  "
        pieces = textwrap.wrap(row.text, WIDTH - len(head)) or [""]
        lines.append(f"{head}{pieces[0]}".rstrip())
        plain = f"        {' '.join('|' * len(tasks))}    "
        lines += [f"{plain}{piece}".rstrip() for piece in pieces[1:]]
    return lines


def _why_lines(rows: list[Row]) -> list[str]:
    """What a step owes to an earlier one: waits and busy answers to who held the lock."""
    holders: dict[str, tuple[str, int]] = {}
    lines: list[str] = []
    last_number = 0
    for row in rows:
        beat = row.beat
        if beat is None:
            continue
        last_number = row.number
        event = beat.event
        if isinstance(event, LockEvent):
            if event.op == "wait":
                holder = holders.get(event.lock)
                by = f", held by {holder[0]} since step {holder[1]}" if holder else ""
                lines.append(f"step {row.number}: {event.task} waits for {event.lock}{by}")
            elif event.op == "lock":
                holders[event.lock] = (event.task, row.number)
        elif isinstance(event, ChoiceEvent) and row.mark:
            lines.append(
                f"step {row.number}: the failure {event.name} is what the search chose;"
                " without it this schedule goes on otherwise"
            )
        elif "BUSY" in row.text:
            other = _last_of_another(rows, row)
            if other is not None:
                lines.append(
                    f"step {row.number} is busy while {other.task} is between its steps: its last"
                    f" was {other.number}"
                )
        elif isinstance(event, SwitchEvent) and row.mark:
            lines.append(
                f"step {row.number}: {event.task} is stopped before {event.at};"
                f" {event.to} runs from here"
            )
    if lines and last_number:
        return lines[:24]
    return lines


def _last_of_another(rows: list[Row], row: Row) -> Row | None:
    before = [
        other
        for other in rows
        if other.number and other.number < row.number and other.task != row.task
    ]
    return before[-1] if before else None


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _wrap(text: str, indent: str, *, break_long: bool = False) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=break_long,
        break_on_hyphens=False,
    )
