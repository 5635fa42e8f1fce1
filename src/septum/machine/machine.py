"""The machine: processors, memory, and the instructions that cross into the TDX module.

The module is reached only through `seam` (what SEAMCALL, TDCALL and TD exits do), and a guest
only through its context; neither the kernel model nor the guest model sees the other's state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from septum.abi.leaves import TDH_PHYMEM_PAGE_WBINVD
from septum.abi.types import PTRS_PER_TABLE
from septum.machine.costs import IPI_NS, SEAMCALL_COST_NS, SEAMCALL_NS, TDCALL_NS
from septum.machine.lp import LogicalProcessor, PiDesc
from septum.machine.mem import PhysMem
from septum.machine.tables import TablePage, Writes
from septum.sim import Coroutine, Sim, SimDefect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from septum.abi.regs import Regs
    from septum.machine.config import MachineConfig


class SeamModule(Protocol):
    """What the machine needs of the software in SEAM mode."""

    def seamcall(self, lp: LogicalProcessor, regs: Regs) -> None:
        """Execute SEAMCALL with RAX = leaf; results are left in `regs`."""

    def wbinvd_2m(self, rcx: int) -> bool:
        """TDH.PHYMEM.PAGE.WBINVD of 512 pages, if all would succeed; False: nothing was done."""

    def tdcall(self, lp: LogicalProcessor, regs: Regs) -> None:
        """Execute TDCALL by the guest on `lp`; results are left in `regs`."""

    def guest_access(
        self, lp: LogicalProcessor, gpa: int, access: int, token: int | None
    ) -> int | None:
        """The guest on `lp` reads (token None) or writes a private GPA; returns what it read."""

    def guest_access_range(
        self, lp: LogicalProcessor, gpa: int, nr_pages: int, access: int, token: int | None
    ) -> tuple[int, int]:
        """The same for the pages from `gpa` on that one translation covers: (pages, token).

        No page: the first access raised #VE.
        """

    def external_interrupt(self, lp: LogicalProcessor) -> object:
        """An interrupt arrives while `lp` is inside a TD: asynchronous TD exit."""


class GuestContext:
    """The software state of a virtual CPU: the program it runs, wherever it is entered.

    `interrupt`: its virtual APIC has an interrupt that the program has not taken (RVI > PPR).
    MODEL: a guest's interrupts are one bit, and its program has them off until it comes back from
    HLT.
    """

    __slots__ = ("coroutine", "interrupt", "lp", "name")

    def __init__(self, name: str, program: Callable[[], None]) -> None:
        self.name = name
        self.coroutine = Coroutine(name, program)
        self.lp: LogicalProcessor | None = None
        self.interrupt = False

    def take_posted(self, desc: PiDesc) -> None:
        """Posted-interrupt processing: what is posted goes to the virtual APIC."""
        if desc.on:
            desc.on = False
            self.interrupt = True


class Machine:
    """A machine of `config`, driven by `sim`."""

    __slots__ = (
        "config",
        "guest_contexts",
        "lps",
        "mem",
        "seam",
        "sim",
        "table_writes",
        "tables",
    )

    def __init__(self, sim: Sim, config: MachineConfig) -> None:
        self.sim = sim
        self.config = config
        self.lps = [
            LogicalProcessor(sim, i, i % config.num_packages) for i in range(config.num_lps)
        ]
        self.mem = PhysMem(sim, config)
        self.tables: dict[int, TablePage] = {}
        self.table_writes = Writes()
        self.seam: SeamModule | None = None
        self.guest_contexts: dict[int, GuestContext] = {}  # by PFN of the TDVPR page

    # Instructions

    def seamcall(self, cpu: int, regs: Regs) -> None:
        """SEAMCALL on logical processor `cpu`; RAX holds leaf and version, results in `regs`."""
        if self.seam is None:
            raise SimDefect("SEAMCALL with no TDX module loaded")
        sim = self.sim
        sim.point("seamcall")
        sim.current.time_ns += SEAMCALL_COST_NS.get(regs.rax & 0xFFFF, SEAMCALL_NS)
        self.seam.seamcall(self.lps[cpu], regs)

    def wbinvd_2m(self, rcx: int) -> bool:
        """512 SEAMCALLs of TDH.PHYMEM.PAGE.WBINVD, for the 2 MB at `rcx`, made at once; False, and
        nothing done, when they must be made one by one because one might fail or the run is traced.
        """
        sim = self.sim
        if sim.tracing or self.seam is None or not self.seam.wbinvd_2m(rcx):
            return False
        sim.current.time_ns += PTRS_PER_TABLE * SEAMCALL_COST_NS[TDH_PHYMEM_PAGE_WBINVD]
        return True

    def tdcall(self, lp: LogicalProcessor, regs: Regs) -> None:
        """TDCALL by the guest that runs on `lp`."""
        assert self.seam is not None
        self.sim.current.time_ns += TDCALL_NS
        self.seam.tdcall(lp, regs)

    # The guest side of a logical processor

    def run_guest(self, lp: LogicalProcessor, tdvpr_pfn: int) -> object:
        """Run the guest program of a virtual CPU on `lp` until it leaves the TD.

        Returns what `exit_to_host` was given. A virtual CPU without a program, or whose program
        has ended, is a defect of the set-up: a guest ends by asking its host to shut it down.
        """
        context = self.guest_contexts.get(tdvpr_pfn)
        if context is None or context.coroutine.finished:
            raise SimDefect(f"VP.ENTER of a virtual CPU (TDVPR {tdvpr_pfn:#x}) with no program")
        context.lp = lp
        lp.context = context
        if lp.notification is not None:
            context.take_posted(lp.notification)
            lp.notification = None
        reason = context.coroutine.resume(lp)
        lp.context = None
        context.lp = None
        if context.coroutine.finished:
            raise SimDefect(f"the guest program {context.name} returned instead of shutting down")
        return reason

    def exit_to_host(self, lp: LogicalProcessor, reason: object) -> LogicalProcessor:
        """The guest on `lp` leaves the TD with `reason`; returns when its virtual CPU is entered
        again, with the logical processor that it is on then."""
        context = lp.context
        if context is None:
            raise SimDefect(f"TD exit on cpu{lp.id}, which runs no guest")
        entered_on = context.coroutine.suspend(reason)
        assert isinstance(entered_on, LogicalProcessor)
        return entered_on

    def poll_interrupts(self, lp: LogicalProcessor) -> LogicalProcessor:
        """An instruction boundary of the guest on `lp`: a scheduling point, then pending
        interrupts cause a TD exit. Returns the logical processor that the guest is on after."""
        self.sim.point("guest instruction")
        while lp.ipi_pending:
            assert self.seam is not None
            context = lp.context
            self.seam.external_interrupt(lp)
            assert context is not None and context.lp is not None
            lp = context.lp
        return lp

    # Interrupts between processors

    def send_ipi_and_wait(self, cpus: Iterable[int]) -> None:
        """Send an IPI to each of `cpus` but the sender's, and wait until all have taken it.

        A target inside a TD takes it by an asynchronous TD exit; one with interrupts off, when
        they go on. MODEL: one that runs host code with interrupts on takes it at once.
        """
        own = self.sim.current.cpu
        targets: list[LogicalProcessor] = []
        for cpu in cpus:
            if cpu == own:
                continue
            lp = self.lps[cpu]
            if lp.guest is None and lp.irq_enabled:
                continue
            lp.ipi_pending = True
            self.sim.current.time_ns += IPI_NS
            lp.wake_wq.wake_up_all(preempt=False)
            targets.append(lp)
        self.sim.point("ipi")
        while targets:
            # Popped: a target that has taken the IPI adds nothing to the state that is compared.
            lp = targets.pop(0)
            # A default binds the value now; mypy cannot type such a lambda.
            lp.ipi_wq.spin_until(lambda lp=lp: not lp.ipi_pending)  # type: ignore[misc]

    def notify_posted(self, cpu: int, desc: PiDesc) -> None:
        """Send the posted-interrupt notification vector to `cpu`, which runs the vCPU of `desc` or
        is about to enter it.

        A guest that runs there takes the interrupt at once. The host with interrupts off (on its
        way into the guest) keeps the vector until the entry; with interrupts on, its handler does
        nothing.
        """
        lp = self.lps[cpu]
        if lp.context is not None:
            lp.context.take_posted(desc)
        elif not lp.irq_enabled:
            lp.notification = desc

    # Page-table pages

    def alloc_table(self, pfn: int, fill: int = 0) -> TablePage:
        """Use page `pfn` as a page table with every entry `fill`."""
        before = self.tables.get(pfn)
        if before is not None:
            before.touch()
        page = TablePage(pfn, fill, writes=self.table_writes)
        self.tables[pfn] = page
        return page

    def free_table(self, pfn: int) -> None:
        """Page `pfn` is no page table any more."""
        page = self.tables.pop(pfn, None)
        if page is not None:
            page.touch()
