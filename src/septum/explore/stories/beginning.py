"""What the world is like when a story begins: the steps that led there, the pages it is about."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from septum.abi import leaves
from septum.abi.types import PAGE_SHIFT
from septum.explore.stories.why_pages import OF_OP
from septum.linux.kvm.events import (
    KvmMemoryAttributesEvent,
    KvmPageFaultEvent,
    KvmTdpMmuSpteChanged,
)
from septum.module.events import SeamcallEvent, TdcallEvent
from septum.scenarios.changes import text_at
from septum.scenarios.states import Pages
from septum.words import plural, wrap

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from septum.explore.stories.recording import Beat, Recorded
    from septum.scenarios.states import VmState, WorldState
    from septum.sim import Finding

FRAME_SHIFT = 9
FRAME = 1 << FRAME_SHIFT
FRAMES_MAX = 3
NOT_MAPPED = "not mapped"
SETUP_MAX = 5
PRIVATE_GFN = (1 << 35) - 1
"""A GFN without the shared bit, whatever the width of GPAs."""
_OF_FINDING = re.compile(r"GFNs? \[?(0x[0-9a-f]+)|GPA (0x[0-9a-f]+)")
TEARDOWN = "main"
"""The task that takes VMs down; it goes through all their memory."""


def beginning_lines(recording: Recorded, finding: Finding) -> list[str]:
    """A line that says after which steps, and one for each 2 MB frame that the story is about, in
    each VM; none of a world without VMs."""
    state = recording.start.state
    if state is None or not state.vms:
        return []
    frames = list(dict.fromkeys(_frames(recording, finding))) or _mapped(state)
    most = FRAMES_MAX if len(state.vms) == 1 else 2
    names = recording.names
    told = [line for frame in frames[:most] for line in _frame_lines(state, frame, names)]
    if not told:
        return []
    if len(frames) > most:
        told.append(f"and {plural(len(frames) - most, 'more 2 MB frame')}")
    steps = [f"`{step}`" for step in recording.setup[:SETUP_MAX]]
    if len(recording.setup) > SETUP_MAX:
        steps.append(f"{plural(len(recording.setup) - SETUP_MAX, 'more step')}")
    lines = wrap(f"When it begins{', after ' * bool(steps)}{', '.join(steps)}:", "", "  ")
    return [*lines, *(line for text in told for line in wrap(text, "  ", "    "))]


def _frames(recording: Recorded, finding: Finding) -> Iterator[int]:
    """2 MB frames by number: that of the finding first, then in the order that steps come to."""
    if match := _OF_FINDING.search(finding.text):
        gfn = int(match[1], 16) if match[1] else int(match[2], 16) >> PAGE_SHIFT
        yield gfn >> FRAME_SHIFT
    ranges = [
        each for beat in recording.beats if beat.event.task != TEARDOWN for each in _ranges(beat)
    ]
    ranges += [each for note in recording.notes for each in _asked(note.text)]
    for first, nr in ranges:
        yield from range(first >> FRAME_SHIFT, (first + nr - 1 >> FRAME_SHIFT) + 1)


def _mapped(state: WorldState) -> list[int]:
    """2 MB frames that are mapped at all, of a run that comes to none by itself."""
    pages = (page for vm in state.vms.values() for page in vm.sept)
    return list(dict.fromkeys(page.first_gfn >> FRAME_SHIFT for page in pages))


def _ranges(beat: Beat) -> Iterator[tuple[int, int]]:
    """(first GFN, how many) that the step is about."""
    yield from _asked(beat.begins)
    event = beat.event
    if isinstance(event, SeamcallEvent):
        if event.leaf in leaves.GPA_LEAVES:
            yield event.rcx >> PAGE_SHIFT, 1
    elif isinstance(event, TdcallEvent):
        if event.leaf == leaves.TDG_MEM_PAGE_ACCEPT:
            yield event.rcx >> PAGE_SHIFT, 1
    elif isinstance(event, KvmTdpMmuSpteChanged):
        if event.mirror:
            yield event.gfn, 1
    elif isinstance(event, KvmMemoryAttributesEvent):
        yield event.gfn, event.npages
    elif isinstance(event, KvmPageFaultEvent):
        yield event.fault_address >> PAGE_SHIFT & PRIVATE_GFN, 1


def _asked(text: str) -> Iterator[tuple[int, int]]:
    """(first GFN, how many) that an operation is about."""
    if match := OF_OP.search(text):
        yield int(match[1], 16), int(match[2] or "1", 16)


def _frame_lines(state: WorldState, frame: int, names: dict[str, str]) -> Iterator[str]:
    """A line for each VM; `names`: what the scenario calls it."""
    first = frame << FRAME_SHIFT
    for name, vm in state.vms.items():
        nr = sum(max(0, min(end, first + FRAME) - max(start, first)) for start, end in vm.private)
        whose = (
            "private" if nr == FRAME else f"{plural(nr, 'page')} private" if nr else "not private"
        )
        tree = _trees(vm, first)
        if tree == NOT_MAPPED and nr < FRAME:
            tree = f"{tree} as private"  # as shared it may be
        words = [whose, tree]
        cpus = [
            f"cpu{cpu}"
            for cpu, pages in state.tlbs.items()
            if any(_is_of(vm, page, alone=len(state.vms) == 1) for page in _inside(pages, first))
        ]
        if cpus:
            words.append(f"in the TLB of {' and '.join(cpus)}")
        pfns = {page.pfn >> FRAME_SHIFT << FRAME_SHIFT for page in _inside(vm.sept, first)}
        words += [f"PAMT {state.pamt[pfn]}" for pfn in sorted(pfns & state.pamt.keys())]
        called = f"{name} ({names[name]})" if name in names else name
        of = f"{called} " * (len(state.vms) > 1)
        yield f"{of}GFN {first:#x}+{FRAME:#x}: {', '.join(words)}"


def _is_of(vm: VmState, cached: Pages, *, alone: bool) -> bool:
    """Whether a translation is the VM's: it leads where its S-EPT does, or there is no other VM."""
    return alone or any(
        page.first_gfn <= cached.first_gfn < page.end_gfn
        and page.pfn - page.first_gfn == cached.pfn - cached.first_gfn
        for page in vm.sept
    )


def _inside(pages: Iterable[Pages], first: int) -> list[Pages]:
    """What of it is in the frame that begins with that GFN, cut to it."""
    found = []
    for page in pages:
        start, end = max(page.first_gfn, first), min(page.end_gfn, first + FRAME)
        if start < end:
            pfn = page.pfn + start - page.first_gfn
            found.append(Pages(start, end, page.level, page.state, pfn))
    return found


def _trees(vm: VmState, first: int) -> str:
    """What the S-EPT and the mirror page table have there."""
    sept, mirror = _inside(vm.sept, first), _inside(vm.mirror, first)
    if not sept and not mirror:
        return NOT_MAPPED
    one, other = _content(sept), _content(mirror)
    text = f"S-EPT and mirror {one}" if one == other else f"S-EPT {one}, mirror {other}"
    whole = len(mirror) == 1 and mirror[0].end_gfn - mirror[0].first_gfn == FRAME
    return f"{text} at PFN {mirror[0].pfn:#x}" if whole and mirror[0].pfn else text


def _content(pages: list[Pages]) -> str:
    """Level and state; of a frame that is not all alike, how many pages are so."""
    counts: Counter[str] = Counter()
    for page in pages:
        counts[text_at((page,), page.first_gfn)] += page.end_gfn - page.first_gfn
    counts["none"] += FRAME - counts.total()
    alike = [text for text, nr in counts.items() if nr == FRAME]
    if alike:
        return alike[0]
    return " and ".join(f"{text} ({plural(nr, 'page')})" for text, nr in counts.items() if nr)
