"""Why the guest has a page as shared memory that it should not have: who mapped it, and what became
of the page since, or before that."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from septum.abi.spte import is_last_spte, is_shadow_present_pte
from septum.explore.stories.why_pages import fault_began, is_private
from septum.linux.kvm.events import KvmTdpMmuSpteChanged

if TYPE_CHECKING:
    from septum.explore.stories.recording import Beat
    from septum.explore.stories.told import Told
    from septum.sim import Finding

NUMBER = r"(0x[0-9a-f]+)"
SHARED = re.compile(
    rf"(vm\d+): (?:the \w+ leaf of the shared EPT at|cpu\d+ can still use its \w+ translation of"
    rf" shared) GFN {NUMBER} .*?(?:private: GFNs? \[?{NUMBER}|$)"
)


def still_shared(told: Told, finding: Finding) -> list[str]:
    """Of a page that is mapped as shared: since when it is, and since when it is private, where
    that is what is wrong; nothing of any other finding."""
    match = SHARED.match(finding.text)
    if match is None or not told.beats:
        return []
    name, gfn = match[1], int(match[3] or match[2], 16)
    at, there = _latest(told, name, gfn)
    text = f"GFN {gfn:#x} is {'mapped' if there else 'not mapped'} as shared {told.since(at)}"
    if match[3] is None:
        return [text] if at >= 0 else []

    def private(beat: Beat) -> bool:
        vm = beat.state.vms.get(name) if beat.state is not None else None
        return vm is not None and is_private(vm, gfn)

    last = len(told.beats) - 1
    if not private(told.beats[last]):
        return []
    since = told.first_of(last, private)
    text += f", and private {told.since(since)}"
    late = there and at > since
    began = fault_began(told, at, name, range(gfn, gfn + 1), since) if late else ""
    return [f"{text}; {began}" if began else text]


def _latest(told: Told, name: str, gfn: int) -> tuple[int, bool]:
    """The index of the latest change of the entry of the shared EPT that maps a page, and whether
    it maps it since; -1 for the beginning. What is not there any more a TLB may still have."""
    for at, event in told.calls(len(told.beats)):
        if not isinstance(event, KvmTdpMmuSpteChanged) or event.mirror or f"vm{event.vm}" != name:
            continue
        if event.gfn <= gfn < event.gfn + (1 << 9 * (event.level - 1)):
            spte = event.new_spte
            if not is_shadow_present_pte(spte):
                return at, False
            if is_last_spte(spte, event.level):
                return at, True
    return -1, True
