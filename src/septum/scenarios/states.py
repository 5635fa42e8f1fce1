"""The states that a run of a scenario goes through: who maps what, who can still use what.

Each state is read from the tables themselves (S-EPT pages, mirror page-table pages, TLBs) at the
event that ended it; of the event stream only the locks are taken.
"""

from __future__ import annotations

from contextlib import closing, suppress
from typing import TYPE_CHECKING

import msgspec

from septum.abi.kvm import KVM_MEMORY_ATTRIBUTE_PRIVATE, PAGES_PER_HPAGE, PG_LEVEL_4K
from septum.abi.sept import BLOCKED, PENDING
from septum.abi.spte import (
    FROZEN_SPTE,
    SPTE_BASE_ADDR_MASK,
    is_last_spte,
    is_shadow_present_pte,
)
from septum.abi.types import PAGE_SHIFT, Pfn
from septum.checks.sept import content
from septum.checks.view import VmView
from septum.module.pamt import PT_PAMT
from septum.module.state import TD_BLOCKED, TD_HKID_ASSIGNED, TD_KEYS_CONFIGURED, TD_TEARDOWN
from septum.scenarios.world import ScenarioWorld
from septum.sim import RunStopped
from septum.sim.events import LockEvent
from septum.trace.describe import describe
from septum.trace.ladder import is_quiet

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from septum.checks.modes import Mode
    from septum.linux.kvm.types import Kvm
    from septum.machine import LogicalProcessor, TablePage
    from septum.scenarios.scenario import Scenario
    from septum.sim import Schedule
    from septum.sim.events import Event
    from septum.vmm.world import World


TD_STATES = {
    TD_HKID_ASSIGNED: "TD_HKID_ASSIGNED",
    TD_KEYS_CONFIGURED: "TD_KEYS_CONFIGURED",
    TD_BLOCKED: "TD_BLOCKED",
    TD_TEARDOWN: "TD_TEARDOWN",
}
KEYLESS = (TD_STATES[TD_BLOCKED], TD_STATES[TD_TEARDOWN])


class Pages(msgspec.Struct, frozen=True):
    """The 4 KB pages [first_gfn, end_gfn), mapped by neighbouring leaves of KVM level `level` in
    one state; `first_gfn` is at `pfn`, and so on."""

    first_gfn: int
    end_gfn: int
    level: int
    state: str
    pfn: int


class VmState(msgspec.Struct, frozen=True):
    """One VM: its two trees, which [first, end) GFNs user space made private, and the state of its
    TD, "" for none. Once that has no key the S-EPT is not read: the pages of the TD are still its
    own, and nobody gets at them by GFN."""

    sept: tuple[Pages, ...]
    mirror: tuple[Pages, ...]
    private: tuple[tuple[int, int], ...]
    bugged: bool
    td: str = ""

    @property
    def has_key(self) -> bool:
        """The S-EPT can be read."""
        return self.td not in KEYLESS


Holders = tuple[tuple[str, str], ...]
"""Who holds a lock: (task, mode)."""


class WorldState(msgspec.Struct, frozen=True):
    """A whole world: VMs, TLBs by logical processor, held locks, and with Dynamic PAMT each 2 MB
    frame (by PFN) that has a page pair or a reference count, in words."""

    vms: dict[str, VmState]
    tlbs: dict[int, tuple[Pages, ...]]
    locks: dict[str, Holders]
    pamt: dict[int, str]


class StateStep(msgspec.Struct, frozen=True):
    """A state and the event that ended in it: which task did what; "" at the beginning."""

    task: str
    action: str
    state: WorldState


def scenario_states(
    scenario: Scenario, design: str, schedule: Schedule, check: Mode
) -> list[StateStep]:
    """The states of a run up to where its VMs are taken down, in order: the first one, one for each
    event that a ladder shows, and one for each other event that changed something."""
    world = ScenarioWorld(scenario, design, check)
    watcher = StateWatcher(world.world)
    steps = [StateStep("", "", watcher.look())]

    def see(event: Event) -> None:
        state = watcher.after(event)
        if not is_quiet(event) or state != steps[-1].state:
            steps.append(StateStep(event.task, describe(event).text, state))

    if world.unready:
        world.world.close()
        return steps
    world.sim.set_sink(see)
    with closing(world.world), suppress(RunStopped):
        world.begin(schedule)
        world.sim.run()
        world.finish()
    return steps


class StateWatcher:
    """Looks at a world. Tables that have not changed are not read again."""

    __slots__ = ("_locks", "_tables", "_views", "world")

    def __init__(self, world: World) -> None:
        self.world = world
        self._locks: dict[str, Holders] = {}
        self._tables: dict[int, tuple[object, int, list[Pages]]] = {}
        self._views: dict[int, VmView] = {}

    def after(self, event: Event) -> WorldState:
        """The state now, right after `event`; of every event, or locks are not known."""
        if isinstance(event, LockEvent):
            self._lock(event)
        return self.look()

    def _lock(self, event: LockEvent) -> None:
        holders = list(self._locks.get(event.lock, ()))
        me = (event.task, event.mode)
        if event.op == "lock":
            holders.append(me)
        elif event.op == "unlock" and me in holders:
            holders.remove(me)
        self._locks[event.lock] = tuple(holders)

    def look(self) -> WorldState:
        """The state now."""
        world = self.world
        shared = {
            vm.tdx.tdr_page: vm.arch.gfn_direct_bits
            for vm in world.host.kvms.values()
            if vm.tdx.tdr_page is not None
        }
        tlbs = {lp.id: tuple(_merged(_cached(lp, shared))) for lp in world.machine.lps}
        return WorldState(
            vms={
                f"vm{number}": self._vm(self._view(number, kvm))
                for number, kvm in sorted(world.host.kvms.items())
            },
            tlbs={cpu: entries for cpu, entries in tlbs.items() if entries},
            locks={name: holders for name, holders in sorted(self._locks.items()) if holders},
            pamt=_pamt(world),
        )

    def _view(self, number: int, kvm: Kvm) -> VmView:
        view = self._views.get(number)
        if view is None or view.kvm is not kvm:
            view = self._views[number] = VmView(self.world, kvm, None)
        view.refresh()
        return view

    def _vm(self, view: VmView) -> VmState:
        root = view.mirror_root()
        mirror: list[Pages] = []
        if root is not None:
            mirror = self._leaves(view.world.machine.tables, root.spt, root.level, 0)
        return VmState(
            sept=tuple(
                Pages(gfn, gfn + nr, level, _sept_state(bits), pfn)
                for gfn, nr, level, bits, pfn in view.runs()
            ),
            mirror=tuple(_merged(mirror)),
            private=tuple(_private(view)),
            bugged=view.kvm.vm_bugged,
            td=TD_STATES[view.td.lifecycle] if view.td is not None else "",
        )

    def _leaves(
        self, tables: dict[int, TablePage], page: TablePage, level: int, gfn: int
    ) -> list[Pages]:
        """Leaves and frozen entries of a mirror page table of KVM level `level`, ascending."""
        now = content(page)
        known = self._tables.get(page.pfn)
        if level == PG_LEVEL_4K and known is not None and known[:2] == (now, gfn):
            return known[2]
        size = PAGES_PER_HPAGE[level]
        found: list[Pages] = []
        for at, spte in enumerate(page.values()):
            first = gfn + at * size
            pfn = (spte & SPTE_BASE_ADDR_MASK) >> PAGE_SHIFT
            if spte == FROZEN_SPTE:
                found.append(Pages(first, first + size, level, "frozen", 0))
            elif is_shadow_present_pte(spte) and is_last_spte(spte, level):
                found.append(Pages(first, first + size, level, "mapped", pfn))
            elif is_shadow_present_pte(spte) and pfn in tables:
                found += self._leaves(tables, tables[pfn], level - 1, first)
        found = list(_merged(found))
        self._tables[page.pfn] = (now, gfn, found)
        return found


def _cached(lp: LogicalProcessor, shared_bits: dict[Pfn, int]) -> list[Pages]:
    """What the TLB of `lp` translates, private memory before shared, each ascending.
    `shared_bits` by TDR."""
    found = []
    for e in sorted(lp.tlb.entries(), key=lambda e: (e.tag, e.gfn)):
        bit = e.gfn & shared_bits.get(Pfn(e.tag), 0)
        gfn = e.gfn & ~bit
        state = "cached as shared" if bit else "cached"
        found.append(Pages(gfn, gfn + PAGES_PER_HPAGE[e.level], e.level, state, e.pfn))
    return found


def _pamt(world: World) -> dict[int, str]:
    """2 MB frames of Dynamic PAMT that are not at rest."""
    if not world.module.pamt.dynamic:
        return {}
    counts = world.host.x86_tdx.state.pamt_refcounts
    pairs = {leaf.hpa >> 21 for leaf in world.module.pamt.entries_2m() if leaf.pt == PT_PAMT}
    return {
        frame << 9: f"{'pair' if frame in pairs else 'no pair'}, count {counts.get(frame, 0)}"
        for frame in sorted(pairs | {frame for frame, count in counts.items() if count})
    }


def _sept_state(bits: int) -> str:
    word = "pending" if bits & PENDING else "mapped"
    return f"blocked {word}" if bits & BLOCKED else word


def _merged(leaves: Iterable[Pages]) -> Iterator[Pages]:
    """Neighbours that go on where the last one ended are one."""
    last: Pages | None = None
    for leaf in leaves:
        if last is not None and _follows(last, leaf):
            last = Pages(last.first_gfn, leaf.end_gfn, last.level, last.state, last.pfn)
            continue
        if last is not None:
            yield last
        last = leaf
    if last is not None:
        yield last


def _follows(last: Pages, leaf: Pages) -> bool:
    if (leaf.first_gfn, leaf.level, leaf.state) != (last.end_gfn, last.level, last.state):
        return False
    return leaf.state == "frozen" or leaf.pfn - last.pfn == leaf.first_gfn - last.first_gfn


def _private(view: VmView) -> Iterator[tuple[int, int]]:
    """[first, end) GFNs of the memslots that are private, ascending."""
    for slot in sorted(view.kvm.memslots.values(), key=lambda slot: slot.base_gfn):
        gfn: int
        gfn, slot_end = slot.base_gfn, slot.base_gfn + slot.npages
        while gfn < slot_end:
            value, end = view.attributes(slot, gfn)
            if value & KVM_MEMORY_ATTRIBUTE_PRIVATE:
                yield gfn, min(end, slot_end)
            gfn = end
