"""TDVF after SEC: shared MMIO, shared DMA buffers, and what ExitBootServices gives back.

Source: edk2 MemEncryptTdxLib (SetMemorySharedOrPrivate), IoMmuDxe.
"""

from septum.abi.types import PAGE_SIZE, PMD_SIZE
from septum.guest.cpu import LEVEL_2M, LEVEL_4K, LEVEL_SIZES, GuestCpu
from septum.guest.tdvf import Tdvf
from septum.vmm.layout import GuestLayout


class DxeBuffers:
    """The DMA buffers of IoMmuDxe that are shared now, as (gpa, bytes)."""

    __slots__ = ("shared",)

    def __init__(self) -> None:
        self.shared: list[tuple[int, int]] = []


def dxe(cpu: GuestCpu, firmware: Tdvf, layout: GuestLayout, buffers: DxeBuffers) -> None:
    """The DXE phase of the bootstrap processor, as far as memory is concerned."""
    cpu.phase("tdvf-dxe")
    use_heap(cpu, firmware, layout)
    if firmware.params.map_mmio:
        map_mmio(cpu, layout)
    if firmware.params.dma_pool:
        for gpa, size in pool_slots(firmware, layout):
            set_shared(cpu, gpa, size)
            buffers.shared.append((gpa, size))
    else:
        bounce_dma(cpu, firmware, layout)


def exit_boot_services(cpu: GuestCpu, firmware: Tdvf, buffers: DxeBuffers) -> None:
    """The pool's buffers become private again. Source: edk2 IoMmuReleaseReservedSharedMem."""
    cpu.phase("tdvf-exit-boot-services")
    for gpa, size in buffers.shared:
        set_private(cpu, firmware, gpa, size)
    buffers.shared.clear()


def use_heap(cpu: GuestCpu, firmware: Tdvf, layout: GuestLayout) -> None:
    """DXE writes to the top of low memory, frame by frame."""
    heap = min(firmware.params.dxe_heap_bytes, layout.low_end // 4) // PMD_SIZE * PMD_SIZE
    top = layout.low_end // PMD_SIZE * PMD_SIZE
    for gpa in range(top - heap, top, PMD_SIZE):
        cpu.fill(gpa, PMD_SIZE // PAGE_SIZE)


def map_mmio(cpu: GuestCpu, layout: GuestLayout) -> None:
    """MMIO regions become shared, one MapGPA for each leaf of the firmware's page table."""
    for region in layout.mmio:
        for gpa in range(region.gpa, region.gpa + region.size_bytes, region.leaf_bytes):
            cpu.map_gpa(gpa, region.leaf_bytes, True)


def pool_slots(firmware: Tdvf, layout: GuestLayout) -> list[tuple[int, int]]:
    """(gpa, bytes) of the shared part of each buffer in the pool, ascending.

    Source: edk2 mReservedMemRanges; a private page for the header is in front of each.
    """
    slots = firmware.params.dma_pool_slots
    total = sum(count * (PAGE_SIZE + size) for count, size in slots)
    gpa = layout.low_end - firmware.params.dma_pool_below_low_end - total
    found: list[tuple[int, int]] = []
    for count, size in slots:
        for _ in range(count):
            found.append((gpa + PAGE_SIZE, size))
            gpa += PAGE_SIZE + size
    return found


def bounce_dma(cpu: GuestCpu, firmware: Tdvf, layout: GuestLayout) -> None:
    """Firmware without the pool: each DMA buffer is shared while it is mapped.

    The pages take turns, as the allocator hands them out to whoever maps next.
    """
    left = [[layout.low_end - below, rounds] for below, rounds in firmware.params.dma_flips]
    while any(rounds for _, rounds in left):
        for flip in left:
            if flip[1]:
                flip[1] -= 1
                leaf_to_shared(cpu, flip[0], LEVEL_4K)
                leaf_to_private(cpu, firmware, flip[0], LEVEL_4K)
    for gpa, _ in left:
        cpu.verify_frame_rest(gpa, PAGE_SIZE)


def leaves(gpa: int, size_bytes: int) -> list[tuple[int, int]]:
    """(gpa, level) of the page-table leaves of a range: 2M where it holds a whole frame, and the
    leaf that is partly covered was split to 4K."""
    found: list[tuple[int, int]] = []
    end = gpa + size_bytes
    while gpa < end:
        whole = not gpa % PMD_SIZE and end - gpa >= PMD_SIZE
        found.append((gpa, LEVEL_2M if whole else LEVEL_4K))
        gpa += PMD_SIZE if whole else PAGE_SIZE
    return found


def set_shared(cpu: GuestCpu, gpa: int, size_bytes: int) -> None:
    """Leaf by leaf to shared. What else the guest owns in the frames must stay."""
    for leaf, level in leaves(gpa, size_bytes):
        leaf_to_shared(cpu, leaf, level)
    cpu.verify_frame_rest(gpa, size_bytes)


def set_private(cpu: GuestCpu, firmware: Tdvf, gpa: int, size_bytes: int) -> None:
    """Leaf by leaf back to private."""
    for leaf, level in leaves(gpa, size_bytes):
        leaf_to_private(cpu, firmware, leaf, level)
    cpu.verify_frame_rest(gpa, size_bytes)


def leaf_to_shared(cpu: GuestCpu, gpa: int, level: int) -> None:
    """MapGPA to shared."""
    if not cpu.map_gpa(gpa, LEVEL_SIZES[level], True):
        cpu.panic(f"TDVF: MapGPA of {gpa:#x} to shared failed")


def leaf_to_private(cpu: GuestCpu, firmware: Tdvf, gpa: int, level: int) -> None:
    """MapGPA to private, then ACCEPT."""
    if not cpu.map_gpa(gpa, LEVEL_SIZES[level], False):
        cpu.panic(f"TDVF: MapGPA of {gpa:#x} to private failed")
    firmware.accept_page(cpu, gpa, level)
