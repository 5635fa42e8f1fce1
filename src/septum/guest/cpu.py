"""The instructions that a program in a TD can execute, and the idioms built from them.

`GuestCpu` is what programs are written against. `septum.guest.tdcpu` executes it on the machine;
tests record it. Every primitive is an instruction boundary, where interrupts are taken.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

from septum.abi import tdvmcall
from septum.abi.types import PAGE_SHIFT, PAGE_SIZE, PTRS_PER_TABLE
from septum.guest.memory import ZERO, GuestMemory

LEVEL_4K = 0
LEVEL_2M = 1
LEVEL_1G = 2
LEVEL_SIZES = (1 << 12, 1 << 21, 1 << 30)
LEVEL_PAGES = (1, 512, 512 * 512)

MAP_GPA_MAX_RETRIES = 3
NEIGHBOURS = 8


class VirtualizationException(Exception):
    """#VE: the guest touched a private page that is there but not accepted."""

    def __init__(self, gpa: int) -> None:
        super().__init__(f"#VE at GPA {gpa:#x}")
        self.gpa = gpa


class GuestCpu(ABC):
    """One vCPU of a TD. `index` counts from 0, the bootstrap processor.

    `counts` tells how often each named thing was done by this vCPU, for reports.
    """

    __slots__ = ("counts", "index", "memory", "nr_cpus", "phase_name", "shared_bit")

    def __init__(
        self, index: int, nr_cpus: int, memory: GuestMemory, shared_bit: int = 1 << 47
    ) -> None:
        self.index = index
        self.nr_cpus = nr_cpus
        self.memory = memory
        self.shared_bit = shared_bit
        self.counts: dict[str, int] = {}
        self.phase_name = ""

    # Instructions

    @abstractmethod
    def tdcall_accept(self, gpa: int, level: int) -> int:
        """TDG.MEM.PAGE.ACCEPT of the page of TDX level 0 (4K), 1 (2M) or 2 (1G) at `gpa`.

        Returns the TDX status. An EPT violation in between is the host's business: the
        instruction restarts until it completes.
        """

    @abstractmethod
    def tdvmcall(
        self, function: int, r12: int = 0, r13: int = 0, r14: int = 0, r15: int = 0
    ) -> tuple[int, int]:
        """TDG.VP.VMCALL with sub-function `function`; returns (R10 status, R11 output)."""

    @abstractmethod
    def store(self, gpa: int, nr_pages: int, token: int) -> None:
        """Write `token` to each of `nr_pages` private pages. May raise VirtualizationException."""

    @abstractmethod
    def load(self, gpa: int, nr_pages: int) -> list[tuple[int, int]]:
        """Read private pages: (nr_pages, token) runs in order. May raise
        VirtualizationException."""

    @abstractmethod
    def spin_until(self, pred: Callable[[], bool]) -> None:
        """PAUSE in a loop until `pred()`, which reads guest memory that programs share.

        Interrupts are taken in the loop. Code that changes what `pred` reads calls `wake_spinners`.
        """

    @abstractmethod
    def wake_spinners(self) -> None:
        """The vCPUs that spin look at shared memory again."""

    @abstractmethod
    def find(self, promise: str, text: str) -> None:
        """Report a broken promise that this guest noticed."""

    @abstractmethod
    def on_phase(self, name: str) -> None:
        """A phase begins: the trace shows it."""

    @abstractmethod
    def on_report(self, code: int) -> None:
        """A report is about to leave the guest: the trace shows it."""

    # Idioms

    def phase(self, name: str) -> None:
        """Name what the program does from here on."""
        self.phase_name = name
        self.on_phase(name)

    def count(self, what: str, times: int = 1) -> None:
        """Add `times` to this vCPU's counter `what`."""
        self.counts[what] = self.counts.get(what, 0) + times

    # Empty on purpose: a recording CPU (tests, dry run) runs alone and waits for no other.
    def cpu_relax(self) -> None:  # noqa: B027
        """An attempt failed and is about to be repeated: let other processors run first. Mirrors
        cpu_relax()."""

    def accept(self, gpa: int, level: int) -> int:
        """Accept and, on success, own the page: it holds zeros. Returns the TDX status."""
        status = self.tdcall_accept(gpa, level)
        if status == 0:
            self.memory.write(gpa, LEVEL_PAGES[level], ZERO)
        return status

    def map_gpa(self, gpa: int, size_bytes: int, shared: bool) -> bool:
        """Ask the host to make [gpa, gpa + size_bytes) shared or private; True on success.

        The private content is given up either way. RETRY continues where the host stopped, and
        three retries without progress give up. Source: tdx_map_gpa.
        """
        nr_pages = size_bytes >> PAGE_SHIFT
        if self.memory.is_read(gpa, nr_pages):
            self.spin_until(lambda: not self.memory.is_read(gpa, nr_pages))
        self.memory.forget(gpa, nr_pages)
        start = gpa | (self.shared_bit if shared else 0)
        end = start + size_bytes
        retries = 0
        while retries < MAP_GPA_MAX_RETRIES:
            self.count("map_gpa_calls")
            status, reached = self.tdvmcall(tdvmcall.TDVMCALL_MAP_GPA, start, end - start)
            if status != tdvmcall.TDVMCALL_STATUS_RETRY:
                return status == tdvmcall.TDVMCALL_STATUS_SUCCESS
            self.count("map_gpa_retries")
            if reached < start or reached >= end:
                return False
            if reached == start:
                retries += 1
                continue
            start = reached
            retries = 0
        return False

    def fill(self, gpa: int, nr_pages: int, token: int | None = None) -> None:
        """Write a new token (or `token`) to pages that the guest owns."""
        if token is None:
            token = self.memory.new_token()
        window = (gpa >> PAGE_SHIFT, (gpa >> PAGE_SHIFT) + nr_pages)
        self.memory.writing.append(window)
        self.store(gpa, nr_pages, token)
        self.memory.write(gpa, nr_pages, token)
        self.memory.writing.remove(window)

    def write(self, gpa: int, token: int | None = None) -> None:
        """Write one page that the guest owns."""
        self.fill(gpa, 1, token)

    def read(self, gpa: int) -> int:
        """The token in the page at `gpa`; a finding if it is not what the guest wrote there."""
        token = self.load(gpa, 1)[0][1]
        expected = self.memory.token_at(gpa)
        if expected is not None and expected != token:
            self._lost(gpa, expected, token)
        return token

    def adopt(self, gpa: int, nr_pages: int) -> None:
        """Read pages that were there before the guest ran, and own what they hold."""
        for run, token in self.load(gpa, nr_pages):
            self.memory.write(gpa, run, token)
            gpa += run * PAGE_SIZE

    def verify(self, gpa: int, nr_pages: int) -> bool:
        """Read back all owned pages in the range; a finding for the first page that differs.

        Meanwhile other vCPUs wait before they give one of the pages up (`map_gpa`); pages that a
        vCPU is writing are not compared.
        """
        memory = self.memory
        window = (gpa >> PAGE_SHIFT, (gpa >> PAGE_SHIFT) + nr_pages)
        memory.reading.append(window)
        lost = self._first_lost(gpa, nr_pages)
        memory.reading.remove(window)
        self.wake_spinners()
        if lost is not None:
            self._lost(*lost)
        return lost is None

    def _first_lost(self, gpa: int, nr_pages: int) -> tuple[int, int, int] | None:
        """(gpa, token expected, token read) of the first owned page that differs."""
        memory = self.memory
        for gfn, run, expected in memory.ranges_in(gpa, nr_pages):
            at = gfn << PAGE_SHIFT
            for nr, token in self.load(at, run):
                if (
                    token != expected
                    and memory.token_at(at) == expected
                    and not memory.is_written(at, nr)
                ):
                    return at, expected, token
                at += nr * PAGE_SIZE
        return None

    def verify_frame_rest(self, gpa: int, size_bytes: int) -> bool:
        """Read back what the guest owns in the 2 MB frames that [gpa, gpa + size_bytes) only
        partly covers: a conversion must not touch it.

        Reads up to 8 pages on either side, and the frames' first and last page.
        """
        first = gpa >> PAGE_SHIFT
        end = (gpa + size_bytes) >> PAGE_SHIFT
        head = first & -PTRS_PER_TABLE
        tail = -(-end // PTRS_PER_TABLE) * PTRS_PER_TABLE
        before = max(head, first - NEIGHBOURS)
        after = min(tail, end + NEIGHBOURS)
        return (
            self.verify(head << PAGE_SHIFT, min(1, first - head))
            and self.verify(before << PAGE_SHIFT, first - before)
            and self.verify(end << PAGE_SHIFT, after - end)
            and self.verify((tail - 1) << PAGE_SHIFT, min(1, tail - end))
        )

    def _lost(self, gpa: int, expected: int, token: int) -> None:
        self.find(
            "guest-data",
            f"vCPU {self.index} wrote {expected:#x} to GPA {gpa:#x} and reads {token:#x}",
        )

    def hlt(self) -> None:
        """TDG.VP.VMCALL<Instruction.HLT>: sleep until the host wakes this vCPU."""
        self.tdvmcall(tdvmcall.TDVMCALL_HLT, 0)

    def outl(self, port: int, value: int) -> None:
        """TDG.VP.VMCALL<Instruction.IO>: write 4 bytes to a port."""
        self.tdvmcall(tdvmcall.TDVMCALL_IO, 4, tdvmcall.IO_WRITE, port, value)

    def report(self, code: int) -> None:
        """Tell the VMM something through the report port, e.g. REPORT_BOOT_DONE."""
        self.on_report(code)
        self.outl(tdvmcall.PORT_DEBUG_EXIT, code)

    def shutdown(self) -> None:
        """ACPI S5: QEMU ends the machine. Does not return."""
        while True:
            self.outl(tdvmcall.PORT_ACPI_PM1A_CNT, tdvmcall.ACPI_S5_SLEEP)
            self.hlt()

    def idle(self) -> None:
        """The end of a program: HLT for ever. Does not return."""
        while True:
            self.hlt()

    def panic(self, text: str) -> None:
        """TDG.VP.VMCALL<ReportFatalError>: the guest gives up. Does not return."""
        self.count("panics")
        self.find("no-bug", f"guest panic on vCPU {self.index}: {text}")
        while True:
            self.tdvmcall(tdvmcall.TDVMCALL_REPORT_FATAL_ERROR, 0)
