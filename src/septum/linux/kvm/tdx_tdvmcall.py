"""TDG.VP.VMCALL: what a guest asks its host for.

MapGPA goes to user space in pieces of 2 MB counted from its start. Source: vmx/tdx.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.errno import EAGAIN, EINVAL
from septum.abi.features import MD_FIELD_ID_VCPU_STATE_DETAILS, VCPU_STATE_DETAILS_VMXIP
from septum.abi.kvm import (
    KVM_EXIT_HYPERCALL,
    KVM_EXIT_IO,
    KVM_EXIT_MMIO,
    KVM_EXIT_SYSTEM_EVENT,
    KVM_EXIT_TDX,
    KVM_HC_MAP_GPA_RANGE,
    KVM_MAP_GPA_RANGE_ENCRYPTED,
)
from septum.abi.regs import Regs
from septum.abi.tdvmcall import (
    TDVMCALL_GET_QUOTE,
    TDVMCALL_MAP_GPA,
    TDVMCALL_REPORT_FATAL_ERROR,
    TDVMCALL_STATUS_ALIGN_ERROR,
    TDVMCALL_STATUS_INVALID_OPERAND,
    TDVMCALL_STATUS_RETRY,
    TDVMCALL_STATUS_SUCCESS,
)
from septum.abi.types import PAGE_SHIFT, PAGE_SIZE
from septum.linux.kvm.events import KvmHypercall
from septum.linux.kvm.tdx_defs import (
    COMPLETE_GET_TD_VM_CALL_INFO,
    COMPLETE_HYPERCALL,
    COMPLETE_IO_IN,
    COMPLETE_IO_OUT,
    COMPLETE_MAP_GPA,
    COMPLETE_MMIO_READ,
    COMPLETE_TDX_SIMPLE,
    EXIT_REASON_CPUID,
    EXIT_REASON_HLT,
    EXIT_REASON_MSR_READ,
    KVM_MAP_GPA_RANGE_DECRYPTED,
    KVM_SYSTEM_EVENT_TDX_FATAL,
    TDVMCALL_GET_TD_VM_CALL_INFO,
    TDVMCALL_SETUP_EVENT_NOTIFY_INTERRUPT,
    TDVMCALL_STATUS_SUBFUNC_UNSUPPORTED,
    TDX_MAP_GPA_MAX_LEN,
)
from septum.linux.kvm.tdx_fault import TdxFault
from septum.linux.kvm.types import IN_GUEST_MODE

if TYPE_CHECKING:
    from septum.linux.kvm.types import KvmVcpu


def enter_regs(vcpu: KvmVcpu) -> Regs:
    """tdx->vp_enter_args: the registers of the last exit and the next entry."""
    regs = vcpu.tdx.vp_enter_regs
    assert isinstance(regs, Regs)
    return regs


class TdxTdvmcall(TdxFault):
    """TDVMCALLs and the completion of their user-space exits."""

    __slots__ = ()

    def tdvmcall_exit_type(self, vcpu: KvmVcpu) -> int:
        """0: a GHCI call; otherwise a vendor hypercall."""
        return enter_regs(vcpu).r10

    def tdvmcall_leaf(self, vcpu: KvmVcpu) -> int:
        """The GHCI sub-function."""
        return enter_regs(vcpu).r11

    def tdvmcall_set_return_code(self, vcpu: KvmVcpu, value: int) -> None:
        """R10 of the guest after the call."""
        enter_regs(vcpu).r10 = value & (1 << 64) - 1

    def tdvmcall_set_return_val(self, vcpu: KvmVcpu, value: int) -> None:
        """R11 of the guest after the call."""
        enter_regs(vcpu).r11 = value

    def tdx_interrupt_allowed(self, vcpu: KvmVcpu) -> bool:
        """A guest that halts with interrupts blocked is not woken by them."""
        return vcpu.tdx.exit_reason != EXIT_REASON_HLT or not enter_regs(vcpu).r12

    def tdx_protected_apic_has_interrupt(self, vcpu: KvmVcpu) -> bool:
        """Whether an interrupt is posted, or in the virtual APIC of a guest that has just halted.

        A guest executes HLT with interrupts off, so an interrupt that came before is still there.
        A failing TDH.VP.RD bugs the VM and counts as no interrupt.
        """
        if vcpu.pi_desc.on:
            return True
        if vcpu.tdx.exit_reason != EXIT_REASON_HLT or enter_regs(vcpu).r12:
            return False
        err, details, _ = self.host.x86_tdx.tdh_vp_rd(vcpu.tdx, MD_FIELD_ID_VCPU_STATE_DETAILS)
        if self.tdx_bug_on(err, "TDH_VP_RD", vcpu.kvm):
            return False
        return details & VCPU_STATE_DETAILS_VMXIP != 0

    def tdx_deliver_interrupt(self, vcpu: KvmVcpu) -> None:
        """x86 op deliver_interrupt: post it, then notify the guest that runs or wake the vCPU.

        Source: vmx/common.h __vmx_deliver_posted_interrupt, kvm_vcpu_trigger_posted_interrupt.
        """
        desc = vcpu.pi_desc
        if desc.on:
            return
        desc.on = True
        self.sim.point("vcpu->mode")
        if vcpu.mode == IN_GUEST_MODE:
            self.machine.notify_posted(vcpu.cpu, desc)
        else:
            self.host.main.kvm_vcpu_wake_up(vcpu)

    # MapGPA

    def tdx_map_gpa(self, vcpu: KvmVcpu) -> int:
        """TDVMCALL<MapGPA>: R12 the GPA, whose shared bit is the wish, R13 the size."""
        regs = enter_regs(vcpu)
        kvm = vcpu.kvm
        gpa = regs.r12
        size = regs.r13
        if not kvm.arch.hypercall_exit_enabled & 1 << KVM_HC_MAP_GPA_RANGE:
            return self._map_gpa_error(vcpu, gpa, TDVMCALL_STATUS_SUBFUNC_UNSUPPORTED)
        end = gpa + size
        limit = kvm.arch.gfn_direct_bits << PAGE_SHIFT << 1
        if (
            not size
            or end >= 1 << 64
            or gpa >= limit
            or end - 1 >= limit
            or self.vt_is_tdx_private_gpa(kvm, gpa) != self.vt_is_tdx_private_gpa(kvm, end - 1)
        ):
            return self._map_gpa_error(vcpu, gpa, TDVMCALL_STATUS_INVALID_OPERAND)
        if gpa % PAGE_SIZE or size % PAGE_SIZE:
            return self._map_gpa_error(vcpu, gpa, TDVMCALL_STATUS_ALIGN_ERROR)
        vcpu.tdx.map_gpa_end = end
        vcpu.tdx.map_gpa_next = gpa
        self._exit_to_map_gpa(vcpu)
        return 0

    def _map_gpa_error(self, vcpu: KvmVcpu, gpa: int, status: int) -> int:
        self.tdvmcall_set_return_code(vcpu, status)
        self.tdvmcall_set_return_val(vcpu, gpa)
        return 1

    def _exit_to_map_gpa(self, vcpu: KvmVcpu) -> None:
        """__tdx_map_gpa(): hand the next piece to user space."""
        tdx = vcpu.tdx
        kvm = vcpu.kvm
        gpa = tdx.map_gpa_next
        size = min(tdx.map_gpa_end - gpa, TDX_MAP_GPA_MAX_LEN)
        private = self.vt_is_tdx_private_gpa(kvm, gpa)
        run = vcpu.run
        run.exit_reason = KVM_EXIT_HYPERCALL
        run.ret = 0
        run.hypercall = (
            KVM_HC_MAP_GPA_RANGE,
            gpa & ~(kvm.arch.gfn_direct_bits << PAGE_SHIFT),
            size // PAGE_SIZE,
            KVM_MAP_GPA_RANGE_ENCRYPTED if private else KVM_MAP_GPA_RANGE_DECRYPTED,
        )
        vcpu.complete_userspace_io = COMPLETE_MAP_GPA

    def tdx_complete_vmcall_map_gpa(self, vcpu: KvmVcpu) -> int:
        """User space has done a piece: the next one, or back to the guest.

        MODEL: -EAGAIN and -EINVAL of user space are told apart, as commit 3e2dec1ede0a (2026-03)
        does. In 6.19-rc any answer but 0 is INVALID_OPERAND to the guest, so that user space has to
        try again itself.
        """
        tdx = vcpu.tdx
        ret = vcpu.run.ret
        if ret == 0:
            tdx.map_gpa_next += TDX_MAP_GPA_MAX_LEN
            if tdx.map_gpa_next >= tdx.map_gpa_end:
                # R10 still is the 0 that the guest passed as the exit type: success.
                return 1
            # Let a pending interrupt in between pieces.
            if not self.host.main.kvm_vcpu_has_events(vcpu):
                self._exit_to_map_gpa(vcpu)
                return 0
            status = TDVMCALL_STATUS_RETRY
        elif ret == EAGAIN:
            status = TDVMCALL_STATUS_RETRY
        elif ret == EINVAL:
            status = TDVMCALL_STATUS_INVALID_OPERAND
        else:
            return -EINVAL
        return self._map_gpa_error(vcpu, tdx.map_gpa_next, status)

    # Others

    def tdx_report_fatal_error(self, vcpu: KvmVcpu) -> int:
        """TDVMCALL<ReportFatalError>: user space is told, and usually ends the VM."""
        regs = enter_regs(vcpu)
        run = vcpu.run
        run.exit_reason = KVM_EXIT_SYSTEM_EVENT
        run.flags = KVM_SYSTEM_EVENT_TDX_FATAL
        run.data = [regs.rax, regs.rcx, regs.rdx, regs.rbx, 0, 0, regs.rsi, regs.rdi]
        run.data += [regs.r8, regs.r9, regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15]
        return 0

    def tdx_get_td_vm_call_info(self, vcpu: KvmVcpu) -> int:
        """TDVMCALL<GetTdVmCallInfo>: sub-leaf 0 is KVM's, 1 is what user space adds to it."""
        regs = enter_regs(vcpu)
        if regs.r12 == 1:
            ret = self._tdx_user_exit(vcpu, TDVMCALL_GET_TD_VM_CALL_INFO, [1, 0, 0, 0, 0])
            vcpu.run.ret = TDVMCALL_STATUS_SUCCESS
            vcpu.complete_userspace_io = COMPLETE_GET_TD_VM_CALL_INFO
            return ret
        if regs.r12:
            self.tdvmcall_set_return_code(vcpu, TDVMCALL_STATUS_INVALID_OPERAND)
            return 1
        regs.r11 = regs.r12 = regs.r13 = regs.r14 = 0
        self.tdvmcall_set_return_code(vcpu, TDVMCALL_STATUS_SUCCESS)
        return 1

    def _tdx_user_exit(self, vcpu: KvmVcpu, nr: int, data: list[int]) -> int:
        """KVM_EXIT_TDX; user space's answer goes to R10."""
        run = vcpu.run
        run.exit_reason = KVM_EXIT_TDX
        run.flags = nr
        run.data = data
        run.ret = TDVMCALL_STATUS_SUBFUNC_UNSUPPORTED
        vcpu.complete_userspace_io = COMPLETE_TDX_SIMPLE
        return 0

    def tdx_get_quote(self, vcpu: KvmVcpu) -> int:
        """TDVMCALL<GetQuote>: the buffer must be shared."""
        regs = enter_regs(vcpu)
        gpa = regs.r12
        if self.vt_is_tdx_private_gpa(vcpu.kvm, gpa):
            self.tdvmcall_set_return_code(vcpu, TDVMCALL_STATUS_INVALID_OPERAND)
            return 1
        gpa &= ~(vcpu.kvm.arch.gfn_direct_bits << PAGE_SHIFT)
        return self._tdx_user_exit(vcpu, TDVMCALL_GET_QUOTE, [gpa, regs.r13])

    def tdx_setup_event_notify_interrupt(self, vcpu: KvmVcpu) -> int:
        """TDVMCALL<SetupEventNotifyInterrupt>."""
        vector = enter_regs(vcpu).r12
        if not 32 <= vector <= 255:
            self.tdvmcall_set_return_code(vcpu, TDVMCALL_STATUS_INVALID_OPERAND)
            return 1
        return self._tdx_user_exit(vcpu, TDVMCALL_SETUP_EVENT_NOTIFY_INTERRUPT, [vector])

    def handle_tdvmcall(self, vcpu: KvmVcpu) -> int:
        """The GHCI calls that stand for no instruction."""
        leaf = self.tdvmcall_leaf(vcpu)
        if leaf == TDVMCALL_MAP_GPA:
            return self.tdx_map_gpa(vcpu)
        if leaf == TDVMCALL_REPORT_FATAL_ERROR:
            return self.tdx_report_fatal_error(vcpu)
        if leaf == TDVMCALL_GET_TD_VM_CALL_INFO:
            return self.tdx_get_td_vm_call_info(vcpu)
        if leaf == TDVMCALL_GET_QUOTE:
            return self.tdx_get_quote(vcpu)
        if leaf == TDVMCALL_SETUP_EVENT_NOTIFY_INTERRUPT:
            return self.tdx_setup_event_notify_interrupt(vcpu)
        self.tdvmcall_set_return_code(vcpu, TDVMCALL_STATUS_SUBFUNC_UNSUPPORTED)
        return 1

    def tdx_emulate_vmcall(self, vcpu: KvmVcpu) -> int:
        """A KVM hypercall: KVM_HC_MAP_GPA_RANGE goes to user space, others are unknown."""
        regs = enter_regs(vcpu)
        nr, a0, a1, a2 = regs.r10, regs.r11, regs.r12, regs.r13
        if self.sim.tracing:
            task = self.sim.current
            at = (task.time_ns, task.name, task.cpu)
            self.sim.emit(KvmHypercall(*at, nr, a0, a1, a2, regs.r14))
        enabled = vcpu.kvm.arch.hypercall_exit_enabled & 1 << KVM_HC_MAP_GPA_RANGE
        if nr != KVM_HC_MAP_GPA_RANGE or not enabled:
            self.tdvmcall_set_return_code(vcpu, -1000)  # -KVM_ENOSYS
            return 1
        if a0 % PAGE_SIZE or not a1 or (a0 >> PAGE_SHIFT) + a1 >= 1 << 64:
            self.tdvmcall_set_return_code(vcpu, -EINVAL)
            return 1
        vcpu.run.exit_reason = KVM_EXIT_HYPERCALL
        vcpu.run.ret = 0
        vcpu.run.hypercall = (nr, a0, a1, a2)
        vcpu.complete_userspace_io = COMPLETE_HYPERCALL
        return 0

    def tdx_emulate_io(self, vcpu: KvmVcpu) -> int:
        """TDVMCALL<Instruction.IO>: R12 bytes, R13 is write, R14 port, R15 value."""
        regs = enter_regs(vcpu)
        size, write, port = regs.r12, regs.r13, regs.r14
        if write not in (0, 1) or size not in (1, 2, 4):
            self.tdvmcall_set_return_code(vcpu, TDVMCALL_STATUS_INVALID_OPERAND)
            return 1
        vcpu.run.exit_reason = KVM_EXIT_IO
        vcpu.run.io = (port, size, write, regs.r15 if write else 0)
        vcpu.complete_userspace_io = COMPLETE_IO_OUT if write else COMPLETE_IO_IN
        return 0

    def tdx_emulate_mmio(self, vcpu: KvmVcpu) -> int:
        """TDVMCALL<#VE.RequestMMIO>: R12 bytes, R13 is write, R14 GPA, R15 value."""
        regs = enter_regs(vcpu)
        size, write, gpa = regs.r12, regs.r13, regs.r14
        if (
            size not in (1, 2, 4, 8)
            or write not in (0, 1)
            or self.vt_is_tdx_private_gpa(vcpu.kvm, gpa)
            or self.vt_is_tdx_private_gpa(vcpu.kvm, gpa + size - 1)
        ):
            self.tdvmcall_set_return_code(vcpu, TDVMCALL_STATUS_INVALID_OPERAND)
            return 1
        vcpu.run.exit_reason = KVM_EXIT_MMIO
        vcpu.run.gpa = gpa & ~(vcpu.kvm.arch.gfn_direct_bits << PAGE_SHIFT)
        vcpu.run.io = (vcpu.run.gpa, size, write, regs.r15 if write else 0)
        if not write:
            vcpu.complete_userspace_io = COMPLETE_MMIO_READ
        return 0

    def tdx_emulate_instruction(self, vcpu: KvmVcpu, exit_reason: int) -> int:
        """CPUID, RDMSR, WRMSR. MODEL: CPUID and MSRs read as 0, writes are ignored."""
        regs = enter_regs(vcpu)
        if exit_reason == EXIT_REASON_CPUID:
            regs.r12 = regs.r13 = regs.r14 = regs.r15 = 0
        elif exit_reason == EXIT_REASON_MSR_READ:
            self.tdvmcall_set_return_val(vcpu, 0)
        return 1

    # Completions

    def complete_userspace_io(self, vcpu: KvmVcpu, which: int) -> int:
        """Run vcpu->arch.complete_userspace_io: > 0 go on into the guest, 0 exit again."""
        run = vcpu.run
        if which == COMPLETE_MAP_GPA:
            return self.tdx_complete_vmcall_map_gpa(vcpu)
        if which in (COMPLETE_HYPERCALL, COMPLETE_TDX_SIMPLE):
            self.tdvmcall_set_return_code(vcpu, run.ret)
        elif which == COMPLETE_GET_TD_VM_CALL_INFO:
            regs = enter_regs(vcpu)
            self.tdvmcall_set_return_code(vcpu, run.ret)
            _, regs.r11, regs.r12, regs.r13, regs.r14 = run.data
        elif which in (COMPLETE_IO_IN, COMPLETE_MMIO_READ):
            self.tdvmcall_set_return_val(vcpu, run.io[3])
        return 1
