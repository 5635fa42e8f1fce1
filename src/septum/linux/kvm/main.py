"""virt/kvm/kvm_main.c: VMs and vCPUs come and go, and the ioctls of their file descriptors.

`main_requests` has requests and kicks, `main_slots` memory slots, `main_attrs` memory attributes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.errno import EEXIST, EINTR, EINVAL, EIO, ENOMEM
from septum.abi.kvm import KVM_X86_TDX_VM
from septum.linux.kvm.main_attrs import MainAttrs
from septum.linux.kvm.main_slots import KvmUserspaceMemoryRegion2
from septum.linux.kvm.types import Kvm, KvmArch, KvmTdx, KvmVcpu
from septum.linux.srcu import Srcu
from septum.sim import Mutex, RwLock, SpinLock, WaitQueue

if TYPE_CHECKING:
    from septum.linux.kvm.tdx_defs import KvmTdxCmd
    from septum.linux.kvm.types import GmemFile

KVM_MAX_VCPUS = 4096

__all__ = ["KvmMain", "KvmUserspaceMemoryRegion2"]


class KvmMain(MainAttrs):
    """virt/kvm/kvm_main.c."""

    __slots__ = ()

    # VMs

    def kvm_create_vm(self, vm_type: int = KVM_X86_TDX_VM) -> tuple[int, Kvm | None]:
        """KVM_CREATE_VM: (errno, VM). The caller's fd holds the first reference."""
        if vm_type != KVM_X86_TDX_VM or not self.host.params.tdx:
            return -EINVAL, None
        if self.host.mm.fails("kvm_create_vm"):
            return -ENOMEM, None
        sim = self.sim
        vm_id = self.state.next_vm_id
        self.state.next_vm_id += 1
        name = f"vm{vm_id}"
        kvm = Kvm(
            self.host,
            vm_id,
            KvmArch(vm_type),
            KvmTdx(SpinLock(sim, f"{name} prealloc_split_cache_lock")),
            Mutex(sim, f"{name} lock"),
            Mutex(sim, f"{name} slots_lock"),
            Mutex(sim, f"{name} slots_arch_lock"),
            RwLock(sim, f"{name} mmu_lock"),
            Srcu(sim, f"{name} srcu"),
        )
        kvm.max_vcpus = KVM_MAX_VCPUS
        ret = self.host.mmu.kvm_mmu_init_vm(kvm)
        if ret:
            return ret, None
        ret = self.host.tdx.tdx_vm_init(kvm)
        if ret:
            self.host.mmu.kvm_mmu_uninit_vm(kvm)
            return ret, None
        self.host.kvms[vm_id] = kvm
        return 0, kvm

    def kvm_get_kvm(self, kvm: Kvm) -> None:
        """One more user of the VM."""
        kvm.users_count += 1

    def kvm_put_kvm(self, kvm: Kvm) -> None:
        """One less; the last destroys it."""
        kvm.users_count -= 1
        if not kvm.users_count:
            self.kvm_destroy_vm(kvm)

    def kvm_destroy_vm(self, kvm: Kvm) -> None:
        """Every fd is closed: release the key, the page tables, the vCPUs, the TD."""
        mmu = self.host.mmu
        tdx = self.host.tdx
        # kvm_arch_pre_destroy_vm()
        tdx.tdx_mmu_release_hkid(kvm)
        del self.host.kvms[kvm.id]
        # mmu_notifier_unregister() calls the release notifier.
        mmu.kvm_arch_flush_shadow_all(kvm)
        # No end comes any more to an MMU notifier's invalidation that has begun.
        if kvm.mn_active_invalidate_count:
            kvm.mn_active_invalidate_count = 0
        elif kvm.mmu_invalidate_in_progress:
            self.warn_on("an invalidation is in progress", "kvm_destroy_vm")
        # kvm_arch_destroy_vm()
        vcpus = tuple(kvm.vcpus)
        for vcpu in vcpus:
            self.host.x86.kvm_arch_vcpu_destroy(vcpu)
        kvm.vcpus = []
        mmu.kvm_mmu_uninit_vm(kvm)
        tdx.tdx_vm_destroy(kvm)
        # kvm_free_memslots()
        for slot in list(kvm.memslots.values()):
            self.kvm_free_memslot(slot)
        kvm.memslots = {}

    def kvm_vm_release(self, kvm: Kvm) -> None:
        """The VM's fd is closed."""
        self.kvm_put_kvm(kvm)

    # vCPUs

    def kvm_lock_all_vcpus(self, kvm: Kvm) -> None:
        """kvm_lock_all_vcpus(): waits until no vCPU runs.

        MODEL: no error; the kernel's is -EINTR when the process is killed meanwhile.
        """
        self.lockdep_assert(kvm.lock.held(), "kvm->lock not held", "kvm_lock_all_vcpus")
        vcpus = tuple(kvm.vcpus)
        for vcpu in vcpus:
            vcpu.mutex.lock()

    def kvm_unlock_all_vcpus(self, kvm: Kvm) -> None:
        """kvm_unlock_all_vcpus()."""
        self.lockdep_assert(kvm.lock.held(), "kvm->lock not held", "kvm_unlock_all_vcpus")
        for vcpu in kvm.vcpus:
            vcpu.mutex.unlock()

    def vcpu_load(self, vcpu: KvmVcpu) -> None:
        """The current thread works with the vCPU, on the CPU it runs on."""
        task = self.sim.current
        self.state.running_vcpu[task.index] = vcpu
        self.host.tdx.tdx_vcpu_load(vcpu, task.cpu)
        vcpu.cpu = task.cpu

    def vcpu_put(self, vcpu: KvmVcpu) -> None:
        """The current thread is done with the vCPU."""
        self.state.running_vcpu.pop(self.sim.current.index, None)

    def kvm_vm_ioctl_create_vcpu(self, kvm: Kvm, vcpu_id: int) -> tuple[int, KvmVcpu | None]:
        """KVM_CREATE_VCPU: (errno, vCPU). Its fd holds a reference to the VM."""
        if kvm.vm_dead:
            return -EIO, None
        if not 0 <= vcpu_id < KVM_MAX_VCPUS:
            return -EINVAL, None
        with kvm.lock:
            if kvm.created_vcpus >= kvm.max_vcpus:
                return -EINVAL, None
            kvm.created_vcpus += 1
        ret, vcpu = self._create_vcpu(kvm, vcpu_id)
        if vcpu is None:
            with kvm.lock:
                kvm.created_vcpus -= 1
        return ret, vcpu

    def _create_vcpu(self, kvm: Kvm, vcpu_id: int) -> tuple[int, KvmVcpu | None]:
        if self.host.mm.fails("kvm_vcpu"):
            return -ENOMEM, None
        name = f"vm{kvm.id} vcpu{vcpu_id}"
        vcpu = KvmVcpu(
            kvm,
            vcpu_id,
            -1,
            Mutex(self.sim, f"{name} mutex"),
            WaitQueue(self.sim, f"an event that wakes {name} from HLT"),
        )
        ret = self.host.x86.kvm_arch_vcpu_create(vcpu)
        if ret:
            return ret, None
        with kvm.lock:
            if any(other.vcpu_id == vcpu_id for other in kvm.vcpus):
                self.host.x86.kvm_arch_vcpu_destroy(vcpu)
                return -EEXIST, None
            self.kvm_get_kvm(kvm)
            kvm.vcpus.append(vcpu)
        return 0, vcpu

    def kvm_vcpu_release(self, vcpu: KvmVcpu) -> None:
        """The vCPU's fd is closed."""
        self.kvm_put_kvm(vcpu.kvm)

    # VM ioctls. Every one is -EIO once the VM is dead.

    def kvm_vm_ioctl_enable_split_irqchip(self, kvm: Kvm) -> int:
        """KVM_ENABLE_CAP(KVM_CAP_SPLIT_IRQCHIP)."""
        if kvm.vm_dead:
            return -EIO
        if kvm.created_vcpus:
            return -EINVAL
        kvm.arch.irqchip_split = True
        return 0

    def kvm_vm_ioctl_enable_exit_hypercall(self, kvm: Kvm, mask: int) -> int:
        """KVM_ENABLE_CAP(KVM_CAP_EXIT_HYPERCALL)."""
        if kvm.vm_dead:
            return -EIO
        kvm.arch.hypercall_exit_enabled = mask
        return 0

    def kvm_vm_ioctl_set_memory_region(self, kvm: Kvm, mem: KvmUserspaceMemoryRegion2) -> int:
        """KVM_SET_USER_MEMORY_REGION2."""
        if kvm.vm_dead:
            return -EIO
        with kvm.slots_lock:
            ret = self.kvm_set_memory_region(kvm, mem)
        f, mem.delayed_fput = mem.delayed_fput, None
        if f is not None:
            self.host.gmem.fput(f)
        return ret

    def kvm_vm_ioctl_set_memory_attributes(
        self, kvm: Kvm, address: int, size: int, attributes: int
    ) -> int:
        """KVM_SET_MEMORY_ATTRIBUTES."""
        if kvm.vm_dead:
            return -EIO
        return self.kvm_vm_ioctl_set_mem_attributes(kvm, address, size, attributes)

    def kvm_vm_ioctl_create_guest_memfd(
        self, kvm: Kvm, size: int, flags: int = 0, page_order: int = 0
    ) -> tuple[int, GmemFile | None]:
        """KVM_CREATE_GUEST_MEMFD."""
        if kvm.vm_dead:
            return -EIO, None
        return self.host.gmem.kvm_gmem_create(kvm, size, flags, page_order)

    def kvm_vm_ioctl_mem_enc_op(self, kvm: Kvm, cmd: KvmTdxCmd) -> int:
        """KVM_MEMORY_ENCRYPT_OP on a VM."""
        if kvm.vm_dead:
            return -EIO
        return self.host.tdx.tdx_vm_ioctl(kvm, cmd)

    # vCPU ioctls

    def kvm_vcpu_ioctl_mem_enc_op(self, vcpu: KvmVcpu, cmd: KvmTdxCmd) -> int:
        """KVM_MEMORY_ENCRYPT_OP on a vCPU: the unlocked kind, which takes all the locks."""
        if vcpu.kvm.vm_dead:
            return -EIO
        return self.host.tdx.tdx_vcpu_unlocked_ioctl(vcpu, cmd)

    def kvm_vcpu_ioctl_run(self, vcpu: KvmVcpu) -> int:
        """KVM_RUN: 0 with an exit reason in `vcpu.run`, or an error."""
        if vcpu.kvm.vm_dead:
            return -EIO
        with vcpu.mutex:
            return self.host.x86.kvm_arch_vcpu_ioctl_run(vcpu)

    def kvm_vcpu_ioctl_pre_fault_memory(
        self, vcpu: KvmVcpu, gpa: int, size: int, flags: int = 0
    ) -> tuple[int, int, int]:
        """KVM_PRE_FAULT_MEMORY: (errno, gpa, size) with what is left to do."""
        if vcpu.kvm.vm_dead:
            return -EIO, gpa, size
        with vcpu.mutex:
            return self._pre_fault_memory(vcpu, gpa, size, flags)

    def _pre_fault_memory(
        self, vcpu: KvmVcpu, gpa: int, size: int, flags: int
    ) -> tuple[int, int, int]:
        # The end wraps, as u64 do.
        if flags or gpa % 4096 or size % 4096 or (gpa + size) % (1 << 64) <= gpa:
            return -EINVAL, gpa, size
        self.vcpu_load(vcpu)
        idx = vcpu.kvm.srcu.read_lock()
        full_size = size
        ret = 0
        while size:
            if vcpu.signal_pending:
                ret = -EINTR
                break
            ret = self.host.mmu.kvm_arch_vcpu_pre_fault_memory(vcpu, gpa, size)
            if ret in (0, -EIO):
                self.warn_on_once(f"a fault came to {ret}", "kvm_vcpu_pre_fault_memory")
            if ret <= 0:
                break
            gpa += ret
            size -= ret
            ret = 0
            self.sim.point("cond_resched")
        vcpu.kvm.srcu.read_unlock(idx)
        self.vcpu_put(vcpu)
        return (0 if size != full_size else ret), gpa, size

    def signal_vcpu_thread(self, vcpu: KvmVcpu) -> None:
        """Send a signal to the thread that runs the vCPU, as a VMM does to get it out of KVM_RUN:
        KVM_RUN returns -EINTR until user space clears `signal_pending`."""
        vcpu.signal_pending = True
        self.kvm_vcpu_kick(vcpu)
