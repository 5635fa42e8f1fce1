"""A whole run of a small TD: built, run with its guest programs, taken down to the last page."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from septum.abi import tdvmcall
from septum.abi.tdvf import parse_tdvf
from septum.abi.tdvf_build import build_tdvf, edk2_sections
from septum.guest.program import Guest
from septum.guest.script import Op, ScriptGuest
from septum.guest.tdcpu import make_guest_cpus
from septum.linux.kvm.types import Kvm
from septum.sim import RoundRobin
from septum.vmm.layout import q35_layout
from septum.vmm.qemu import STOP_SHUTDOWN, Vmm, VmmConfig
from septum.vmm.world import World, recipe_for

if TYPE_CHECKING:
    from septum.linux.host import HostUnits
    from septum.sim import Schedule

MB = 1 << 20
IMAGE = parse_tdvf(build_tdvf(edk2_sections(0x10000, 0x8000), 0x10000), "small")


class Vm:
    """One VMM, its guest, and what is read of its VM before it goes."""

    def __init__(self, world: World, guest: Guest, config: VmmConfig, memory: int) -> None:
        self.guest = guest
        self.prefault: list[tuple[int, int]] = []
        cpus = make_guest_cpus(world.machine, guest)
        layout = q35_layout(memory, IMAGE)
        self.vmm: Vmm = world.add_vm(layout, [c.context for c in cpus], config)
        self.vmm.on_report = self.on_report
        self.world = world
        self.kvm: Kvm | None = None

    def on_report(self, code: int) -> None:
        if code == tdvmcall.REPORT_SCRIPT_DONE:
            self.vmm.stop(STOP_SHUTDOWN)

    def main(self) -> None:
        """The VMM's main thread."""
        vmm = self.vmm
        if not vmm.build():
            self.kvm = vmm.vm()
            for gpa, size in self.prefault:
                fault = self.world.host.main.kvm_vcpu_ioctl_pre_fault_memory
                ret, _, left = fault(vmm.vcpus[0], gpa, size)
                assert (ret, left) == (0, 0)
            vmm.start_vcpus()
            vmm.wait()
        vmm.teardown()

    def stat(self, name: str) -> int:
        assert self.kvm is not None
        return self.kvm.stat.get(name)

    @property
    def results(self) -> list[list[int]]:
        assert isinstance(self.guest, ScriptGuest)
        return self.guest.results


class Run:
    """A world and its VMs; `go` runs it and checks that nothing is left."""

    def __init__(
        self,
        *guests: Guest | list[list[Op]],
        backing: str = "thp",
        config: VmmConfig | None = None,
        prefault: tuple[tuple[int, int], ...] = (),
        units: HostUnits | None = None,
        schedule: Schedule | None = None,
        memory: int = 64 * MB,
        **recipe: object,
    ) -> None:
        programs = [g if isinstance(g, Guest) else ScriptGuest(g) for g in guests]
        nr_vcpus = sum(g.nr_cpus for g in programs)
        options: dict[str, object] = {"nr_host_threads": len(programs), **recipe}
        self.world = World(
            recipe_for(len(programs) * memory, nr_vcpus, backing, **options),
            units=units,
            schedule=schedule if schedule is not None else RoundRobin(1000),
        )
        config = config if config is not None else VmmConfig(backing=backing)
        self.vms = [Vm(self.world, g, config, memory) for g in programs]
        self.vms[0].prefault = list(prefault)

    def go(self) -> Run:
        for vm in self.vms:
            self.world.sim.spawn(vm.vmm.name, vm.main, cpu=vm.vmm.main_cpu)
        self.world.sim.run()
        return self

    @property
    def vm(self) -> Vm:
        return self.vms[0]

    def texts(self) -> list[str]:
        return [f.text for f in self.world.sim.findings]

    def assert_clean(self) -> None:
        """The VMs shut down, nothing was found, and every page, pair and key id is back."""
        assert self.texts() == []
        for vm in self.vms:
            assert (vm.vmm.stop_reason, vm.vmm.fatal) == (STOP_SHUTDOWN, [])
        self.assert_nothing_left()

    def assert_nothing_left(self) -> None:
        host = self.world.host
        assert list(host.mm.outstanding()) == []
        assert host.mm.nr_free_pages == host.mm.state.nr_total_pages
        assert host.x86_tdx.state.pamt_refcounts == {}
        assert host.x86_tdx.state.keyid_ida == set() and not host.kvms


@pytest.fixture
def run() -> Callable[..., Run]:
    """Makes runs."""
    return Run
