"""What a step of a counterexample owes to earlier ones: who held the lock, who was in the call."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.leaves import (
    TDH_MEM_RANGE_BLOCK,
    TDH_MEM_TRACK,
    TDH_PHYMEM_PAMT_ADD,
    seamcall_name,
)
from septum.abi.status import (
    OPERAND_ID_SEPT_TREE,
    OPERAND_ID_TD_EPOCH,
    TDX_GPA_RANGE_NOT_BLOCKED,
    TDX_MISSING_PAMT_PAGE_PAIR,
    TDX_OPERAND_BUSY,
    TDX_OPERAND_INVALID,
    TDX_TLB_TRACKING_NOT_DONE,
    status_name,
)
from septum.linux.kvm.events import KvmEntry, KvmExit
from septum.module.events import SeamcallEvent, TdcallEvent
from septum.sim.events import ChoiceEvent, LockEvent
from septum.trace.describe import describe

if TYPE_CHECKING:
    from septum.explore.recording import Beat, Recording

LINES_MAX = 24
STATUS_CLASS = 0xFFFF_FFFF_0000_0000


NEEDS = {
    TDX_TLB_TRACKING_NOT_DONE: TDH_MEM_TRACK,
    TDX_GPA_RANGE_NOT_BLOCKED: TDH_MEM_RANGE_BLOCK,
    TDX_MISSING_PAMT_PAGE_PAIR: TDH_PHYMEM_PAMT_ADD,
}
"""A status -> the leaf that must have succeeded before."""


def why_lines(recording: Recording, numbers: dict[int, int]) -> list[str]:
    """One sentence for each wait, busy answer and injected failure. `numbers` are those of the
    steps that show, by id() of their beat."""
    lines: list[str] = []
    holders: dict[str, list[tuple[str, int]]] = {}  # lock -> (task, the latest step before)
    inside: dict[str, int] = {}  # task in a TD -> the latest step before it entered
    latest = 0
    for at, beat in enumerate(recording.beats):
        event = beat.event
        number = numbers.get(id(beat), 0)
        latest = number or latest
        if isinstance(event, LockEvent):
            line = _lock(event, number, latest, holders)
        elif isinstance(event, ChoiceEvent) and number:
            line = _choice(beat, number)
        elif isinstance(event, SeamcallEvent | TdcallEvent) and number and _is_busy(event):
            line = _busy(recording, at, number, numbers, inside)
        elif isinstance(event, SeamcallEvent) and number and event.status & STATUS_CLASS in NEEDS:
            line = _needs(recording, at, number, numbers)
        elif isinstance(event, KvmEntry):
            inside[event.task] = latest
            continue
        elif isinstance(event, KvmExit):
            inside.pop(event.task, None)
            continue
        else:
            continue
        if line:
            lines.append(line)
    return lines[:LINES_MAX]


def _lock(
    event: LockEvent, number: int, latest: int, holders: dict[str, list[tuple[str, int]]]
) -> str:
    held = holders.setdefault(event.lock, [])
    if event.op == "lock":
        held.append((event.task, latest))
    elif event.op == "unlock":
        mine = [holder for holder in held if holder[0] == event.task]
        if mine:
            held.remove(mine[-1])
    elif number:
        others = [holder for holder in held if holder[0] != event.task]
        if others:  # else it is handed from one who waits to the next
            return f"step {number}: {event.task} waits for {event.lock}, held by {_since(others)}"
    return ""


def _since(who: list[tuple[str, int]]) -> str:
    return " and ".join(
        f"{task} since {f'step {since}' if since else 'the beginning'}" for task, since in who
    )


def failure_words(event: ChoiceEvent) -> str:
    """What went wrong at a choice point, in the kernel's and the module's words."""
    kind, _, what = event.name.partition(":")
    if kind == "seamcall":
        injected = {1: TDX_OPERAND_BUSY | OPERAND_ID_SEPT_TREE, 2: TDX_OPERAND_INVALID}
        status = injected.get(event.value)
        return f"{what} returns {status_name(status)}" if status else f"{what} fails"
    if kind == "alloc":
        return f"the allocation {what} fails"
    return f"{event.name} is true" if event.value == 1 else f"{event.name} is {event.value}"


def _choice(beat: Beat, number: int) -> str:
    event = beat.event
    assert isinstance(event, ChoiceEvent)
    if event.name.startswith("choose:"):
        return ""
    who = "the search" if beat.injected else "the scenario"
    return f"step {number}: {who} injects it: {failure_words(event)}"


def _is_busy(event: SeamcallEvent | TdcallEvent) -> bool:
    return event.status & STATUS_CLASS == TDX_OPERAND_BUSY


def _busy(
    recording: Recording,
    at: int,
    number: int,
    numbers: dict[int, int],
    inside: dict[str, int],
) -> str:
    """Who was inside the module at that time: the call of another task that ends next; of
    TDH.MEM.TRACK, who has not left the TD."""
    event = recording.beats[at].event
    assert isinstance(event, SeamcallEvent | TdcallEvent)
    text = f"step {number}: {status_name(event.status)}"
    if event.status == TDX_OPERAND_BUSY | OPERAND_ID_TD_EPOCH and inside:
        who = _since([(task, since) for task, since in inside.items() if task != event.task])
        return f"{text}: an epoch has to end first; in the TD is {who}" if who else text
    for beat in recording.beats[at + 1 :]:
        other = beat.event
        if isinstance(other, SeamcallEvent | TdcallEvent) and other.task != event.task:
            step = numbers.get(id(beat), 0)
            ends = f", which ends at step {step}" if step else ""
            return f"{text}: {other.task} is inside {describe(other).verb}{ends}"
    return f"{text}: another task was inside the module and did not end its call"


def _needs(recording: Recording, at: int, number: int, numbers: dict[int, int]) -> str:
    """What a call needed: the latest call of that leaf, and what came of it."""
    event = recording.beats[at].event
    assert isinstance(event, SeamcallEvent)
    leaf = NEEDS[event.status & STATUS_CLASS]
    text = f"step {number}: {status_name(event.status)}: it needs {seamcall_name(leaf)}"
    for beat in reversed(recording.beats[:at]):
        earlier = beat.event
        if isinstance(earlier, SeamcallEvent) and earlier.leaf == leaf:
            step = numbers.get(id(beat), 0)
            where = f"step {step}" if step else "the last one"
            if earlier.status:
                return f"{text} to have succeeded; {where} returned {status_name(earlier.status)}"
            return f"{text} before it; the last, {where}, was not for this"
    return f"{text} first, and there was none"
