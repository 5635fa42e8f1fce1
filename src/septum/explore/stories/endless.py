"""What goes round for ever, folded: one whole round, how often it comes again, and what stays.

A task that retries may pass scheduling points alone, and no event tells of its rounds: so the end
of a run that breaks `progress` is watched point by point.
"""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from septum.abi.kvm import KVM_MEMSLOT_INVALID
from septum.abi.types import PAGE_SHIFT
from septum.explore.stories.module_watch import call_under_way
from septum.scenarios.changes import text_at
from septum.scenarios.world import ScenarioWorld
from septum.sim.events import SwitchEvent
from septum.trace.describe import describe
from septum.trace.ladder import FOLD_FROM
from septum.trace.via import kernel_path

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from septum.scenarios.states import WorldState
    from septum.sim import Finding, Sim
    from septum.sim.events import Event

MARKS_MAX = 16_384
"""So many scheduling points and events at the end of a run are kept."""
PERIOD_MAX = 2_048
PATH_DEPTH = 6
SCHEDULER = "scheduler"
"""Where a finding is of a run that has no end: it ends where that is seen."""
_GOES_ROUND = re.compile(r"(?:is retried|repeats) for the \d+(?:st|nd|rd|th) time|^no end after ")
_PAGE = re.compile(r"(vm\d+): vCPU \d+: .*GPA (0x[0-9a-f]+)")


class Mark(NamedTuple):
    """A scheduling point of that kind, in the call of the module that `words` name, or (kind "") an
    event in words, with its beat (-1: not kept); `path` are the kernel functions around it,
    innermost first."""

    task: str
    kind: str
    words: str
    path: str
    beat: int

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What makes two alike."""
        return self[:4]


class Loop(msgspec.Struct, frozen=True):
    """`task` goes round: `first` is one whole round, which `times` more follow; or, if `endless`,
    so many of those that were kept."""

    task: str
    first: list[Mark]
    times: int
    endless: bool = False


class Marks:
    """The end of a run, mark by mark. `points`: so many scheduling points the whole run has, 0 for
    not known."""

    __slots__ = ("_earlier", "_from", "_sim", "marks")

    def __init__(self, points: int) -> None:
        self.marks: deque[Mark] = deque(maxlen=MARKS_MAX)
        self._from = max(0, points - MARKS_MAX)
        self._sim: Sim | None = None
        self._earlier: Callable[[str], None] | None = None

    def begin(self, sim: Sim) -> None:
        """A run begins in `sim`: see its scheduling points, after whoever sees them already."""
        self.marks.clear()
        self._sim = sim
        self._earlier = sim.point_observer
        sim.set_point_observer(self._point)

    def end(self) -> None:
        """See no more of them."""
        if self._sim is not None:
            self._sim.set_point_observer(self._earlier)
            self._sim = None

    def _point(self, kind: str) -> None:
        if self._earlier is not None:
            self._earlier(kind)
        sim = self._sim
        if sim is not None and sim.nr_points >= self._from:
            path = kernel_path(PATH_DEPTH)
            self.marks.append(Mark(sim.current.name, kind, call_under_way(), path, -1))

    def event(self, event: Event, beat: int) -> None:
        """An event, which is the beat of that number; that another task runs is of no round."""
        if isinstance(event, SwitchEvent):
            return
        self.marks.append(Mark(event.task, "", describe(event).text, "", beat))

    def loops(self, finding: Finding) -> list[Loop]:
        """Who goes round at the end of a run that broke off with `finding`: the task that it is of,
        or, where tasks take turns without end, each of them."""
        marks = list(self.marks)
        if not marks or not _GOES_ROUND.search(finding.text):
            return []
        if finding.where == SCHEDULER:
            tasks = dict.fromkeys(mark.task for mark in marks)
            found = (loop_of([mark for mark in marks if mark.task == task]) for task in tasks)
            return [msgspec.structs.replace(loop, endless=True) for loop in found if loop]
        last = marks[-1].task
        alone = next((n for n, mark in enumerate(reversed(marks)) if mark.task != last), len(marks))
        loop = loop_of(marks[len(marks) - alone :])
        return [loop] if loop is not None else []


def loop_of(marks: Sequence[Mark]) -> Loop | None:
    """What comes again and again up to the end, the last time maybe in part."""
    numbers: dict[Hashable, int] = {}
    keys = [numbers.setdefault(mark.key, len(numbers)) for mark in marks]
    nr = len(keys)
    best, most = 0, 0
    for period in range(1, min(PERIOD_MAX, nr // FOLD_FROM) + 1):
        before = nr - most - 1  # who reaches back further repeats this one, too
        if before < 0:
            break
        if before + period < nr and keys[before] != keys[before + period]:
            continue
        alike = 0
        while alike < nr - period and keys[nr - 1 - alike] == keys[nr - 1 - alike - period]:
            alike += 1
        if alike + period >= FOLD_FROM * period and alike + period > most:
            best, most = period, alike + period
    if not best:
        return None
    start = nr - most
    return Loop(marks[0].task, list(marks[start : start + best]), most // best - 1)


def stays(world: object, state: WorldState | None, finding: Finding) -> list[str]:
    """What the task whose fault comes again finds every time: the entries of the S-EPT and of the
    mirror page table, and what keeps KVM from going on; nothing where no page is spoken of."""
    match = _PAGE.match(finding.text)
    if not isinstance(world, ScenarioWorld):
        return []
    waiting = [
        f"{task.name} waits for {task.blocked_on}"
        for task in world.sim.tasks
        if task.blocked_on and not task.done
    ]
    if match is None or state is None:
        return waiting
    name, gfn = match[1], int(match[2], 16) >> PAGE_SHIFT
    kvm = world.world.host.kvms.get(int(name.removeprefix("vm")))
    if name not in state.vms or kvm is None:
        return waiting
    vm = state.vms[name]
    lines = [
        f"S-EPT GFN {gfn:#x}: {text_at(vm.sept, gfn) or 'none'}",
        f"mirror GFN {gfn:#x}: {text_at(vm.mirror, gfn) or 'none'}",
    ]
    if kvm.mmu_invalidate_in_progress:
        lines.append(f"mmu_invalidate_in_progress: {kvm.mmu_invalidate_in_progress}")
    for slot in kvm.memslots.values():
        inside = slot.base_gfn <= gfn < slot.base_gfn + slot.npages
        if inside and slot.flags & KVM_MEMSLOT_INVALID:
            lines.append("memslot: KVM_MEMSLOT_INVALID, it is being deleted")
    return [*lines, *waiting]
