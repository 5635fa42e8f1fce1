"""arch/x86/kvm/x86.c: the vCPU loop, entry to and exit from the guest, halting."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.errno import EINTR, EIO
from septum.abi.kvm import (
    KVM_EXIT_INTR,
    KVM_EXIT_UNKNOWN,
    KVM_REQ_MMU_FREE_OBSOLETE_ROOTS,
    KVM_REQ_TLB_FLUSH,
    KVM_REQ_UNBLOCK,
    KVM_REQ_VM_DEAD,
)
from septum.linux.kvm.events import KvmUserspaceExit
from septum.linux.kvm.tdx_defs import (
    COMPLETE_NONE,
    EXIT_FASTPATH_REENTER_GUEST,
    KVM_MP_STATE_HALTED,
    KVM_MP_STATE_RUNNABLE,
    KVM_MP_STATE_UNINITIALIZED,
)
from septum.linux.kvm.types import EXITING_GUEST_MODE, IN_GUEST_MODE, OUTSIDE_GUEST_MODE
from septum.linux.unit import Unit

if TYPE_CHECKING:
    from septum.linux.kvm.types import KvmVcpu


class KvmX86(Unit):
    """arch/x86/kvm/x86.c."""

    __slots__ = ()

    # vCPUs

    def kvm_arch_vcpu_create(self, vcpu: KvmVcpu) -> int:
        """The architecture's part of KVM_CREATE_VCPU: 0 or an error."""
        vcpu.mp_state = KVM_MP_STATE_UNINITIALIZED
        ret = self.host.tdx.tdx_vcpu_create(vcpu)
        if ret:
            return ret
        self.host.main.vcpu_load(vcpu)
        self.host.main.vcpu_put(vcpu)
        return 0

    def kvm_arch_vcpu_destroy(self, vcpu: KvmVcpu) -> None:
        """The vCPU goes, with its TDVPR, its roots and its caches."""
        self.host.tdx.tdx_vcpu_free(vcpu)
        self.host.mmu.kvm_mmu_destroy(vcpu)

    # Halting

    def kvm_arch_vcpu_runnable(self, vcpu: KvmVcpu) -> bool:
        """Not halted, or something wakes it."""
        return vcpu.mp_state == KVM_MP_STATE_RUNNABLE or self.host.main.kvm_vcpu_has_events(vcpu)

    def kvm_emulate_halt_noskip(self, vcpu: KvmVcpu) -> int:
        """TDVMCALL<HLT>: the in-kernel APIC lets the vCPU sleep in KVM_RUN."""
        vcpu.stat.add("halt_exits")
        if self.host.main.kvm_vcpu_has_events(vcpu):
            vcpu.mp_state = KVM_MP_STATE_RUNNABLE
        else:
            vcpu.mp_state = KVM_MP_STATE_HALTED
        return 1

    def vcpu_block(self, vcpu: KvmVcpu) -> int:
        """Sleep until there is something to do. Always 1: back to the loop of vcpu_run()."""
        if not self.kvm_arch_vcpu_runnable(vcpu):
            self.kvm_vcpu_srcu_read_unlock(vcpu)
            # The virtual APIC was looked at above; it cannot change while the vCPU sleeps.
            vcpu.wq.wait_event(
                lambda: (
                    (vcpu.pi_desc.on and self.host.tdx.tdx_interrupt_allowed(vcpu))
                    or vcpu.signal_pending
                    or KVM_REQ_UNBLOCK in vcpu.requests
                )
            )
            self.kvm_vcpu_srcu_read_lock(vcpu)
            if not self.kvm_arch_vcpu_runnable(vcpu):
                return 1
        vcpu.mp_state = KVM_MP_STATE_RUNNABLE
        return 1

    def kvm_apic_set_irq(self, vcpu: KvmVcpu) -> None:
        """An interrupt for the guest: posted, and it wakes a halted vCPU."""
        self.host.tdx.tdx_deliver_interrupt(vcpu)

    # Running

    def kvm_vcpu_srcu_read_lock(self, vcpu: KvmVcpu) -> None:
        """kvm_vcpu_srcu_read_lock(), with the WARN that it has under CONFIG_PROVE_RCU."""
        if vcpu.kvm.srcu.held():
            self.warn_on_once("illegal vCPU srcu_idx LOCK", "kvm_vcpu_srcu_read_lock")
        vcpu.srcu_idx = vcpu.kvm.srcu.read_lock()

    def kvm_vcpu_srcu_read_unlock(self, vcpu: KvmVcpu) -> None:
        """kvm_vcpu_srcu_read_unlock()."""
        vcpu.kvm.srcu.read_unlock(vcpu.srcu_idx)

    def kvm_arch_vcpu_ioctl_run(self, vcpu: KvmVcpu) -> int:
        """KVM_RUN with vcpu->mutex held: 0 or an error.

        MODEL: a vCPU without KVM_TDX_INIT_VCPU is -EINVAL. In the kernel that is the boot processor
        alone; another waits for a signal first (KVM_MP_STATE_UNINITIALIZED), with its vcpu->mutex.
        """
        main = self.host.main
        main.vcpu_load(vcpu)
        self.kvm_vcpu_srcu_read_lock(vcpu)
        ret = self._ioctl_run_loaded(vcpu)
        self.kvm_vcpu_srcu_read_unlock(vcpu)
        main.vcpu_put(vcpu)
        if self.sim.tracing:
            task = self.sim.current
            self.sim.emit(
                KvmUserspaceExit(task.time_ns, task.name, task.cpu, vcpu.run.exit_reason, ret)
            )
        return ret

    def _ioctl_run_loaded(self, vcpu: KvmVcpu) -> int:
        tdx = self.host.tdx
        which = vcpu.complete_userspace_io
        vcpu.run.exit_reason = KVM_EXIT_UNKNOWN
        ret = tdx.tdx_vcpu_pre_run(vcpu)
        if ret <= 0:
            return ret
        if which != COMPLETE_NONE:
            vcpu.complete_userspace_io = COMPLETE_NONE
            ret = tdx.complete_userspace_io(vcpu, which)
            if ret <= 0:
                return ret
        return self.vcpu_run(vcpu)

    def vcpu_run(self, vcpu: KvmVcpu) -> int:
        """Enter the guest until something is for user space."""
        while True:
            if vcpu.mp_state == KVM_MP_STATE_RUNNABLE:
                ret = self.vcpu_enter_guest(vcpu)
            else:
                ret = self.vcpu_block(vcpu)
            if ret <= 0:
                return ret
            vcpu.requests.discard(KVM_REQ_UNBLOCK)
            if vcpu.kvm.tdx.wait_for_sept_zap:
                self._wait_for_sept_zap(vcpu)
            if vcpu.signal_pending:
                # xfer_to_guest_mode_handle_work()
                vcpu.run.exit_reason = KVM_EXIT_INTR
                vcpu.stat.add("signal_exits")
                return -EINTR

    def _wait_for_sept_zap(self, vcpu: KvmVcpu) -> None:
        """In the kernel this loop spins, without entering the guest, until the second attempt at an
        S-EPT change is done. MODEL: it waits here instead."""
        tdx = vcpu.kvm.tdx
        tdx.zap_wq.spin_until(
            lambda: not tdx.wait_for_sept_zap or bool(vcpu.requests) or vcpu.signal_pending
        )

    def _handle_requests(self, vcpu: KvmVcpu) -> int:
        """What was asked of the vCPU before it may enter: 0 or -EIO."""
        requests = vcpu.requests
        if self.host.main.kvm_test_request(KVM_REQ_VM_DEAD, vcpu):
            return -EIO
        if KVM_REQ_MMU_FREE_OBSOLETE_ROOTS in requests:
            requests.discard(KVM_REQ_MMU_FREE_OBSOLETE_ROOTS)
            self.host.mmu.kvm_mmu_free_obsolete_roots(vcpu)
        if KVM_REQ_TLB_FLUSH in requests:
            requests.discard(KVM_REQ_TLB_FLUSH)
            vcpu.stat.add("tlb_flush")
            self.host.tdx.tdx_flush_tlb_all(vcpu)
        return 0

    def kvm_vcpu_exit_request(self, vcpu: KvmVcpu) -> bool:
        """Somebody wants the vCPU out of the guest, or not in it."""
        return vcpu.mode == EXITING_GUEST_MODE or bool(vcpu.requests) or vcpu.signal_pending

    def _into_guest_mode(self, vcpu: KvmVcpu) -> bool:
        """From here on a kick sends an IPI, which is taken in the guest or when interrupts go on.
        False when there was one before. Source: vcpu_enter_guest(), smp_mb__after_srcu_read_unlock.
        """
        vcpu.mode = IN_GUEST_MODE
        self.kvm_vcpu_srcu_read_unlock(vcpu)
        self.sim.point("vcpu->mode")
        return not self.kvm_vcpu_exit_request(vcpu)

    def vcpu_enter_guest(self, vcpu: KvmVcpu) -> int:
        """One entry and exit: > 0 go on, 0 exit to user space, < 0 error."""
        if vcpu.requests:
            ret = self._handle_requests(vcpu)
            if ret:
                return ret
        ret = self.host.mmu.kvm_mmu_reload(vcpu)
        if ret:
            return ret
        lp = self.machine.lps[self.sim.current.cpu]
        lp.local_irq_disable()
        if not self._into_guest_mode(vcpu):
            vcpu.mode = OUTSIDE_GUEST_MODE
            lp.local_irq_enable()
            self.kvm_vcpu_srcu_read_lock(vcpu)
            return 1
        tdx = self.host.tdx
        exit_fastpath = tdx.tdx_vcpu_run(vcpu)
        while exit_fastpath == EXIT_FASTPATH_REENTER_GUEST:
            if self.kvm_vcpu_exit_request(vcpu):
                break
            exit_fastpath = tdx.tdx_vcpu_run(vcpu)
        vcpu.mode = OUTSIDE_GUEST_MODE
        vcpu.stat.add("exits")
        lp.local_irq_enable()
        self.kvm_vcpu_srcu_read_lock(vcpu)
        return tdx.tdx_handle_exit(vcpu, exit_fastpath)
