"""A vCPU's instructions on the machine: registers, TD exits inside them, interrupts while it spins.

The module here is a stand-in that exits or answers as told; the real one has its own tests.
"""

from collections.abc import Callable

from septum.abi import tdvmcall
from septum.abi.regs import Regs
from septum.guest.cpu import GuestCpu
from septum.guest.program import Guest
from septum.guest.tdcpu import TdGuestCpu, make_guest_cpus
from septum.machine import LogicalProcessor, Machine, MachineConfig
from septum.sim import Sim


class StandIn:
    """A module whose every first ACCEPT of a page exits, whose VMCALLs exit and return 0."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.seen: list[tuple[str, int, int]] = []
        self.pages: dict[int, int] = {}
        self.mapped: set[int] = set()

    def seamcall(self, lp: LogicalProcessor, regs: Regs) -> None:
        raise AssertionError("no SEAMCALL here")

    def tdcall(self, lp: LogicalProcessor, regs: Regs) -> None:
        self.seen.append(("tdcall", regs.rax, regs.r11 or regs.rcx))
        if regs.rax == 0:
            reason = ("io", regs.r14, regs.r15) if regs.r11 == tdvmcall.TDVMCALL_IO else ("vmcall",)
            self.machine.exit_to_host(lp, reason)
            regs.r10 = 0
            return
        while regs.rcx not in self.mapped:
            lp = self.machine.exit_to_host(lp, ("ept violation", regs.rcx))
        regs.rax = 0

    def guest_access(
        self, lp: LogicalProcessor, gpa: int, access: int, token: int | None
    ) -> int | None:
        if token is None:
            return self.pages.get(gpa >> 12, 0)
        self.pages[gpa >> 12] = token
        return None

    def guest_access_range(
        self, lp: LogicalProcessor, gpa: int, nr_pages: int, access: int, token: int | None
    ) -> tuple[int, int]:
        found = self.guest_access(lp, gpa, access, token)
        return 1, found if found is not None else 0

    def external_interrupt(self, lp: LogicalProcessor) -> None:
        self.seen.append(("interrupt", lp.id, 0))
        context = lp.context
        self.machine.exit_to_host(lp, ("interrupt",))
        assert context is not None


class Programmed(Guest):
    __slots__ = ("programs",)

    def __init__(self, *programs: Callable[[GuestCpu], None]) -> None:
        super().__init__(len(programs))
        self.programs = programs

    def run(self, cpu: GuestCpu) -> None:
        self.programs[cpu.index](cpu)
        cpu.report(tdvmcall.REPORT_SCRIPT_DONE)
        cpu.idle()


class Host:
    """Enters each vCPU on its own processor until it reports."""

    def __init__(self, *programs: Callable[[GuestCpu], None]) -> None:
        self.sim = Sim()
        self.machine = Machine(self.sim, MachineConfig(num_lps=4))
        self.module = StandIn(self.machine)
        self.machine.seam = self.module
        self.cpus = make_guest_cpus(self.machine, Programmed(*programs))
        self.exits: list[tuple[int, object]] = []
        self.move = False

    def thread(self, cpu: TdGuestCpu) -> Callable[[], None]:
        tdvpr = 0x1000 + cpu.index
        self.machine.guest_contexts[tdvpr] = cpu.context

        def run() -> None:
            at = cpu.index
            while True:
                lp = self.machine.lps[at]
                lp.guest = cpu
                reason = self.machine.run_guest(lp, tdvpr)
                lp.guest = None
                self.exits.append((cpu.index, reason))
                if isinstance(reason, tuple) and reason[0] == "ept violation":
                    self.module.mapped.add(reason[1])
                if isinstance(reason, tuple) and reason[0] == "io":
                    return
                if lp.ipi_pending:
                    lp.acknowledge()
                if self.move:
                    at = (at + 2) % 4

        return run

    def run(self) -> None:
        for cpu in self.cpus:
            self.sim.spawn(f"vcpu{cpu.index}", self.thread(cpu), cpu=cpu.index)
        self.sim.run()


def test_accept_restarts_after_its_ept_violation_also_elsewhere() -> None:
    statuses: list[int] = []
    host = Host(lambda cpu: statuses.append(cpu.accept(0x200000, 1)))
    host.move = True
    host.run()
    assert statuses == [0]
    assert host.exits == [(0, ("ept violation", 0x200001)), (0, ("io", 0xF4, 2))]
    assert host.cpus[0].memory.token_at(0x200000) == 0


def test_map_gpa_passes_the_wish_in_the_shared_bit() -> None:
    calls: list[bool] = []
    host = Host(lambda cpu: calls.append(cpu.map_gpa(0x5000, 0x2000, True)))
    host.run()
    assert calls == [True]
    assert host.module.seen[0] == ("tdcall", 0, tdvmcall.TDVMCALL_MAP_GPA)


def test_data_is_read_back_and_loss_is_a_finding() -> None:
    def program(cpu: GuestCpu) -> None:
        cpu.fill(0x1FE000, 4)
        assert cpu.load(0x1FE000, 4) == [(4, 1)]
        assert cpu.verify(0x1FE000, 4)
        host.module.pages[0x200] = 99
        assert not cpu.verify(0x1FE000, 4)
        cpu.read(0x200000)

    host = Host(program)
    host.run()
    assert [f.promise for f in host.sim.findings] == ["guest-data", "guest-data"]
    assert "wrote 0x1 to GPA 0x200000 and reads 0x63" in host.sim.findings[0].text


def test_spinning_vcpu_takes_interrupts_and_goes_on() -> None:
    flag: list[int] = []
    progress: list[str] = []

    def spinner(cpu: GuestCpu) -> None:
        cpu.spin_until(lambda: bool(flag))
        progress.append("spinner")

    def setter(cpu: GuestCpu) -> None:
        cpu.fill(0, 1)
        host.machine.send_ipi_and_wait([0])
        progress.append("ipi answered")
        flag.append(1)
        cpu.wake_spinners()

    host = Host(spinner, setter)
    host.run()
    assert progress == ["ipi answered", "spinner"]
    assert ("interrupt", 0, 0) in host.module.seen
    assert host.sim.findings == []
