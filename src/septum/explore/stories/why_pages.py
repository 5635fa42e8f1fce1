"""Why a page is mapped, or is not: which step changed what the step that acted on it had seen."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from septum.abi import leaves
from septum.abi.leaves import seamcall_name
from septum.abi.status import status_name
from septum.abi.types import PAGE_SHIFT
from septum.checks.text import pages_text
from septum.linux.kvm.events import KvmMemslotEvent, KvmPageFaultEvent
from septum.module.events import SeamcallEvent, TdcallEvent, TdExitEvent
from septum.module.outcome import OutcomeKind
from septum.sim.events import ChoiceEvent, LockEvent
from septum.words import LEVELS, plural

if TYPE_CHECKING:
    from septum.explore.stories.module_watch import TdLook, VmLook
    from septum.explore.stories.recording import Beat
    from septum.explore.stories.told import Told
    from septum.scenarios.states import Pages, VmState
    from septum.sim import Finding
    from septum.sim.events import Event

DEMOTE = seamcall_name(leaves.TDH_MEM_PAGE_DEMOTE)
PAIR_PAGES = 2
"""Pages of a Dynamic PAMT pair."""
NUMBER = r"(0x[0-9a-f]+)"
NOT_ACCEPTED = re.compile(rf"Guest access before accepting {NUMBER}")
OF_OP = re.compile(r"\(GFN (0x[0-9a-f]+)(?:\+(0x[0-9a-f]+))?\)")
TAKEN_AWAY = re.compile(
    rf"(vm\d+): GFNs? \[?{NUMBER}[ ,].*(?:is|are) (?:pending again|mapped to no frame)"
)
WRONG_KEY = re.compile(rf"(?:frame|is PFN) {NUMBER},? (?:read|which was last written) with HKID")
RETRIED = re.compile(rf"(vm\d+): vCPU \d+: the fault of GPA {NUMBER} is retried")
FROZEN = re.compile(rf"WARN: gfn {NUMBER} frozen")
NEVER_ENDED = re.compile(r"(vm\d+): \d+ invalidations? of GFN")
UNDER_LOCK = re.compile(r"in atomic context \(held: (.*)\)")
SPLIT_SHARED = re.compile(r"WARN: Splitting of GFN ([0-9a-f]+) level \d under shared lock")
REPEATS = re.compile(rf"(vm\d+): vCPU \d+: an EPT violation of GPA {NUMBER} .* repeats")
REACHED = re.compile(rf"(vm\d+): GFNs? \[?{NUMBER}.* in the S-EPT as .*host user space")
SW_ERROR = re.compile(r"SEAMCALL TDH_MEM_PAGE_DEMOTE failed: .*\(TDX_SW_ERROR\)")
NO_HKID = re.compile(r"zap of a private page after HKID release")
STALE_TLB = re.compile(rf"(vm\d+): cpu(\d+) can still use .*though GFN {NUMBER}")


def _page(pages: tuple[Pages, ...], gfn: int) -> Pages | None:
    return next((page for page in pages if page.first_gfn <= gfn < page.end_gfn), None)


def _words(page: Pages | None) -> str:
    return "not mapped" if page is None else f"{LEVELS[page.level]} {page.state}"


def _vm(beat: Beat, name: str) -> VmState | None:
    return beat.state.vms.get(name) if beat.state is not None else None


def _vm_of(beat: Beat, tdr_pfn: int) -> str:
    """The name of the VM that is the TD; "" when it is not known."""
    if beat.module is None:
        return ""
    return next((name for name, vm in beat.module.vms.items() if vm.tdr_pfn == tdr_pfn), "")


# Mapped, though it is not private


def mapped_in_vain(told: Told, at: int) -> str:
    """A TDH.MEM.PAGE.AUG of what is not private (any more): since when, and whether the fault began
    before that; "" of any other call."""
    beat = told.beats[at]
    event = beat.event
    if not isinstance(event, SeamcallEvent) or event.leaf != leaves.TDH_MEM_PAGE_AUG:
        return ""
    name = _vm_of(beat, event.rdx >> PAGE_SHIFT)
    vm = _vm(beat, name)
    first = event.rcx >> PAGE_SHIFT
    end = first + (1 << 9 * (event.rcx & 7))
    gfn = _not_private(vm, first, end) if vm is not None else None
    if gfn is None or beat.module is None:
        return ""

    def shared(then: Beat) -> bool:
        state = _vm(then, name)
        return state is not None and not is_private(state, gfn)

    since = told.first_of(at, shared)
    part = f"GFN {gfn:#x}" if end == first + 1 else f"GFN {gfn:#x} with its 2M page"
    how = "is not private"
    if since >= 0 and isinstance(told.beats[since].event, KvmMemslotEvent):
        how = "has no memslot"
    text = f"it maps {part}, which {how} {told.since(since)}"
    began = fault_began(told, at, name, range(first, end), since)
    return f"{text}; {began}" if began else text


def fault_began(told: Told, at: int, name: str, gfns: range, since: int) -> str:
    """Whether the fault at `gfns` that beat `at` is part of began before beat `since`, and what
    mmu_invalidate_seq of the VM called `name` was then; "" where that is not known. An access
    through the shared alias is a fault at the same GFN."""
    task = told.beats[at].event.task
    look = told.beats[at].module
    direct_bits = look.vms[name].direct_bits if look is not None and name in look.vms else 0
    fault = next(
        (
            index
            for index, call in told.calls(at)
            if isinstance(call, KvmPageFaultEvent)
            and call.task == task
            and call.fault_address >> PAGE_SHIFT & ~direct_bits in gfns
        ),
        None,
    )
    if fault is None or told.beats[fault].module is None:
        return ""
    then, now = (told.beats[index].module for index in (fault, at))
    assert then is not None
    assert now is not None
    if name not in then.vms or name not in now.vms:
        return ""
    order = "before" if fault < since else "after"
    old, new = then.vms[name].seq, now.vms[name].seq
    seq = f"is {new} as then" if old == new else f"was {old} then and is {new} now"
    call = told.beats[fault].event
    assert isinstance(call, KvmPageFaultEvent)
    open_ = _under_way(now.vms[name], call.fault_address >> PAGE_SHIFT & ~direct_bits)
    return f"the fault began {order} that, at {told.when(fault)}; mmu_invalidate_seq {seq}{open_}"


def _under_way(vm: VmLook, gfn: int) -> str:
    """Which invalidation is under way, and that it lets a fault of `gfn` go on; "" for none."""
    if not vm.in_progress:
        return ""
    start, end = vm.invalid
    if start <= gfn < end:
        return ", an invalidation is under way"
    return (
        f", and the invalidation under way is of {pages_text(start, end)}, which the fault's GFN"
        f" {gfn:#x} is not in"
    )


def is_private(vm: VmState, gfn: int) -> bool:
    """User space has made the page private."""
    return _not_private(vm, gfn, gfn + 1) is None


def _not_private(vm: VmState, first: int, end: int) -> int | None:
    """The first GFN of [first, end) that is not private."""
    for start, stop in sorted(vm.private):
        if start <= first < stop:
            first = stop
    return first if first < end else None


# What the finding is about


def about(told: Told, finding: Finding) -> list[str]:
    """What the recording knows of the page, or the invalidation, that the finding is about."""
    if not told.beats or told.beats[-1].state is None:
        return []
    text = finding.text
    line = ""
    if match := NOT_ACCEPTED.search(text):
        line = _lost(told, _vm_of_task(told, finding.task), int(match[1], 16) >> PAGE_SHIFT)
    elif match := TAKEN_AWAY.search(text):
        line = _lost(told, match[1], int(match[2], 16))
    elif match := WRONG_KEY.search(text):
        line = _wrong_key(told, int(match[1], 16))
    elif match := RETRIED.search(text):
        line = _frozen(told, match[1], int(match[2], 16) >> PAGE_SHIFT)
    elif match := FROZEN.search(text):
        line = _frozen(told, _vm_of_task(told, finding.task), int(match[1], 16))
    elif match := NEVER_ENDED.search(text):
        line = _never_ended(told, match[1])
    elif match := STALE_TLB.search(text):
        line = _stale(told, match[1], int(match[2]), int(match[3], 16))
    elif match := UNDER_LOCK.search(text):
        line = _held(told, finding.task, match[1].split(", "))
    elif match := SPLIT_SHARED.search(text):
        line = _came(told, _vm_of_task(told, finding.task), int(match[1], 16), finding.task)
    elif match := REPEATS.search(text):
        line = _not_split(told, match[1], int(match[2], 16) >> PAGE_SHIFT, finding.task)
    elif match := REACHED.match(text):
        line = _reached(told, match[1], int(match[2], 16))
    elif SW_ERROR.search(text):
        line = _no_pair_left(told, finding)
    elif NO_HKID.search(text):
        line = _released(told, finding.where)
    return [line] if line else []


def _vm_of_task(told: Told, task: str) -> str:
    """The VM that the vCPU of a task is of, by its latest TDCALL or TD exit; or the only one."""
    for at, event in told.calls(len(told.beats)):
        if isinstance(event, TdcallEvent | TdExitEvent) and event.task == task:
            return _vm_of(told.beats[at], event.td)
    state = told.beats[-1].state
    names = list(state.vms) if state is not None else []
    return names[0] if len(names) == 1 else ""


def _lost(told: Told, name: str, gfn: int) -> str:
    """Which step took from the guest what it had accepted."""
    pages = [_page(vm.sept, gfn) if (vm := _vm(b, name)) is not None else None for b in told.beats]
    for at in range(len(pages) - 1, 0, -1):
        before, after = pages[at - 1], pages[at]
        had = before is not None and "pending" not in before.state
        if had and (after is None or "pending" in after.state):
            return f"GFN {gfn:#x} was {_words(before)}, and is {_words(after)} {told.since(at)}"
    return _never_accepted(told, name, gfn)


def _never_accepted(told: Told, name: str, gfn: int) -> str:
    """What is pending, and the guest has not accepted in the run: since when, and what became of
    its latest attempt."""

    def pending(beat: Beat) -> bool:
        vm = _vm(beat, name)
        page = _page(vm.sept, gfn) if vm is not None else None
        return page is not None and "pending" in page.state

    last = len(told.beats) - 1
    if not pending(told.beats[last]):
        return ""
    text = f"GFN {gfn:#x} is pending {told.since(told.first_of(last, pending))}, and "
    for at, call in told.calls(last + 1):
        if not isinstance(call, TdcallEvent) or call.leaf != leaves.TDG_MEM_PAGE_ACCEPT:
            continue
        first = call.rcx >> PAGE_SHIFT
        if (
            first <= gfn < first + (1 << 9 * (call.rcx & 7))
            and _vm_of(told.beats[at], call.td) == name
        ):
            if call.outcome == OutcomeKind.TD:
                came_to = f"returned {status_name(call.status)}"
            elif call.outcome == OutcomeKind.TD_EXIT:
                came_to = "was a TD exit, and was not made again"
            else:
                came_to = "was interrupted"
            return (
                f"{text}the guest has not accepted it: {told.when(at)} ({told.who(at)}) {came_to}"
            )
    return f"{text}no step accepts it"


def _wrong_key(told: Told, pfn: int) -> str:
    """Since when a frame is mapped for the guest, of one that was pending in the run."""
    for name in told.beats[-1].state.vms if told.beats[-1].state is not None else {}:
        vm = _vm(told.beats[-1], name)
        page = (
            next((p for p in vm.sept if p.pfn <= pfn < p.pfn + p.end_gfn - p.first_gfn), None)
            if vm is not None
            else None
        )
        if page is None or page.state != "mapped":
            continue
        gfn = page.first_gfn + pfn - page.pfn

        def mapped(beat: Beat, name: str = name, gfn: int = gfn) -> bool:
            vm = _vm(beat, name)
            there = _page(vm.sept, gfn) if vm is not None else None
            return there is not None and there.state == "mapped"

        since = told.first_of(len(told.beats) - 1, mapped)
        vm = _vm(told.beats[since - 1], name) if since > 0 else None
        before = _page(vm.sept, gfn) if vm is not None else None
        if before is None or "pending" not in before.state:
            return ""
        text = (
            f"GFN {gfn:#x}, at that frame, was {_words(before)}, and is mapped {told.since(since)}"
        )
        return text + _interrupted(told, since)
    return ""


def _interrupted(told: Told, at: int) -> str:
    """An ACCEPT that goes on: where it was interrupted."""
    event = told.beats[at].event
    if not isinstance(event, TdcallEvent):
        return ""
    for index, call in told.calls(at):
        if isinstance(call, TdcallEvent) and (call.td, call.vcpu) == (event.td, event.vcpu):
            stopped = call.rcx == event.rcx and call.outcome == OutcomeKind.INTERRUPTED
            return f", where it went on from {told.when(index)}, which was interrupted" * stopped
    return ""


def _frozen(told: Told, name: str, gfn: int) -> str:
    """Who froze an entry of the mirror, and when."""

    def frozen(beat: Beat) -> bool:
        vm = _vm(beat, name)
        page = _page(vm.mirror, gfn) if vm is not None else None
        return page is not None and page.state == "frozen"

    last = len(told.beats) - 1
    if not frozen(told.beats[last]):
        return ""
    since = told.first_of(last, frozen)
    return f"the mirror's entry of GFN {gfn:#x} is frozen {told.since(since)}" if since >= 0 else ""


def _never_ended(told: Told, name: str) -> str:
    """Who began an invalidation that has not ended."""

    def open_(beat: Beat) -> bool:
        vm = beat.module.vms.get(name) if beat.module is not None else None
        return vm is not None and vm.in_progress > 0

    last = len(told.beats) - 1
    since = told.first_of(last, open_) if open_(told.beats[last]) else -1
    return f"mmu_invalidate_in_progress is not 0 {told.since(since)}" if since >= 0 else ""


def _stale(told: Told, name: str, cpu: int, gfn: int) -> str:
    """Which step removed what a TLB still has, and an entry to the TD that should have flushed."""
    cached = [
        _page(b.state.tlbs.get(cpu, ()), gfn) is not None if b.state is not None else False
        for b in told.beats
    ]
    last = len(told.beats) - 1
    if not cached[last]:
        return ""
    text = ""
    for at in range(last, 0, -1):
        old, new = _vm(told.beats[at - 1], name), _vm(told.beats[at], name)
        if old is None or new is None:
            return ""
        if _page(old.sept, gfn) is not None and _page(new.sept, gfn) is None:
            text = f"GFN {gfn:#x} is not mapped {told.since(at)}"
            break
    kept = _entered_with(told, cpu, cached)
    return "; ".join(words for words in (text, kept) if words)


def _entered_with(told: Told, cpu: int, cached: list[bool]) -> str:
    """The vCPU entered in an epoch that is newer than a translation, which is there still."""
    oldest = 0  # the TD's epoch when the translation came, or was first seen
    for at, beat in enumerate(told.beats):
        if not cached[at]:
            oldest = 0
            continue
        epoch = _epoch(beat, cpu)
        oldest = oldest or min((td.epoch for td in _tds(beat)), default=0)
        if epoch > oldest and at and not _epoch(told.beats[at - 1], cpu):
            return (
                f"cpu{cpu} entered the TD in epoch {epoch} {told.after(at)} and kept it in its TLB"
            )
    return ""


def _tds(beat: Beat) -> list[TdLook]:
    return list(beat.module.tds.values()) if beat.module is not None else []


def _epoch(beat: Beat, cpu: int) -> int:
    """The epoch in which the vCPU on a logical processor is in its TD; 0 when none is."""
    inside = (one for td in _tds(beat) for one in td.inside if one.cpu == cpu)
    return next((one.epoch for one in inside), 0)


def _held(told: Told, task: str, names: list[str]) -> str:
    """Since when a task holds the locks under which it may not sleep."""
    words = []
    for name in names:
        for at, event in told.calls(len(told.beats)):
            if isinstance(event, LockEvent) and (event.lock, event.task) == (name, task):
                if event.op == "lock":
                    words.append(f"{name} since {told.when(at)}")
                break
    return f"{task} has {' and '.join(words)}" if words else ""


def _came(told: Told, name: str, gfn: int, task: str) -> str:
    """A page that came after the EPT violation that the task handles."""

    def there(beat: Beat) -> bool:
        vm = _vm(beat, name)
        return vm is not None and _page(vm.sept, gfn) is not None

    last = len(told.beats) - 1
    since = told.first_of(last, there)
    exits = (at for at, e in told.calls(last) if isinstance(e, TdExitEvent) and e.task == task)
    exited = next(exits, since)
    if not there(told.beats[last]) or exited >= since or there(told.beats[exited]):
        return ""
    return (
        f"GFN {gfn:#x} is in the S-EPT {told.since(since)}, and was not when {task} left the TD"
        f" {told.place(exited)}"
    )


def _not_split(told: Told, name: str, gfn: int, task: str) -> str:
    """An ACCEPT of a smaller page than the one that is there."""
    vm = _vm(told.beats[-1], name)
    page = _page(vm.sept, gfn) if vm is not None else None
    for at, event in told.calls(len(told.beats)):
        if isinstance(event, TdcallEvent) and event.task == task:
            level = (event.rcx & 7) + 1
            if event.leaf != leaves.TDG_MEM_PAGE_ACCEPT or event.rcx >> PAGE_SHIFT != gfn:
                return ""
            if page is None or page.level <= level:
                return ""
            return (
                f"{told.when(at)} asks for GFN {gfn:#x} at {LEVELS[level]}, and it is"
                f" {_words(page)}: nothing has split it"
            )
    return ""


def _reached(told: Told, name: str, gfn: int) -> str:
    """Since when a page that host user space gets at is private or shared, and in the S-EPT."""
    last = len(told.beats) - 1

    def private_in(beat: Beat) -> bool:
        vm = _vm(beat, name)
        return vm is not None and is_private(vm, gfn)

    def is_there(beat: Beat) -> bool:
        vm = _vm(beat, name)
        return vm is not None and _page(vm.sept, gfn) is not None

    private = private_in(told.beats[last])
    since = told.first_of(last, lambda beat: private_in(beat) == private)
    text = f"GFN {gfn:#x} is {'private' if private else 'shared'} {told.since(since)}"
    if is_there(told.beats[last]):
        text += f", and in the S-EPT {told.since(told.first_of(last, is_there))}"
    uses = [
        f"{beat.event.task} in `{beat.begins.partition(' (GFN')[0]}`"
        for beat in told.beats
        if beat.begins.startswith(("touch", "read", "write", "pin")) and _names(beat.begins, gfn)
    ]
    return f"{text}; host user space uses it: {' and '.join(uses)}" if uses else text


def _names(operation: str, gfn: int) -> bool:
    """Whether an operation of the scenario is about a page."""
    match = OF_OP.search(operation)
    return match is not None and int(match[1], 16) <= gfn < int(match[1], 16) + int(
        match[2] or "1", 16
    )


def _no_pair_left(told: Told, finding: Finding) -> str:
    """A DEMOTE that Dynamic PAMT has no pair for: the module was not called. Who took the pairs."""
    last = told.beats[-1]
    look = last.module.vms.get(finding.where) if last.module is not None else None
    if look is None or last.state is None or not last.state.pamt or look.split_cache >= PAIR_PAGES:
        return ""
    words = plural(look.split_cache, "page") if look.split_cache else "no page"
    text = (
        "TDX_SW_ERROR is the kernel's own: tdh_mem_page_demote() did not call the module, as the"
        f" VM's split cache has {words}, and a pair is {PAIR_PAGES}"
    )
    taken: list[str] = []
    for at, event in told.calls(len(told.beats)):
        if event.task != finding.task:
            continue
        if isinstance(event, SeamcallEvent) and event.leaf == leaves.TDH_MEM_RANGE_BLOCK:
            break
        name = _takes_pair(event)
        if name:
            taken.insert(0, f"{told.when(at)} ({name} of {event.task})")
    return f"{text}; {' and '.join(taken)} took a pair" if taken else text


def _takes_pair(event: Event) -> str:
    """The leaf that it is, where that takes a pair from the split cache; else ""."""
    if isinstance(event, SeamcallEvent):
        takes = event.leaf in (leaves.TDH_PHYMEM_PAMT_ADD, leaves.TDH_MEM_PAGE_DEMOTE)
        return seamcall_name(event.leaf) if takes else ""
    injected = isinstance(event, ChoiceEvent) and event.name == f"seamcall:{DEMOTE}"
    return DEMOTE if injected else ""


def _released(told: Told, name: str) -> str:
    """Where the HKID was released."""
    for at, event in told.calls(len(told.beats)):
        if (
            isinstance(event, SeamcallEvent)
            and (event.leaf, event.status) == (leaves.TDH_MNG_KEY_FREEID, 0)
            and _vm_of(told.beats[at], event.rcx >> PAGE_SHIFT) == name
        ):
            return f"{told.when(at)} ({told.who(at)}) released the HKID"
    return ""
