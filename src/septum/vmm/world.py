"""A whole world: scheduler, machine, TDX module, host kernel, and the VMMs on top.

The world is a function of its recipe, the host's unit classes (the design), the guests' programs
and the schedule.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from septum.linux.host import Host, HostParams
from septum.machine import Machine, MachineConfig, Tdmr
from septum.module import PROFILES, Module
from septum.sim import Sim
from septum.vmm.qemu import BACKINGS, Vmm, VmmConfig

if TYPE_CHECKING:
    from septum.linux.host import HostUnits
    from septum.machine import GuestContext
    from septum.sim import Schedule
    from septum.vmm.layout import GuestLayout

GIB = 1 << 30
TDMR_BASE = 4 * GIB
PAMT_BASE = 1 * GIB  # below every TDMR


class WorldRecipe(msgspec.Struct, frozen=True):
    """What a world is made of, apart from design, guests and schedule.

    `memory_bytes` is the size of the machine's convertible memory. `nr_vcpus` is the number of
    vCPUs of all VMs together, `nr_host_threads` of threads beside them: one for each VMM, and one
    for each host program. `pool_2m`, `pool_1g`: huge pages set aside for hugetlb.
    """

    memory_bytes: int
    nr_vcpus: int = 1
    nr_host_threads: int = 1
    nr_packages: int = 1
    module: str = "1.5.28"
    dynamic_pamt: bool = False
    pool_2m: int = 0
    pool_1g: int = 0
    tdx_huge_page: bool = True
    vm_memory_attributes: bool = True
    x86_bug_tdx_pw_mce: bool = False
    fixup_zap_before_split: bool = True
    fixup_merge_after_to_private: bool = True
    fixup_ignore_ugfn_alignment: bool = True
    five_level_ept: bool = False

    def params(self) -> HostParams:
        """The host's module parameters and switches."""
        return HostParams(
            tdx_huge_page=self.tdx_huge_page,
            vm_memory_attributes=self.vm_memory_attributes,
            x86_bug_tdx_pw_mce=self.x86_bug_tdx_pw_mce,
            fixup_zap_before_split=self.fixup_zap_before_split,
            fixup_merge_after_to_private=self.fixup_merge_after_to_private,
            fixup_ignore_ugfn_alignment=self.fixup_ignore_ugfn_alignment,
        )

    def machine(self) -> MachineConfig:
        """The machine: every vCPU and every host thread has a logical processor of its own."""
        size = -(-self.memory_bytes // GIB) * GIB
        tdmr = Tdmr(
            base=TDMR_BASE,
            size=size,
            pamt_1g=PAMT_BASE,
            pamt_2m=PAMT_BASE + (64 << 20),
            pamt_4k=PAMT_BASE + (512 << 20),
        )
        return MachineConfig(
            num_lps=max(self.nr_vcpus + self.nr_host_threads, self.nr_packages),
            num_packages=self.nr_packages,
            dynamic_pamt=self.dynamic_pamt,
            tdmrs=(tdmr,),
        )


def recipe_for(
    guest_bytes: int, nr_vcpus: int, backing: str = "thp", **options: object
) -> WorldRecipe:
    """A recipe for one VM of `guest_bytes` with `nr_vcpus`, on a machine that is large enough.

    `options` are fields of `WorldRecipe`.
    """
    page_order = BACKINGS[backing][1]
    pool = -(-guest_bytes >> (12 + page_order)) if page_order else 0
    pool_field = {9: "pool_2m", 18: "pool_1g"}.get(page_order)
    fields: dict[str, object] = {
        # Private memory, as much again for what is shared, page tables, and the host's own.
        "memory_bytes": 2 * guest_bytes + guest_bytes // 8 + 2 * GIB,
        "nr_vcpus": nr_vcpus,
    }
    if pool_field is not None:
        fields[pool_field] = pool
    fields.update(options)
    return msgspec.convert(fields, WorldRecipe)


class World:
    """A machine that is up, with KVM loaded, and room for VMs."""

    __slots__ = ("host", "machine", "module", "next_lp", "recipe", "sim", "vmms")

    def __init__(
        self,
        recipe: WorldRecipe,
        *,
        units: HostUnits | None = None,
        module: type[Module] = Module,
        schedule: Schedule | None = None,
    ) -> None:
        self.recipe = recipe
        self.sim = Sim(schedule)
        self.machine = Machine(self.sim, recipe.machine())
        self.module = module(
            self.machine, PROFILES[recipe.module], has_5_level_ept=recipe.five_level_ept
        )
        self.machine.seam = self.module
        self.host = Host(self.machine, units, recipe.params())
        if recipe.pool_1g:
            self.host.mm.set_nr_hugepages(18, recipe.pool_1g)
        if recipe.pool_2m:
            self.host.mm.set_nr_hugepages(9, recipe.pool_2m)
        self.host.tdx.tdx_bringup()
        self.vmms: list[Vmm] = []
        self.next_lp = 0

    def take_lp(self) -> int:
        """A logical processor that is not in use yet. Raises ValueError when all are taken."""
        if self.next_lp >= len(self.machine.lps):
            raise ValueError(
                f"The world has {len(self.machine.lps)} logical processors and all are in use;"
                " give its recipe more vCPUs or host threads."
            )
        self.next_lp += 1
        return self.next_lp - 1

    def add_vm(
        self,
        layout: GuestLayout,
        contexts: list[GuestContext],
        config: VmmConfig | None = None,
        name: str | None = None,
    ) -> Vmm:
        """A VMM for one TD that runs the guest programs `contexts`, one vCPU for each."""
        cpus = [self.take_lp() for _ in contexts]
        vmm = Vmm(
            self.host,
            name if name is not None else f"vmm{len(self.vmms)}",
            config if config is not None else VmmConfig(),
            layout,
            contexts,
            cpus,
            self.take_lp(),
        )
        self.vmms.append(vmm)
        return vmm

    def close(self) -> None:
        """Switch the machine off: nothing can run here any more.

        Suspended coroutines are ended, because the stack of one is never freed, and a guest's
        refers to the whole world.
        """
        self.sim.set_sink(None)
        self.sim.break_off(context.coroutine.kill for vmm in self.vmms for context in vmm.contexts)

    def run(self) -> None:
        """Run every VMM from creation to teardown."""
        for vmm in self.vmms:
            self.sim.spawn(vmm.name, vmm.run, cpu=vmm.main_cpu)
        self.sim.run()
