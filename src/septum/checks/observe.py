"""Where the host tells the checks what user space asks of it: its user ABI, and each VM exit.

`observed_units` puts a thin layer over any design's units. A method there calls the design's own
and tells the observer before and after; it changes nothing, and costs a call per ioctl.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from septum.abi.errno import EAGAIN
from septum.abi.exitqual import EXIT_REASON_EPT_VIOLATION
from septum.abi.kvm import KVM_MEMORY_ATTRIBUTE_PRIVATE, KVM_X86_TDX_VM
from septum.checks.operation import Aim, gmem_spans, vm_spans
from septum.checks.pieces import piece_at
from septum.linux.kvm.gmem_range import FALLOC_FL_PUNCH_HOLE, MAX_INDEX
from septum.linux.kvm.guest_memfd import GuestMemfd
from septum.linux.kvm.main import KvmMain
from septum.linux.kvm.mmu import KvmMmu
from septum.linux.kvm.tdp_mmu import TdpMmu
from septum.linux.kvm.x86 import KvmX86

if TYPE_CHECKING:
    from collections.abc import Callable

    from septum.checks.checker import Checker
    from septum.checks.operation import Operation, Spans
    from septum.linux.host import Host, HostUnits
    from septum.linux.kvm.gmem_attrs import KvmMemoryAttributes2
    from septum.linux.kvm.main import KvmUserspaceMemoryRegion2
    from septum.linux.kvm.tdx_defs import KvmTdxCmd
    from septum.linux.kvm.types import GmemFile, GmemInode, Kvm, KvmMemorySlot, KvmVcpu
    from septum.linux.unit import Unit
    from septum.machine import TablePage

U = TypeVar("U", bound="Unit")
R = TypeVar("R")


class _MainHooks(KvmMain):
    """ioctls of VMs and vCPUs."""

    __slots__ = ()

    def kvm_create_vm(self, vm_type: int = KVM_X86_TDX_VM) -> tuple[int, Kvm | None]:
        return _returns(self, "KVM_CREATE_VM", super().kvm_create_vm(vm_type))

    def kvm_vm_ioctl_create_vcpu(self, kvm: Kvm, vcpu_id: int) -> tuple[int, KvmVcpu | None]:
        result = super().kvm_vm_ioctl_create_vcpu(kvm, vcpu_id)
        return _returns(self, "KVM_CREATE_VCPU", result)

    def kvm_vm_ioctl_create_guest_memfd(
        self, kvm: Kvm, size: int, flags: int = 0, page_order: int = 0
    ) -> tuple[int, GmemFile | None]:
        result = super().kvm_vm_ioctl_create_guest_memfd(kvm, size, flags, page_order)
        return _returns(self, "KVM_CREATE_GUEST_MEMFD", result)

    def kvm_vm_ioctl_set_memory_attributes(
        self, kvm: Kvm, address: int, size: int, attributes: int
    ) -> int:
        spans = vm_spans(kvm, [(address >> 12, address + size >> 12)])
        private = attributes & KVM_MEMORY_ATTRIBUTE_PRIVATE != 0
        aim = Aim.TO_PRIVATE if private else Aim.TO_SHARED
        op = _begin(self, "KVM_SET_MEMORY_ATTRIBUTES", spans, aim)
        ret = super().kvm_vm_ioctl_set_memory_attributes(kvm, address, size, attributes)
        return _end(self, op, ret)

    def kvm_vm_ioctl_set_memory_region(self, kvm: Kvm, mem: KvmUserspaceMemoryRegion2) -> int:
        slot = kvm.memslots.get(mem.slot)
        gone = slot if not mem.memory_size else None
        spans = vm_spans(kvm, [(gone.base_gfn, gone.end_gfn)] if gone is not None else [])
        aim = Aim.TAKE if gone is not None else Aim.NEITHER
        op = _begin(self, "KVM_SET_USER_MEMORY_REGION2", spans, aim)
        return _end(self, op, super().kvm_vm_ioctl_set_memory_region(kvm, mem))

    def kvm_vm_ioctl_mem_enc_op(self, kvm: Kvm, cmd: KvmTdxCmd) -> int:
        ret = super().kvm_vm_ioctl_mem_enc_op(kvm, cmd)
        return _quiet(self, "KVM_MEMORY_ENCRYPT_OP", ret)

    def kvm_vcpu_ioctl_mem_enc_op(self, vcpu: KvmVcpu, cmd: KvmTdxCmd) -> int:
        ret = super().kvm_vcpu_ioctl_mem_enc_op(vcpu, cmd)
        return _quiet(self, "KVM_MEMORY_ENCRYPT_OP", ret)

    def kvm_vcpu_ioctl_run(self, vcpu: KvmVcpu) -> int:
        return _quiet(self, "KVM_RUN", super().kvm_vcpu_ioctl_run(vcpu))

    def kvm_vcpu_ioctl_pre_fault_memory(
        self, vcpu: KvmVcpu, gpa: int, size: int, flags: int = 0
    ) -> tuple[int, int, int]:
        result = super().kvm_vcpu_ioctl_pre_fault_memory(vcpu, gpa, size, flags)
        observer = _observer_of(self)
        if observer is not None:
            observer.returned("KVM_PRE_FAULT_MEMORY")
            spans = vm_spans(vcpu.kvm, [(gpa >> 12, gpa + size >> 12)])
            observer.quiet_point("KVM_PRE_FAULT_MEMORY", spans)
        return result

    def kvm_destroy_vm(self, kvm: Kvm) -> None:
        super().kvm_destroy_vm(kvm)
        observer = _observer_of(self)
        if observer is not None:
            observer.vm_destroyed(kvm)

    def kvm_vm_release(self, kvm: Kvm) -> None:
        super().kvm_vm_release(kvm)
        _quiet(self, "close of the VM", 0)

    def kvm_vcpu_release(self, vcpu: KvmVcpu) -> None:
        super().kvm_vcpu_release(vcpu)
        _quiet(self, "close of a vCPU", 0)


class _GmemHooks(GuestMemfd):
    """ioctl, fallocate and close of guest_memfd, memory failures; and slots that are given it."""

    __slots__ = ()

    def kvm_gmem_bind(self, kvm: Kvm, slot: KvmMemorySlot, f: GmemFile, offset: int) -> int:
        ret = super().kvm_gmem_bind(kvm, slot, f, offset)
        observer = _observer_of(self)
        if observer is not None:
            observer.slot_bound()
        return ret

    def kvm_gmem_set_attributes(self, f: GmemFile, attrs: KvmMemoryAttributes2) -> int:
        start, end = attrs.offset >> 12, attrs.offset + attrs.size >> 12
        private = attrs.attributes & KVM_MEMORY_ATTRIBUTE_PRIVATE != 0
        named = partial(gmem_spans, f.inode, start, end)
        aim = Aim.TO_PRIVATE_AFRESH if private else Aim.TO_SHARED
        op = _begin(self, "KVM_SET_MEMORY_ATTRIBUTES2", named(), aim, named)
        ret = super().kvm_gmem_set_attributes(f, attrs)
        if ret and op is not None:
            # One huge page is converted after the other. Those before the one with the reported
            # offset have been; of that one nothing has, also where the offset is not where it
            # begins, but that of the page that somebody holds: references are looked at before
            # anything changes but host page tables.
            stopped_at = attrs.error_offset >> 12
            if ret == -EAGAIN:
                stopped_at -= stopped_at % self._kvm_gmem_batch_size(f.inode)
            left = gmem_spans(f.inode, max(start, stopped_at), end)
            op.kept = {n: left[n].intersect(spans) for n, spans in op.kept.items() if n in left}
        return _end(self, op, ret)

    def kvm_gmem_fallocate(self, f: GmemFile, mode: int, offset: int, length: int) -> int:
        hole = bool(mode & FALLOC_FL_PUNCH_HOLE)
        named = partial(gmem_spans, f.inode, offset >> 12, offset + length >> 12)
        name = "fallocate(PUNCH_HOLE)" if hole else "fallocate"
        op = _begin(self, name, named(), Aim.TAKE if hole else Aim.NEITHER, named)
        ret = super().kvm_gmem_fallocate(f, mode, offset, length)
        return _end(self, op, ret)

    def kvm_gmem_release(self, f: GmemFile) -> None:
        named = partial(gmem_spans, f.inode, 0, MAX_INDEX, f)
        op = _begin(self, "close of a guest_memfd", named(), Aim.TAKE, named)
        super().kvm_gmem_release(f)
        _end(self, op, 0)

    def kvm_gmem_error_folio(self, inode: GmemInode, index: int) -> int:
        piece = piece_at(inode, index)
        start, end = index, index + 1
        if piece is not None:
            start = index & -piece[1]
            end = start + piece[1]
        named = partial(gmem_spans, inode, start, end)
        op = _begin(self, "memory failure", named(), Aim.TAKE, named)
        ret = super().kvm_gmem_error_folio(inode, index)
        _end(self, op, 0)
        return ret


class _X86Hooks(KvmX86):
    """VM exits."""

    __slots__ = ()

    def vcpu_enter_guest(self, vcpu: KvmVcpu) -> int:
        ret = super().vcpu_enter_guest(vcpu)
        if vcpu.tdx.exit_reason == EXIT_REASON_EPT_VIOLATION:
            observer = _observer_of(self)
            if observer is not None:
                observer.ept_violation_handled(vcpu)
        return ret


class _TdpMmuHooks(TdpMmu):
    """Entries that are written under mmu_lock for writing: the mirror first, then the S-EPT."""

    __slots__ = ()

    def tdp_mmu_set_spte(
        self,
        kvm: Kvm,
        table: TablePage,
        index: int,
        old_spte: int,
        new_spte: int,
        gfn: int,
        level: int,
    ) -> int:
        observer = _observer_of(self)
        if observer is None or not self.is_mirror_sptep(table):
            return super().tdp_mmu_set_spte(kvm, table, index, old_spte, new_spte, gfn, level)
        observer.entry_changes(kvm, gfn, level)
        ret = super().tdp_mmu_set_spte(kvm, table, index, old_spte, new_spte, gfn, level)
        observer.entry_changed(kvm, gfn, level)
        return ret


class _MmuHooks(KvmMmu):
    """Faults, also those that are tried again without leaving KVM."""

    __slots__ = ()

    def kvm_mmu_do_page_fault(
        self, vcpu: KvmVcpu, cr2_or_gpa: int, err: int, prefetch: bool
    ) -> tuple[int, int]:
        result = super().kvm_mmu_do_page_fault(vcpu, cr2_or_gpa, err, prefetch)
        observer = _observer_of(self)
        if observer is not None:
            observer.fault_tried(vcpu, cr2_or_gpa, result[0])
        return result


def _observer_of(unit: Unit) -> Checker | None:
    observer: Checker | None = getattr(unit, "observer", None)
    return observer


def _begin(
    unit: Unit, name: str, spans: Spans, aim: Aim, named: Callable[[], Spans] | None = None
) -> Operation | None:
    observer = _observer_of(unit)
    return observer.operation_begin(name, spans, aim, named) if observer is not None else None


def _end(unit: Unit, op: Operation | None, ret: int) -> int:
    observer = _observer_of(unit)
    if observer is not None and op is not None:
        observer.operation_end(op, ret)
    return ret


def _quiet(unit: Unit, where: str, ret: int) -> int:
    observer = _observer_of(unit)
    if observer is not None:
        observer.returned(where)
        observer.quiet_point(where)
    return ret


def _returns(unit: Unit, name: str, result: R) -> R:
    observer = _observer_of(unit)
    if observer is not None:
        observer.returned(name)
    return result


def _with_hooks(hooks: type[U], unit: type[U]) -> type[U]:
    """`unit` under the layer of `hooks`: what the design overrides is called by the layer."""
    return type(f"Observed{unit.__name__}", (hooks, unit), {"__slots__": ("observer",)})


def observed_units(units: HostUnits) -> HostUnits:
    """The design's units, which tell a checker (see `Checker.start`) what user space asks."""
    return replace(
        units,
        main=_with_hooks(_MainHooks, units.main),
        gmem=_with_hooks(_GmemHooks, units.gmem),
        x86=_with_hooks(_X86Hooks, units.x86),
        mmu=_with_hooks(_MmuHooks, units.mmu),
        tdp_mmu=_with_hooks(_TdpMmuHooks, units.tdp_mmu),
    )


def attach(host: Host, observer: Checker | None) -> bool:
    """Let `observer` be told. False when the host was not built with `observed_units`."""
    layers = (
        (host.main, _MainHooks),
        (host.gmem, _GmemHooks),
        (host.x86, _X86Hooks),
        (host.mmu, _MmuHooks),
        (host.tdp_mmu, _TdpMmuHooks),
    )
    if not all(isinstance(unit, hooks) for unit, hooks in layers):
        return False
    for unit, _ in layers:
        # attach() has just made sure that each unit has the layer, and so the slot.
        unit.observer = observer  # type: ignore[union-attr]
    return True
