"""Why the module answered as it did: who had the lock, what undid what a call needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi import leaves
from septum.abi.leaves import seamcall_name
from septum.abi.sept import BLOCKED, HPA_MASK
from septum.abi.status import (
    OPERAND_ID_OP_STATE,
    OPERAND_ID_R8,
    OPERAND_ID_RCX,
    OPERAND_ID_RDX,
    OPERAND_ID_SEPT_TREE,
    OPERAND_ID_TD_EPOCH,
    OPERAND_ID_TDR,
    TDX_EPT_ENTRY_STATE_INCORRECT,
    TDX_EPT_WALK_FAILED,
    TDX_FLUSHVP_NOT_DONE,
    TDX_GPA_RANGE_ALREADY_BLOCKED,
    TDX_GPA_RANGE_NOT_BLOCKED,
    TDX_HPA_RANGE_NOT_FREE,
    TDX_MISSING_PAMT_PAGE_PAIR,
    TDX_OPERAND_BUSY,
    TDX_PAGE_METADATA_INCORRECT,
    TDX_PAMT_PAGE_NOT_EMPTY,
    TDX_PREVIOUS_TLB_EPOCH_BUSY,
    TDX_TD_ASSOCIATED_PAGES_EXIST,
    TDX_TLB_TRACKING_NOT_DONE,
    status_name,
)
from septum.checks.text import agree
from septum.explore.stories.module_watch import ModuleLock
from septum.explore.stories.told import ModuleCall
from septum.explore.stories.why_frames import not_free, still_owned
from septum.linux.kvm.events import KvmEntry, KvmMmuGetPage
from septum.module.events import SeamcallEvent, TdcallEvent, TdExitEvent
from septum.trace.describe import describe
from septum.words import TDX_LEVELS

if TYPE_CHECKING:
    from collections.abc import Callable

    from septum.explore.stories.module_watch import Held, InTd, ModuleLook, TdLook
    from septum.explore.stories.recording import Beat
    from septum.explore.stories.told import Told

STATUS_CLASS = 0xFFFF_FFFF_0000_0000
OPERAND = 0xFFFF_FFFF
FRAME_SHIFT = 21
PUTS_IN_USE = (leaves.TDH_MEM_PAGE_AUG, leaves.TDH_MEM_PAGE_ADD, leaves.TDH_MEM_SEPT_ADD)
LOCK_NAMES = {
    "tdr": "the lock of the TDR",
    "op_state": "the OP_STATE lock",
    "tree": "the S-EPT tree lock",
    "epoch": "the epoch lock",
    "entry": "the lock of the S-EPT entry",
}


def answer(told: Told, at: int) -> str:
    """Why the call that ended at `at` came to its status; "" where that is not known."""
    event = told.beats[at].event
    if not isinstance(event, ModuleCall) or told.beats[at].module is None:
        return ""
    status = event.status & STATUS_CLASS
    if status == TDX_OPERAND_BUSY:
        return _busy(told, at, event)
    if not isinstance(event, SeamcallEvent):
        return ""
    explain = SAID.get(status)
    return explain(told, at, event) if explain is not None else ""


# Locks


def _busy(told: Told, at: int, event: ModuleCall) -> str:
    look = told.beats[at].module
    assert look is not None
    lock = _lock(look, event)
    if lock is None:
        return ""
    others = [one for one in look.held.get(lock, ()) if one.since != at]
    holders = [words for one in others if (words := _holder(told, at, lock, one))]
    if holders:
        return f"{LOCK_NAMES[lock.kind]} is held by {' and '.join(holders)}"
    priority = look.priority.get(lock)
    if others or priority is None or not isinstance(event, TdcallEvent):
        return ""
    left = told.beats[priority.since].event
    if not isinstance(left, SeamcallEvent) or not left.status:
        return ""
    text = (
        f"the S-EPT entry has host priority since {told.when(priority.since)}, where"
        f" {told.who(priority.since)} was {status_name(left.status)}"
    )
    entry = (lock.tdr_pfn, lock.level, lock.gfn)
    had = [
        index
        for index, call in told.calls(at, priority.since)
        if isinstance(call, SeamcallEvent)
        and call.leaf in leaves.GPA_LEAVES
        and not call.status
        and (call.rdx >> 12, call.rcx & 7, call.rcx >> 12) == entry
    ]
    if not had:
        return f"{text}, and no call of the host has had its lock since"
    return f"{text}, though the host has had its lock at {told.when(had[-1])}"


def _lock(look: ModuleLook, event: ModuleCall) -> ModuleLock | None:
    """Which lock a BUSY is about; None where that is not known."""
    operand = event.status & OPERAND
    if isinstance(event, TdcallEvent):
        if operand == OPERAND_ID_SEPT_TREE:
            return ModuleLock(event.td, "tree")
        return _entry(look, event.td, event.rcx) if operand == OPERAND_ID_RCX else None
    gpa = event.leaf in leaves.GPA_LEAVES
    tdr = (event.rdx if gpa else event.rcx) >> 12
    if event.leaf == leaves.TDH_VP_ENTER and len(look.tds) == 1:
        (tdr,) = look.tds
    if tdr not in look.tds:
        return None
    if gpa and operand == OPERAND_ID_RCX:
        return _entry(look, tdr, event.rcx)
    kinds = {
        OPERAND_ID_TDR: "tdr",
        OPERAND_ID_RDX if gpa else OPERAND_ID_RCX: "tdr",
        OPERAND_ID_OP_STATE: "op_state",
        OPERAND_ID_SEPT_TREE: "tree",
        OPERAND_ID_TD_EPOCH: "epoch",
    }
    return ModuleLock(tdr, kinds[operand]) if operand in kinds else None


def _entry(look: ModuleLook, tdr: int, rcx: int) -> ModuleLock | None:
    """The entry on the way to the GPA and level of RCX that is locked or has host priority."""
    gfn = rcx >> 12
    found = [
        lock
        for lock in (*look.held, *look.priority)
        if lock.tdr_pfn == tdr
        and lock.kind == "entry"
        and lock.level >= rcx & 7
        and lock.gfn <= gfn < lock.gfn + (1 << 9 * lock.level)
    ]
    return min(found, key=lambda lock: lock.level, default=None)


def _holder(told: Told, at: int, lock: ModuleLock, held: Held) -> str:
    """Who has the lock at `at`, and in which call; "" where that is not known."""
    look = told.beats[at].module
    assert look is not None
    call = look.calls.get(held.task)
    if call is not None:
        since = told.after(held.since) if held.since >= 0 else "the beginning"
        return f"{held.task} since {since}, inside {call}{_ends(told, at, held.task, call)}"
    left = told.beats[held.since].event
    if isinstance(left, ModuleCall) and left.task == held.task:
        status = f" with {status_name(left.status)}" if left.status else ""
        return f"{told.who(held.since)}, which ended at {told.when(held.since)}{status}"
    td = look.tds[lock.tdr_pfn]
    if lock.kind == "tdr" and any(_task(told, at, one) == held.task for one in td.inside):
        return f"{held.task}, which is in the TD"
    return ""


def _ends(told: Told, at: int, task: str, call: str) -> str:
    """When the call under way ends, where that is a step."""
    for index in range(at + 1, len(told.beats)):
        event = told.beats[index].event
        if isinstance(event, ModuleCall) and event.task == task:
            same = describe(event).verb == call
            return f", which ends at {told.when(index)}" if same and told.number(index) else ""
        if isinstance(event, KvmEntry | TdExitEvent) and event.task == task:
            return ""
    return ""


# Blocked and tracked


def _latest_block(told: Told, at: int, event: SeamcallEvent) -> tuple[int | None, int | None]:
    """The latest RANGE.BLOCK of the entry, and the latest that left it blocked."""
    latest = None
    for index, call in told.calls(at):
        if (
            isinstance(call, SeamcallEvent)
            and call.leaf == leaves.TDH_MEM_RANGE_BLOCK
            and (call.rcx, call.rdx) == (event.rcx, event.rdx)
        ):
            latest = index if latest is None else latest
            if call.status & STATUS_CLASS in (0, TDX_GPA_RANGE_ALREADY_BLOCKED):
                return latest, index
    return latest, None


def _not_blocked(told: Told, at: int, event: SeamcallEvent) -> str:
    latest, blocked = _latest_block(told, at, event)
    name = seamcall_name(leaves.TDH_MEM_RANGE_BLOCK)
    if blocked is None:
        if latest is None:
            return f"it needs {name} of the entry first, and there was none"
        return f"it needs {name} to have succeeded; {_returned(told, latest)}"
    for index in range(blocked + 1, at):
        call = told.beats[index].event
        if isinstance(call, SeamcallEvent):
            td = call.rdx >> 12 if call.leaf in leaves.GPA_LEAVES else -1
        elif isinstance(call, TdcallEvent):
            td = call.td
        else:
            continue
        same = (td, call.rcx) == (event.rdx >> 12, event.rcx)
        if same and call.sept >= 0 and not call.sept & BLOCKED:
            return (
                f"{told.when(blocked)} blocked the entry, and {told.when(index)}"
                f" ({told.who(index)}) unblocked it"
            )
    return ""


def _returned(told: Told, at: int) -> str:
    event = told.beats[at].event
    assert isinstance(event, ModuleCall)
    return f"{told.when(at)} returned {status_name(event.status)}"


def _not_tracked(told: Told, at: int, event: SeamcallEvent) -> str:
    _, blocked = _latest_block(told, at, event)
    tdr = event.rdx >> 12
    if blocked is None:
        return ""
    then, now = _td(told, blocked, tdr), _td(told, at, tdr)
    if then is None or now is None:
        return ""
    name = seamcall_name(leaves.TDH_MEM_TRACK)
    tracks = [
        index
        for index, call in told.calls(at, blocked)
        if isinstance(call, SeamcallEvent)
        and call.leaf == leaves.TDH_MEM_TRACK
        and call.rcx >> 12 == tdr
    ]
    if now.epoch == then.epoch:
        after = f"after {told.when(blocked)}, which blocked the entry in epoch {then.epoch}"
        if not tracks:
            return f"it needs {name} {after}, and there was none"
        return f"it needs {name} to succeed {after}; {_returned(told, tracks[0])}"
    began = next((index for index in tracks if not _status(told, index)), None)
    if began is None or now.epoch != then.epoch + 1:
        return ""
    text = f"{told.when(began)} began epoch {now.epoch}, but"
    if who := _still_in(told, at, tdr, then.epoch):
        return f"{text} {who}"
    return _wrong_refcount(told, at, tdr, then.epoch, text)


def _status(told: Told, at: int) -> int:
    event = told.beats[at].event
    return event.status if isinstance(event, ModuleCall) else 0


def _td(told: Told, at: int, tdr: int) -> TdLook | None:
    look = told.beats[at].module
    return look.tds.get(tdr) if look is not None else None


def _still_in(told: Told, at: int, tdr: int, epoch: int) -> str:
    """Which vCPUs are in the TD in `epoch`, and since when."""
    td = _td(told, at, tdr)
    found = []
    for one in td.inside if td is not None else ():
        task = _task(told, at, one)
        if one.epoch == epoch and task:

            def there(beat: Beat, one: InTd = one) -> bool:
                look = beat.module
                return look is not None and tdr in look.tds and one in look.tds[tdr].inside

            found.append(f"{task} (since {told.when(told.first_of(at, there))})")
    if not found:
        return ""
    verb, them = ("is", "it") if len(found) == 1 else ("are", "them")
    who = " and ".join(found)
    return f"{who} {verb} in the TD in epoch {epoch}, and no kick has made {them} leave"


def _task(told: Told, at: int, inside: InTd) -> str:
    """The task that entered the TD on that logical processor; "" where it is not known."""
    return next(
        (
            event.task
            for _, event in told.calls(at)
            if isinstance(event, KvmEntry) and event.cpu == inside.cpu
        ),
        "",
    )


def _wrong_refcount(told: Told, at: int, tdr: int, epoch: int, text: str) -> str:
    """REFCOUNT says that a vCPU is in `epoch`, and none is."""
    look, td = told.beats[at].module, _td(told, at, tdr)
    entering = seamcall_name(leaves.TDH_VP_ENTER)
    if look is None or td is None or not td.refcount[epoch & 1] or entering in look.calls.values():
        return ""

    def is_wrong(beat: Beat) -> bool:
        now = beat.module.tds.get(tdr) if beat.module is not None else None
        return now is not None and any(
            now.refcount[odd] != sum(one.epoch & 1 == odd for one in now.inside) for odd in (0, 1)
        )

    first = told.first_of(at, is_wrong)
    if first < 1 or not isinstance(told.beats[first].event, TdExitEvent):
        return ""
    before = _td(told, first - 1, tdr)
    if before is None or before.refcount[epoch & 1] != td.refcount[epoch & 1]:
        return ""
    return (
        f"{text} REFCOUNT of epoch {epoch} is {td.refcount[epoch & 1]}, and no vCPU is in the TD"
        f" in that epoch: the TD exit of {told.beats[first].event.task} {told.place(first)} did not"
        " count it down"
    )


def _previous_epoch(told: Told, at: int, event: SeamcallEvent) -> str:
    td = _td(told, at, event.rcx >> 12)
    return _still_in(told, at, event.rcx >> 12, td.epoch - 1) if td is not None else ""


# PAMT


def _has(pamt: dict[int, str], frame: int) -> bool:
    """Whether the 2 MB frame has a pair, by the words of the watched state."""
    return pamt.get(frame << 9, "").startswith("pair")


def _pair_since(told: Told, at: int, frame: int) -> int:
    return told.first_of(at, lambda beat: beat.state is not None and _has(beat.state.pamt, frame))


def _no_pair(told: Told, at: int, event: SeamcallEvent) -> str:
    if event.status & OPERAND != OPERAND_ID_R8:
        return ""
    frame = event.r8 >> FRAME_SHIFT
    name = seamcall_name(leaves.TDH_PHYMEM_PAMT_ADD)
    of = (leaves.TDH_PHYMEM_PAMT_ADD, leaves.TDH_PHYMEM_PAMT_REMOVE)
    for index, call in told.calls(at):
        if not isinstance(call, SeamcallEvent) or call.leaf not in of:
            continue
        if call.rcx >> FRAME_SHIFT != frame:
            continue
        if call.leaf == leaves.TDH_PHYMEM_PAMT_REMOVE:
            if call.status:
                continue
            return f"{told.when(index)} ({told.who(index)}) removed the pair of its frame"
        if call.status:
            return f"it needs {name} to have succeeded; {_returned(told, index)}"
        return ""
    return f"it needs {name} of its frame first, and there was none"


def _has_pair(told: Told, at: int, event: SeamcallEvent) -> str:
    frame = event.rcx >> FRAME_SHIFT
    state = told.beats[at].state
    if state is None or not _has(state.pamt, frame):
        return ""
    return f"the frame has a pair already, {told.since(_pair_since(told, at, frame))}"


def _not_empty(told: Told, at: int, event: SeamcallEvent) -> str:
    look, state = told.beats[at].module, told.beats[at].state
    if look is None or not look.in_use or state is None:
        return ""
    counted = state.pamt.get(event.rcx >> FRAME_SHIFT << 9, "").rpartition(" ")[2]
    pfn, nr = look.in_use[0], len(look.in_use)
    text = (
        f"{nr} of its 4 KB pages {agree(nr, 'is', 'are')} in use, and the kernel counts {counted}"
    )
    for index, call in told.calls(at):
        if not isinstance(call, SeamcallEvent) or call.status:
            continue
        put = call.leaf in PUTS_IN_USE and call.r8 >> 12 == pfn
        if call.leaf == leaves.TDH_MEM_PAGE_DEMOTE and call.rcx & 7 == 1:
            put = (call.sept_child & HPA_MASK) >> FRAME_SHIFT == pfn >> 9
        if put:
            return f"{text}: PFN {pfn:#x} {told.since(index)}"
    return text


# The S-EPT's shape, and keys


SHAPES = {
    leaves.TDH_MEM_PAGE_DEMOTE: ("table", "made a table of the entry"),
    leaves.TDH_MEM_SEPT_ADD: ("table", "put a table there"),
    leaves.TDH_MEM_PAGE_AUG: ("page", "put a page there"),
    leaves.TDH_MEM_PAGE_ADD: ("page", "put a page there"),
    leaves.TDH_MEM_PAGE_PROMOTE: ("page", "made a page of the entry"),
    leaves.TDH_MEM_PAGE_REMOVE: ("none", "freed the entry"),
    leaves.TDH_MEM_SEPT_REMOVE: ("none", "freed the entry"),
}
"""Leaves that make something else of an entry: what it is then."""
FREE, NL_BLOCKED, NL_MAPPED = 0x00, 0x81, 0x84  # in bits 15:8 of RDX


def _state_incorrect(told: Told, at: int, event: SeamcallEvent) -> str:
    """Which call made the entry what it is."""
    state = event.out_rdx >> 8 & 0xFF
    shape = {FREE: "none", NL_BLOCKED: "table", NL_MAPPED: "table"}.get(state, "page")
    for index, call in told.calls(at):
        if not isinstance(call, SeamcallEvent) or call.leaf not in SHAPES or call.status:
            continue
        if (call.rcx, call.rdx) == (event.rcx, event.rdx):
            made, words = SHAPES[call.leaf]
            return f"{told.when(index)} ({told.who(index)}) {words}" if made == shape else ""
    return ""


def _walk_failed(told: Told, at: int, event: SeamcallEvent) -> str:
    """The S-EPT has no table where the mirror has one: who made that, and never added it."""
    look = told.beats[at].module
    level, state = event.out_rdx & 7, event.out_rdx >> 8
    if look is None or state or not 0 < look.mirror_level <= level:
        return ""
    size = 1 << 9 * level
    first = event.rcx >> 12 & -size
    for index, made in told.calls(at):
        if (
            isinstance(made, KvmMmuGetPage)
            and made.mirror
            and made.level == level
            and made.gfn & -size == first
        ):
            text = f"the S-EPT has no table below its {TDX_LEVELS[level]} entry of GFN {first:#x}"
            return (
                f"{text}, and the mirror has one: {made.task} made it at {told.when(index)}, and no"
                f" {seamcall_name(leaves.TDH_MEM_SEPT_ADD)} of it has succeeded"
            )
        if (
            isinstance(made, SeamcallEvent)
            and (made.leaf, made.status) == (leaves.TDH_MEM_SEPT_ADD, 0)
            and (made.rcx, made.rdx) == (first << 12 | level, event.rdx)
        ):
            return ""
    return ""


def _not_flushed(told: Told, at: int, event: SeamcallEvent) -> str:
    """Which vCPU is still associated, and with which logical processor."""
    tdr = event.rcx >> 12
    td = _td(told, at, tdr)
    if td is None or not td.associated:
        return ""
    vcpu, cpu = td.associated[0]

    def there(beat: Beat) -> bool:
        now = beat.module.tds.get(tdr) if beat.module is not None else None
        return now is not None and (vcpu, cpu) in now.associated

    text = f"vCPU {vcpu} is associated with cpu{cpu} since {told.when(told.first_of(at, there))}"
    tried = (
        index
        for index, call in told.calls(at)
        if isinstance(call, SeamcallEvent)
        and call.leaf == leaves.TDH_VP_FLUSH
        and call.status
        and call.cpu != cpu
    )
    elsewhere = next(tried, None)
    if elsewhere is None:
        return text
    on = told.beats[elsewhere].event.cpu
    flush = seamcall_name(leaves.TDH_VP_FLUSH)
    return f"{text}; {flush} was called on cpu{on}: {_returned(told, elsewhere)}"


SAID: dict[int, Callable[[Told, int, SeamcallEvent], str]] = {
    TDX_GPA_RANGE_NOT_BLOCKED: _not_blocked,
    TDX_TLB_TRACKING_NOT_DONE: _not_tracked,
    TDX_PREVIOUS_TLB_EPOCH_BUSY: _previous_epoch,
    TDX_MISSING_PAMT_PAGE_PAIR: _no_pair,
    TDX_HPA_RANGE_NOT_FREE: _has_pair,
    TDX_PAMT_PAGE_NOT_EMPTY: _not_empty,
    TDX_EPT_ENTRY_STATE_INCORRECT: _state_incorrect,
    TDX_EPT_WALK_FAILED: _walk_failed,
    TDX_FLUSHVP_NOT_DONE: _not_flushed,
    TDX_PAGE_METADATA_INCORRECT: not_free,
    TDX_TD_ASSOCIATED_PAGES_EXIST: still_owned,
}
"""Status -> who says why a SEAMCALL came to it."""
