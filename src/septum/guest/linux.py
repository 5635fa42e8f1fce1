"""A Linux guest from power-on to an idle system, as far as its memory is concerned.

Boot order: TDVF (SEC, DXE), EFI stub, memblock, swiotlb, page allocator, SMP, DMA pools, drivers,
user space. Everything is behaviour that depends on memory size, vCPUs and parameters.
"""

from septum.abi import tdvmcall
from septum.abi.types import PAGE_SHIFT, PAGE_SIZE, PMD_SIZE
from septum.guest.cpu import GuestCpu
from septum.guest.page_alloc import (
    MAX_ORDER_SIZE,
    Memblock,
    Zone,
    alloc_pages,
    cond_accept_memory,
    free_block,
    free_pages_core,
    hash_table_size,
    memmap_size,
    setup_watermarks,
)
from septum.guest.params import MIB, FirmwareParams, LinuxParams, firmware_params
from septum.guest.program import Guest
from septum.guest.shared_memory import (
    SharedRanges,
    atomic_pool_size,
    kvmclock_shared_size,
    set_memory_decrypted,
    set_memory_encrypted,
    swiotlb_size,
)
from septum.guest.tdvf import Tdvf
from septum.guest.tdvf_dxe import DxeBuffers, dxe, exit_boot_services
from septum.guest.unaccepted import UnacceptedTable, efi_stub
from septum.vmm.layout import FOUR_GIB, GuestLayout, LayoutError

LOW_MEMORY_MIN = 384 * MIB
DENTRY_HASH_SCALE = 13
INODE_HASH_SCALE = 14
RING_VCPUS_MAX = 16

STAGE_BOOT = 0
STAGE_DRIVERS = 1
STAGE_RUNTIME = 2
STAGE_WORKLOAD = 3
STAGE_IDLE = 4


class Placement:
    """Where allocations in low memory end up. [assumed], as fractions of low memory: with 2 GiB
    the addresses are 0x400000 (DMA zone), 0x20000000 and up (DMA32 zone)."""

    __slots__ = (
        "dma32",
        "dma_pool",
        "dma_pool32",
        "kvmclock",
        "pages",
        "quote",
        "rings",
        "runtime",
    )

    def __init__(self, low_end: int) -> None:
        self.dma_pool = 4 * MIB
        self.dma32 = low_end // 4 // (16 * MIB) * (16 * MIB)
        self.dma_pool32 = self.dma32 + 8 * MIB
        self.rings = self.dma32 + 16 * MIB
        self.pages = self.dma32 + 48 * MIB
        self.runtime = self.dma32 + 64 * MIB
        self.quote = self.dma32 + 80 * MIB
        self.kvmclock = self.dma32 + 81 * MIB

    @property
    def used_end(self) -> int:
        """First address above what is placed from `dma32` on."""
        return self.dma32 + 82 * MIB


def check_linux_memory(memory_bytes: int) -> None:
    """Raises LayoutError for memory that has too little of it below 4 GiB for Linux."""
    if memory_bytes < LOW_MEMORY_MIN:
        raise LayoutError(
            f"The Linux guest does not fit into {memory_bytes >> 20} MiB;"
            f" give it at least {LOW_MEMORY_MIN // MIB}M."
        )


class LinuxGuest(Guest):
    """The state of the booting guest that its vCPUs share."""

    __slots__ = (
        "dxe_buffers",
        "firmware",
        "layout",
        "nr_finished",
        "params",
        "place",
        "shared",
        "stage",
        "table",
        "zone",
    )

    def __init__(
        self,
        layout: GuestLayout,
        nr_cpus: int,
        params: LinuxParams | None = None,
        firmware: FirmwareParams | None = None,
    ) -> None:
        """Raises LayoutError when the layout has too little low memory for Linux."""
        super().__init__(nr_cpus)
        check_linux_memory(layout.memory_bytes)
        self.layout = layout
        self.params = params if params is not None else LinuxParams()
        if firmware is None:
            firmware = firmware_params(layout.firmware.sha256)
        self.firmware = Tdvf(layout, firmware)
        self.dxe_buffers = DxeBuffers()
        self.place = Placement(layout.low_end)
        self.table: UnacceptedTable | None = None
        watermark = int(layout.memory_bytes * self.params.watermark_fraction)
        watermark = max(self.params.watermark_min_bytes, watermark)
        self.zone = Zone(watermark // MAX_ORDER_SIZE * MAX_ORDER_SIZE)
        self.shared = SharedRanges()
        self.stage = STAGE_BOOT
        self.nr_finished = 0

    @property
    def unaccepted_bytes(self) -> int:
        """Memory that is not accepted (yet)."""
        return 0 if self.table is None else self.table.bytes_left

    def run(self, cpu: GuestCpu) -> None:
        """The bootstrap processor boots; the others wait in the firmware, then for work."""
        if cpu.index == 0:
            self.firmware.sec(cpu)
            dxe(cpu, self.firmware, self.layout, self.dxe_buffers)
            exit_boot_services(cpu, self.firmware, self.dxe_buffers)
            self.start_kernel(cpu)
            self.boot_done(cpu)
        else:
            self.firmware.ap_loop(cpu)
            self.secondary(cpu)
        cpu.idle()

    # Bootstrap processor

    def start_kernel(self, cpu: GuestCpu) -> None:
        """The kernel from the EFI stub to an idle user space."""
        self.table = efi_stub(cpu, self.layout)
        cpu.phase("linux-memblock")
        self._use_low_memory(cpu)
        memblock = Memblock(FOUR_GIB, self.layout.high_end)
        self._memblock_users(cpu, memblock)
        cpu.phase("linux-mem-init")
        self._swiotlb(cpu)
        if self.layout.high_end > FOUR_GIB:
            free_pages_core(
                cpu, self.table, self.zone, FOUR_GIB, memblock.at, self.params.lazy_accept
            )
        cpu.phase("linux-page-alloc")
        for _ in range(round(self.params.prewatermark_allocs_per_vcpu * cpu.nr_cpus)):
            self._alloc_and_use(cpu, 4 * MIB)
        setup_watermarks(self.zone)
        if self.layout.high_end == FOUR_GIB:
            start = self.place.used_end
            free_block(self.zone, start, max(0, self._swiotlb_range()[0] - PMD_SIZE - start))
        self.firmware.wake_aps(cpu)
        cpu.phase("linux-dma-pools")
        self._dma_pools(cpu)
        self._all_cpus(cpu, STAGE_DRIVERS)
        cpu.phase("linux-userspace")
        if self.params.lazy_accept:
            cond_accept_memory(cpu, self.table, self.zone)
        self._all_cpus(cpu, STAGE_RUNTIME)
        set_memory_decrypted(cpu, self.shared, self.place.quote, self.params.quote_buffer_bytes)
        if self.params.workload_bytes:
            self._all_cpus(cpu, STAGE_WORKLOAD)

    def boot_done(self, cpu: GuestCpu) -> None:
        """Read back, tell the VMM, send the APs to sleep."""
        if self.params.readback:
            cpu.phase("linux-readback")
            for gfn, nr_pages, _ in list(self.memory.ranges()):
                cpu.verify(gfn << PAGE_SHIFT, 1)
                cpu.verify((gfn + nr_pages - 1) << PAGE_SHIFT, 1)
        cpu.phase("linux-idle")
        self._all_cpus(cpu, STAGE_IDLE)
        cpu.report(tdvmcall.REPORT_BOOT_DONE)
        if self.params.shutdown:
            cpu.shutdown()

    def _use_low_memory(self, cpu: GuestCpu) -> None:
        """The kernel image, the loader's data around swiotlb, and slab pages around DMA buffers:
        memory that TDVF accepted."""
        start, size = self.params.kernel_image
        self.use(cpu, start, size)
        swiotlb, swiotlb_end = self._swiotlb_range()
        self.use(cpu, swiotlb // PMD_SIZE * PMD_SIZE, swiotlb % PMD_SIZE)
        loader_end = self.layout.low_end // PMD_SIZE * PMD_SIZE - 64 * MIB
        self.use(cpu, swiotlb_end, max(0, loader_end - swiotlb_end))
        self.use(cpu, self.place.dma_pool, 4 * MIB)
        self.use(cpu, self.place.dma32, self.place.used_end - self.place.dma32)

    def _memblock_users(self, cpu: GuestCpu, memblock: Memblock) -> None:
        """Early allocations from the top of high memory. MODEL: a guest without memory above
        4 GiB has them in low memory, where they are of no consequence."""
        params, memory = self.params, self.layout.memory_bytes
        if memblock.at <= memblock.bottom:
            return
        memblock.at -= params.node_data_gap_bytes
        for size in (
            params.node_data_bytes,
            memmap_size(memory, params.memmap_bytes_per_page),
            params.percpu_bytes * cpu.nr_cpus,
            hash_table_size(memory, DENTRY_HASH_SCALE),
            hash_table_size(memory, INODE_HASH_SCALE),
            params.other_memblock_bytes,
        ):
            gpa, size = memblock.alloc(cpu, self.table, size)
            self.use(cpu, gpa, size)

    def _swiotlb_range(self) -> tuple[int, int]:
        size = swiotlb_size(self.layout.memory_bytes, self.params)
        end = self.layout.low_end // PAGE_SIZE * PAGE_SIZE - self.params.swiotlb_below_low_end
        return end - size, end

    def _swiotlb(self, cpu: GuestCpu) -> None:
        """swiotlb_update_mem_attributes(): one conversion for the whole buffer."""
        start, end = self._swiotlb_range()
        set_memory_decrypted(cpu, self.shared, start, end - start)

    def _dma_pools(self, cpu: GuestCpu) -> None:
        """dma_atomic_pool_init(): one pool in each of the zones Normal, DMA and DMA32."""
        size = atomic_pool_size(self.layout.memory_bytes, self.params)
        high = self.layout.high_end > FOUR_GIB
        normal = FOUR_GIB + 8 * MIB if high else self.place.dma32
        for gpa in (normal, self.place.dma_pool, self.place.dma_pool32):
            set_memory_decrypted(cpu, self.shared, gpa, size)
        kvmclock = kvmclock_shared_size(cpu.nr_cpus)
        if kvmclock:
            set_memory_decrypted(cpu, self.shared, self.place.kvmclock, kvmclock)

    # All processors

    def secondary(self, cpu: GuestCpu) -> None:
        """An AP: run its part of each stage, until the system idles."""
        cpu.phase("linux-secondary")
        done = STAGE_BOOT
        while done != STAGE_IDLE:
            # A default binds the value now; mypy cannot type such a lambda.
            cpu.spin_until(lambda done=done: self.stage > done)  # type: ignore[misc]
            done = self.stage
            self._stage(cpu, done)
            self.nr_finished += 1
            cpu.wake_spinners()

    def _all_cpus(self, cpu: GuestCpu, stage: int) -> None:
        """Every vCPU runs its part of `stage` at the same time; returns when all have."""
        self.nr_finished = 0
        self.stage = stage
        cpu.wake_spinners()
        self._stage(cpu, stage)
        cpu.spin_until(lambda: self.nr_finished == cpu.nr_cpus - 1)

    def _stage(self, cpu: GuestCpu, stage: int) -> None:
        if stage == STAGE_DRIVERS:
            cpu.phase("linux-drivers")
            self._drivers(cpu)
        elif stage == STAGE_RUNTIME:
            cpu.phase("linux-runtime")
            self._runtime_buffers(cpu)
        elif stage == STAGE_WORKLOAD:
            cpu.phase("linux-workload")
            self._workload(cpu)

    def _drivers(self, cpu: GuestCpu) -> None:
        """Coherent buffers: drivers probe on all vCPUs, device k on vCPU k mod n."""
        params = self.params
        rings = params.ring_buffers_base
        rings += params.ring_buffers_per_vcpu * min(cpu.nr_cpus, RING_VCPUS_MAX)
        for k in range(cpu.index, rings, cpu.nr_cpus):
            gpa = self.place.rings + k * 0x10000
            set_memory_decrypted(cpu, self.shared, gpa, params.ring_buffer_bytes)
        for k in range(cpu.index, params.dma_pages, cpu.nr_cpus):
            gpa = self.place.pages + k * PAGE_SIZE
            set_memory_decrypted(cpu, self.shared, gpa, PAGE_SIZE)

    def _runtime_buffers(self, cpu: GuestCpu) -> None:
        """Buffers that are allocated, used and freed: shared, then private and accepted again."""
        mine = range(cpu.index, self.params.runtime_buffers, cpu.nr_cpus)
        gpas = [self.place.runtime + k * 2 * PAGE_SIZE for k in mine]
        for gpa in gpas:
            set_memory_decrypted(cpu, self.shared, gpa, PAGE_SIZE)
        for gpa in gpas:
            set_memory_encrypted(cpu, self.shared, gpa, PAGE_SIZE)

    def _workload(self, cpu: GuestCpu) -> None:
        """User space on every vCPU allocates its share of memory and writes it."""
        left = self.params.workload_bytes // cpu.nr_cpus
        while left >= PAGE_SIZE:
            got = self._alloc_and_use(cpu, min(left, 4 * MIB))
            if not got:
                cpu.count("out_of_memory")
                return
            left -= got

    def _alloc_and_use(self, cpu: GuestCpu, size_bytes: int) -> int:
        gpa, size = alloc_pages(cpu, self.table, self.zone, size_bytes)
        self.use(cpu, gpa, size)
        return size

    def use(self, cpu: GuestCpu, gpa: int, size_bytes: int) -> None:
        """Write to every page of a range, with another token in each 2 MB frame."""
        end = (gpa + size_bytes) // PAGE_SIZE * PAGE_SIZE
        gpa = -(-gpa // PAGE_SIZE) * PAGE_SIZE
        while gpa < end:
            stop = min(end, (gpa // PMD_SIZE + 1) * PMD_SIZE)
            cpu.fill(gpa, (stop - gpa) // PAGE_SIZE)
            gpa = stop
