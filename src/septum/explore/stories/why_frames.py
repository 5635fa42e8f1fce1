"""Why a frame cannot be had, or is not what a leaf takes it for: who has it, what became of it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from septum.abi.leaves import TDH_PHYMEM_PAGE_RECLAIM, TDH_PHYMEM_PAGE_WBINVD, seamcall_name
from septum.abi.status import OPERAND_ID_R8, status_name
from septum.abi.types import PAGE_SHIFT
from septum.linux.kvm.events import KvmGmemFolioEvent
from septum.module.events import SeamcallEvent
from septum.module.pamt import PAGE_TYPE_NAMES
from septum.words import plural

if TYPE_CHECKING:
    from collections.abc import Iterator

    from septum.explore.stories.recording import Beat
    from septum.explore.stories.told import Told
    from septum.scenarios.states import Pages
    from septum.sim import Finding

OPERAND = 0xFFFF_FFFF
MAPS = re.compile(
    r"(vm\d+): the \w+ leaf at GFN (0x[0-9a-f]+) maps PFN \S+"
    r" but (?:the folio|no page of guest_memfd)"
)

DIRTY = re.compile(r"PFN (0x[0-9a-f]+) belongs to no TD, and has dirty lines of HKID ")
PFN_BITS = (1 << 24) - 1
"""Below the HKID that an address may have in its upper bits."""


def not_free(told: Told, at: int, event: SeamcallEvent) -> str:
    """A page that a call should give to a TD, and is in the S-EPT of one; "" of any other."""
    if event.status & OPERAND != OPERAND_ID_R8:
        return ""
    first = event.r8 >> PAGE_SHIFT
    pfns = range(first, first + (1 << 9 * (event.rcx & 7)))
    found = next(_mapped(told.beats[at], pfns), None)
    if found is None:
        return ""
    name, page = found

    def there(beat: Beat) -> bool:
        return any(vm == name for vm, _ in _mapped(beat, pfns))

    since = told.since(told.first_of(at, there))
    gfn = page.first_gfn + max(0, first - page.pfn)
    return f"PFN {max(first, page.pfn):#x} is in the S-EPT of {name} at GFN {gfn:#x} {since}"


def still_owned(told: Told, at: int, event: SeamcallEvent) -> str:
    """Which pages a TD still has whose TDR should be reclaimed, and what became of the attempt to
    have the first of them back."""
    look = told.beats[at].module
    if look is None or not look.owned:
        return ""
    pfn, pt = look.owned[0]
    nr = len(look.owned)
    name = f"PFN {pfn:#x} ({PAGE_TYPE_NAMES[pt]})"
    text = f"the TD still has {name}" + f" and {plural(nr - 1, 'more page')}" * (nr > 1)
    for index, call in told.calls(at):
        if (
            isinstance(call, SeamcallEvent)
            and call.leaf == TDH_PHYMEM_PAGE_RECLAIM
            and call.rcx >> PAGE_SHIFT == pfn
            and call.status
        ):
            return f"{text}: {told.when(index)} returned {status_name(call.status)}"
    return f"{text}, and no {seamcall_name(TDH_PHYMEM_PAGE_RECLAIM)} of it has succeeded"


def _mapped(beat: Beat, pfns: range) -> Iterator[tuple[str, Pages]]:
    """Which VM has any of the frames in its S-EPT."""
    for name, vm in beat.state.vms.items() if beat.state is not None else ():
        for page in vm.sept:
            end = page.pfn + page.end_gfn - page.first_gfn
            if page.pfn < pfns.stop and pfns.start < end:
                yield name, page


def not_in_folio(told: Told, finding: Finding) -> list[str]:
    """Of a leaf whose folio has other pages than it maps: since when it is there, and what became
    of the folio; nothing of any other finding."""
    match = MAPS.match(finding.text)
    if match is None or not told.beats:
        return []
    name, gfn = match[1], int(match[2], 16)

    def there(beat: Beat) -> bool:
        vm = beat.state.vms.get(name) if beat.state is not None else None
        return vm is not None and any(p.first_gfn <= gfn < p.end_gfn for p in vm.sept)

    last = len(told.beats) - 1
    if not there(told.beats[last]):
        return []
    text = f"the leaf of GFN {gfn:#x} is there {told.since(told.first_of(last, there))}"
    for at, event in told.calls(len(told.beats)):
        if not isinstance(event, KvmGmemFolioEvent) or f"vm{event.vm}" != name:
            continue
        if event.gfn <= gfn < event.gfn + event.npages:
            became = "is split" if event.split else "is gone" if event.order < 0 else "is new"
            return [f"{text}, and the folio under it {became} {told.since(at)}"]
    return []


def not_written_back(told: Told, finding: Finding) -> list[str]:
    """Of a frame that has left a TD with dirty lines: when it did; nothing where its lines were
    written back since, or of any other finding."""
    match = DIRTY.match(finding.text)
    if match is None or not told.beats:
        return []
    pfn = int(match[1], 16)

    def gone(beat: Beat) -> bool:
        return next(_mapped(beat, range(pfn, pfn + 1)), None) is None

    last = len(told.beats) - 1
    if not gone(told.beats[last]):
        return []
    at = told.first_of(last, gone)
    if at < 0 or any(
        isinstance(event, SeamcallEvent)
        and event.leaf == TDH_PHYMEM_PAGE_WBINVD
        and (event.rcx >> PAGE_SHIFT ^ pfn) & PFN_BITS == 0
        for _, event in told.calls(last + 1, at)
    ):
        return []
    left = f"PFN {pfn:#x} is in no S-EPT {told.since(at)}"
    return [f"{left}, and no TDH.PHYMEM.PAGE.WBINVD of it has come since"]
