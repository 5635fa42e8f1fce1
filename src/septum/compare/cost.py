"""What a design costs: two loads at realistic size, run once each, with all that they did counted.

Only the promise `progress` is watched, so that a design that makes no progress ends.
"""

from __future__ import annotations

from contextlib import closing, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from septum.abi.leaves import seamcall_name
from septum.abi.tdvf import parse_tdvf
from septum.abi.tdvf_build import synthetic_tdvf
from septum.abi.types import PAGE_SIZE, PMD_SIZE, PTRS_PER_TABLE
from septum.checks import Checker, observed_units
from septum.compare.result import Cost
from septum.designs import find_design
from septum.guest.linux import LinuxGuest
from septum.guest.script import AcceptRange, Barrier, Convert, Op, ScriptGuest, Verify, Write
from septum.guest.tdcpu import make_guest_cpus
from septum.module.pamt import PT_PAMT
from septum.scenarios.blamed import left_behind
from septum.scenarios.memory_map import total_stats
from septum.sim import RoundRobin, RunStopped, RwLock, SpinLock
from septum.vmm.layout import FOUR_GIB, q35_layout
from septum.vmm.qemu import VmmConfig
from septum.vmm.world import World, recipe_for

if TYPE_CHECKING:
    from septum.guest.program import Guest
    from septum.linux.mm import Mm
    from septum.sim import Sim
    from septum.vmm.layout import GuestLayout
    from septum.vmm.qemu import Vmm

GIB = 1 << 30
QUANTUM = 2000
BOOT_BYTES = 4 * GIB
BOOT_VCPUS = 8
CONVERT_BYTES = 4 * GIB
CONVERT_VCPUS = 4
CONVERT_HUGE = 50
"""2 MB pages that each vCPU of the conversion load works on."""
PER_PASS = (
    (16 * PAGE_SIZE, PAGE_SIZE),  # a ring's page
    (64 * PAGE_SIZE, 16 * PAGE_SIZE),  # a coherent buffer
    (256 * PAGE_SIZE, 64 * PAGE_SIZE),  # a swiotlb slot area
)
"""(offset within the 2 MB page, size) of what the load converts and takes back."""

LOADS = {
    "boot": "the standard boot: 4 GiB, 8 vCPUs, thp, attributes of the VM",
    "convert": (
        "4 vCPUs, 50 huge pages each: parts, whole pages and straddling ranges made shared and"
        " private again; hugetlb-2m, in place, Dynamic PAMT"
    ),
}


class _CountedMm:
    """A mix-in for a design's mm that counts allocations made while a spinning lock is held.

    `_counted` makes a class of it and the design's Mm.
    """

    __slots__ = ()

    def alloc_page(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.under_lock += _spins(self.sim)
        # The design's own mm is the next class, which mypy cannot know.
        return super().alloc_page(*args, **kwargs)  # type: ignore[misc]

    def alloc_folio(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.under_lock += _spins(self.sim)
        return super().alloc_folio(*args, **kwargs)  # type: ignore[misc]  # as above


def _spins(sim: Sim) -> bool:
    """Whether the running task holds a lock whose waiters spin."""
    return any(isinstance(lock, RwLock | SpinLock) for lock, _ in sim.current.held)


def _counted(mm: type[Mm]) -> type[Mm]:
    return type(f"Counted{mm.__name__}", (_CountedMm, mm), {"__slots__": ("under_lock",)})


def conversion_script(start: int, nr_vcpus: int, nr_huge: int) -> list[list[Op]]:
    """Each vCPU accepts and writes its own 2 MB pages, converts parts of some, all of others, and
    what straddles two; takes all of it back, and finds the rest as it was."""
    scripts: list[list[Op]] = []
    for vcpu in range(nr_vcpus):
        base = start + vcpu * nr_huge * PMD_SIZE
        size = nr_huge * PMD_SIZE
        ops: list[Op] = [AcceptRange(base, size), Barrier()]
        ops += [Write(base + n * PMD_SIZE, PTRS_PER_TABLE) for n in range(nr_huge)]
        ops.append(Barrier())
        for n in range(nr_huge):
            huge = base + n * PMD_SIZE
            ranges = _ranges(n, huge, nr_huge)
            ops += [Convert(gpa, length) for gpa, length in ranges]
            for gpa, length in ranges:
                ops += [Convert(gpa, length, shared=False), AcceptRange(gpa, length)]
                ops.append(Write(gpa, length // PAGE_SIZE))
        ops += [Barrier(), Verify(base, nr_huge * PTRS_PER_TABLE)]
        scripts.append(ops)
    return scripts


def _ranges(n: int, huge: int, nr_huge: int) -> list[tuple[int, int]]:
    """What is converted of the `n`th 2 MB page: of five, one is untouched, one gives parts, one is
    given as a whole, and one gives its end together with the beginning of the fifth."""
    kind = n % 5
    if kind == 1:
        return [(huge + offset, size) for offset, size in PER_PASS]
    if kind == 2:
        return [(huge, PMD_SIZE)]
    if kind == 3 and n + 1 < nr_huge:
        return [(huge + PMD_SIZE - 32 * PAGE_SIZE, 64 * PAGE_SIZE)]
    return []


class Measured:
    """A world with one VM and a load in it, looked at when the guest reports."""

    __slots__ = ("cost", "design", "guest", "load", "vmm", "world")

    def __init__(self, design: str, load: str) -> None:
        found = find_design(design)
        self.design = found.name
        self.load = load
        self.cost = Cost(self.design, load, ended="the guest never came to its end")
        units = observed_units(found.units())
        image = parse_tdvf(synthetic_tdvf(), "Septum's own image")
        boot = load == "boot"
        layout = q35_layout(BOOT_BYTES if boot else CONVERT_BYTES, image)
        self.guest = guest = self._guest(layout)
        config = VmmConfig() if boot else VmmConfig(backing="hugetlb-2m", in_place=True)
        self.world = World(
            recipe_for(
                layout.memory_bytes,
                guest.nr_cpus,
                config.backing,
                dynamic_pamt=not boot,
                vm_memory_attributes=boot,
            ),
            units=replace(units, mm=_counted(units.mm)),
            module=found.module_class(),
            schedule=RoundRobin(QUANTUM),
        )
        self.mm.under_lock = 0
        cpus = make_guest_cpus(self.world.machine, guest)
        self.vmm: Vmm = self.world.add_vm(layout, [cpu.context for cpu in cpus], config)
        self.vmm.on_report = self._on_report
        Checker(self.world, ["progress"], mode="end", guests=[guest]).start()

    @property
    def mm(self) -> Any:
        """The counting mm of the host."""
        return self.world.host.mm

    def _guest(self, layout: GuestLayout) -> Guest:
        if self.load == "boot":
            return LinuxGuest(layout, BOOT_VCPUS)
        return ScriptGuest(conversion_script(FOUR_GIB, CONVERT_VCPUS, CONVERT_HUGE))

    def run(self) -> Cost:
        """Run it to the end of the VM."""
        with closing(self.world), suppress(RunStopped):
            self.world.run()
        if self.cost.ended:
            self._look(self.cost.ended)
        return self.cost

    def _on_report(self, code: int) -> None:
        self._look("")
        # Taking the VM down is no part of the load.
        raise RunStopped(None)

    def _look(self, ended: str) -> None:
        """Count, while the VM is there."""
        kvm = self.vmm.kvm
        if self.vmm.fatal:
            ended = self.vmm.fatal[0]
        elif self.world.sim.findings and ended:
            ended = self.world.sim.findings[-1].text
        if kvm is None:
            self.cost = Cost(self.design, self.load, ended=ended)
            return
        module = self.world.module
        stats = total_stats(kvm)
        leaves: dict[str, int] = {}
        for (leaf, _), count in sorted(module.counts.items()):
            name = seamcall_name(leaf)
            leaves[name] = leaves.get(name, 0) + count
        self.cost = Cost(
            self.design,
            self.load,
            write_locks=stats["mmu_lock_write"],
            write_hold_ns=kvm.mmu_lock.max_write_hold_ns,
            read_locks=stats["mmu_lock_read"],
            kicks=stats.get("kick", 0),
            ipis=stats.get("ipi", 0),
            seamcalls=leaves,
            allocs_under_lock=self.mm.under_lock,
            pamt_pages=2 * sum(entry.pt == PT_PAMT for entry in module.pamt.entries_2m()),
            table_pages=sum(
                sum(1 for _ in module.sept_tables(td.tdr_pfn)) for td in module.tds.values()
            ),
            huge=stats.get("pages_2m", 0),
            small=stats.get("pages_4k", 0),
            splits=sum(n for name, n in stats.items() if name.startswith("split.")),
            time_ns=self.world.sim.now_ns(),
            ended=ended,
        )


def measure(design: str, load: str) -> Cost:
    """Run `load` (a key of LOADS) on `design`. Raises InputError for an unknown design."""
    with left_behind(design):
        return Measured(design, load).run()
