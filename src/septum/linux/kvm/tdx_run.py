"""Running a TD's vCPU: load, TDH.VP.ENTER, and what an exit means.

Source: vmx/tdx.c tdx_vcpu_load(), tdx_vcpu_run(), tdx_handle_exit().
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.errno import EINVAL, EIO
from septum.abi.kvm import KVM_EXIT_FAIL_ENTRY, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_SHUTDOWN
from septum.abi.regs import Regs
from septum.abi.status import (
    STATUS_MASK,
    TDX_NON_RECOVERABLE_TD,
    TDX_NON_RECOVERABLE_TD_NON_ACCESSIBLE,
    TDX_NON_RECOVERABLE_TD_WRONG_APIC_MODE,
    TDX_NON_RECOVERABLE_VCPU,
    TDX_SUCCESS,
    TDX_SW_ERROR,
    status_name,
)
from septum.linux.kvm.events import KvmEntry, KvmExit
from septum.linux.kvm.tdx_base import is_hkid_assigned, tdx_operand_busy
from septum.linux.kvm.tdx_defs import (
    EXIT_FASTPATH_EXIT_HANDLED,
    EXIT_FASTPATH_NONE,
    EXIT_REASON_CPUID,
    EXIT_REASON_EPT_MISCONFIG,
    EXIT_REASON_EPT_VIOLATION,
    EXIT_REASON_EXCEPTION_NMI,
    EXIT_REASON_EXTERNAL_INTERRUPT,
    EXIT_REASON_HLT,
    EXIT_REASON_IO_INSTRUCTION,
    EXIT_REASON_MSR_READ,
    EXIT_REASON_MSR_WRITE,
    EXIT_REASON_NAMES,
    EXIT_REASON_NONE,
    EXIT_REASON_OTHER_SMI,
    EXIT_REASON_TDCALL,
    EXIT_REASON_TRIPLE_FAULT,
    EXIT_REASON_VMCALL,
    TD_STATE_RUNNABLE,
    VCPU_TD_STATE_INITIALIZED,
)
from septum.linux.kvm.tdx_tdvmcall import TdxTdvmcall
from septum.linux.x86.state import TDX_ERROR, TDX_NON_RECOVERABLE

if TYPE_CHECKING:
    from septum.linux.kvm.types import KvmVcpu

# Statuses of TDH.VP.ENTER whose low half is a VMX exit reason.
_EXITS = frozenset(
    {
        TDX_SUCCESS,
        TDX_NON_RECOVERABLE_VCPU,
        TDX_NON_RECOVERABLE_TD,
        TDX_NON_RECOVERABLE_TD_NON_ACCESSIBLE,
        TDX_NON_RECOVERABLE_TD_WRONG_APIC_MODE,
    }
)
_TDVMCALL_EXITS = frozenset(
    {
        EXIT_REASON_CPUID,
        EXIT_REASON_HLT,
        EXIT_REASON_IO_INSTRUCTION,
        EXIT_REASON_MSR_READ,
        EXIT_REASON_MSR_WRITE,
    }
)


class TdxRun(TdxTdvmcall):
    """The vCPU loop's TDX side."""

    __slots__ = ()

    def tdx_vcpu_pre_run(self, vcpu: KvmVcpu) -> int:
        """x86 op vcpu_pre_run: 1, or -EINVAL before the TD is built."""
        if vcpu.tdx.state != VCPU_TD_STATE_INITIALIZED or (vcpu.kvm.tdx.state != TD_STATE_RUNNABLE):
            return -EINVAL
        return 1

    def tdx_vcpu_load(self, vcpu: KvmVcpu, cpu: int) -> None:
        """x86 op vcpu_load: leave the CPU that the vCPU is associated with, join this one."""
        if vcpu.cpu == cpu or not is_hkid_assigned(vcpu.kvm.tdx):
            return
        self.tdx_flush_vp_on_cpu(vcpu)
        self.state.associated_tdvcpus[cpu].append(vcpu)

    # Entry

    def tdcall_to_vmx_exit_reason(self, vcpu: KvmVcpu) -> int:
        """A TDVMCALL that stands for an instruction has that instruction's exit reason."""
        leaf = self.tdvmcall_leaf(vcpu)
        if leaf in _TDVMCALL_EXITS:
            return leaf
        if leaf == EXIT_REASON_EPT_VIOLATION:
            return EXIT_REASON_EPT_MISCONFIG
        return EXIT_REASON_TDCALL

    def tdx_to_vmx_exit_reason(self, vcpu: KvmVcpu) -> int:
        """What TDH.VP.ENTER returned, as a VMX exit reason; EXIT_REASON_NONE when it is none."""
        vp_enter_ret = vcpu.tdx.vp_enter_ret
        if vp_enter_ret & STATUS_MASK not in _EXITS:
            return EXIT_REASON_NONE
        exit_reason = vp_enter_ret & 0xFFFF_FFFF
        if exit_reason == EXIT_REASON_TDCALL:
            if self.tdvmcall_exit_type(vcpu):
                return EXIT_REASON_VMCALL
            return self.tdcall_to_vmx_exit_reason(vcpu)
        if exit_reason == EXIT_REASON_EPT_MISCONFIG:
            return EXIT_REASON_NONE
        return exit_reason

    def tdx_vcpu_enter_exit(self, vcpu: KvmVcpu) -> None:
        """TDH.VP.ENTER and the exit information."""
        tdx = vcpu.tdx
        regs = tdx.vp_enter_regs
        # MODEL: the registers of an exit are dropped when nobody reads them any more (only a
        # TDVMCALL's are needed for its answer). So vCPUs that differ in nothing else are the same
        # state to a search.
        if not isinstance(regs, Regs) or tdx.vp_enter_ret & 0xFFFF_FFFF != EXIT_REASON_TDCALL:
            regs = tdx.vp_enter_regs = Regs()
        tdx.exit_reason = tdx.vp_enter_ret = 0
        tdx.exit_qual = tdx.ext_exit_qual = tdx.exit_gpa = 0
        tdx.vp_enter_ret = self.host.x86_tdx.tdh_vp_enter(tdx, regs)
        tdx.exit_reason = self.tdx_to_vmx_exit_reason(vcpu)
        tdx.exit_qual = regs.rcx
        tdx.ext_exit_qual = regs.rdx
        tdx.exit_gpa = regs.r8

    def tdx_vcpu_run(self, vcpu: KvmVcpu) -> int:
        """x86 op vcpu_run: one entry; how the fast path left it (EXIT_FASTPATH_*)."""
        # Another attempt at an S-EPT change is under way: stay out until it is done.
        if vcpu.kvm.tdx.wait_for_sept_zap:
            vcpu.stat.values["wait_for_sept_zap"] = vcpu.stat.get("wait_for_sept_zap") + 1
            return EXIT_FASTPATH_EXIT_HANDLED
        sim = self.sim
        if sim.tracing:
            task = sim.current
            sim.emit(KvmEntry(task.time_ns, task.name, task.cpu, vcpu.vcpu_id))
        if vcpu.pi_desc.on:
            # apic->send_IPI_self(POSTED_INTR_VECTOR): the guest begins by taking it.
            self.machine.notify_posted(vcpu.cpu, vcpu.pi_desc)
        self.tdx_vcpu_enter_exit(vcpu)
        tdx = vcpu.tdx
        if tdx.vp_enter_ret == EXIT_REASON_EPT_MISCONFIG:
            return EXIT_FASTPATH_NONE
        if tdx.vp_enter_ret & TDX_SW_ERROR == TDX_SW_ERROR:
            return EXIT_FASTPATH_NONE
        if sim.tracing:
            self._trace_exit(vcpu)
        # BUSY: zero-step mitigation wants the S-EPT tree, or TDH.MEM.TRACK holds the epoch. Leave
        # the fast path, so that interrupts go on and whoever kicks this vCPU is answered.
        if tdx_operand_busy(tdx.vp_enter_ret):
            vcpu.stat.add("vp_enter_busy")
            return EXIT_FASTPATH_EXIT_HANDLED
        return EXIT_FASTPATH_NONE

    def _trace_exit(self, vcpu: KvmVcpu) -> None:
        tdx = vcpu.tdx
        task = self.sim.current
        reason = tdx.exit_reason
        name = EXIT_REASON_NAMES.get(reason, hex(reason))
        info = (tdx.exit_qual, tdx.ext_exit_qual) if reason != EXIT_REASON_NONE else (0, 0)
        requests = sum(1 << request for request in vcpu.requests)
        self.sim.emit(
            KvmExit(
                task.time_ns,
                task.name,
                task.cpu,
                vcpu.vcpu_id,
                name,
                info1=info[0],
                info2=info[1],
                requests=requests,
            )
        )

    # Exit

    def tdx_handle_exit(self, vcpu: KvmVcpu, fastpath: int) -> int:
        """x86 op handle_exit: > 0 resume the guest, 0 exit to user space, < 0 error."""
        if fastpath != EXIT_FASTPATH_NONE:
            return 1
        tdx = vcpu.tdx
        vp_enter_ret = tdx.vp_enter_ret
        exit_reason = tdx.exit_reason
        if vp_enter_ret == EXIT_REASON_EPT_MISCONFIG:
            self.host.main.kvm_bug_on(vcpu.kvm, True, "EPT misconfiguration")
            return -EIO
        if vp_enter_ret & TDX_SW_ERROR == TDX_SW_ERROR:
            self.host.main.kvm_bug_on(vcpu.kvm, True, f"VP.ENTER: {vp_enter_ret:#x}")
            return self._unhandled_exit(vcpu)
        if exit_reason != EXIT_REASON_NONE and exit_reason & 1 << 31:
            vcpu.run.exit_reason = KVM_EXIT_FAIL_ENTRY
            vcpu.run.data = [exit_reason, vcpu.cpu]
            return 0
        if vp_enter_ret & (TDX_ERROR | TDX_NON_RECOVERABLE) and (
            exit_reason != EXIT_REASON_TRIPLE_FAULT
        ):
            return self._unhandled_exit(vcpu)
        if exit_reason != EXIT_REASON_TRIPLE_FAULT and vp_enter_ret & STATUS_MASK != TDX_SUCCESS:
            self.warn_on_once(f"VP.ENTER: {vp_enter_ret:#x}", "tdx_handle_exit")
        return self._handle_exit_reason(vcpu, exit_reason)

    def _handle_exit_reason(self, vcpu: KvmVcpu, exit_reason: int) -> int:
        """The switch of tdx_handle_exit(), likely cases first."""
        if exit_reason == EXIT_REASON_EPT_VIOLATION:
            return self.tdx_handle_ept_violation(vcpu)
        if exit_reason == EXIT_REASON_TDCALL:
            return self.handle_tdvmcall(vcpu)
        if exit_reason == EXIT_REASON_EXTERNAL_INTERRUPT:
            vcpu.stat.add("irq_exits")
            return 1
        if exit_reason == EXIT_REASON_HLT:
            return self.host.x86.kvm_emulate_halt_noskip(vcpu)
        if exit_reason == EXIT_REASON_VMCALL:
            return self.tdx_emulate_vmcall(vcpu)
        if exit_reason == EXIT_REASON_IO_INSTRUCTION:
            return self.tdx_emulate_io(vcpu)
        if exit_reason == EXIT_REASON_EPT_MISCONFIG:
            return self.tdx_emulate_mmio(vcpu)
        if exit_reason in (EXIT_REASON_CPUID, EXIT_REASON_MSR_READ, EXIT_REASON_MSR_WRITE):
            return self.tdx_emulate_instruction(vcpu, exit_reason)
        if exit_reason == EXIT_REASON_TRIPLE_FAULT:
            vcpu.run.exit_reason = KVM_EXIT_SHUTDOWN
            return 0
        if exit_reason in (EXIT_REASON_OTHER_SMI, EXIT_REASON_EXCEPTION_NMI):
            return 1
        return self._unhandled_exit(vcpu)

    def _unhandled_exit(self, vcpu: KvmVcpu) -> int:
        """kvm_prepare_unexpected_reason_exit()."""
        run = vcpu.run
        run.exit_reason = KVM_EXIT_INTERNAL_ERROR
        run.data = [vcpu.tdx.vp_enter_ret, vcpu.cpu]
        run.text = f"TD vp_enter_ret {status_name(vcpu.tdx.vp_enter_ret)}"
        return 0
