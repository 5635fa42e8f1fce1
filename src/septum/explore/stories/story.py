"""A counterexample as 80 columns of text: who did what when, where it was disturbed, what broke.

Each step that shows has a number; quiet steps are folded; below a step is what it changed; lines
that say why follow.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import msgspec

from septum.abi import leaves
from septum.abi.types import PAGE_SHIFT
from septum.checks import PROMISES, consequence
from septum.checks.text import agree
from septum.explore.stories.beginning import beginning_lines
from septum.explore.stories.origin import patch_of
from septum.explore.stories.parting import first_difference, parting_words
from septum.explore.stories.told import Told
from septum.explore.stories.watching import Seen, changes_between
from septum.explore.stories.why import failure_words, why_lines
from septum.linux.kvm.events import KvmTdpMmuSpteChanged
from septum.module.events import SeamcallEvent
from septum.scenarios.outcome import EXPECTATION
from septum.sim.events import ChoiceEvent, FindingEvent, SwitchEvent
from septum.trace.describe import describe
from septum.trace.ladder import folded, is_quiet
from septum.words import WIDTH, count_text, plural, wrap

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator

    from septum.explore.stories.damage import Damage
    from septum.explore.stories.endings import Note
    from septum.explore.stories.endless import Loop
    from septum.explore.stories.recording import Beat, Recorded
    from septum.explore.verdict import Counterexample
    from septum.sim import Finding

PREEMPTED = ">>"
INJECTED = "!!"
BROKEN = "XX"
CHANGES_MAX = 6
NEEDS_MAX = 3
PLACES_MAX = 12
_NOT_EXPECTED = "an end that is not expected"
_UNSAID = ("tdh_", "_", "trace_", "alloc_page", "get_zeroed_page")
"""Functions that do not say where a step is: wrappers, which the SEAMCALL names, and helpers."""


class Row:
    """A line of the ladder: a step with its number, or a fold (number 0). `begins`: an operation of
    the scenario, of which `beat` is the first event. `note`: what it tells of, where that is no
    event."""

    __slots__ = ("beat", "begins", "changes", "mark", "note", "number", "sign", "task", "text")

    def __init__(
        self,
        number: int,
        task: str,
        mark: str,
        text: str,
        beat: Beat | None,
        *,
        begins: bool = False,
    ) -> None:
        self.begins = begins
        self.number = number
        self.task = task
        self.mark = mark
        self.text = text
        self.beat = beat
        self.note: Note | None = None
        self.sign = "~"  # before each of `changes`: "=" for what does not change
        self.changes: list[str] = []


def story_lines(
    damage: Damage,
    heading: str,
    consequence: str = "",
    *,
    schedule: str = "The shortest schedule found",
    near: bool = True,
    scheduled: bool = True,
) -> list[str]:
    """The report of a counterexample. `schedule`: what its schedule is; `near`: its neighbours
    were tried; without `scheduled` it has none, and `schedule` is a sentence that says so."""
    example, recording = damage.example, damage.recording
    finding = example.finding
    lines = _words(heading)
    lines += wrap(f"token: {example.token}")
    lines.append("")
    rows = _rows(recording, finding)
    lines += _words(cause(finding, rows, cut=bool(damage.cut)))
    if consequence:
        lines += _words(consequence)
    lines.append("")
    if scheduled:
        schedule += " before the time for shrinking ended" * example.late
        schedule = _size(example, schedule, recording)
    lines += _words(schedule)
    lines += _words(damage.cut or damage.untold)
    numbers = {id(row.beat or row.note): row.number for row in rows if row.beat or row.note}
    if damage.unseen:
        blind = [beat.state is None for beat in recording.beats]
        when = Told(recording, numbers).after(blind.index(True)) if any(blind) else "at the end"
        lines += _words(f"What changes {when} {damage.unseen}")
    lines += _words(
        f"{PREEMPTED} preempted here; {INJECTED} injected; {BROKEN} broken; below a step, what it "
        "changed: old -> new."
    )
    lines.append("")
    if beginning := beginning_lines(recording, finding):
        lines += [*beginning, ""]
    lines += _lanes(recording.tasks, rows)
    why = why_lines(recording, numbers, finding)
    why += _broken_before(damage, numbers)
    if why:
        lines += ["", "Why:"]
        for line in why:
            lines += _words(line, "  ")
    if near:
        lines += ["", *_passing(example, recording, rows)]
    return lines


def _broken_before(damage: Damage, numbers: dict[int, int]) -> list[str]:
    """Another promise that is broken before, and where."""
    if damage.other is None:
        return []
    finding = damage.other.finding
    told = Told(damage.recording, numbers)
    at = [at for at, beat in enumerate(told.beats) if not isinstance(beat.event, FindingEvent)]
    before = damage.other.nr_events - 1
    when = told.when(at[before]) if before >= 0 else "before step 1"
    when = f"at {when}" if when.startswith("step") else when
    also = "before that, " if before + 1 < len(at) else "there, too, "
    words = f"with every step looked at, {finding.promise} is broken {also}{when} ({finding.task})"
    return [f"{words}: {finding.text}"]


def heading(finding: Finding, scenario: str, design: str, seed: int | None) -> str:
    """Verdict, promise, scenario, design; and the seed of a search."""
    what = _NOT_EXPECTED if finding.promise == EXPECTATION else f"promise {finding.promise}"
    on = f" on design {design}" if design else ""
    drawn = "" if seed is None else f" (seed {seed})"
    return f"BROKEN: {what} in scenario {scenario}{on}{drawn}"


def consequence_of(finding: Finding, design: str) -> str:
    """What the broken promise means on hardware; "" for what is no promise about it."""
    promise = PROMISES.get(finding.promise)
    return consequence(promise, finding.text) if promise is not None and design else ""


def _size(example: Counterexample, what: str, recording: Recorded) -> str:
    """How long the schedule is, and how long it was before it was shrunk; and what the scenario
    injects, which is nothing that the schedule did."""
    parts = (
        (example.steps, example.first_steps, "scheduling point"),
        (example.preemptions, example.first_preemptions, "preemption"),
        (example.failures, example.first_failures, "injected failure"),
    )
    words = [
        plural(now, noun) + (f" (found with {count_text(first)})" if first != now else "")
        for now, first, noun in parts
    ]
    theirs = sum(_mark(beat) == INJECTED and not beat.injected for beat in recording.beats)
    more = f"; {theirs} that the scenario injects" if theirs else ""
    return f"{what}: {', '.join(words)}{more}."


def untold_lines(example: Counterexample, heading: str, why: str) -> list[str]:
    """What is said of a counterexample whose story is not told, and `why` it is not."""
    finding = example.finding
    lines = _words(heading)
    lines += wrap(f"token: {example.token}")
    lines += ["", *_words(cause(finding, [])), ""]
    return [*lines, *_words(why)]


def cause(finding: Finding, rows: list[Row], *, cut: bool = False) -> str:
    """One sentence: what broke, in whom, and what had to happen on the way. `cut`: where it was
    seen is any scheduling point, and says nothing."""
    where = f"{finding.task}, {finding.where}" if finding.where and not cut else finding.task
    unexpected = "the scenario does not expect that " * (finding.promise == EXPECTATION)
    text = f"Cause: {unexpected}{finding.text} ({where})"
    needs = []
    switches = injected = ""
    for row in rows:
        if row.beat is None:
            continue
        event = row.beat.event
        if isinstance(event, SwitchEvent) and row.mark == PREEMPTED:
            switches = switches or "preemptions"
            needs.append(f"{event.to} runs while {event.task} is at {_place(row.beat)}")
        elif isinstance(event, SwitchEvent) and row.beat.yields not in ("", "goes round"):
            # No preemption, as a search counts; but this task could have gone on.
            switches = "switches of tasks"
            needs.append(
                f"{event.to} runs while {event.task}, which {row.beat.yields}, is at"
                f" {_place(row.beat)}"
            )
        elif isinstance(event, ChoiceEvent) and row.mark == INJECTED:
            injected = "injected failures"
            needs.append(f"{failure_words(event)} in {_place(row.beat)}")
    if len(needs) > NEEDS_MAX:
        return f"{text}, after {len(needs)} {' and '.join(filter(None, (switches, injected)))}."
    return f"{text}, once {', and '.join(needs)}." if needs else f"{text}."


def _passing(example: Counterexample, recording: Recorded, rows: list[Row]) -> list[str]:
    """The nearest schedule that breaks nothing, by the step where it does something else."""
    if example.passing is None:
        return ["No passing schedule was found near it."]
    first = first_difference(example.answers, example.passing)
    ours = recording.asked_at(example.answers, first)
    theirs = recording.asked_at(example.passing, first)
    step = before = 0
    for row in rows:
        if row.beat is None:
            continue
        if row.beat.decision < first:
            before = row.number
        elif row.begins:
            continue
        elif row.beat.decision == first and isinstance(row.beat.event, SwitchEvent | ChoiceEvent):
            step = row.number
    place = ""
    more = recording.failures_of(example.passing) if theirs is not None else 0
    fewer = "" if more else "nothing is injected there"
    if theirs is None or theirs.choice or more == example.failures:
        fewer = ""
    elif more:
        fewer = f"{plural(more, 'failure')} {agree(more, 'is', 'are')} injected there"
    if theirs is not None:
        call = [theirs.call] if theirs.call else []
        place = " < ".join([*call, *_said(theirs.path)[:2]])
    words = parting_words(ours, theirs, step, before, place)
    return _words(f"{words[:-1]}; {fewer}." if fewer else words)


def _rows(recording: Recorded, finding: Finding) -> list[Row]:
    """Steps and folds; the last row is what broke."""
    rows: list[Row] = []
    locks = recording.contended()
    seen = recording.start
    quiet: list[Beat] = []
    notes = list(recording.notes)
    number = 0
    for at, beat in enumerate(recording.beats):
        while notes and notes[0].at <= at:
            if quiet:
                seen = _add_fold(rows, quiet, seen, locks)
            number += 1
            rows.append(_noted(number, notes.pop(0)))
        if beat.begins:
            if quiet:
                seen = _add_fold(rows, quiet, seen, locks)
            number += 1
            text = beat.begins + _in_brackets(beat.entry)
            rows.append(Row(number, beat.event.task, "", text, beat, begins=True))
        mark = _mark(beat)
        if not (mark or beat.yields) and is_quiet(beat.event):
            quiet.append(beat)
            continue
        if quiet:
            seen = _add_fold(rows, quiet, seen, locks)
        number += 1
        row = Row(number, beat.event.task, mark, _text(beat), beat)
        told = isinstance(beat.event, KvmTdpMmuSpteChanged)
        now = Seen(beat.state, beat.module)
        row.changes = changes_between(seen, now, locks, mirror=not told)
        seen = now
        rows.append(row)
    if quiet:
        _add_fold(rows, quiet, seen, locks)
    for note in notes:
        number += 1
        rows.append(_noted(number, note))
    rows = list(_folded(rows))
    if recording.nr_later:
        later = plural(recording.nr_later, "event")
        rows.append(Row(0, "", "", f"... {later} later, with no part in it ...", None))
    number = _add_rounds(rows, number, recording)
    text = f"promise {finding.promise} is broken"
    if recording.call:  # it has not ended, so that no step tells of it
        text += f" in {recording.call}"
    if finding.promise == EXPECTATION:
        text = _NOT_EXPECTED
    rows.append(Row(number + 1, finding.task, BROKEN, text, None))
    return rows


def _noted(number: int, note: Note) -> Row:
    row = Row(number, note.task, "", note.text + _in_brackets(note.function), None)
    row.note = note
    return row


def _add_rounds(rows: list[Row], number: int, recording: Recorded) -> int:
    """What goes round at the end: a round, unless it shows already, and how often it comes again.
    Returns the number of the last step."""
    beats = {id(beat): at for at, beat in enumerate(recording.beats)}
    for loop in recording.loops:
        kept = {mark.beat for mark in loop.first if mark.beat >= 0}
        shown = [row for row in rows if row.number and beats.get(id(row.beat)) in kept]
        places = [] if shown else _places(loop)
        for text in places:
            number += 1
            rows.append(Row(number, loop.task, "", text, None))
        rows.append(_again(loop, len(shown) or len(places), recording))
    return number


def _again(loop: Loop, nr: int, recording: Recorded) -> Row:
    """The row that stands for all rounds but the one that shows, which is of `nr` steps."""
    if loop.endless:
        return Row(0, "", "", f"... {loop.task} goes on like that without end ...", None)
    what = f"last {nr} steps come" if nr > 1 else "last step comes"
    text = f"... the {what} again {plural(loop.times, 'time')}"
    row = Row(0, "", "", f"{text}, and this stays:" if recording.stays else f"{text} ...", None)
    row.changes = recording.stays
    row.sign = "="
    return row


def _places(loop: Loop) -> list[str]:
    """The scheduling points of a round, where no event tells of it."""
    places = []
    for mark in loop.first:
        if mark.kind:
            functions = " < ".join(_said(mark.path.split(" < "))[:2])
            places.append(_point(mark.kind, mark.words, functions))
    if len(places) > PLACES_MAX:
        left = len(places) - PLACES_MAX + 1
        places = [*places[: PLACES_MAX - 1], f"and {left} more scheduling points"]
    return places


def _folded(rows: list[Row]) -> Iterator[Row]:
    """Of long runs of alike rounds the first and the last; what is marked is always shown."""
    keys = [_key(row) for row in rows]
    for part in folded(keys):
        if isinstance(part, int):
            yield rows[part]
        else:
            within = rows[part.first : part.first + part.period]
            nr_steps = sum(1 for row in within if row.number)
            yield Row(0, "", "", part.text_of(nr_steps), None)


def _key(row: Row) -> Hashable:
    if row.beat is None:
        return row.text
    if row.mark or row.begins:
        return row.number
    step = describe(row.beat.event)
    return (row.task, step.verb, step.result)


def _add_fold(rows: list[Row], quiet: list[Beat], seen: Seen, locks: frozenset[str]) -> Seen:
    """A row for quiet steps; returns what is seen after them."""
    row = Row(0, "", "", plural(len(quiet), "quiet step"), None)
    after = Seen(quiet[-1].state, quiet[-1].module)
    row.changes = changes_between(seen, after, locks, mirror=True)
    rows.append(row)
    quiet.clear()
    return after


def _mark(beat: Beat) -> str:
    event = beat.event
    if isinstance(event, SwitchEvent):
        return PREEMPTED if beat.preempted else ""
    injects = isinstance(event, ChoiceEvent) and not event.name.startswith("choose:")
    return INJECTED if injects else ""


def _text(beat: Beat) -> str:
    event = beat.event
    if isinstance(event, SwitchEvent):
        return f"{event.to} runs, {event.task} {beat.yields or 'is'} at {_place(beat)}"
    if isinstance(event, FindingEvent):
        # With what is news the run ends, and no event tells of it.
        known = "and is ignored" if beat.ignored else "as the scenario foresees"
        return f"breaks, {known}: {event.promise}: {event.text}"
    step = describe(event)
    if whose := _whose(beat):
        step = msgspec.structs.replace(step, verb=f"{step.verb} of {whose}")
    where = "" if isinstance(event, SeamcallEvent | ChoiceEvent) else step.where
    said = failure_words(event) if isinstance(event, ChoiceEvent) else step.text
    return said + _in_brackets(where or next(iter(_said(beat.path)), ""))


def _whose(beat: Beat) -> str:
    """The VM that the step is of, where there are several and the event tells; else ""."""
    if beat.state is None or len(beat.state.vms) < 2 or beat.module is None:
        return ""
    event = beat.event
    if isinstance(event, SeamcallEvent):
        tdr = event.rdx if event.leaf in leaves.GPA_LEAVES else event.rcx
        vms = beat.module.vms.items()
        return next((name for name, vm in vms if vm.tdr_pfn == tdr >> PAGE_SHIFT), "")
    number = getattr(event, "vm", 0)
    return f"vm{number}" if number else ""


def _in_brackets(function: str) -> str:
    """A kernel function and its patches, as they stand behind a step; "" for none."""
    patch = patch_of(function) if function else ""
    words = ", ".join(word for word in (function, patch) if word)
    return f"  [{words}]" if words else ""


def _said(path: Iterable[str]) -> list[str]:
    return [name for name in path if name not in ("", "fails") and not name.startswith(_UNSAID)]


def _place(beat: Beat) -> str:
    """Where a task stands: the kind of scheduling point, the leaf of the module that it is in, and
    the kernel functions around it."""
    functions = " < ".join(_said(beat.path)[:2])
    if not isinstance(beat.event, SwitchEvent):
        return functions or beat.call
    return _point(beat.event.at, beat.call, functions)


def _point(kind: str, call: str, functions: str) -> str:
    text = f"`{kind}` of {call}" if call else f"`{kind}`"
    return f"{text} in {functions}" if functions else text


def _lanes(tasks: list[str], rows: Iterable[Row]) -> list[str]:
    """A column for each task, time downwards, the words to the right."""
    lines = []
    for at, task in enumerate(tasks):
        lines.append(f"        {'| ' * at}+ {task}")
    plain = f"        {' '.join('|' * len(tasks))}    "
    for row in rows:
        bars = ["|"] * len(tasks)
        if row.task in tasks:
            bars[tasks.index(row.task)] = "*"
        number = f"{row.number:4}" if row.number else "    "
        head = f"{number} {row.mark:2} {' '.join(bars)}  "
        pieces = textwrap.wrap(row.text, WIDTH - len(head), break_on_hyphens=False) or [""]
        lines.append(f"{head}{pieces[0]}".rstrip())
        lines += [f"{plain}{piece}".rstrip() for piece in pieces[1:]]
        told = row.changes
        if len(told) > CHANGES_MAX:
            told = [*told[: CHANGES_MAX - 1], f"and {len(told) - CHANGES_MAX + 1} more changes"]
        for change in told:
            for nr, piece in enumerate(textwrap.wrap(change, WIDTH - len(plain) - 4)):
                lines.append(f"{plain}{' ' if nr else row.sign} {piece}")
    return lines


def _words(text: str, indent: str = "") -> list[str]:
    """Lines in which what can be copied stays in one piece."""
    return wrap(text, indent, break_long=False)
