"""A VMM as QEMU is one: its sequence of ioctls, its vCPU threads, its conversions, its end.

Source: QEMU 10.1 accel/kvm/kvm-all.c, target/i386/kvm/tdx.c, hw/i386/tdvf.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from septum.abi import tdvmcall
from septum.abi.errno import EAGAIN, EBADF, EFAULT, EINTR, EINVAL, errno_name
from septum.abi.features import TDX_TD_ATTR_SEPT_VE_DISABLE
from septum.abi.kvm import (
    GUEST_MEMFD_FLAG_MMAP,
    KVM_EXIT_HYPERCALL,
    KVM_EXIT_IO,
    KVM_EXIT_MEMORY_FAULT,
    KVM_EXIT_MMIO,
    KVM_EXIT_NAMES,
    KVM_EXIT_SHUTDOWN,
    KVM_EXIT_SYSTEM_EVENT,
    KVM_EXIT_TDX,
    KVM_HC_MAP_GPA_RANGE,
    KVM_MAP_GPA_RANGE_ENCRYPTED,
    KVM_MEM_GUEST_MEMFD,
    KVM_MEMORY_ATTRIBUTE_PRIVATE,
    KVM_MEMORY_EXIT_FLAG_PRIVATE,
)
from septum.abi.tdvf import SectionType, TdvfSection
from septum.abi.types import PAGE_SIZE
from septum.linux.kvm.gmem_attrs import KvmMemoryAttributes2
from septum.linux.kvm.gmem_folio import GUEST_MEMFD_FLAG_HUGETLB, GUEST_MEMFD_FLAG_THP
from septum.linux.kvm.gmem_range import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE
from septum.linux.kvm.main import KvmUserspaceMemoryRegion2
from septum.linux.kvm.tdx_defs import (
    KVM_TDX_FINALIZE_VM,
    KVM_TDX_INIT_MEM_REGION,
    KVM_TDX_INIT_VCPU,
    KVM_TDX_INIT_VM,
    KVM_TDX_MEASURE_MEMORY_REGION,
    KvmTdxCmd,
    KvmTdxInitMemRegion,
    KvmTdxInitVm,
)
from septum.sim import SimDefect, WaitQueue
from septum.vmm.events import ConversionEvent

if TYPE_CHECKING:
    from collections.abc import Callable

    from septum.linux.host import Host
    from septum.linux.kvm.types import GmemFile, Kvm, KvmVcpu
    from septum.machine import GuestContext
    from septum.vmm.layout import GuestLayout, RamRange

BACKINGS = {
    "4k": (0, 0),
    "thp": (GUEST_MEMFD_FLAG_THP, 0),
    "hugetlb-2m": (GUEST_MEMFD_FLAG_HUGETLB, 9),
    "hugetlb-1g": (GUEST_MEMFD_FLAG_HUGETLB, 18),
}
RUNNING = ""
STOP_SHUTDOWN = "shutdown"


class VmmConfig(msgspec.Struct, frozen=True):
    """How one VM is started.

    `backing` of the RAM block is a key of `BACKINGS`; `in_place` maps guest_memfd and keeps the
    shared half in it, too (vm_memory_attributes=N only). `sept_ve_disable` is what Linux guests
    require. `two_pass` measures each section after it was added as a whole.
    """

    backing: str = "thp"
    in_place: bool = False
    sept_ve_disable: bool = True
    two_pass: bool = False


class RamBlock:
    """A RAM block of the VMM: its guest_memfd and its shared memory."""

    __slots__ = ("gmem", "hva", "name", "size_bytes")

    def __init__(self, name: str, size_bytes: int, hva: int, gmem: GmemFile) -> None:
        self.name = name
        self.size_bytes = size_bytes
        self.hva = hva
        self.gmem = gmem


class Vmm:
    """One VMM process with one TD.

    `contexts` are the guest programs, by vCPU. `cpus` are the logical processors of the vCPU
    threads; the VMM's main thread runs on `main_cpu`. `run` is what the main thread does.
    """

    __slots__ = (
        "blocks",
        "config",
        "contexts",
        "cpus",
        "exits",
        "fatal",
        "host",
        "kvm",
        "layout",
        "main_cpu",
        "name",
        "nr_running",
        "on_report",
        "reports",
        "sim",
        "stop_reason",
        "vcpus",
        "wq",
    )

    def __init__(
        self,
        host: Host,
        name: str,
        config: VmmConfig,
        layout: GuestLayout,
        contexts: list[GuestContext],
        cpus: list[int],
        main_cpu: int,
    ) -> None:
        if len(contexts) != len(cpus):
            raise SimDefect(f"{len(contexts)} guest programs for {len(cpus)} vCPUs")
        self.host = host
        self.sim = host.sim
        self.name = name
        self.config = config
        self.layout = layout
        self.contexts = contexts
        self.cpus = cpus
        self.main_cpu = main_cpu
        self.kvm: Kvm | None = None
        self.vcpus: list[KvmVcpu] = []
        self.blocks: dict[str, RamBlock] = {}
        self.nr_running = 0
        self.stop_reason = RUNNING
        self.fatal: list[str] = []  # why the VM ended other than by shutdown
        self.reports: list[int] = []  # codes that the guest wrote to the report port
        self.on_report: Callable[[int], None] | None = None
        self.exits: dict[str, int] = {}  # user exits by reason
        self.wq = WaitQueue(self.sim, f"{name} vCPU threads")

    # The whole life

    def run(self) -> None:
        """Build the TD, run it until it stops, take it down."""
        ret = self.build()
        if not ret:
            self.start_vcpus()
            self.wait()
        self.teardown()

    def build(self) -> int:
        """Everything up to KVM_TDX_FINALIZE_VM: 0, or the first error, which is in `fatal`; -EINTR
        when the process is killed meanwhile."""
        steps = (self.create_vm, self.create_vcpus, self.create_memory, self.add_image)
        for step in steps:
            ret = -EINTR if self.stop_reason else step()  # killed meanwhile
            if ret:
                self.fatal.append(f"{step.__name__} failed: {errno_name(ret)}")
                return ret
        return 0

    def start_vcpus(self) -> None:
        """One thread for each vCPU."""
        for index, vcpu in enumerate(self.vcpus):
            self.nr_running += 1
            self.sim.spawn(
                f"{self.name}.vcpu{index}", VcpuThread(self, vcpu).run, cpu=self.cpus[index]
            )

    def wait(self) -> None:
        """Until every vCPU thread has ended."""
        self.wq.wait_event(lambda: not self.nr_running)

    def stop(self, reason: str) -> None:
        """Get every vCPU thread out of KVM_RUN for good."""
        if self.stop_reason:
            return
        self.stop_reason = reason
        if reason != STOP_SHUTDOWN:
            self.fatal.append(reason)
        for vcpu in self.vcpus:
            self.host.main.signal_vcpu_thread(vcpu)

    def teardown(self) -> None:
        """The process exits: memory first, then file descriptors in order."""
        host = self.host
        for block in list(self.blocks.values()):
            host.mm.madvise_dontneed(block.hva, block.size_bytes)
        self.close_vm()
        self.close_memory()

    def close_vm(self) -> None:
        """close() of the VM and its vCPUs, if they are open."""
        kvm = self.kvm
        if kvm is None:
            return
        vcpus = self.vcpus
        self.vcpus = []
        self.kvm = None
        self.host.main.kvm_vm_release(kvm)
        for vcpu in vcpus:
            self.host.main.kvm_vcpu_release(vcpu)

    def close_memory(self) -> None:
        """close() of each guest_memfd that is open."""
        names = tuple(self.blocks)
        for name in names:
            block = self.blocks.pop(name, None)
            if block is not None:
                self.host.gmem.fput(block.gmem)

    # Building

    def vm(self) -> Kvm:
        """The VM; it exists between `create_vm` and `teardown`."""
        if self.kvm is None:
            raise SimDefect(f"{self.name} has no VM")
        return self.kvm

    def create_vm(self) -> int:
        """KVM_CREATE_VM, capabilities, KVM_TDX_INIT_VM."""
        main = self.host.main
        ret, kvm = main.kvm_create_vm()
        if kvm is None:
            return ret
        self.kvm = kvm
        ret = main.kvm_vm_ioctl_enable_split_irqchip(kvm)
        if ret:
            return ret
        ret = main.kvm_vm_ioctl_enable_exit_hypercall(kvm, 1 << KVM_HC_MAP_GPA_RANGE)
        if ret:
            return ret
        attributes = TDX_TD_ATTR_SEPT_VE_DISABLE if self.config.sept_ve_disable else 0
        xfam = main.host.x86_tdx.state.sysinfo.xfam_fixed1
        cmd = KvmTdxCmd(KVM_TDX_INIT_VM, data=KvmTdxInitVm(attributes, xfam))
        while True:
            ret = main.kvm_vm_ioctl_mem_enc_op(kvm, cmd)
            if ret != -EAGAIN:
                return ret

    def create_vcpus(self) -> int:
        """KVM_CREATE_VCPU for each."""
        for index in range(len(self.contexts)):
            ret, vcpu = self.host.main.kvm_vm_ioctl_create_vcpu(self.vm(), index)
            if vcpu is None:
                return ret
            self.vcpus.append(vcpu)
        return 0

    def create_memory(self) -> int:
        """A guest_memfd and shared memory for each RAM block, then a slot for each range."""
        main = self.host.main
        kvm = self.vm()
        for name, size_bytes in self.layout.block_sizes.items():
            flags, page_order = BACKINGS[self.config.backing]
            if name != "pc.ram" and page_order:
                flags = page_order = 0  # the firmware's block has a backend of its own
            if page_order:
                size_bytes = -(-size_bytes >> (12 + page_order)) << (12 + page_order)
            if self.config.in_place:
                flags |= GUEST_MEMFD_FLAG_MMAP
            ret, gmem = main.kvm_vm_ioctl_create_guest_memfd(kvm, size_bytes, flags, page_order)
            if gmem is None:
                return ret
            hva = self.host.mm.mmap(size_bytes)
            self.blocks[name] = RamBlock(name, size_bytes, hva, gmem)
        for slot in self.layout.slots:
            block = self.blocks[slot.block]
            mem = KvmUserspaceMemoryRegion2(
                slot.id,
                KVM_MEM_GUEST_MEMFD,
                slot.gpa,
                slot.size_bytes,
                block.hva + slot.gmem_offset,
                block.gmem,
                slot.gmem_offset,
            )
            ret = main.kvm_vm_ioctl_set_memory_region(kvm, mem)
            if not ret and self.host.params.vm_memory_attributes:
                ret = main.kvm_vm_ioctl_set_memory_attributes(
                    kvm, slot.gpa, slot.size_bytes, KVM_MEMORY_ATTRIBUTE_PRIVATE
                )
            if ret:
                return ret
        return 0

    def add_image(self) -> int:
        """The HOB, the vCPUs' initial state, the firmware's sections, KVM_TDX_FINALIZE_VM."""
        main = self.host.main
        machine = self.host.machine
        firmware = self.layout.firmware
        hob_address = firmware.hob_section.memory_address
        for vcpu, context in zip(self.vcpus, self.contexts, strict=True):
            cmd = KvmTdxCmd(KVM_TDX_INIT_VCPU, data=hob_address)
            ret = main.kvm_vcpu_ioctl_mem_enc_op(vcpu, cmd)
            if ret:
                return ret
            assert vcpu.tdx.tdvpr_page is not None
            machine.guest_contexts[vcpu.tdx.tdvpr_page] = context
        sections = firmware.sections
        for section in sections:
            ret = self.add_section(section)
            if ret:
                return ret
        return main.kvm_vm_ioctl_mem_enc_op(self.vm(), KvmTdxCmd(KVM_TDX_FINALIZE_VM))

    def add_section(self, section: TdvfSection) -> int:
        """KVM_TDX_INIT_MEM_REGION of one section out of a buffer; again after -EAGAIN, -EINTR."""
        mm = self.host.mm
        size_bytes = section.memory_size
        buffer = mm.mmap(size_bytes)
        if section.type == SectionType.TD_HOB:
            data = self.layout.hob_bytes()
        else:
            data = b"".join(page for _, page in self.layout.firmware.pages(section))
        if not mm.copy_to_user_memory(buffer, data):
            mm.madvise_dontneed(buffer, size_bytes)
            return -EFAULT
        region = KvmTdxInitMemRegion(buffer, section.memory_address, size_bytes // PAGE_SIZE)
        measure = section.measured and not self.config.two_pass
        flags = KVM_TDX_MEASURE_MEMORY_REGION if measure else 0
        vcpu = self.vcpus[0]
        while True:
            cmd = KvmTdxCmd(KVM_TDX_INIT_MEM_REGION, flags, region)
            ret = self.host.main.kvm_vcpu_ioctl_mem_enc_op(vcpu, cmd)
            if ret not in (-EAGAIN, -EINTR):
                break
        mm.madvise_dontneed(buffer, size_bytes)
        if not ret and section.measured and self.config.two_pass:
            return self.host.tdx.tdx_vcpu_extend_mem_region(
                vcpu, section.memory_address, size_bytes // PAGE_SIZE
            )
        return ret

    # Conversion

    def range_at(self, gpa: int) -> RamRange | None:
        """The RAM range that holds `gpa`."""
        for ram in self.layout.ram:
            if ram.gpa <= gpa < ram.end:
                return ram
        return None

    def convert_memory(
        self, gpa: int, size_bytes: int, to_private: bool, cause: str = "program"
    ) -> int:
        """kvm_convert_memory() because of `cause`: 0 or an error. The trace shows it."""
        ret = self.kvm_convert_memory(gpa, size_bytes, to_private)
        if self.sim.tracing:
            task = self.sim.current
            self.sim.emit(
                ConversionEvent(
                    task.time_ns, task.name, task.cpu, gpa, size_bytes, to_private, cause, ret
                )
            )
        return ret

    def kvm_convert_memory(self, gpa: int, size_bytes: int, to_private: bool) -> int:
        """0 or an error.

        What has no RAM is shared already, as the firmware says of MMIO; it cannot be private.
        """
        if gpa % PAGE_SIZE or size_bytes % PAGE_SIZE or not size_bytes:
            return -EINVAL
        ram = self.range_at(gpa)
        if ram is None:
            return -EINVAL if to_private else 0
        block = self.blocks.get(ram.block)
        if block is None:
            return -EBADF  # another thread has closed it
        offset = ram.block_offset + gpa - ram.gpa
        attributes = KVM_MEMORY_ATTRIBUTE_PRIVATE if to_private else 0
        if not self.host.params.vm_memory_attributes:
            attrs = KvmMemoryAttributes2(offset, size_bytes, attributes)
            ret = self.host.gmem.kvm_gmem_set_attributes(block.gmem, attrs)
            if not ret and to_private and not self.config.in_place:
                self.host.mm.madvise_dontneed(block.hva + offset, size_bytes)
            return ret
        main = self.host.main
        if self.kvm is None:
            return -EBADF
        ret = main.kvm_vm_ioctl_set_memory_attributes(self.kvm, gpa, size_bytes, attributes)
        if ret:
            return ret
        return self.discard(block, offset, size_bytes, to_private)

    def discard(self, block: RamBlock, offset: int, size_bytes: int, to_private: bool) -> int:
        """Give back the half that is not used any more: shared pages, or a hole in guest_memfd."""
        if to_private:
            self.host.mm.madvise_dontneed(block.hva + offset, size_bytes)
            return 0
        if BACKINGS[self.config.backing][1] and block.name == "pc.ram":
            # A hole of less than a huge page is -EINVAL there; QEMU carries on with a warning.
            page_size = PAGE_SIZE << BACKINGS[self.config.backing][1]
            if offset % page_size or size_bytes % page_size:
                return 0
        return self.host.gmem.kvm_gmem_fallocate(
            block.gmem, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, offset, size_bytes
        )


class VcpuThread:
    """kvm_cpu_exec() of one vCPU."""

    __slots__ = ("vcpu", "vmm")

    def __init__(self, vmm: Vmm, vcpu: KvmVcpu) -> None:
        self.vmm = vmm
        self.vcpu = vcpu

    def run(self) -> None:
        """The KVM_RUN loop."""
        vmm = self.vmm
        while not vmm.stop_reason:
            ret = vmm.host.main.kvm_vcpu_ioctl_run(self.vcpu)
            if vmm.stop_reason:
                break
            self.handle(ret)
        vmm.nr_running -= 1
        vmm.wq.wake_up_all()

    def handle(self, ret: int) -> None:
        """What KVM_RUN came back with."""
        vmm = self.vmm
        run = self.vcpu.run
        if ret in (-EINTR, -EAGAIN):
            self.vcpu.signal_pending = False
            return
        if ret < 0 and not (ret == -EFAULT and run.exit_reason == KVM_EXIT_MEMORY_FAULT):
            why = f" ({run.text})" if run.text else ""
            vmm.stop(f"vCPU {self.vcpu.vcpu_id}: KVM_RUN failed: {errno_name(ret)}{why}")
            return
        reason = run.exit_reason
        name = KVM_EXIT_NAMES.get(reason, str(reason))
        vmm.exits[name] = vmm.exits.get(name, 0) + 1
        if reason == KVM_EXIT_HYPERCALL:
            self.map_gpa_range()
        elif reason == KVM_EXIT_MEMORY_FAULT:
            self.memory_fault()
        elif reason == KVM_EXIT_IO:
            self.port_io()
        elif reason == KVM_EXIT_TDX:
            run.ret = tdvmcall.TDVMCALL_STATUS_SUCCESS
        elif reason == KVM_EXIT_MMIO:
            pass
        elif reason == KVM_EXIT_SYSTEM_EVENT:
            vmm.stop(f"vCPU {self.vcpu.vcpu_id}: the guest reported a fatal error")
        elif reason == KVM_EXIT_SHUTDOWN:
            vmm.stop(f"vCPU {self.vcpu.vcpu_id}: triple fault")
        else:
            vmm.stop(f"vCPU {self.vcpu.vcpu_id}: exit {name} {run.text}".rstrip())

    def map_gpa_range(self) -> None:
        """KVM_EXIT_HYPERCALL(KVM_HC_MAP_GPA_RANGE)."""
        _, gpa, npages, flags = self.vcpu.run.hypercall
        to_private = flags & KVM_MAP_GPA_RANGE_ENCRYPTED != 0
        ret = self.vmm.convert_memory(gpa, npages * PAGE_SIZE, to_private, "map_gpa")
        if ret == -EAGAIN:
            self.vcpu.run.ret = EAGAIN
        elif ret < 0:
            self.vcpu.run.ret = EINVAL
            self.vmm.exits["failed conversion"] = self.vmm.exits.get("failed conversion", 0) + 1

    def memory_fault(self) -> None:
        """KVM_EXIT_MEMORY_FAULT: an access of the other kind is an implicit conversion."""
        run = self.vcpu.run
        to_private = run.flags & KVM_MEMORY_EXIT_FLAG_PRIVATE != 0
        ret = self.vmm.convert_memory(run.gpa, run.size_bytes, to_private, "memory_fault")
        if ret < 0 and ret != -EAGAIN:
            self.vmm.stop(
                f"vCPU {self.vcpu.vcpu_id}: conversion after a memory fault at {run.gpa:#x}"
                f" failed: {errno_name(ret)}"
            )

    def port_io(self) -> None:
        """The two ports that matter: ACPI power-off and the guest's reports."""
        vmm = self.vmm
        port, _, write, value = self.vcpu.run.io
        if not write:
            return
        if port == tdvmcall.PORT_ACPI_PM1A_CNT and value == tdvmcall.ACPI_S5_SLEEP:
            vmm.stop(STOP_SHUTDOWN)
        elif port == tdvmcall.PORT_DEBUG_EXIT:
            vmm.reports.append(value)
            if vmm.on_report is not None:
                vmm.on_report(value)
