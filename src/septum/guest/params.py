"""Parameters of the guest programs, each with the evidence for its default.

MODEL: addresses and counts marked [assumed] or [fit] are placeholders; sizes and rules are not.
Marks: [src] read in source; [log] seen in a published guest log or list message; [derived] computed
from those; [fit] fitted to published points; [assumed] a placeholder.
"""

import msgspec

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30


class FirmwareParams(msgspec.Struct, frozen=True):
    """How the firmware (edk2 TDVF) behaves. Source: edk2 OvmfPkg."""

    accept_chunk_bytes: int = 32 * MIB
    """[src] PcdTdxAcceptMemoryChunkSize: what one vCPU accepts at a time in the parallel part."""
    accept_level: int = 1
    """[src] PcdTdxAcceptPageSize: 1 is 2 MiB, 0 is 4 KiB."""
    accept_end_gpa: int = 4 * GIB
    """[src] PcdAcceptMemoryEndAddress: SEC accepts the memory below."""
    ap_stack_bytes: int = 16 * KIB
    """[src] AP_STACK_SIZE, for each vCPU; together rounded up to 2 MiB."""
    busy_retries: int = 3
    """[src] ACCEPT is tried so often when the module answers TDX_OPERAND_BUSY."""
    map_mmio: bool = True
    """[src] DXE makes MMIO shared, one MapGPA per page-table leaf."""
    dxe_heap_bytes: int = 64 * MIB
    """[assumed] What DXE writes to, below the end of low memory."""
    dma_pool: bool = True
    """[src] IoMmuDxe keeps a pool of shared buffers (edk2 since 2023). Without it each DMA
    buffer is converted when it is mapped and back when it is unmapped."""
    dma_pool_slots: tuple[tuple[int, int], ...] = (
        (4, 4 * KIB),
        (8, 32 * KIB),
        (2, 128 * KIB),
        (1, 1 * MIB),
        (2, 2 * MIB),
    )
    """[src] (count, bytes) of the pool's buffers, each behind a private page."""
    dma_pool_below_low_end: int = 0x1801000
    """[assumed] The pool ends so far below the end of low memory (2 GiB: at 0x7e7ff000)."""
    dma_flips: tuple[tuple[int, int], ...] = ((0x2629000, 974), (0x2626000, 476), (0x2627000, 156))
    """[log] Without the pool: (bytes below the end of low memory, number of map-unmap rounds) of
    the pages that firmware flipped on a 4 GiB TD (0x7d9d7000, 0x7d9da000, 0x7d9d9000)."""


class LinuxParams(msgspec.Struct, frozen=True):
    """How the Linux guest behaves. Source: Linux 6.16, unless marked."""

    lazy_accept: bool = True
    """[src] accept_memory=lazy, the default; False is accept_memory=eager."""
    kernel_image: tuple[int, int] = (16 * MIB, 64 * MIB)
    """[assumed] (address, bytes) of the kernel image and its early page tables."""
    node_data_bytes: int = 172 * KIB
    """[log] NODE_DATA, the first memblock allocation from the top."""
    node_data_gap_bytes: int = 0x2000
    """[log] NODE_DATA ends so far below the end of memory (0x17fffe000 of 0x180000000)."""
    memmap_bytes_per_page: int = 64
    """[src] sizeof(struct page)."""
    percpu_bytes: int = 512 * KIB
    """[src] per-CPU area of each vCPU."""
    other_memblock_bytes: int = 16 * MIB
    """[assumed] page tables, usemaps and other early allocations."""
    swiotlb_percent: int = 6
    """[src] mem_encrypt's share of RAM for swiotlb."""
    swiotlb_min_bytes: int = 64 * MIB
    """[src] IO_TLB_DEFAULT_SIZE."""
    swiotlb_max_bytes: int = GIB
    """[src] SZ_1G."""
    swiotlb_below_low_end: int = 0x7D43000
    """[assumed] swiotlb ends so far below the end of low memory (2 GiB: at 0x782bd000), 4K aligned
    and not 2M aligned; a multiple of 2 MiB here is the aligned placement."""
    prewatermark_allocs_per_vcpu: float = 13.4
    """[fit] Page allocations before watermarks exist, each of which accepts one 4 MiB block.
    Fitted to two published points: about 13 GiB at 248 vCPUs, 1144 2M mappings at 8 vCPUs.
    MODEL: a fit, not a count of real allocations."""
    watermark_fraction: float = 0.004
    """[assumed] promo watermark as a share of memory."""
    watermark_min_bytes: int = 64 * MIB
    """[assumed] lower bound of the promo watermark."""
    atomic_pool_bytes_per_gib: int = 128 * KIB
    """[src] size of each of the three atomic DMA pools, within 128 KiB .. 4 MiB."""
    ring_buffers_base: int = 8
    """[assumed] coherent buffers of 16 KiB: so many, and `ring_buffers_per_vcpu` each for up to
    16 vCPUs (virtio queues)."""
    ring_buffers_per_vcpu: int = 3
    ring_buffer_bytes: int = 16 * KIB
    """[assumed] virtio rings are 4 to 64 KiB."""
    dma_pages: int = 64
    """[assumed] single coherent pages."""
    runtime_buffers: int = 16
    """[assumed] 4 KiB buffers that are made shared and freed again after boot."""
    quote_buffer_bytes: int = 8 * KIB
    """[src] GetQuote buffer of the tdx_guest driver."""
    workload_bytes: int = 0
    """Memory that user space allocates and writes after boot, by all vCPUs at once."""
    readback: bool = True
    """Read memory back at the end of the boot (the ends of each written range)."""
    shutdown: bool = False
    """Power off after the boot instead of idling."""


KNOWN_FIRMWARE: dict[str, FirmwareParams] = {
    # Debian bookworm OVMF.fd, edk2 2022.11: older than the DMA pool.
    "7b456907dd0786d415999e801a1ac4637b8ed4d7cf5378cfc6edbe5e574dd773": FirmwareParams(
        dma_pool=False
    ),
}
"""Behaviour by sha256 of the image, where it differs from today's edk2."""


def firmware_params(sha256: str) -> FirmwareParams:
    """The behaviour of the image with this sha256; today's edk2 for an unknown one."""
    return KNOWN_FIRMWARE.get(sha256, FirmwareParams())
