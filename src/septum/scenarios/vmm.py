"""The VMM of a scenario: QEMU's in small, with a VM that has just what the scenario says."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from septum.abi.errno import EBADF
from septum.abi.kvm import (
    GUEST_MEMFD_FLAG_INIT_SHARED,
    GUEST_MEMFD_FLAG_MMAP,
    KVM_EXIT_MEMORY_FAULT,
    KVM_MEM_GUEST_MEMFD,
    KVM_MEMORY_ATTRIBUTE_PRIVATE,
    KVM_MEMORY_EXIT_FLAG_PRIVATE,
)
from septum.abi.tdvf import MR_EXTEND, Footer, SectionType, TdvfImage, TdvfSection
from septum.abi.types import PAGE_SIZE
from septum.linux.kvm.main import KvmUserspaceMemoryRegion2
from septum.sim import Coroutine
from septum.vmm.layout import GuestLayout, RamRange, Slot
from septum.vmm.qemu import BACKINGS, RamBlock, VcpuThread, Vmm, VmmConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from septum.guest.tdcpu import TdGuestCpu
    from septum.linux.host import Host
    from septum.linux.kvm.types import Kvm, KvmVcpu
    from septum.scenarios.area import Area
    from septum.scenarios.record import Record
    from septum.scenarios.scenario import Vm

RAM_BLOCK = "pc.ram"
BIOS_SIZE = 64 << 10
BIOS_GPA = (1 << 32) - BIOS_SIZE


@cache
def _firmware(image: tuple[tuple[int, int], ...]) -> TdvfImage:
    """Two pages that every TD needs, and those of the scenario's image, as (GPA, bytes)."""
    last = BIOS_SIZE - PAGE_SIZE
    sections = [
        TdvfSection(last, PAGE_SIZE, BIOS_GPA + last, PAGE_SIZE, SectionType.BFV, MR_EXTEND),
        TdvfSection(0, 0, BIOS_GPA, PAGE_SIZE, SectionType.TD_HOB),
    ]
    sections += [TdvfSection(0, 0, gpa, size, SectionType.TEMP_MEM) for gpa, size in image]
    return TdvfImage("scenario", bytes(BIOS_SIZE), 0, Footer.GUIDED_TABLE, True, tuple(sections))


def layout_of(vm: Vm) -> GuestLayout:
    """The scenario's memory, cut into its slots, and the firmware's below 4 GiB."""

    def bytes_of(area: Area) -> tuple[int, int]:
        return area.gpa(vm.gpa), area.size(vm.memory_bytes)

    ram = (
        RamRange("ram", vm.gpa, vm.memory_bytes, RAM_BLOCK, 0),
        RamRange("bios", BIOS_GPA, BIOS_SIZE, "pc.bios", 0),
    )
    slots: list[Slot] = []
    offset = 0
    for size in vm.slots:
        slots.append(Slot(len(slots), vm.gpa + offset, size, RAM_BLOCK, offset))
        offset += size
    slots.append(Slot(len(slots), BIOS_GPA, BIOS_SIZE, "pc.bios", 0))
    firmware = _firmware(tuple(bytes_of(area) for area in vm.image))
    return GuestLayout(vm.memory_bytes, firmware, ram, tuple(slots), (), ())


class ScenarioVmm(Vmm):
    """A VMM whose memory may be that of another VM, too."""

    __slots__ = ("closed", "guest_cpus", "lender", "nr_calls", "record", "vm_spec")

    def __init__(
        self,
        host: Host,
        vm: Vm,
        record: Record,
        guest_cpus: list[TdGuestCpu],
        cpus: list[int],
        main_cpu: int,
        lender: ScenarioVmm | None,
    ) -> None:
        config = VmmConfig(
            backing=vm.shape.backing,
            in_place=vm.shape.in_place,
            sept_ve_disable=not vm.shape.ve,
        )
        contexts = [cpu.context for cpu in guest_cpus]
        super().__init__(host, vm.name, config, layout_of(vm), contexts, cpus, main_cpu)
        self.vm_spec = vm
        self.record = record
        self.guest_cpus = guest_cpus
        self.lender = lender
        # Blocks whose guest_memfd user space has closed: the shared memory is still mapped.
        self.closed: list[RamBlock] = []
        self.nr_calls = 0  # threads that do something; counted where processes may be killed

    def create_memory(self) -> int:
        """A guest_memfd for each block, or a file of its own of the other VM's inode; slots."""
        main = self.host.main
        kvm = self.vm()
        for name, size_bytes in self.layout.block_sizes.items():
            ret, block = self._create_block(kvm, name, size_bytes)
            if block is None:
                return ret
            self.blocks[name] = block
        for slot in self.layout.slots:
            mem = self.region(slot.id, delete=False)
            if mem is None:
                return -EBADF  # another thread has closed the memory
            ret = main.kvm_vm_ioctl_set_memory_region(kvm, mem)
            if not ret and self.host.params.vm_memory_attributes:
                ret = main.kvm_vm_ioctl_set_memory_attributes(
                    kvm, slot.gpa, slot.size_bytes, KVM_MEMORY_ATTRIBUTE_PRIVATE
                )
            if ret:
                return ret
        return 0

    def _create_block(self, kvm: Kvm, name: str, size_bytes: int) -> tuple[int, RamBlock | None]:
        flags = page_order = 0
        if name == RAM_BLOCK:
            if self.lender is not None:
                lent = self.lender.blocks.get(name)
                if lent is None:
                    return -EBADF, None  # another thread has closed it
                gmem = self.host.gmem.kvm_gmem_link(kvm, lent.gmem.inode)
                return 0, RamBlock(name, lent.size_bytes, lent.hva, gmem)
            flags, page_order = BACKINGS[self.config.backing]
            if self.config.in_place:
                flags |= GUEST_MEMFD_FLAG_MMAP
            if self.vm_spec.shape.init_shared:
                flags |= GUEST_MEMFD_FLAG_INIT_SHARED
        size_bytes = -(-size_bytes >> (12 + page_order)) << (12 + page_order)
        ret, file = self.host.main.kvm_vm_ioctl_create_guest_memfd(
            kvm, size_bytes, flags, page_order
        )
        if file is None:
            return ret, None
        return 0, RamBlock(name, size_bytes, self.host.mm.mmap(size_bytes), file)

    @property
    def ram(self) -> RamBlock | None:
        """The VM's memory; None once user space has closed it."""
        return self.blocks.get(RAM_BLOCK)

    def region(self, number: int, delete: bool) -> KvmUserspaceMemoryRegion2 | None:
        """What KVM_SET_USER_MEMORY_REGION2 is given for a slot; None without memory for it."""
        slot = self.layout.slots[number]
        if delete:
            return KvmUserspaceMemoryRegion2(slot.id, 0, slot.gpa, 0)
        block = self.blocks.get(slot.block)
        if block is None:
            return None
        return KvmUserspaceMemoryRegion2(
            slot.id,
            KVM_MEM_GUEST_MEMFD,
            slot.gpa,
            slot.size_bytes,
            block.hva + slot.gmem_offset,
            block.gmem,
            slot.gmem_offset,
        )

    def exit(self) -> None:
        """The process ends; what it has closed by itself is not closed again."""
        for block in self.closed:
            self.host.mm.madvise_dontneed(block.hva, block.size_bytes)
        self.closed.clear()
        self.teardown()

    def threads(self, indexes: list[int]) -> list[ScenarioVcpu]:
        """Threads for some vCPUs; each must be spawned."""
        self.nr_running += len(indexes)
        return [ScenarioVcpu(self, self.vcpus[index]) for index in indexes]

    def renew_guest(self) -> None:
        """Every vCPU waits for more to do: give it a new stack, which goes on from its state."""
        for cpu in self.guest_cpus:
            context = cpu.context
            context.coroutine.kill()
            context.coroutine = Coroutine(context.name, _program(cpu))


def _program(cpu: TdGuestCpu) -> Callable[[], None]:
    return lambda: cpu.guest.run(cpu)


class ScenarioVcpu(VcpuThread):
    """KVM_RUN until the guest has nothing left to do."""

    __slots__ = ("paused",)

    vmm: ScenarioVmm

    def __init__(self, vmm: ScenarioVmm, vcpu: KvmVcpu) -> None:
        super().__init__(vmm, vcpu)
        self.paused = False

    def run(self) -> None:
        """The KVM_RUN loop."""
        vmm = self.vmm
        while not vmm.stop_reason and not self.paused:
            ret = vmm.host.main.kvm_vcpu_ioctl_run(self.vcpu)
            if vmm.stop_reason:
                break
            self.handle(ret)
        vmm.nr_running -= 1
        vmm.wq.wake_up_all()
        vmm.record.wq.wake_up_all()

    def port_io(self) -> None:
        """The guest's report: its program is done."""
        self.paused = True

    def memory_fault(self) -> None:
        """An access of the other kind is an implicit conversion; one without a slot waits for
        the slot to come back."""
        vmm = self.vmm
        run = self.vcpu.run
        assert run.exit_reason == KVM_EXIT_MEMORY_FAULT
        kind = "private" if run.flags & KVM_MEMORY_EXIT_FLAG_PRIVATE else "shared"
        page = (run.gpa - vmm.vm_spec.gpa) // PAGE_SIZE
        size = "" if run.size_bytes == PAGE_SIZE else f" {run.size_bytes >> 10}K"
        vmm.record.memory_fault(f"{kind} page {page}{size}")
        if vmm.vm_spec.shape.on_fault == "stop":
            self.paused = True
            return
        main = vmm.host.main
        gfn = run.gpa // PAGE_SIZE
        if main.gfn_to_memslot(vmm.vm(), gfn) is None:
            vmm.record.wq.wait_event(
                lambda: bool(vmm.stop_reason) or main.gfn_to_memslot(vmm.vm(), gfn) is not None
            )
            return
        super().memory_fault()
