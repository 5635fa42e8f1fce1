"""A vCPU's instructions on the machine: TDCALLs into the module, accesses through the TLB.

Between two instructions the machine polls for interrupts; a TD exit suspends the program's
coroutine within the instruction, and the program does not notice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi import tdvmcall
from septum.abi.leaves import TDG_MEM_PAGE_ACCEPT, TDG_VP_VEINFO_GET, TDG_VP_VMCALL
from septum.abi.regs import Regs
from septum.abi.types import PAGE_SIZE, PTRS_PER_TABLE
from septum.guest.cpu import GuestCpu, VirtualizationException
from septum.guest.events import GuestPhaseEvent, GuestReportEvent
from septum.machine import GuestContext, LogicalProcessor, Machine

if TYPE_CHECKING:
    from collections.abc import Callable

    from septum.guest.program import Guest

READ = 1
WRITE = 2


class TdGuestCpu(GuestCpu):
    """A vCPU that runs on whichever logical processor its virtual CPU was entered on."""

    __slots__ = ("context", "guest", "machine", "spinning_on", "team")

    def __init__(
        self, machine: Machine, guest: Guest, index: int, team: list[TdGuestCpu], shared_bit: int
    ) -> None:
        super().__init__(index, guest.nr_cpus, guest.memory, shared_bit)
        self.machine = machine
        self.guest = guest
        self.team = team  # all vCPUs of the guest, this one included
        self.context = GuestContext(f"guest vcpu{index}", self._run)
        self.spinning_on: LogicalProcessor | None = None

    def _run(self) -> None:
        self.guest.run(self)

    def _boundary(self) -> LogicalProcessor:
        """Before each instruction: interrupts are taken. Returns where the vCPU is then."""
        lp = self.context.lp
        assert lp is not None
        return self.machine.poll_interrupts(lp)

    def tdcall_accept(self, gpa: int, level: int) -> int:
        regs = Regs(rax=TDG_MEM_PAGE_ACCEPT, rcx=gpa | level)
        self.machine.tdcall(self._boundary(), regs)
        return regs.rax

    def tdvmcall(
        self, function: int, r12: int = 0, r13: int = 0, r14: int = 0, r15: int = 0
    ) -> tuple[int, int]:
        regs = _vmcall(function, r12, r13, r14, r15)
        self.machine.tdcall(self._boundary(), regs)
        return regs.r10, regs.r11

    def report_and_begin(self, code: int) -> None:
        """`report`, by a program that starts from its beginning when its vCPU is entered again.

        While it waits it is therefore in the state of a program that has not begun, and the world
        can be begun anew without unwinding its stack (`Coroutine.rest`).
        """
        self.on_report(code)
        regs = _vmcall(tdvmcall.TDVMCALL_IO, 4, tdvmcall.IO_WRITE, tdvmcall.PORT_DEBUG_EXIT, code)
        lp = self._boundary()
        coroutine = self.context.coroutine
        coroutine.at_start = True
        self.machine.tdcall(lp, regs)
        coroutine.at_start = False

    def hlt(self) -> None:
        """As `GuestCpu.hlt`; then the guest has interrupts on and takes what is pending."""
        super().hlt()
        self.context.interrupt = False

    def veinfo_get(self) -> int:
        """TDG.VP.VEINFO.GET, first thing in a #VE handler; returns the GPA."""
        regs = Regs(rax=TDG_VP_VEINFO_GET)
        self.machine.tdcall(self._boundary(), regs)
        return regs.r9

    def store(self, gpa: int, nr_pages: int, token: int) -> None:
        self._access(gpa, nr_pages, WRITE, token)

    def load(self, gpa: int, nr_pages: int) -> list[tuple[int, int]]:
        runs: list[tuple[int, int]] = []
        for nr, token in self._access(gpa, nr_pages, READ, None):
            if runs and runs[-1][1] == token:
                runs[-1] = (runs[-1][0] + nr, token)
            else:
                runs.append((nr, token))
        return runs

    def _access(
        self, gpa: int, nr_pages: int, access: int, token: int | None
    ) -> list[tuple[int, int]]:
        """Access page after page.

        MODEL: one instruction accesses all pages that one translation covers, so interrupts and
        other vCPUs come only between 2 MB frames (or between pages, where they are mapped so).
        """
        seam = self.machine.seam
        assert seam is not None
        runs: list[tuple[int, int]] = []
        while nr_pages:
            lp = self._boundary()
            in_frame = PTRS_PER_TABLE - (gpa // PAGE_SIZE) % PTRS_PER_TABLE
            nr, value = seam.guest_access_range(lp, gpa, min(nr_pages, in_frame), access, token)
            if not nr:
                raise VirtualizationException(self.veinfo_get())
            runs.append((nr, value))
            gpa += nr * PAGE_SIZE
            nr_pages -= nr
        return runs

    def spin_until(self, pred: Callable[[], bool]) -> None:
        # MODEL: a spinning vCPU takes no time and no PAUSE-loop exits; it is looked at again when
        # shared guest memory changes or an interrupt comes.
        while True:
            lp = self._boundary()
            if pred():
                return
            self.spinning_on = lp
            # A default binds the value now; mypy cannot type such a lambda.
            lp.wake_wq.spin_until(lambda lp=lp: lp.ipi_pending or pred())  # type: ignore[misc]
            self.spinning_on = None

    def wake_spinners(self) -> None:
        for cpu in self.team:
            if cpu.spinning_on is not None:
                cpu.spinning_on.wake_wq.wake_up_all()

    def find(self, promise: str, text: str) -> None:
        self.machine.sim.find(promise, text, where=self.context.name)

    def cpu_relax(self) -> None:
        self.machine.sim.retry("cpu_relax")

    def on_phase(self, name: str) -> None:
        sim = self.machine.sim
        if sim.tracing:
            sim.emit(GuestPhaseEvent(sim.now_ns(), sim.current.name, sim.current.cpu, name))

    def on_report(self, code: int) -> None:
        sim = self.machine.sim
        if sim.tracing:
            sim.emit(GuestReportEvent(sim.now_ns(), sim.current.name, sim.current.cpu, code))


def _vmcall(function: int, r12: int, r13: int, r14: int, r15: int) -> Regs:
    """The operands of TDG.VP.VMCALL<function>."""
    return Regs(
        rax=TDG_VP_VMCALL,
        rcx=tdvmcall.TDVMCALL_EXPOSED_REGS,
        r11=function,
        r12=r12,
        r13=r13,
        r14=r14,
        r15=r15,
    )


def make_guest_cpus(machine: Machine, guest: Guest, *, gpaw: int = 48) -> list[TdGuestCpu]:
    """The vCPUs of `guest`, by index, in a TD with `gpaw` (48 or 52) guest-physical address bits.

    Each one's `context` goes into `machine.guest_contexts` under the TDVPR page of the virtual
    CPU that shall run it.
    """
    team: list[TdGuestCpu] = []
    for index in range(guest.nr_cpus):
        team.append(TdGuestCpu(machine, guest, index, team, 1 << (gpaw - 1)))
    return team
