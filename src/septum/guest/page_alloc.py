"""Linux's early and late page allocators, as far as they decide when memory is accepted.

memblock hands out memory from the top. What it leaves goes to the page allocator in 4 MiB
blocks, which are accepted one by one when memory is needed.
Source: mm/memblock.c, mm/page_alloc.c (cond_accept_memory, __accept_page, __free_unaccepted).
"""

from septum.guest.cpu import GuestCpu
from septum.guest.unaccepted import UnacceptedTable, accept_memory

MAX_ORDER_SIZE = 4 << 20
"""Bytes of a block of MAX_PAGE_ORDER."""


class Memblock:
    """memblock, top-down within the range [bottom, top)."""

    __slots__ = ("at", "bottom")

    def __init__(self, bottom: int, top: int) -> None:
        self.bottom = bottom
        self.at = top

    def alloc(
        self, cpu: GuestCpu, table: UnacceptedTable | None, size_bytes: int
    ) -> tuple[int, int]:
        """memblock_alloc: the next `size_bytes` downwards, accepted. Returns (gpa, bytes); the
        size is cut to what is left."""
        size_bytes = max(0, min(size_bytes, self.at - self.bottom))
        self.at -= size_bytes
        if size_bytes:
            accept_memory(cpu, table, self.at, size_bytes)
        return self.at, size_bytes


class Zone:
    """The zone that holds unaccepted memory (Normal), and the free memory in it.

    `lazy` are the blocks on zone->unaccepted_pages, the head last. `free_bytes` is accepted and
    unused; `unused` are those ranges, in the order in which they are handed out.
    """

    __slots__ = ("free_bytes", "lazy", "promo_watermark_bytes", "unused", "watermarks_set")

    def __init__(self, promo_watermark_bytes: int) -> None:
        self.lazy: list[int] = []
        self.unused: list[tuple[int, int]] = []
        self.free_bytes = 0
        self.watermarks_set = False
        self.promo_watermark_bytes = promo_watermark_bytes


def free_pages_core(
    cpu: GuestCpu, table: UnacceptedTable | None, zone: Zone, start: int, end: int, lazy: bool
) -> None:
    """memblock hands [start, end) to the page allocator, in the largest aligned blocks.

    A block of 4 MiB with an unaccepted unit goes to the lazy list, a smaller one is accepted at
    once; with accept_memory=eager all are. Source: __free_pages_core.
    """
    blocks: list[int] = []
    while start < end:
        size = MAX_ORDER_SIZE
        while start % size or end - start < size:
            size >>= 1
        if table is None or not table.contains_unaccepted(start, size):
            free_block(zone, start, size)
        elif size == MAX_ORDER_SIZE and lazy:
            blocks.append(start)
        else:
            accept_memory(cpu, table, start, size)
            free_block(zone, start, size)
        start += size
    zone.lazy = blocks[::-1] + zone.lazy


def free_block(zone: Zone, gpa: int, size_bytes: int) -> None:
    """A block of accepted memory becomes free."""
    zone.unused.append((gpa, size_bytes))
    zone.free_bytes += size_bytes


def try_to_accept_memory_one(cpu: GuestCpu, table: UnacceptedTable | None, zone: Zone) -> bool:
    """Take the block at the head of the lazy list and accept it; False when the list is empty.

    Blocks are taken one by one, so vCPUs accept different blocks at once.
    Source: try_to_accept_memory_one, __accept_page.
    """
    if not zone.lazy:
        return False
    block = zone.lazy.pop()
    accept_memory(cpu, table, block, MAX_ORDER_SIZE)
    free_block(zone, block, MAX_ORDER_SIZE)
    cpu.count("lazy_blocks")
    return True


def cond_accept_memory(cpu: GuestCpu, table: UnacceptedTable | None, zone: Zone) -> bool:
    """Before an allocation: accept one block while there are no watermarks yet, later as many as
    bring free memory back above the promo watermark. True if any was accepted.

    Source: cond_accept_memory.
    """
    if not zone.watermarks_set:
        return try_to_accept_memory_one(cpu, table, zone)
    accepted = False
    while zone.free_bytes < zone.promo_watermark_bytes:
        if not try_to_accept_memory_one(cpu, table, zone):
            break
        accepted = True
    return accepted


def alloc_pages(
    cpu: GuestCpu, table: UnacceptedTable | None, zone: Zone, size_bytes: int
) -> tuple[int, int]:
    """get_page_from_freelist: (gpa, bytes) of free memory, at most `size_bytes` and one block.

    (0, 0) when the zone is out of memory.
    """
    cond_accept_memory(cpu, table, zone)
    while not zone.unused:
        if not try_to_accept_memory_one(cpu, table, zone):
            return 0, 0
    gpa, free = zone.unused.pop(0)
    taken = min(size_bytes, free)
    zone.free_bytes -= taken
    if taken < free:
        zone.unused.insert(0, (gpa + taken, free - taken))
    return gpa, taken


def setup_watermarks(zone: Zone) -> None:
    """setup_per_zone_wmarks(): from here on watermarks decide.

    MODEL: what was accepted before is in use by now; free memory starts at zero.
    """
    zone.unused.clear()
    zone.free_bytes = 0
    zone.watermarks_set = True


def memmap_size(memory_bytes: int, bytes_per_page: int) -> int:
    """Bytes of struct page for all memory."""
    return (memory_bytes >> 12) * bytes_per_page


def hash_table_size(memory_bytes: int, scale: int) -> int:
    """Bytes of a hash table of 8-byte buckets, one for every 2^scale bytes of memory.

    Memory above 64 GiB counts less and less: each factor of 4 halves the share. The number of
    buckets is a power of two. Source: alloc_large_system_hash.
    """
    adapt = 64 << 30
    while adapt < memory_bytes:
        scale += 1
        adapt <<= 2
    buckets = max(1, memory_bytes >> scale)
    return (1 << (buckets - 1).bit_length()) * 8
