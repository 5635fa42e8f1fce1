"""Runs a guest without a host: every request is granted, and written down.

Shows what a guest program does by itself, for comparison with published boots and for tests. The
TDX rules that a guest can see are kept: pages must be accepted before use, an ACCEPT of another
size than the mapping is refused, a conversion loses the content.
"""

from collections.abc import Callable

import msgspec

from septum.abi import tdvmcall
from septum.abi.status import (
    TDX_OPERAND_INVALID,
    TDX_PAGE_ALREADY_ACCEPTED,
    TDX_PAGE_SIZE_MISMATCH,
    TDX_SUCCESS,
)
from septum.abi.types import PAGE_SHIFT, PAGE_SIZE, PTRS_PER_TABLE
from septum.guest.cpu import (
    LEVEL_1G,
    LEVEL_2M,
    LEVEL_PAGES,
    LEVEL_SIZES,
    GuestCpu,
    VirtualizationException,
)
from septum.guest.memory import ZERO, GuestMemory
from septum.guest.program import Guest
from septum.sim import Schedule, Sim, WaitQueue
from septum.vmm.layout import GuestLayout


class Request(msgspec.Struct, frozen=True):
    """One thing that a vCPU asked for: op is accept, to_shared, to_private or report."""

    cpu: int
    phase: str
    op: str
    gpa: int
    size_bytes: int
    status: int = 0


class DryRunError(Exception):
    """The guest did what would kill it: it touched memory that it has not accepted."""


class DryRun:
    """A TD whose host grants everything. `log` is what the guest asked, in order.

    `split` holds the frames that are mapped by 4K pages.
    """

    __slots__ = ("guest", "log", "pages", "sim", "split", "ve", "waiters")

    def __init__(
        self,
        guest: Guest,
        layout: GuestLayout | None = None,
        *,
        ve: bool = False,
        schedule: Schedule | None = None,
    ) -> None:
        """`ve`: a touch of unaccepted memory raises #VE instead of ending the run."""
        self.guest = guest
        self.ve = ve
        self.sim = Sim(schedule)
        self.waiters = WaitQueue(self.sim, "spinning vCPUs")
        self.log: list[Request] = []
        self.pages = GuestMemory()
        self.split: set[int] = set()
        for section in layout.firmware.sections if layout is not None else ():
            self.pages.write(section.memory_address, section.nr_pages, ZERO)
            self._split(section.memory_address, section.nr_pages)

    def run(self) -> "list[DryCpu]":
        """Run every vCPU until it idles; returns the vCPUs."""
        cpus = [DryCpu(self, i) for i in range(self.guest.nr_cpus)]
        for cpu in cpus:
            self.sim.spawn(f"vcpu{cpu.index}", cpu.start, cpu=cpu.index)
        self.sim.run()
        return cpus

    def _split(self, gpa: int, nr_pages: int) -> None:
        first = gpa >> PAGE_SHIFT
        last = first + nr_pages - 1
        self.split.update(range(first // PTRS_PER_TABLE, last // PTRS_PER_TABLE + 1))

    def accept(self, gpa: int, level: int) -> int:
        """The status that the module would give."""
        if level > LEVEL_1G or gpa % LEVEL_SIZES[level]:
            return TDX_OPERAND_INVALID
        frame = gpa >> 21
        if level == LEVEL_1G or (level == LEVEL_2M and frame in self.split):
            return TDX_PAGE_SIZE_MISMATCH | 1
        if self.pages.token_at(gpa) is not None:
            return TDX_PAGE_ALREADY_ACCEPTED | level
        if level < LEVEL_2M:
            self.split.add(frame)
        self.pages.write(gpa, LEVEL_PAGES[level], ZERO)
        return TDX_SUCCESS

    def convert(self, gpa: int, size_bytes: int) -> None:
        """Both directions lose the content; frames that are partly covered are split."""
        nr_pages = size_bytes >> PAGE_SHIFT
        first = gpa >> PAGE_SHIFT
        self.pages.forget(gpa, nr_pages)
        if first % PTRS_PER_TABLE:
            self._split(gpa, 1)
        if (first + nr_pages) % PTRS_PER_TABLE:
            self._split(gpa + size_bytes - PAGE_SIZE, 1)
        whole_first = -(-first // PTRS_PER_TABLE)
        whole_end = (first + nr_pages) // PTRS_PER_TABLE
        self.split.difference_update(range(whole_first, whole_end))


class _Idle(BaseException):
    """A vCPU has come to the end of its program."""


class DryCpu(GuestCpu):
    """A vCPU of a dry run."""

    __slots__ = ("td",)

    def __init__(self, td: DryRun, index: int) -> None:
        super().__init__(index, td.guest.nr_cpus, td.guest.memory)
        self.td = td

    def start(self) -> None:
        """Run the program until it idles."""
        try:
            self.td.guest.run(self)
        except _Idle:
            return

    def _log(self, op: str, gpa: int, size_bytes: int, status: int = 0) -> None:
        self.td.log.append(Request(self.index, self.phase_name, op, gpa, size_bytes, status))

    def tdcall_accept(self, gpa: int, level: int) -> int:
        self.td.sim.point("accept")
        status = self.td.accept(gpa, level)
        self._log("accept", gpa, LEVEL_SIZES[level], status)
        return status

    def tdvmcall(
        self, function: int, r12: int = 0, r13: int = 0, r14: int = 0, r15: int = 0
    ) -> tuple[int, int]:
        self.td.sim.point("tdvmcall")
        if function == tdvmcall.TDVMCALL_MAP_GPA:
            gpa = r12 & ~self.shared_bit
            self.td.convert(gpa, r13)
            self._log("to_shared" if r12 & self.shared_bit else "to_private", gpa, r13)
        elif function == tdvmcall.TDVMCALL_IO:
            self._log("report" if r14 == tdvmcall.PORT_DEBUG_EXIT else "io", r14, r15)
        elif function in (tdvmcall.TDVMCALL_HLT, tdvmcall.TDVMCALL_REPORT_FATAL_ERROR):
            raise _Idle
        return tdvmcall.TDVMCALL_STATUS_SUCCESS, 0

    def store(self, gpa: int, nr_pages: int, token: int) -> None:
        self._check(gpa, nr_pages)
        self.td.pages.write(gpa, nr_pages, token)

    def load(self, gpa: int, nr_pages: int) -> list[tuple[int, int]]:
        self._check(gpa, nr_pages)
        return [(nr, token) for _, nr, token in self.td.pages.ranges_in(gpa, nr_pages)]

    def _check(self, gpa: int, nr_pages: int) -> None:
        at = gpa >> PAGE_SHIFT
        for gfn, nr, _ in self.td.pages.ranges_in(gpa, nr_pages):
            if gfn != at:
                break
            at += nr
        missing = at << PAGE_SHIFT
        if missing < gpa + nr_pages * PAGE_SIZE:
            if self.td.ve:
                raise VirtualizationException(missing)
            raise DryRunError(f"vCPU {self.index} touched unaccepted memory at {missing:#x}")

    def spin_until(self, pred: Callable[[], bool]) -> None:
        self.td.waiters.spin_until(pred)

    def wake_spinners(self) -> None:
        self.td.waiters.wake_up_all()

    def find(self, promise: str, text: str) -> None:
        self.td.sim.find(promise, text, where=f"vcpu{self.index}")

    def on_phase(self, name: str) -> None:
        pass

    def on_report(self, code: int) -> None:
        pass
