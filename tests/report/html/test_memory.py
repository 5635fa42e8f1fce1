"""The page's memory is the world's memory: folded from the events alone, held to the ground truth.

After every event that may change something, and at the end, each page of each VM is what the S-EPT,
the mirror, the attributes, the page cache and the PAMT really have.
"""

import pytest

from septum.abi.kvm import KVM_MEMORY_ATTRIBUTE_PRIVATE
from septum.abi.sept import STATE_NAMES
from septum.checks.view import VmView
from septum.linux.kvm.events import (
    KvmGmemFolioEvent,
    KvmMemoryAttributesEvent,
    KvmTdpMmuSpteChanged,
)
from septum.module.events import SeamcallEvent, TdcallEvent
from septum.module.pamt import PT_NDA, PT_PAMT, PT_REG
from septum.report.html.memory import (
    ATTRIBUTES,
    FOLIO,
    FOLIO_NAMES,
    MIRROR,
    NDA,
    PAMT,
    SEPT,
    MemoryFold,
)
from septum.scenarios.opening import mirror_runs, tell_memory
from septum.scenarios.run import load_scenario
from septum.scenarios.world import ScenarioWorld
from septum.sim import RandomSchedule, RoundRobin, RunStopped
from septum.sim.events import Event
from septum.vmm.world import World
from septum.words import TDX_LEVELS

SCENARIOS = (
    "accept-parallel-4k",
    "busy-once",
    "convert-against-prefault",
    "convert-straddling-per-vm",
    "dpamt-convert",
    "dpamt-two-vms",
    "dying-vm",
    "finding-attributes-enomem",
    "finding-folio-split-enomem",
    "finding-fresh-folio-race",
    "finding-private-again",
    "folio-1g-convert-2m",
    "odd-slot-offset",
    "odd-two-slots",
    "private-mem-exits-plain-slot",
    "private-mem-punch-target",
    "promotion-after-return",
    "slot-delete-in-use",
    "teardown-memory-closed-under-vcpu",
    "two-vms-one-inode",
    "upm-parallel-convert",
)
Pages = dict[int, tuple[str, int | None]]


def spread(pages: Pages, gfn: int, nr: int, words: str, pfn: int | None) -> None:
    for n in range(nr):
        pages[gfn + n] = (words, None if pfn is None else pfn + n)


class Truth:
    """What a world really has, page by page, in the words of the page."""

    def __init__(self, world: World, view: VmView) -> None:
        self.world = world
        self.view = view
        self.layers: list[Pages] = [{}, {}, {}, {}, {}]
        self._sept()
        self._mirror()
        self._slots()

    def _sept(self) -> None:
        for gfn, nr, level, state, pfn in self.view.runs():
            words = f"{STATE_NAMES[state]} {TDX_LEVELS[level - 1]}"
            spread(self.layers[SEPT], gfn, nr, words, pfn)

    def _mirror(self) -> None:
        root = self.view.mirror_root()
        if root is None:
            return
        for gfn, level, nr, spte in mirror_runs(self.view, root):
            size = 512 ** (level - 1)
            pfn = spte >> 12 & (1 << 40) - 1
            spread(self.layers[MIRROR], gfn, nr * size, f"leaf {TDX_LEVELS[level - 1]}", pfn)

    def _slots(self) -> None:
        for slot in self.view.kvm.memslots.values():
            gfn = slot.base_gfn
            while gfn < slot.end_gfn:
                value, end = self.view.attributes(slot, gfn)
                end = min(end, slot.end_gfn)
                private = value & KVM_MEMORY_ATTRIBUTE_PRIVATE
                spread(
                    self.layers[ATTRIBUTES],
                    gfn,
                    end - gfn,
                    "private" if private else "shared",
                    None,
                )
                gfn = end
            if slot.gmem_file is None:
                continue
            inode = slot.gmem_file.inode
            gmem = self.world.host.gmem
            first, last = slot.gmem_pgoff, slot.gmem_pgoff + slot.npages
            for index, nr, pfn, order, split in gmem.folio_runs(inode, first, last):
                if order >= 0:
                    words = "4K of a split folio" if split else FOLIO_NAMES[order]
                    gfn = slot.base_gfn + index - first
                    spread(self.layers[FOLIO], gfn, nr, words, pfn)
                    self._pamt(gfn, nr, pfn)

    def _pamt(self, gfn: int, nr: int, first_pfn: int) -> None:
        pamt = self.world.module.pamt
        for n in range(nr):
            pfn = first_pfn + n
            found = pamt.lookup(pfn << 12)
            assert found is not None
            level, kind, _, _ = found
            words = {PT_NDA: NDA, PT_REG: f"REG {TDX_LEVELS[level]}"}.get(kind, str(kind))
            leaf = pamt.entry_2m(pfn << 12)
            if pamt.dynamic and leaf is not None and leaf.pt == PT_PAMT:
                words += ", pair"
            self.layers[PAMT][gfn + n] = (words, None)


def believed(fold: MemoryFold, vm: int, layer: int) -> Pages:
    pages: Pages = {}
    for key, cell in fold.vm(vm).layers[layer].cells.items():
        for gfn, nr, value in (
            [(key << 9, 512, cell)]
            if isinstance(cell, int)
            else [((key << 9) + n, 1, value) for n, value in enumerate(cell)]
        ):
            if value:
                spread(pages, gfn, nr, fold.values.words(value), fold.values.pfn(value, gfn))
    return pages


class Compared:
    """A sink: folds events, and compares with the world after some."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.fold = MemoryFold()
        self.nr_events = 0
        self.nr_changes = 0

    def see(self, event: Event) -> None:
        self.nr_events += 1
        self.nr_changes += len(self.fold.apply(event))

    def compare(self, layers: tuple[int, ...] = (SEPT, MIRROR, ATTRIBUTES, FOLIO, PAMT)) -> None:
        for kvm in self.world.host.kvms.values():
            truth = Truth(self.world, VmView(self.world, kvm, None))
            for layer in layers:
                ours = believed(self.fold, kvm.id, layer)
                assert ours == truth.layers[layer], (layer, self.nr_events)


DESIGNS = ("bug-module-demote-accepts", "bug-module-demote-pending", "bug-attributes-before-split")
"""Hosts that do otherwise what events tell of, and a module that does."""

RACES = ("convert-against-prefault", "finding-fresh-folio-race", "upm-parallel-convert")
RUNS = [(name, None) for name in SCENARIOS] + [(name, 1) for name in RACES]


@pytest.mark.parametrize(("name", "seed"), RUNS)
def test_the_memory_folded_from_events_is_the_worlds(name: str, seed: int | None) -> None:
    run = ScenarioWorld(load_scenario(name))
    compared = Compared(run.world)
    run.sim.set_sink(compared.see)
    tell_memory(run.world)
    compared.compare()
    run.sim.schedule = RoundRobin() if seed is None else RandomSchedule(seed)
    run.spawn()
    try:
        run.sim.run()
        compared.compare()
        run.finish()
        compared.compare()
    except RunStopped:
        return
    assert compared.nr_changes


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("name", ["accept-level-prefault", "finding-folio-split-enomem"])
def test_the_memory_of_other_designs_is_folded_right(name: str, design: str) -> None:
    run = ScenarioWorld(load_scenario(name), design)
    compared = Compared(run.world)
    run.sim.set_sink(compared.see)
    tell_memory(run.world)
    run.spawn()
    run.sim.run()
    compared.compare()


DEAF = {
    SeamcallEvent: "convert-one-page",
    TdcallEvent: "accept-level-a",
    KvmTdpMmuSpteChanged: "convert-one-page",
    KvmGmemFolioEvent: "convert-one-page",
    KvmMemoryAttributesEvent: "convert-one-page",
}


@pytest.mark.parametrize("deaf", list(DEAF), ids=lambda deaf: deaf.__name__)
def test_a_fold_that_hears_nothing_of_one_kind_of_event_is_caught(deaf: type[Event]) -> None:
    run = ScenarioWorld(load_scenario(DEAF[deaf]))
    compared = Compared(run.world)
    run.sim.set_sink(lambda event: None if isinstance(event, deaf) else compared.see(event))
    tell_memory(run.world)
    run.spawn()
    run.sim.run()
    with pytest.raises(AssertionError):
        compared.compare()
