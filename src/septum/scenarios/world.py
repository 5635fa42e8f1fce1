"""The world of a scenario: machine, host, VMs that are up, and programs that are about to begin.

Everything up to the beginning of the programs is done when it is built, the same way each time:
the VMs are built, the steps of `setup` are taken one by one, and every vCPU has entered its guest
once and waits in user space.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from septum.abi.types import PAGE_SHIFT
from septum.checks import PROMISES, Checker, observed_units
from septum.designs import find_design
from septum.designs.registry import V3
from septum.errors import NotBegun
from septum.guest.tdcpu import make_guest_cpus
from septum.scenarios.counts import count_all, difference, pages_state
from septum.scenarios.failures import Failures
from septum.scenarios.guest import ScenarioGuest
from septum.scenarios.host import HostThread
from septum.scenarios.limit import limit, limited
from septum.scenarios.names import check_names
from septum.scenarios.outcome import EXPECTATION
from septum.scenarios.record import Record, Result
from septum.scenarios.vmm import ScenarioVmm
from septum.sim import RoundRobin, RunStopped, Schedule, WaitQueue
from septum.vmm.qemu import STOP_SHUTDOWN
from septum.vmm.world import World, WorldRecipe

if TYPE_CHECKING:
    from collections.abc import Callable

    from septum.checks.modes import Mode
    from septum.scenarios.scenario import Program, Scenario, Step
    from septum.sim import Event, Task

MACHINE_BYTES = 4 << 30
STOPPED = "never begun: the VM had ended"
GIB = 1 << 30


def recipe_of(scenario: Scenario) -> WorldRecipe:
    """The machine and the host that the scenario asks for."""
    kernel = scenario.document.kernel
    machine = scenario.document.machine
    pools = {"hugetlb-2m": 0, "hugetlb-1g": 0}
    memory = MACHINE_BYTES
    for vm in scenario.vms:
        if vm.shape.backing in pools and not vm.shape.shares_memory_with:
            unit = GIB if vm.shape.backing == "hugetlb-1g" else 2 << 20
            pools[vm.shape.backing] += -(-vm.memory_bytes // unit)
        memory += 2 * vm.memory_bytes
    return WorldRecipe(
        memory_bytes=memory + pools["hugetlb-1g"] * GIB,
        nr_vcpus=sum(vm.nr_vcpus for vm in scenario.vms),
        nr_host_threads=len(scenario.vms) + len(scenario.document.host),
        module=machine.module,
        dynamic_pamt=machine.dynamic_pamt,
        pool_2m=pools["hugetlb-2m"],
        pool_1g=pools["hugetlb-1g"],
        tdx_huge_page=kernel.tdx_huge_page,
        vm_memory_attributes=kernel.attributes == "vm",
        x86_bug_tdx_pw_mce=machine.partial_write_erratum,
        fixup_zap_before_split=kernel.fixup_zap_before_split,
        fixup_merge_after_to_private=kernel.fixup_merge_after_to_private,
        fixup_ignore_ugfn_alignment=kernel.fixup_ignore_ugfn_alignment,
    )


class ScenarioWorld:
    """A scenario that is ready to run. `spawn`, run the scheduler, `finish`, `teardown`."""

    __slots__ = (
        "_counted",
        "_files_may_go",
        "_host_cpus",
        "checker",
        "counts",
        "dead",
        "design",
        "failures",
        "guests",
        "pages",
        "record",
        "scenario",
        "setup_at",
        "sim",
        "stopped",
        "unready",
        "vmms",
        "world",
    )

    def __init__(
        self,
        scenario: Scenario,
        design: str = "v3",
        check: Mode = "quiet",
        watched: Callable[[ScenarioWorld], Callable[[Event], None]] | None = None,
    ) -> None:
        """Raises NotBegun when the scenario's VMs cannot be built, or its setup waits for a flag
        that nobody raises.

        What `watched` answers is given the events of all that is done before the programs begin.
        """
        self.scenario = scenario
        found = find_design(design)
        check_names(scenario, found)
        self.design = found.name
        self.world = World(
            recipe_of(scenario),
            units=observed_units(found.units()),
            module=found.module_class(),
        )
        self.sim = self.world.sim
        self.failures = Failures(scenario.may_fail, scenario.injections)
        self.sim.choice_rules = self.failures
        self.sim.promises = (*PROMISES, EXPECTATION)
        self.record = Record(WaitQueue(self.sim, "another thread of the VMM (futex)"))
        # As `finish` finds them: counters since the VMs were finalized, VMs that are dead, pages.
        self.counts: dict[str, int] = {}
        self.dead: list[str] = []
        self.pages: list[str] = []
        self.stopped = False
        self.setup_at = ""  # what is done before the programs begin, now or last
        self.unready = ""  # why the programs cannot begin: what the host does not come out of
        self.guests: list[ScenarioGuest] = []
        self.vmms: dict[str, ScenarioVmm] = {}
        for vm in scenario.vms:
            self._add_vm(vm.name)
        self._host_cpus = {
            program.name: self.world.take_lp() for program in scenario.programs if program.vcpu < 0
        }
        # Whether programs close files or end processes.
        self._files_may_go = any(
            each.verb in ("close", "destroy", "build")
            for program in scenario.programs
            for op in program.ops
            for each in (op, *op.alternatives)
        )
        self.checker = Checker(self.world, mode=check, guests=self.guests)
        self.checker.start()
        if watched is not None:
            self.sim.set_sink(watched(self))
        with limited(self.sim):
            try:
                self._bring_up()
            except RunStopped:
                self._cannot_begin()
        self.sim.set_sink(None)
        x86 = self.world.host.x86_tdx.state
        x86.inject = self.failures.seamcall_leaves()
        x86.inject_busy_only = self.failures.busy_leaves()
        self.world.host.mm.state.pcp.refill_all()
        self.sim.answers = []

    def _bring_up(self) -> None:
        """The VMs up to where their vCPUs wait in user space, and the steps of `setup`."""
        scenario = self.scenario
        for name, vmm in self.vmms.items():
            self.setup_at = f"while VM {name} is built"
            if not vmm.vm_spec.shape.later and vmm.build():
                said = f"scenario {scenario.name}: VM {name}: {vmm.fatal[0]}"
                raise NotBegun(said + self._beside_v3())
        self._counted = count_all(self.world, self.vmms, self.record)
        for name, vmm in self.vmms.items():
            for index in range(len(vmm.vcpus)):
                self.setup_at = f"where {self._guest(name).actors[index]} first enters its guest"
                self._run_vcpu(name, index)
                self._has_ended()
        for step in scenario.setup:
            self.setup_at = f"in `{step.actor}: {step.op.text}`"
            self._take(step)
            self._has_ended()
        for vmm in self.vmms.values():
            vmm.renew_guest()

    def _beside_v3(self) -> str:
        """What to say of VMs that cannot be built: on a user's design, whether they can on v3."""
        if find_design(self.design).kind != "user":
            return ""
        v3 = None
        with suppress(NotBegun):
            v3 = ScenarioWorld(self.scenario, V3.name, self.checker.mode)
        if v3 is None:
            return f", on {self.design}; on v3 they cannot be built, either"
        v3.world.close()
        return (
            f", on {self.design}; on v3 it is built, so look at what the design's functions do and"
            " return meanwhile"
        )

    def _has_ended(self) -> None:
        """What was done of the setup has ended. Raises RunStopped where the host does not let it,
        and NotBegun where it is for the scenario to."""
        sim = self.sim
        if not sim.tasks:
            return
        found = sim.findings[-1]
        if all(self.waits_for_flag(task) for task in sim.tasks):
            at = self.setup_at.removeprefix("in ")
            raise NotBegun(f"scenario {self.scenario.name}: setup: {at} never ends: {found.text}")
        raise RunStopped(found)

    def waits_for_flag(self, task: Task) -> bool:
        """The task waits for another one of the scenario: threads of VMMs sleep, guests spin."""
        return task.blocked_on == self.record.wq.name or any(
            task.blocked_on == lp.wake_wq.name for lp in self.world.machine.lps
        )

    def _cannot_begin(self) -> None:
        """The host has not let the setup end: its findings are all that there is to tell."""
        findings = self.sim.findings
        nr = len(findings)
        self.unready = findings[-1].text
        self._stop()
        self.world.close()
        del findings[nr:]  # what was in the middle of things unwinds
        for vmm in self.vmms.values():
            vmm.renew_guest()

    def _add_vm(self, name: str) -> None:
        scenario = self.scenario
        vm = scenario.vm(name)
        prefix = f"{name}." if len(scenario.vms) > 1 else ""
        actors = [f"{prefix}vcpu{index}" for index in range(vm.nr_vcpus)]
        guest = ScenarioGuest(vm, actors, self.record)
        cpus = make_guest_cpus(self.world.machine, guest)
        self.record.cpus.append(cpus[0])
        lps = [self.world.take_lp() for _ in cpus]
        lender = self.vmms.get(vm.shape.shares_memory_with)
        vmm = ScenarioVmm(self.world.host, vm, self.record, cpus, lps, self.world.take_lp(), lender)
        self.world.vmms.append(vmm)
        self.guests.append(guest)
        self.vmms[name] = vmm

    def _guest(self, vm: str) -> ScenarioGuest:
        return self.guests[list(self.vmms).index(vm)]

    # Steps

    def _run_vcpu(self, vm: str, index: int) -> None:
        vmm = self.vmms[vm]
        thread = vmm.threads([index])[0]
        self.sim.spawn(self._guest(vm).actors[index], thread.run, cpu=vmm.cpus[index])
        self.sim.run()

    def _take(self, step: Step) -> None:
        """One operation, with the world for itself."""
        if step.vcpu >= 0:
            vmm = self.vmms[step.vm]
            if vmm.stop_reason:
                self.record.results.append(Result(step.actor, step.op.text, STOPPED, False))
                return
            self._guest(step.vm).queues[step.vcpu].append(step.op)
            self._run_vcpu(step.vm, step.vcpu)
            return
        vmm = self.vmms[step.vm or self.scenario.vms[0].name]
        thread = HostThread("host", self.world.host, self.vmms, [step.op], self.record)
        self.sim.spawn("host", thread.run, cpu=vmm.main_cpu)
        self.sim.run()

    # The programs

    def spawn(self) -> None:
        """The tasks of the programs. The scheduler has not run yet."""
        for program in self.scenario.programs:
            if program.vcpu >= 0:
                self._spawn_vcpu(program)
            else:
                thread = HostThread(
                    program.name,
                    self.world.host,
                    self.vmms,
                    program.ops,
                    self.record,
                    files_may_go=self._files_may_go,
                )
                self.sim.spawn(program.name, thread.run, cpu=self._host_cpus[program.name])
        self.failures.open = True

    def _spawn_vcpu(self, program: Program) -> None:
        vmm = self.vmms[program.vm]
        self._guest(program.vm).queues[program.vcpu].extend(program.ops)
        thread = vmm.threads([program.vcpu])[0]
        self.sim.spawn(program.name, thread.run, cpu=vmm.cpus[program.vcpu])

    def finish(self, counting: bool = True) -> None:
        """The programs have ended: the steps of `after`. Schedules have no part in it. Promises are
        looked at before and behind them, as a step may take away what shows that one is broken.
        Without `counting` `counts` stays as it is, which nobody asks for.

        When some never end (tasks that wait for each other), nothing can come after them.
        """
        self.failures.open = False
        if self.sim.tasks:
            self._stop()
            return
        self.checker.look_now("end of the programs")
        if self.scenario.after:
            schedule = self.sim.schedule
            self.sim.schedule = RoundRobin()
            for step in self.scenario.after:
                self._take(step)
                if self.sim.tasks:
                    self._stop()
                    return
            self.sim.schedule = schedule
            self.checker.look_now("end of the steps after")
        if counting:
            self.counts = difference(count_all(self.world, self.vmms, self.record), self._counted)
        self._look()

    def _look(self) -> None:
        self.dead = [
            name
            for name, vmm in self.vmms.items()
            if vmm.kvm is not None and (vmm.kvm.vm_dead or vmm.kvm.vm_bugged)
        ]
        self.pages = []
        for _, name, area, _ in self.scenario.pages:
            vm = self.scenario.vm(name)
            gfn = area.gpa(vm.gpa) >> PAGE_SHIFT
            nr_pages = area.size(vm.memory_bytes) >> PAGE_SHIFT
            self.pages.append(pages_state(self.world, self.vmms[name], gfn, gfn + nr_pages))

    def gave_up(self) -> list[str]:
        """Why VMMs ended other than by themselves: `VM a: vCPU 0: KVM_RUN failed: -EIO`."""
        return [f"VM {name}: {text}" for name, vmm in self.vmms.items() for text in vmm.fatal]

    def remains(self) -> tuple[object, ...]:
        """What tells apart the ends of runs as far as teardown goes: who has which memory, what is
        mapped how, where vCPUs are, and what the module holds locked."""
        host = self.world.host
        mm = host.mm.state
        module = self.world.module
        return (
            tuple(self.pages),
            tuple(self.dead),
            tuple(self.gave_up()),
            mm.nr_free_pages,
            tuple(sorted(mm.site_of.values())),
            tuple(sorted((pfn, f.refcount, f.order) for pfn, f in mm.folios.items())),
            tuple(
                (kvm.stat.get("pages_2m"), kvm.stat.get("pages_4k"), tuple(kvm.mem_attr_array))
                for kvm in host.kvms.values()
            ),
            tuple(vcpu.cpu for kvm in host.kvms.values() for vcpu in kvm.vcpus),
            tuple(vcpu.assoc_lp for vcpu in module.vcpus.values()),
            tuple(
                (td.p4k.lock, td.p2m.lock, td.p1g.lock, td.op_state_lock.lock, td.sept_lock.lock)
                for td in module.tds.values()
            ),
        )

    def teardown(self) -> None:
        """The VMMs exit, one after the other; the checks look at what is left."""
        if self.stopped:
            return
        for vmm in self.vmms.values():
            vmm.stop(STOP_SHUTDOWN)
            vmm.exit()
        self.checker.finish(exited=True)

    # One whole run

    def begin(self, schedule: Schedule) -> None:
        """The tasks of the programs, under `schedule`. The scheduler has not run yet."""
        self.sim.schedule = schedule
        limit(self.sim)
        schedule.attach(self.sim)  # which may bring a run to an end in its own way
        self.spawn()

    def run(self, schedule: Schedule) -> None:
        """From the beginning of the programs to the last page; to where a promise was broken for
        good (an endless retry), or to the first finding with `sim.stop_on_finding`. Nothing where
        the programs cannot begin."""
        if self.unready:
            self.sim.schedule = schedule
            return
        self.begin(schedule)
        try:
            self.sim.run()
            self.finish()
            self.teardown()
        except RunStopped:
            self._stop()

    def _stop(self) -> None:
        """Tasks stand in the middle of things: what is there now says nothing."""
        self.stopped = True
        self.checker.stopped()
