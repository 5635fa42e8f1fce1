"""What a step of a counterexample owes to earlier ones: who held the lock, who was in the call."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.status import (
    OPERAND_ID_SEPT_TREE,
    TDX_OPERAND_BUSY,
    TDX_OPERAND_INVALID,
    status_name,
)
from septum.explore.stories import why_frames, why_module, why_pages, why_shared, why_waits
from septum.explore.stories.told import ModuleCall, Told
from septum.sim.events import ChoiceEvent, LockEvent

if TYPE_CHECKING:
    from septum.explore.stories.recording import Beat, Recorded
    from septum.sim import Finding

LINES_MAX = 24
STEPS_MAX = 4
"""So many steps are named of which the same is said."""


def why_lines(recording: Recorded, numbers: dict[int, int], finding: Finding) -> list[str]:
    """One sentence for each wait, injected failure and answer of the module whose cause is known,
    each page that was mapped though it should not have been, and what `finding` is about. `numbers`
    are those of the steps that show, by id() of their beat.

    Where the cause is not in the recording nothing is said.
    """
    told = Told(recording, numbers)
    said: dict[str, list[int]] = {}  # sentence -> of which steps
    holders: dict[str, list[tuple[str, int]]] = {}  # lock -> (task, the latest step before)
    latest = 0
    for at, beat in enumerate(recording.beats):
        event = beat.event
        number = told.number(at)
        latest = number or latest
        if isinstance(event, LockEvent):
            words = _lock(event, number, latest, holders)
        elif isinstance(event, ChoiceEvent) and number:
            words = _choice(beat)
        elif isinstance(event, ModuleCall) and number:
            words = _call(told, at)
        else:
            continue
        if words:
            said.setdefault(words, []).append(number)
    lines = [f"{_steps(of)}: {words}" for words, of in said.items()]
    about = [*why_waits.refused(told, recording.refused)]
    about += [*why_pages.about(told, finding), *why_waits.waits(told, recording, finding)]
    about += [*why_frames.not_in_folio(told, finding), *why_shared.still_shared(told, finding)]
    about += [*why_frames.not_written_back(told, finding), *why_waits.held_locks(told, finding)]
    return [*lines[: LINES_MAX - len(about)], *about]


def _steps(numbers: list[int]) -> str:
    """ "step 5", "steps 5 and 9", "steps 5, 9, ... 40"."""
    if len(numbers) == 1:
        return f"step {numbers[0]}"
    if len(numbers) > STEPS_MAX:
        return f"steps {numbers[0]}, {numbers[1]}, ... {numbers[-1]}"
    return f"steps {', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"


def _call(told: Told, at: int) -> str:
    """Why a call of the module came to its status; why one mapped what it should not."""
    event = told.beats[at].event
    assert isinstance(event, ModuleCall)
    if not event.status:
        return why_pages.mapped_in_vain(told, at)
    words = why_module.answer(told, at)
    return f"{status_name(event.status)}: {words}" if words else ""


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
            return f"{event.task} waits for {event.lock}, held by {_since(others)}"
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


def _choice(beat: Beat) -> str:
    event = beat.event
    assert isinstance(event, ChoiceEvent)
    if event.name.startswith("choose:"):
        return ""
    who = "the search" if beat.injected else "the scenario"
    return f"{who} injects it: {failure_words(event)}"
