"""How Linux makes memory shared and private again, and what it shares: swiotlb, DMA pools, rings.

Source: arch/x86/coco/tdx/tdx.c (tdx_enc_status_changed), kernel/dma/swiotlb.c, kernel/dma/pool.c,
arch/x86/mm/mem_encrypt.c.
"""

from septum.abi.types import PAGE_SIZE, PMD_SIZE
from septum.guest.cpu import GuestCpu
from septum.guest.params import GIB, KIB, MIB, LinuxParams
from septum.guest.unaccepted import tdx_accept_memory


class SharedRanges:
    """The ranges that the kernel has made shared and not taken back, as (gpa, bytes)."""

    __slots__ = ("ranges",)

    def __init__(self) -> None:
        self.ranges: list[tuple[int, int]] = []


def set_memory_decrypted(cpu: GuestCpu, shared: SharedRanges, gpa: int, size_bytes: int) -> None:
    """Private to shared: one MapGPA for the whole range; its content is lost.

    What the kernel keeps in the frames that the range only partly covers must stay.
    Source: set_memory_decrypted, tdx_enc_status_changed.
    """
    if not cpu.map_gpa(gpa, size_bytes, True):
        cpu.panic(f"failed to convert memory at {gpa:#x} to shared")
    shared.ranges.append((gpa, size_bytes))
    cpu.verify_frame_rest(gpa, size_bytes)


def set_memory_encrypted(cpu: GuestCpu, shared: SharedRanges, gpa: int, size_bytes: int) -> None:
    """Shared to private: MapGPA, then accept. Source: set_memory_encrypted."""
    if not cpu.map_gpa(gpa, size_bytes, False):
        cpu.panic(f"failed to convert memory at {gpa:#x} to private")
    if not tdx_accept_memory(cpu, gpa, gpa + size_bytes):
        cpu.panic(f"failed to accept converted memory at {gpa:#x}")
    shared.ranges.remove((gpa, size_bytes))
    cpu.verify_frame_rest(gpa, size_bytes)


def swiotlb_size(memory_bytes: int, params: LinuxParams) -> int:
    """6 % of RAM within [64 MiB, 1 GiB], rounded up to a power of two.

    Source: mem_encrypt_setup_arch, swiotlb_adjust_size.
    """
    size = memory_bytes * params.swiotlb_percent // 100
    size = min(max(size, params.swiotlb_min_bytes), params.swiotlb_max_bytes)
    return 1 << (size - 1).bit_length()


def atomic_pool_size(memory_bytes: int, params: LinuxParams) -> int:
    """Bytes of each atomic DMA pool. Source: dma_atomic_pool_init."""
    wanted = memory_bytes // GIB * params.atomic_pool_bytes_per_gib
    return min(max(wanted, 128 * KIB), 4 * MIB)


def kvmclock_shared_size(nr_cpus: int) -> int:
    """Bytes that kvmclock converts for vCPUs above 64; 0 for none. Source: kvmclock_init_mem."""
    if nr_cpus <= 64:
        return 0
    size = PAGE_SIZE
    while size < (nr_cpus - 64) * 64:
        size <<= 1
    return size


def direct_map_leaves(gpa: int, size_bytes: int) -> list[tuple[int, int, int]]:
    """(gpa, leaf bytes, count) of a shared range's leaves in the direct map, ascending.

    Frames that are wholly shared kept their 2M leaf, the rest was split to 4K.
    """
    end = gpa + size_bytes
    first = min(end, -(-gpa // PMD_SIZE) * PMD_SIZE)
    last = max(first, end // PMD_SIZE * PMD_SIZE)
    pieces = [(gpa, first, PAGE_SIZE), (first, last, PMD_SIZE), (last, end, PAGE_SIZE)]
    return [(a, leaf, (b - a) // leaf) for a, b, leaf in pieces if a < b]


def kexec_finish(cpu: GuestCpu, shared: SharedRanges) -> None:
    """Before kexec or a crash kernel: every shared leaf of the direct map goes back to private,
    by its own MapGPA and accept, in address order. Source: tdx_kexec_finish."""
    cpu.phase("linux-kexec")
    for gpa, size in sorted(shared.ranges):
        for start, leaf, count in direct_map_leaves(gpa, size):
            for at in range(start, start + leaf * count, leaf):
                if not cpu.map_gpa(at, leaf, False) or not tdx_accept_memory(cpu, at, at + leaf):
                    # The kernel only warns here: the next kernel will stumble over the page.
                    cpu.count("kexec_left_shared")
        cpu.verify_frame_rest(gpa, size)
    shared.ranges.clear()
