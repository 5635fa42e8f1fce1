"""Why a task waits for ever: who has what it waits for, since which step."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from septum.sim.events import LockEvent
from septum.trace.describe import describe
from septum.words import plural

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from septum.explore.stories.endings import Note
    from septum.explore.stories.holders import FolioHeld, Hold
    from septum.explore.stories.recording import Recorded
    from septum.explore.stories.told import Told
    from septum.scenarios.world import ScenarioWorld
    from septum.sim import Finding

SPINNING = re.compile(r"Spinning on folio=(0x[0-9a-f]+) ")
LEAKED = re.compile(r"never freed,(?: the first one)? PFN (0x[0-9a-f]+)")
PUT = re.compile(r"folio_put\(\) of (0x[0-9a-f]+), which has no references")
LOCKDEP = "lockdep: "
POISONED = "a poisoned folio is split"
WAITS = re.compile(r"(\S+) waits for (.+)")
OF_SRCU = re.compile(r"synchronize_srcu\((.+)\)")
OF_LOCK = re.compile(r"folio lock of pfn (0x[0-9a-f]+)")
KEPT = re.compile(r" still holds (.+)")
REFERENCES = "folio references"
FOLIOS_MAX = 2


def leaked_pfn(finding: Finding) -> int:
    """The page that nobody freed, where the finding is of one; else -1."""
    match = LEAKED.search(finding.text)
    return int(match[1], 16) if match is not None else -1


def flags_waited(world: ScenarioWorld) -> dict[str, str]:
    """What threads of VMMs, and guests that spin, wait for at the end of a run, by task, in words;
    with who would raise the flag, and what keeps that one."""
    flags = {}
    for task in world.sim.tasks:
        if task.done or not world.waits_for_flag(task):
            continue
        op = world.record.under_way.get(task.name)
        if op is None or op.verb != "wait":
            flags[task.name] = "a memslot where it had KVM_EXIT_MEMORY_FAULT, and none is created"
            continue
        raisers = [
            _raiser(world, program.name, op.name)
            for program in world.scenario.programs
            if any(each.verb == "signal" and each.name == op.name for each in program.ops)
        ]
        flags[task.name] = f"flag {op.name}, {' and '.join(raisers) or 'which nobody raises'}"
    return flags


def _raiser(world: ScenarioWorld, name: str, flag: str) -> str:
    """Where the program is that would raise the flag."""
    op = world.record.under_way.get(name)
    stands = f"and is in `{op.text}`" if op is not None else "and has ended"
    return f"which {name} would raise, {stands}"


def waits(told: Told, recorded: Recorded, finding: Finding) -> list[str]:
    """A line for each task that waits at the end, and whose cause no other line tells; and who
    refers to the folio that the finding is about."""
    held = recorded.held
    if match := SPINNING.search(finding.text):
        pfn = int(match[1], 16)
        return [_folio(told, folio) for folio in held.folios if folio.pfn == pfn]
    if (pfn := leaked_pfn(finding)) >= 0:
        left = [_left(told, folio) for folio in held.left if folio.pfn == pfn]
        taken = held.taken
        if left or taken is None or not taken.task:
            return left
        return [f"{taken.task} allocated PFN {pfn:#x} {told.after(taken.at)}, and nobody freed it"]
    if match := PUT.search(finding.text):
        hold = held.robbed.get(int(match[1], 16))
        said = f"{hold.task} gave back a reference of the page cache" if hold is not None else ""
        return [f"{said} {told.after(hold.at)}"] if hold is not None and hold.task else []
    if POISONED in finding.text:
        return [_folio(told, folio) for folio in held.folios if folio.poisoned is not None]
    if match := KEPT.search(finding.text):
        return _kept(told, recorded, finding.task, match[1].split(", "))
    lines: list[str] = []
    for task, what in _waiting(recorded, finding):
        if match := OF_SRCU.fullmatch(what):
            readers = held.srcu.get(match[1], ())
            if readers:
                lines.append(f"{task} waits for readers of {match[1]}: {_since(told, readers)}")
        elif match := OF_LOCK.fullmatch(what):
            pfn = int(match[1], 16)
            if hold := held.locked.get(pfn):
                lines.append(f"{task} waits for the {what}: {_since(told, [hold])}")
            elif hold := held.unlocked.get(pfn):
                when = told.after(hold.at)
                lines.append(
                    f"{task} waits for the {what}, which nobody has: {hold.task} gave it up {when},"
                    " and woke nobody"
                )
        elif what == REFERENCES:
            lines += [_folio(told, folio) for folio in held.folios[:FOLIOS_MAX]]
        elif has := _kept(told, recorded, task, [what]):
            lines += [f"{task} waits for itself: {words}" for words in has]
        elif flag := recorded.flags.get(task):
            lines.append(f"{task} waits for {flag}")
    return list(dict.fromkeys(lines))


def refused(told: Told, errors: Iterable[Note]) -> list[str]:
    """Of each error that folios caused, whose the references are."""
    lines = []
    for error in errors:
        number = told.numbers.get(id(error)) or _comes_to(told, error)
        where = f"step {number}" if number else told.after(error.at)
        for gfn, folio in error.folios[:FOLIOS_MAX]:
            lines.append(
                f"{where}: {error.function} finds GFN {gfn:#x} in use: {_folio(told, folio)}"
            )
    return list(dict.fromkeys(lines))


def _comes_to(told: Told, error: Note) -> int:
    """The number of the step that came to the error; 0 where none tells so."""
    for at in range(error.at, len(told.beats)):
        event = told.beats[at].event
        if event.task == error.task and told.number(at):
            return told.number(at) if describe(event).result == error.text else 0
    return 0


def _kept(told: Told, recorded: Recorded, task: str, names: list[str]) -> list[str]:
    """Since when a task holds locks, and the kernel function that took each."""
    lines = []
    for name in names:
        readers = [hold for hold in recorded.held.srcu.get(name, ()) if hold.task == task]
        if readers:
            lines.append(f"{task} has {name} since {told.after(readers[-1].at)}")
            continue
        for at, event in told.calls(len(told.beats)):
            if not isinstance(event, LockEvent) or (event.lock, event.task) != (name, task):
                continue
            if event.op == "lock":
                where = told.beats[at].path[0]
                lines.append(
                    f"{task} has {name} since {told.when(at)}{f' [{where}]' * bool(where)}"
                )
            if event.op != "wait":
                break
    return lines


def _waiting(recorded: Recorded, finding: Finding) -> Iterator[tuple[str, str]]:
    """Each task that waits at the end, and for what."""
    said = finding.text.removeprefix("no task can go on: ").removesuffix(" for ever").split("; ")
    for words in (*said, *recorded.stays):
        if match := WAITS.fullmatch(words):
            yield match[1], match[2]


def _since(told: Told, holds: Iterable[Hold]) -> str:
    return " and ".join(
        f"{hold.task} since {told.after(hold.at)}" if hold.task else "since before step 1"
        for hold in dict.fromkeys(holds)
    )


def _folio(told: Told, folio: FolioHeld) -> str:
    """Whose the references are."""
    parts = [f"{folio.nr_pages} of the page cache"] if folio.cached else []
    parts += [f"1 of {_since(told, [hold])}" for hold in folio.tasks]
    if folio.mapped:
        who = _since(told, (hold for _, hold in folio.mapped))
        parts.append(f"{len(folio.mapped)} of host user space, where it is mapped: {who}")
    if folio.pins:
        who = _since(told, (hold for _, hold in folio.pins))
        parts.append(f"{len(folio.pins)} of GUP, which has it pinned: {who}")
    if folio.poisoned is not None:
        who = _since(told, [folio.poisoned])
        parts.append(f"1 that memory_failure() keeps for good: {who}")
    count = plural(folio.refcount, "reference")
    return f"the folio at PFN {folio.pfn:#x} has {count}: {', '.join(parts)}"


def _left(told: Told, folio: FolioHeld) -> str:
    """The same of one that is not free, and that nobody finds any more."""
    text = _folio(told, folio).replace("of since", "since")
    return f"{text} of a file that is gone" if folio.cached and not folio.tasks else text


def held_locks(told: Told, finding: Finding) -> list[str]:
    """What a task has locked that lockdep finds at fault."""
    if not finding.text.startswith(LOCKDEP) or not told.beats or told.beats[-1].state is None:
        return []
    locks = told.beats[-1].state.locks
    mine = [
        f"{name} ({mode})"
        for name, holders in locks.items()
        for task, mode in holders
        if task == finding.task
    ]
    return [f"{finding.task} holds {', '.join(mine) or 'no lock that events tell of'} there"]
