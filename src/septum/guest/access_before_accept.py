"""Guests that touch memory before they accept it, as operating systems other than Linux may.

With SEPT_VE_DISABLE=0 the first touch of a page makes the host map it (2 MB where it can) without
any wish of the guest; the guest then gets #VE and accepts at the level it likes. Cases:

(a) 4K accepts on a pending 2M mapping: TD exits until the host has demoted;
(b) 2M accepts where 4K pages are mapped: TDX_PAGE_SIZE_MISMATCH, the guest falls back to 4K;
(c) several vCPUs accept different 4K pages of one 2M frame at the same time.

Source: cover letter of the v3 series.
"""

import msgspec

from septum.abi import tdvmcall
from septum.abi.status import (
    STATUS_MASK,
    TDX_OPERAND_BUSY,
    TDX_PAGE_ALREADY_ACCEPTED,
    TDX_PAGE_SIZE_MISMATCH,
)
from septum.abi.types import PAGE_SIZE, PMD_SIZE
from septum.guest.cpu import LEVEL_2M, LEVEL_4K, LEVEL_SIZES, GuestCpu, VirtualizationException
from septum.guest.program import Guest

BUSY_RETRIES_MAX = 1000


class AccessParams(msgspec.Struct, frozen=True):
    """What such a guest does. Defaults are case (a) on one frame."""

    start_gpa: int = 1 << 30
    nr_frames: int = 1
    accept_level: int = LEVEL_4K
    """Level at which the #VE handler accepts first: 0 or 1."""
    pages_per_frame: int = 512
    """How many pages of each frame are touched, from its start."""
    share_frames: bool = False
    """True: page k of every frame belongs to vCPU k mod n, so that they meet (case c). False:
    frame k belongs to vCPU k mod n."""
    accept_first_4k: bool = False
    """Accept the last page of each frame at 4K before anything is touched (case b)."""


CASE_A = AccessParams()
CASE_B = AccessParams(accept_level=LEVEL_2M, accept_first_4k=True)
CASE_C = AccessParams(share_frames=True)


class AccessBeforeAcceptGuest(Guest):
    """Writes to memory that it never accepted, and accepts in its #VE handler."""

    __slots__ = ("nr_finished", "params")

    def __init__(self, nr_cpus: int, params: AccessParams = CASE_A) -> None:
        super().__init__(nr_cpus)
        self.params = params
        self.nr_finished = 0

    def run(self, cpu: GuestCpu) -> None:
        """Touch this vCPU's pages, wait for the others, read everything back."""
        cpu.phase("access-before-accept")
        for frame in range(self.params.nr_frames):
            self.touch_frame(cpu, frame)
        self.nr_finished += 1
        cpu.wake_spinners()
        if cpu.index == 0:
            cpu.spin_until(lambda: self.nr_finished == cpu.nr_cpus)
            cpu.verify(self.params.start_gpa, self.params.nr_frames * PMD_SIZE // PAGE_SIZE)
            cpu.report(tdvmcall.REPORT_SCRIPT_DONE)
        cpu.idle()

    def touch_frame(self, cpu: GuestCpu, frame: int) -> None:
        """This vCPU's share of a frame."""
        params = self.params
        start = params.start_gpa + frame * PMD_SIZE
        mine = frame % cpu.nr_cpus == cpu.index
        if params.accept_first_4k and mine:
            self.accept(cpu, start + PMD_SIZE - PAGE_SIZE, LEVEL_4K)
        if params.share_frames:
            pages = range(cpu.index, params.pages_per_frame, cpu.nr_cpus)
        else:
            pages = range(params.pages_per_frame if mine else 0)
        for page in pages:
            self.touch(cpu, start + page * PAGE_SIZE)

    def touch(self, cpu: GuestCpu, gpa: int) -> None:
        """Write a page; on #VE accept and write again."""
        try:
            cpu.write(gpa)
        except VirtualizationException:
            cpu.count("virtualization_exceptions")
            self.handle_ve(cpu, gpa)
            cpu.write(gpa)

    def handle_ve(self, cpu: GuestCpu, gpa: int) -> None:
        """The #VE handler: accept the page's surroundings at the chosen level, else 4K."""
        level = self.params.accept_level
        if level == LEVEL_2M:
            frame = gpa // PMD_SIZE * PMD_SIZE
            if self.accept(cpu, frame, LEVEL_2M):
                return
            cpu.count("size_mismatches")
            for page in range(frame, frame + PMD_SIZE, PAGE_SIZE):
                self.accept(cpu, page, LEVEL_4K)
            return
        self.accept(cpu, gpa, LEVEL_4K)

    def accept(self, cpu: GuestCpu, gpa: int, level: int) -> bool:
        """Accept, again while the module is busy; False when the size does not match."""
        for _ in range(BUSY_RETRIES_MAX):
            status = cpu.accept(gpa, level)
            kind = status & STATUS_MASK
            if kind in (0, TDX_PAGE_ALREADY_ACCEPTED):
                return True
            if kind == TDX_PAGE_SIZE_MISMATCH and level == LEVEL_2M:
                return False
            if kind != TDX_OPERAND_BUSY:
                break
            cpu.count("accept_busy")
            cpu.cpu_relax()
        cpu.panic(f"ACCEPT of {gpa:#x} ({LEVEL_SIZES[level]} bytes) failed with {status:#x}")
        return False
