"""Linux's unaccepted memory: the bitmap from the EFI stub, and accept_memory().

Source: drivers/firmware/efi/libstub/unaccepted_memory.c, drivers/firmware/efi/unaccepted_memory.c,
arch/x86/coco/tdx/tdx-shared.c.
"""

from septum.abi.types import PAGE_SIZE, PMD_SIZE
from septum.guest.cpu import LEVEL_1G, LEVEL_2M, LEVEL_4K, LEVEL_SIZES, GuestCpu
from septum.vmm.layout import FOUR_GIB, GuestLayout, ResourceType

UNIT_SIZE = PMD_SIZE
"""EFI_UNACCEPTED_UNIT_SIZE: memory that one bit stands for."""
STUB_LIMIT = 2 * UNIT_SIZE
"""Ranges below are accepted by the stub itself, so that the kernel need not care."""


def tdx_accept_memory(cpu: GuestCpu, start: int, end: int) -> bool:
    """Accept [start, end), each step at the largest level that fits and that succeeds.

    Any status but success makes the next smaller level be tried; False when 4K fails.
    Source: tdx_accept_memory, try_accept_one.
    """
    while start < end:
        for level in (LEVEL_1G, LEVEL_2M, LEVEL_4K):
            size = LEVEL_SIZES[level]
            if start % size or end - start < size:
                continue
            if cpu.accept(start, level) == 0:
                start += size
                break
            cpu.count(f"accept_failed_level{level}")
        else:
            return False
    return True


class UnacceptedTable:
    """struct efi_unaccepted_memory: bit i stands for the unit at `phys_base` + i * 2 MiB.

    `accepting` lists the (first unit, end unit) ranges that some vCPU is accepting now.
    """

    __slots__ = ("accepting", "bits", "nr_units", "phys_base")

    def __init__(self, phys_base: int, nr_units: int) -> None:
        self.phys_base = phys_base
        self.nr_units = nr_units
        self.bits = bytearray(nr_units)
        self.accepting: list[tuple[int, int]] = []

    @property
    def bytes_left(self) -> int:
        """Memory that is still unaccepted."""
        return self.bits.count(1) * UNIT_SIZE

    def units(self, start: int, end: int) -> tuple[int, int]:
        """(first, end) of the units that [start, end) touches, clipped to the table."""
        first = max(0, (start - self.phys_base) // UNIT_SIZE)
        last = min(self.nr_units, -(-(end - self.phys_base) // UNIT_SIZE))
        return first, max(first, last)

    def contains_unaccepted(self, start: int, size_bytes: int) -> bool:
        """range_contains_unaccepted_memory(), with the guard unit."""
        end = start + size_bytes
        if end % UNIT_SIZE == 0:
            end += UNIT_SIZE
        first, last = self.units(start, end)
        return self.bits.find(1, first, last) >= 0


def efi_stub(cpu: GuestCpu, layout: GuestLayout) -> UnacceptedTable | None:
    """Build the table from the firmware's memory map; None when nothing is left unaccepted.

    The heads and tails that fill no unit are accepted here. Source: allocate_unaccepted_bitmap,
    process_unaccepted_memory.
    """
    cpu.phase("linux-efistub")
    left = [
        (r.gpa, r.end)
        for r in layout.resources
        if r.type is ResourceType.UNACCEPTED and r.gpa >= FOUR_GIB
    ]
    if not left:
        return None
    base = left[0][0] // UNIT_SIZE * UNIT_SIZE
    table = UnacceptedTable(base, -(-(left[-1][1] - base) // UNIT_SIZE))
    for start, end in left:
        process_unaccepted_memory(cpu, table, start, end)
    return table


def process_unaccepted_memory(cpu: GuestCpu, table: UnacceptedTable, start: int, end: int) -> None:
    """Accept what fills no unit, set bits for the rest. Source: process_unaccepted_memory."""
    if end - start < STUB_LIMIT:
        accept_or_panic(cpu, start, end)
        return
    if start % UNIT_SIZE:
        head = -(-start // UNIT_SIZE) * UNIT_SIZE
        accept_or_panic(cpu, start, head)
        start = head
    if end % UNIT_SIZE:
        tail = end // UNIT_SIZE * UNIT_SIZE
        accept_or_panic(cpu, tail, end)
        end = tail
    first, last = table.units(start, end)
    table.bits[first:last] = b"\1" * (last - first)


def accept_memory(cpu: GuestCpu, table: UnacceptedTable | None, start: int, size: int) -> None:
    """Make sure that [start, start + size) is accepted, and one unit more.

    The guard unit keeps load_unaligned_zeropad() from stepping into unaccepted memory. Callers
    whose ranges overlap wait for one another. Source: accept_memory in
    drivers/firmware/efi/unaccepted_memory.c.
    """
    if table is None:
        return
    end = start + size
    if end % UNIT_SIZE == 0:
        end += UNIT_SIZE
    first, last = table.units(start, end)
    if first >= last:
        return
    accepting = table.accepting

    def overlaps() -> bool:
        return any(a < last and first < b for a, b in accepting)

    if overlaps():
        cpu.count("accept_waits")
        cpu.spin_until(lambda: not overlaps())
    mine = (first, last)
    accepting.append(mine)
    at = table.bits.find(1, first, last)
    while at >= 0:
        run_end = table.bits.find(0, at, last)
        if run_end < 0:
            run_end = last
        base = table.phys_base
        accept_or_panic(cpu, base + at * UNIT_SIZE, base + run_end * UNIT_SIZE)
        table.bits[at:run_end] = bytes(run_end - at)
        at = table.bits.find(1, run_end, last)
    accepting.remove(mine)
    cpu.wake_spinners()


def accept_or_panic(cpu: GuestCpu, start: int, end: int) -> None:
    """arch_accept_memory(). [start, end) must be whole pages."""
    assert start % PAGE_SIZE == 0
    assert end % PAGE_SIZE == 0
    if not tdx_accept_memory(cpu, start, end):
        cpu.panic("TDX: Failed to accept memory")
