"""edk2's TDVF: how the firmware accepts low memory on all vCPUs before anything else runs.

Source: edk2 OvmfPkg/Library/PlatformInitLib/IntelTdx.c, TdxLib/AcceptPages.c, TdxMailboxLib. The
later parts (MMIO, DMA buffers) are in tdvf_dxe. MODEL: the firmware knows the HOB list without
parsing it, and code runs from no page.
"""

from septum.abi.status import (
    STATUS_MASK,
    TDX_OPERAND_BUSY,
    TDX_PAGE_ALREADY_ACCEPTED,
    TDX_PAGE_SIZE_MISMATCH,
    TDX_SUCCESS,
)
from septum.abi.types import PMD_SIZE
from septum.guest.cpu import LEVEL_2M, LEVEL_4K, LEVEL_SIZES, GuestCpu
from septum.guest.params import FirmwareParams
from septum.vmm.layout import GuestLayout, HobResource, ResourceType

COMMAND_NONE = 0
COMMAND_ACCEPT_PAGES = 1
COMMAND_WAKEUP = 2


class Mailbox:
    """The TD mailbox page: one command at a time for all APs.

    `generation` counts commands; `nr_finished` APs have finished the present one.
    """

    __slots__ = ("command", "end_gpa", "generation", "nr_finished", "start_gpa")

    def __init__(self) -> None:
        self.command = COMMAND_NONE
        self.generation = 0
        self.start_gpa = 0
        self.end_gpa = 0
        self.nr_finished = 0


class Tdvf:
    """The firmware of one TD, up to the point where it starts the operating system."""

    __slots__ = ("layout", "mailbox", "params")

    def __init__(self, layout: GuestLayout, params: FirmwareParams) -> None:
        self.layout = layout
        self.params = params
        self.mailbox = Mailbox()

    # The two entry points

    def sec(self, cpu: GuestCpu) -> None:
        """SEC on the bootstrap processor: accept all memory below 4 GiB.

        Source: edk2 ProcessTdxHobList.
        """
        cpu.phase("tdvf-sec")
        for section in self.layout.firmware.sections:
            cpu.adopt(section.memory_address, section.nr_pages)
        start = 0
        if cpu.nr_cpus > 1:
            start = self.accept_memory_for_aps_stack(cpu)
        self.accept_memory(cpu, start)

    def ap_loop(self, cpu: GuestCpu) -> None:
        """An AP spins on the mailbox and does what it says; returns when the OS wakes it."""
        cpu.phase("tdvf-sec")
        mailbox = self.mailbox
        seen = 0
        while True:
            # A default binds the value now; mypy cannot type such a lambda.
            cpu.spin_until(lambda seen=seen: mailbox.generation != seen)  # type: ignore[misc]
            seen = mailbox.generation
            if mailbox.command == COMMAND_WAKEUP:
                return
            self.accept_chunks(cpu, mailbox.start_gpa, mailbox.end_gpa)
            mailbox.nr_finished += 1
            cpu.wake_spinners()

    def wake_aps(self, cpu: GuestCpu) -> None:
        """MP wakeup: the OS takes the APs out of the firmware's loop."""
        self._send(cpu, COMMAND_WAKEUP, 0, 0)

    def _send(self, cpu: GuestCpu, command: int, start: int, end: int) -> None:
        """Source: edk2 MpSendWakeupCommand."""
        mailbox = self.mailbox
        mailbox.command = command
        mailbox.start_gpa = start
        mailbox.end_gpa = end
        mailbox.nr_finished = 0
        mailbox.generation += 1
        cpu.wake_spinners()

    # Accepting

    def _unaccepted(self) -> list[HobResource]:
        return [r for r in self.layout.resources if r.type is ResourceType.UNACCEPTED]

    def accept_memory_for_aps_stack(self, cpu: GuestCpu) -> int:
        """Phase 1: the BSP accepts the first range that can hold the AP stacks.

        A range above the chunk size is taken only as far as needed. Returns the address up to
        which memory is accepted then. Source: edk2 AcceptMemoryForAPsStack.
        """
        params = self.params
        stacks = _align_up(cpu.nr_cpus * params.ap_stack_bytes, PMD_SIZE)
        end = 0
        for r in self._unaccepted():
            end = r.end
            found = r.size_bytes >= stacks
            if found and r.size_bytes > params.accept_chunk_bytes:
                end = r.gpa + stacks
            self.accept_range(cpu, r.gpa, end)
            if found:
                break
        return end

    def accept_memory(self, cpu: GuestCpu, from_gpa: int) -> None:
        """Phase 2: the rest, range by range in HOB order. Source: edk2 AcceptMemory."""
        limit = self.params.accept_end_gpa
        for r in self._unaccepted():
            if r.end <= from_gpa:
                continue
            if r.gpa >= limit:
                break
            start, end = max(r.gpa, from_gpa), min(r.end, limit)
            if cpu.nr_cpus == 1:
                self.accept_range(cpu, start, end)
            else:
                self.accept_range_mp(cpu, start, end)

    def accept_range(self, cpu: GuestCpu, start: int, end: int) -> None:
        """One vCPU accepts a range: 4K up to a 2M boundary, 2M while more than 2 MiB are left,
        4K at the end. Exactly 2 MiB are 512 x 4K. Source: edk2 BspAcceptMemoryResourceRange."""
        head = min(_align_up(start, PMD_SIZE), end)
        self.accept_pages(cpu, start, head, LEVEL_4K)
        middle = head
        if end - head > PMD_SIZE:
            middle = head + (end - head) // PMD_SIZE * PMD_SIZE
            self.accept_pages(cpu, head, middle, self.params.accept_level)
        self.accept_pages(cpu, middle, end, LEVEL_4K)

    def accept_range_mp(self, cpu: GuestCpu, start: int, end: int) -> None:
        """BSP and APs accept a range together, if it is larger than a chunk.

        Source: edk2 MpAcceptMemoryResourceRange.
        """
        head = min(_align_up(start, PMD_SIZE), end)
        self.accept_range(cpu, start, head)
        if end - head <= self.params.accept_chunk_bytes:
            self.accept_range(cpu, head, end)
            return
        tail = end // PMD_SIZE * PMD_SIZE
        self._send(cpu, COMMAND_ACCEPT_PAGES, head, tail)
        self.accept_chunks(cpu, head, tail)
        mailbox = self.mailbox
        cpu.spin_until(lambda: mailbox.nr_finished == cpu.nr_cpus - 1)
        self.accept_pages(cpu, tail, end, LEVEL_4K)

    def accept_chunks(self, cpu: GuestCpu, start: int, end: int) -> None:
        """Chunk k of the range belongs to vCPU k mod n. Source: BspApAcceptMemoryResourceRange."""
        chunk = self.params.accept_chunk_bytes
        for at in range(start + cpu.index * chunk, end, cpu.nr_cpus * chunk):
            self.accept_pages(cpu, at, min(at + chunk, end), self.params.accept_level)

    def accept_pages(self, cpu: GuestCpu, start: int, end: int, level: int) -> None:
        """Accept [start, end) page by page. Source: edk2 TdAcceptPages."""
        for gpa in range(start, end, LEVEL_SIZES[level]):
            self.accept_page(cpu, gpa, level)

    def accept_page(self, cpu: GuestCpu, gpa: int, level: int) -> None:
        """One page: 4K pages when the size does not match, retries when the module is busy, an
        accepted page is tolerated, and everything else ends the boot (ASSERT)."""
        for _ in range(1 + self.params.busy_retries):
            status = cpu.accept(gpa, level)
            kind = status & STATUS_MASK
            if kind == TDX_SUCCESS:
                return
            if kind == TDX_PAGE_ALREADY_ACCEPTED:
                cpu.count("accepted_twice")
                return
            if kind == TDX_PAGE_SIZE_MISMATCH and level == LEVEL_2M:
                cpu.count("size_mismatches")
                self.accept_pages(cpu, gpa, gpa + PMD_SIZE, LEVEL_4K)
                return
            if kind != TDX_OPERAND_BUSY:
                break
            cpu.count("accept_busy")
        cpu.panic(f"TDVF: ACCEPT of {gpa:#x} at level {level} failed with {status:#x}")


def _align_up(value: int, to: int) -> int:
    return -(-value // to) * to
