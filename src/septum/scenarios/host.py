"""Threads of a VMM: the ioctls and system calls that a scenario makes from user space."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.errno import EBADF, EEXIST, EFAULT, EINTR, ESRCH, errno_name
from septum.abi.kvm import KVM_MEMORY_ATTRIBUTE_PRIVATE
from septum.abi.types import PAGE_SHIFT, PAGE_SIZE
from septum.linux.kvm.gmem_attrs import KvmMemoryAttributes2
from septum.linux.kvm.gmem_range import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE
from septum.scenarios.guest import token_word
from septum.scenarios.results import OK, SIGBUS
from septum.scenarios.vmm import RAM_BLOCK
from septum.sim import ALTERNATIVE
from septum.vmm.qemu import STOP_SHUTDOWN

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from septum.linux.host import Host
    from septum.linux.kvm.types import GmemFile, KvmVcpu
    from septum.linux.mm.folio import Folio
    from septum.scenarios.ops import Op
    from septum.scenarios.record import Record
    from septum.scenarios.vmm import ScenarioVmm


def ret_word(ret: int) -> str:
    """`ok`, `-EINVAL`; a positive value as the number that it is."""
    return errno_name(ret) if ret else OK


class HostThread:
    """Runs `ops` on behalf of the VMMs, one after the other.

    `files_may_go`: programs close files or end processes. Only then it matters that a call holds
    the file that it is made on, and a process its memory, until it returns.
    """

    __slots__ = ("actor", "files_may_go", "host", "ops", "record", "vmms")

    def __init__(
        self,
        actor: str,
        host: Host,
        vmms: Mapping[str, ScenarioVmm],
        ops: Sequence[Op],
        record: Record,
        *,
        files_may_go: bool = False,
    ) -> None:
        self.actor = actor
        self.files_may_go = files_may_go
        self.host = host
        self.vmms = vmms
        self.ops = ops
        self.record = record

    def run(self) -> None:
        """All of them."""
        nr_ops = len(self.ops)
        for number in range(nr_ops):
            op = self.ops[number]
            if op.alternatives:
                name = f"{ALTERNATIVE}{self.actor}.{number}"
                op = op.alternatives[self.host.sim.choose(name, len(op.alternatives))]
            self.record.begin(self.actor, op)
            result = self.do(op)
            self.record.end(self.actor, op, result)

    def do(self, op: Op) -> str:
        """One operation; its result in a word."""
        vmm = self.vmms[op.vm] if op.vm else next(iter(self.vmms.values()))
        if not self.files_may_go or op.verb in ("destroy", "signal", "wait"):
            return _DO[op.verb](self, op, vmm)
        vmm.nr_calls += 1
        result = _DO[op.verb](self, op, vmm)
        vmm.nr_calls -= 1
        if vmm.stop_reason:
            vmm.wq.wake_up_all()
        return result

    def _on_file(self, f: GmemFile, call: Callable[[], int]) -> int:
        """A system call on a guest_memfd, which stays open meanwhile: fdget() and fdput()."""
        if not self.files_may_go:
            return call()
        f.f_count += 1
        ret = call()
        self.host.gmem.fput(f)
        return ret

    # Private memory

    def convert(self, op: Op, vmm: ScenarioVmm) -> str:
        """As QEMU does: attributes, then the half that is not used any more is given back."""
        if vmm.ram is None:
            return ret_word(-EBADF)
        gpa, size = self._range(op, vmm)
        gmem = vmm.ram.gmem
        return ret_word(self._on_file(gmem, lambda: vmm.convert_memory(gpa, size, op.to_private)))

    def set_attributes(self, op: Op, vmm: ScenarioVmm) -> str:
        """The ioctl that converts, and nothing else."""
        attributes = KVM_MEMORY_ATTRIBUTE_PRIVATE if op.to_private else 0
        gpa, size = self._range(op, vmm)
        if self.host.params.vm_memory_attributes:
            if vmm.kvm is None:
                return ret_word(-EBADF)
            main = self.host.main
            ret = main.kvm_vm_ioctl_set_memory_attributes(vmm.kvm, gpa, size, attributes)
            return ret_word(ret)
        if vmm.ram is None:
            return ret_word(-EBADF)
        attrs = KvmMemoryAttributes2(op.area.offset(vmm.vm_spec.gpa), size, attributes)
        gmem, set_attributes = vmm.ram.gmem, self.host.gmem.kvm_gmem_set_attributes
        ret = self._on_file(gmem, lambda: set_attributes(gmem, attrs))
        at = f" at page {attrs.error_offset >> PAGE_SHIFT}" if ret and attrs.error_offset else ""
        return ret_word(ret) + at

    def punch(self, op: Op, vmm: ScenarioVmm) -> str:
        """fallocate(FALLOC_FL_PUNCH_HOLE)."""
        return self._fallocate(op, vmm, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE)

    def allocate(self, op: Op, vmm: ScenarioVmm) -> str:
        """fallocate()."""
        return self._fallocate(op, vmm, FALLOC_FL_KEEP_SIZE)

    def _fallocate(self, op: Op, vmm: ScenarioVmm, mode: int) -> str:
        if vmm.ram is None:
            return ret_word(-EBADF)
        _, size = self._range(op, vmm)
        offset = op.area.offset(vmm.vm_spec.gpa)
        gmem, fallocate = vmm.ram.gmem, self.host.gmem.kvm_gmem_fallocate
        return ret_word(self._on_file(gmem, lambda: fallocate(gmem, mode, offset, size)))

    def prefault(self, op: Op, vmm: ScenarioVmm) -> str:
        """KVM_PRE_FAULT_MEMORY until all is done or it fails: `-ENOENT, 4K left`."""
        gpa, size = self._range(op, vmm)
        vcpu = self._vcpu(op, vmm)
        if vcpu is None:
            return ret_word(-EBADF)
        while size:
            ret, gpa, size = self.host.main.kvm_vcpu_ioctl_pre_fault_memory(vcpu, gpa, size)
            if ret == -EINTR:
                vcpu.signal_pending = False
            elif ret:
                return f"{ret_word(ret)}, {size >> 10}K left"
        return OK

    def fail(self, op: Op, vmm: ScenarioVmm) -> str:
        """A memory failure of the first page. It knows of the inode, and holds no file."""
        if vmm.ram is None:
            return ret_word(-EBADF)
        self.host.gmem.memory_failure(vmm.ram.gmem.inode, self._index(op, vmm))
        return OK

    # Slots, files, VMs

    def delete_slot(self, op: Op, vmm: ScenarioVmm) -> str:
        """KVM_SET_USER_MEMORY_REGION2 with size 0."""
        return self._set_region(op, vmm, delete=True)

    def create_slot(self, op: Op, vmm: ScenarioVmm) -> str:
        """The slot as it was at the beginning; a plain one has no guest_memfd."""
        return self._set_region(op, vmm, delete=False)

    def _set_region(self, op: Op, vmm: ScenarioVmm, *, delete: bool) -> str:
        kvm = vmm.kvm
        mem = vmm.region(op.number, delete)
        if mem is None or kvm is None:
            return ret_word(-EBADF)
        if op.shared:
            mem.flags = 0
            mem.guest_memfd = None
        ret = self.host.main.kvm_vm_ioctl_set_memory_region(kvm, mem)
        self.record.wq.wake_up_all()
        return ret_word(ret)

    def close(self, op: Op, vmm: ScenarioVmm) -> str:
        """close() of the guest_memfd, or of the VM and its vCPUs, which the memory outlives."""
        if op.name == "vm":
            vmm.stop(STOP_SHUTDOWN)
            self.record.wq.wake_up_all()
            vmm.wait()
            vmm.close_vm()
            return OK
        block = vmm.blocks.pop(RAM_BLOCK, None)
        if block is None:
            return ret_word(-EBADF)
        vmm.closed.append(block)
        self.host.gmem.fput(block.gmem)
        return OK

    def destroy_vm(self, op: Op, vmm: ScenarioVmm) -> str:
        """The process is killed: its threads leave, then everything is closed."""
        vmm.stop(STOP_SHUTDOWN)
        self.record.wq.wake_up_all()
        vmm.wait()
        vmm.wq.wait_event(lambda: not vmm.nr_calls)
        vmm.exit()
        return OK

    def build_vm(self, op: Op, vmm: ScenarioVmm) -> str:
        """All ioctls up to KVM_TDX_FINALIZE_VM; when one fails, the process exits."""
        if vmm.kvm is not None:
            return ret_word(-EEXIST)
        vmm.nr_running += 1
        ret = vmm.build()
        if ret:
            vmm.fatal.clear()
            if not vmm.stop_reason:  # who kills the process closes all that there is
                vmm.exit()
        vmm.nr_running -= 1
        vmm.wq.wake_up_all()
        return ret_word(ret)

    def interrupt(self, op: Op, vmm: ScenarioVmm) -> str:
        """A signal for the vCPU's thread: KVM_RUN returns -EINTR."""
        vcpu = self._vcpu(op, vmm)
        if vcpu is None:
            return ret_word(-ESRCH)
        self.host.main.signal_vcpu_thread(vcpu)
        return OK

    def wake(self, op: Op, vmm: ScenarioVmm) -> str:
        """A device's interrupt for the guest."""
        vcpu = self._vcpu(op, vmm)
        if vcpu is None:
            return ret_word(-EBADF)
        self.host.x86.kvm_apic_set_irq(vcpu)
        return OK

    # Shared memory

    def _pages(self, op: Op, vmm: ScenarioVmm) -> range:
        first = self._index(op, vmm)
        return range(first, first + (op.area.size(vmm.vm_spec.memory_bytes) >> PAGE_SHIFT))

    def _user_pfn(self, vmm: ScenarioVmm, index: int) -> int:
        """What an access of user space to the page finds: its PFN, or an error (SIGBUS)."""
        block = vmm.ram
        if block is None:
            return -EBADF
        if vmm.config.in_place:
            return self.host.gmem.kvm_gmem_fault_user_mapping(block.gmem.inode, index)
        pfn = self.host.mm.get_user_page(block.hva + (index << PAGE_SHIFT))
        return -EFAULT if pfn is None else pfn

    def access(self, op: Op, vmm: ScenarioVmm) -> str:
        """Read, write or touch through the VMM's mapping; what it reads is zero or a token."""
        tokens: set[int] = set()
        mem = self.host.machine.mem
        pages = self._pages(op, vmm)
        for index in pages:
            pfn = self._user_pfn(vmm, index)
            if pfn < 0:
                return SIGBUS
            if op.verb == "write":
                mem.write(pfn, 0, max(op.token, 0))
            else:
                tokens.add(mem.read(pfn, 0))
        return token_word(tokens) if op.verb == "read" else OK

    def discard(self, op: Op, vmm: ScenarioVmm) -> str:
        """madvise(MADV_DONTNEED) of memory that is not in guest_memfd."""
        if vmm.ram is None:
            return ret_word(-EBADF)
        _, size = self._range(op, vmm)
        at = vmm.ram.hva + op.area.offset(vmm.vm_spec.gpa)
        self.host.mm.madvise_dontneed(at, size)
        return OK

    def pin(self, op: Op, vmm: ScenarioVmm) -> str:
        """GUP by a driver, for DMA: the page must be in user space's mapping."""
        if vmm.ram is None or not vmm.config.in_place:
            return ret_word(-EFAULT)
        index = self._index(op, vmm)
        if self._user_pfn(vmm, index) < 0:
            return ret_word(-EFAULT)
        self.host.gmem.pin_user_page(vmm.ram.gmem.inode, index)
        return OK

    def unpin(self, op: Op, vmm: ScenarioVmm) -> str:
        """The driver is done with the page."""
        if vmm.ram is None:
            return ret_word(-EBADF)
        inode = vmm.ram.gmem.inode
        index = self._index(op, vmm)
        if index not in inode.pins:
            return ret_word(-EFAULT)
        folio: Folio | None = self.host.gmem.filemap_get_folio(inode, index)
        if folio is None:
            return ret_word(-EFAULT)
        self.host.mm.folio_put(folio)  # the look-up's
        self.host.gmem.unpin_user_page(inode, index, folio)
        return OK

    # Among programs

    def signal(self, op: Op, vmm: ScenarioVmm) -> str:
        """Raise a flag."""
        self.record.raise_flag(op.name)
        return OK

    def wait(self, op: Op, vmm: ScenarioVmm) -> str:
        """Wait for a flag, or for the end of the VM."""
        flags = self.record.flags
        self.record.wq.wait_event(lambda: op.name in flags or bool(vmm.stop_reason))
        return OK

    def _vcpu(self, op: Op, vmm: ScenarioVmm) -> KvmVcpu | None:
        """The vCPU that is named; None where there is none yet, or none any more."""
        return vmm.vcpus[op.number] if op.number < len(vmm.vcpus) else None

    def _index(self, op: Op, vmm: ScenarioVmm) -> int:
        return op.area.offset(vmm.vm_spec.gpa) // PAGE_SIZE

    def _range(self, op: Op, vmm: ScenarioVmm) -> tuple[int, int]:
        spec = vmm.vm_spec
        return op.area.gpa(spec.gpa), op.area.size(spec.memory_bytes)


_DO: dict[str, Callable[[HostThread, Op, ScenarioVmm], str]] = {
    "convert": HostThread.convert,
    "set-attributes": HostThread.set_attributes,
    "punch": HostThread.punch,
    "allocate": HostThread.allocate,
    "prefault": HostThread.prefault,
    "fail": HostThread.fail,
    "delete": HostThread.delete_slot,
    "create": HostThread.create_slot,
    "close": HostThread.close,
    "destroy": HostThread.destroy_vm,
    "build": HostThread.build_vm,
    "interrupt": HostThread.interrupt,
    "wake": HostThread.wake,
    "write": HostThread.access,
    "read": HostThread.access,
    "touch": HostThread.access,
    "discard": HostThread.discard,
    "pin": HostThread.pin,
    "unpin": HostThread.unpin,
    "signal": HostThread.signal,
    "wait": HostThread.wait,
}
