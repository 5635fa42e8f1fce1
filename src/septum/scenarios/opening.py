"""What a trace that begins in the middle says first: the memory of the VMs that are up.

The programs of a scenario begin when its VMs have long been built. So that a trace is enough to
know the guest's memory at every step, it begins with events that tell what there is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.spte import SPTE_MMU_PRESENT_MASK, is_last_spte, spte_to_pfn
from septum.checks.view import VmView
from septum.linux.kvm.events import KvmMirrorLeavesEvent, KvmTdEvent
from septum.module.events import PamtPairEvent, SeptLeavesEvent
from septum.module.pamt import PT_PAMT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from septum.linux.kvm.types import Kvm, KvmMmuPage
    from septum.vmm.world import World

MirrorRun = tuple[int, int, int, int]
"""(first GFN, KVM level, number of leaves, SPTE of the first)."""


def tell_memory(world: World) -> None:
    """Emit what is so in every VM of the world. Call when tracing has just begun."""
    for kvm in world.host.kvms.values():
        _tell_vm(world, kvm)


def _tell_vm(world: World, kvm: Kvm) -> None:
    sim = world.sim
    task = sim.current
    at = (task.time_ns, task.name, task.cpu)
    view = VmView(world, kvm, None)
    sim.emit(KvmTdEvent(*at, kvm.id, view.tdr_pfn))
    for slot in sorted(kvm.memslots.values(), key=lambda slot: slot.base_gfn):
        world.host.gmem.trace_slot(kvm, slot)
    frames: set[int] = set()
    for gfn, nr_pages, level, _, pfn in view.runs():
        nr_leaves = nr_pages >> 9 * (level - 1)
        entry = view.walk(gfn)[1] & ~world.module.pamt.hkid_mask
        sim.emit(SeptLeavesEvent(*at, view.tdr_pfn, gfn << 12, level - 1, nr_leaves, entry))
        frames.update(range(pfn >> 9, (pfn + nr_pages - 1 >> 9) + 1))
    root = view.mirror_root()
    if root is not None:
        for gfn, level, nr_leaves, spte in mirror_runs(view, root):
            sim.emit(KvmMirrorLeavesEvent(*at, kvm.id, gfn, level, nr_leaves, spte))
    pamt = world.module.pamt
    if pamt.dynamic:
        for frame in sorted(frames):
            leaf = pamt.entry_2m(frame << 21)
            if leaf is not None and leaf.pt == PT_PAMT:
                sim.emit(PamtPairEvent(*at, frame << 21))


def mirror_runs(view: VmView, root: KvmMmuPage) -> Iterator[MirrorRun]:
    """The leaves of the mirror, in order; those that map neighbouring frames alike as one run."""
    run: MirrorRun | None = None
    for gfn, level, spte in _mirror_leaves(view, root):
        if run is not None:
            first, run_level, nr, first_spte = run
            pages = nr << 9 * (level - 1)
            if run_level == level and gfn == first + pages and spte == first_spte + (pages << 12):
                run = (first, level, nr + 1, first_spte)
                continue
            yield run
        run = (gfn, level, 1, spte)
    if run is not None:
        yield run


def _mirror_leaves(view: VmView, root: KvmMmuPage) -> Iterator[tuple[int, int, int]]:
    """(GFN, level, SPTE) of every leaf of the mirror, in order."""
    tables = view.world.machine.tables
    todo = [(root.spt, root.level, 0)]
    while todo:
        page, level, base_gfn = todo.pop()
        step = 1 << 9 * (level - 1)
        below = []
        for index, spte in enumerate(page.values()):
            if not spte & SPTE_MMU_PRESENT_MASK:
                continue
            gfn = base_gfn + index * step
            if is_last_spte(spte, level):
                yield gfn, level, spte
            else:
                child = tables.get(spte_to_pfn(spte))
                if child is not None:
                    below.append((child, level - 1, gfn))
        todo += reversed(below)
