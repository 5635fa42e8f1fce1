"""EPT violations of a TD: what the guest wanted, at which level, and the fault.

Source: vmx/tdx.c tdx_handle_ept_violation(), vmx/common.h __vmx_handle_ept_violation(), patch 13.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.errno import EIO
from septum.abi.exitqual import (
    EEQ_ACCEPT,
    EEQ_PENDING_EPT_VIOLATION,
    EEQ_TYPE_MASK,
    eeq_requested_level,
)
from septum.abi.kvm import (
    KVM_MEMSLOT_INVALID,
    KVM_REQ_VM_DEAD,
    LEVEL_NAMES,
    PAGES_PER_HPAGE,
    PFERR_FETCH_MASK,
    PFERR_GUEST_FINAL_MASK,
    PFERR_GUEST_PAGE_MASK,
    PFERR_PRESENT_MASK,
    PFERR_PRIVATE_ACCESS,
    PFERR_USER_MASK,
    PFERR_WRITE_MASK,
    PG_LEVEL_2M,
    PG_LEVEL_4K,
    RET_PF_RETRY,
    gfn_round_for_level,
)
from septum.abi.types import PAGE_SHIFT
from septum.linux.kvm.events import KvmPageFaultEvent
from septum.linux.kvm.tdx_defs import (
    EPT_VIOLATION_ACC_INSTR,
    EPT_VIOLATION_ACC_READ,
    EPT_VIOLATION_ACC_WRITE,
    EPT_VIOLATION_EXEC_FOR_RING3_LIN,
    EPT_VIOLATION_GVA_IS_VALID,
    EPT_VIOLATION_GVA_TRANSLATED,
    EPT_VIOLATION_PROT_MASK,
)
from septum.linux.kvm.tdx_mem import TdxMem
from septum.linux.kvm.types import KVM_FILTER_PRIVATE, KvmGfnRange

if TYPE_CHECKING:
    from septum.linux.kvm.types import KvmMemorySlot, KvmVcpu


class TdxFault(TdxMem):
    """The exit handler."""

    __slots__ = ()

    def tdx_is_sept_violation_unexpected_pending(self, vcpu: KvmVcpu) -> bool:
        """The guest touched a page that it has not accepted, with SEPT_VE_DISABLE."""
        tdx = vcpu.tdx
        if tdx.ext_exit_qual & EEQ_TYPE_MASK != EEQ_PENDING_EPT_VIOLATION:
            return False
        eq = tdx.exit_qual
        return not eq & EPT_VIOLATION_PROT_MASK and not eq & EPT_VIOLATION_EXEC_FOR_RING3_LIN

    def tdx_guest_accept_level(self, vcpu: KvmVcpu) -> int:
        """The PG_LEVEL_* at which the guest ACCEPTs, 4 KB or 2 MB; 0 when it does no such thing.

        Source: patch 13.
        """
        eeq = vcpu.tdx.ext_exit_qual
        if eeq & EEQ_TYPE_MASK != EEQ_ACCEPT:
            return 0
        level = eeq_requested_level(eeq) + 1
        return level if level in (PG_LEVEL_4K, PG_LEVEL_2M) else 0

    def _tdx_split_for_accept(
        self, vcpu: KvmVcpu, slot: KvmMemorySlot, gfn: int, level: int
    ) -> int:
        """Split what maps `gfn` larger than `level`; mmu_lock is held for writing. 0 or an error.

        Source: patch 13.
        """
        base_gfn = gfn_round_for_level(gfn, level)
        gfn_range = KvmGfnRange(
            slot, base_gfn, base_gfn + PAGES_PER_HPAGE[level], KVM_FILTER_PRIVATE, True
        )
        return self.host.mmu.kvm_split_cross_boundary_leafs(vcpu.kvm, gfn_range, False)

    def _tdx_inhibit_above(self, slot: KvmMemorySlot, gfn: int, level: int) -> None:
        """No mapping larger than `level` at `gfn` any more. Source: patch 13."""
        mmu = self.host.mmu
        mmu.hugepage_set_guest_inhibit(slot, gfn, level + 1)
        if level == PG_LEVEL_4K:
            mmu.hugepage_set_guest_inhibit(slot, gfn, level + 2)

    def tdx_honor_guest_accept_level(self, vcpu: KvmVcpu, gfn: int) -> int:
        """When the guest ACCEPTs at a level, let no larger mapping be or come at `gfn`.

        0: go on with the fault. Otherwise what kvm_split_cross_boundary_leafs() returned. The flag
        is tested without mmu_lock: it is only ever set, and only after the split, under mmu_lock
        for writing. Source: patch 13.

        SUSPECT: as posted any failure of the split is 1, which reads as "resume the guest"; the
        -ENOMEM that the change log says goes to user space never does.
        """
        kvm = vcpu.kvm
        slot = self.host.main.gfn_to_memslot(kvm, gfn)
        level = self.tdx_guest_accept_level(vcpu)
        if slot is None or not level:
            return 0
        kvm.stat.add("accept_level.checked")
        if self.host.mmu.hugepage_test_guest_inhibit(slot, gfn, level + 1):
            return 0
        return self._tdx_split_and_inhibit(vcpu, slot, gfn, level)

    def _tdx_split_and_inhibit(
        self, vcpu: KvmVcpu, slot: KvmMemorySlot, gfn: int, level: int
    ) -> int:
        """The half of tdx_honor_guest_accept_level() that has mmu_lock. Source: patch 13."""
        kvm = vcpu.kvm
        main = self.host.main
        kvm.mmu_lock.write_lock()
        kvm.stat.add("accept_level.write_lock")
        cause = main.set_cause("accept")
        # No TLB flush: BLOCK, TRACK and kick in the split have done it.
        ret = self._tdx_split_for_accept(vcpu, slot, gfn, level)
        main.set_cause(cause)
        if not ret:
            self._tdx_inhibit_above(slot, gfn, level)
        kvm.mmu_lock.write_unlock()
        return ret

    def vmx_handle_ept_violation(self, vcpu: KvmVcpu, gpa: int, exit_qual: int) -> int:
        """__vmx_handle_ept_violation(): exit qualification to error code, then the MMU."""
        error_code = PFERR_USER_MASK if exit_qual & EPT_VIOLATION_ACC_READ else 0
        if exit_qual & EPT_VIOLATION_ACC_WRITE:
            error_code |= PFERR_WRITE_MASK
        if exit_qual & EPT_VIOLATION_ACC_INSTR:
            error_code |= PFERR_FETCH_MASK
        if exit_qual & EPT_VIOLATION_PROT_MASK:
            error_code |= PFERR_PRESENT_MASK
        if exit_qual & EPT_VIOLATION_GVA_IS_VALID:
            if exit_qual & EPT_VIOLATION_GVA_TRANSLATED:
                error_code |= PFERR_GUEST_FINAL_MASK
            else:
                error_code |= PFERR_GUEST_PAGE_MASK
        if self.vt_is_tdx_private_gpa(vcpu.kvm, gpa):
            error_code |= PFERR_PRIVATE_ACCESS
        return self.host.mmu.kvm_mmu_page_fault(vcpu, gpa, error_code)

    def tdx_handle_ept_violation(self, vcpu: KvmVcpu) -> int:
        """Exit handler: > 0 resume the guest, 0 exit to user space, < 0 an error of KVM_RUN."""
        tdx = vcpu.tdx
        kvm = vcpu.kvm
        gpa = tdx.exit_gpa
        local_retry = False
        self._count_violation(vcpu)
        if self.vt_is_tdx_private_gpa(kvm, gpa):
            if self.tdx_is_sept_violation_unexpected_pending(vcpu):
                vcpu.run.text = f"Guest access before accepting {gpa:#x} on vCPU {vcpu.vcpu_id}"
                self.sim.find("accept-once", vcpu.run.text, where="tdx_handle_ept_violation")
                self.host.main.kvm_vm_dead(kvm)
                return -EIO
            # Private pages are always mapped writable: treat every violation as a write.
            exit_qual = EPT_VIOLATION_ACC_WRITE
            ret = self.tdx_honor_guest_accept_level(vcpu, gpa >> PAGE_SHIFT)
            if ret:
                return ret
            # Only private GPAs trigger the zero-step mitigation.
            local_retry = True
        else:
            exit_qual = tdx.exit_qual
            if self.host.main.kvm_bug_on(
                kvm, exit_qual & EPT_VIOLATION_ACC_INSTR != 0, "fetch from shared memory"
            ):
                return -EIO
        sim = self.sim
        if sim.tracing:
            task = sim.current
            sim.emit(
                KvmPageFaultEvent(task.time_ns, task.name, task.cpu, vcpu.vcpu_id, gpa, exit_qual)
            )
        return self._fault_until_resolved(vcpu, gpa, exit_qual, local_retry)

    def _fault_until_resolved(
        self, vcpu: KvmVcpu, gpa: int, exit_qual: int, local_retry: bool
    ) -> int:
        """The retry loop: entering the guest again for the same instruction would count towards
        the module's zero-step detection, which makes VP.ENTER take the S-EPT lock."""
        main = self.host.main
        while True:
            ret = self.vmx_handle_ept_violation(vcpu, gpa, exit_qual)
            if ret != RET_PF_RETRY or not local_retry:
                return ret
            if main.kvm_vcpu_has_events(vcpu) or vcpu.signal_pending:
                return ret
            if self._vm_is_dead(vcpu):
                return -EIO
            # A slot that is being deleted never resolves, and its deletion waits for this task.
            if self._slot_is_going(vcpu, gpa):
                return ret
            vcpu.stat.add("fault_local_retry")
            self.sim.retry("cond_resched")

    def _vm_is_dead(self, vcpu: KvmVcpu) -> bool:
        """Every S-EPT change of a dead VM fails, and the fault would be retried for ever."""
        return self.host.main.kvm_test_request(KVM_REQ_VM_DEAD, vcpu)

    def _slot_is_going(self, vcpu: KvmVcpu, gpa: int) -> bool:
        """The slot of `gpa` is being deleted. Source: commit 2bc2694fe20b."""
        kvm = vcpu.kvm
        slot = self.host.main.gfn_to_memslot(kvm, gpa >> PAGE_SHIFT & ~kvm.arch.gfn_direct_bits)
        return slot is not None and slot.flags & KVM_MEMSLOT_INVALID != 0

    def _count_violation(self, vcpu: KvmVcpu) -> None:
        """`ept_violation.<cause>.<what>`: accept by level, access by private or shared."""
        eeq = vcpu.tdx.ext_exit_qual
        if eeq & EEQ_TYPE_MASK == EEQ_ACCEPT:
            level = eeq_requested_level(eeq) + 1
            name = f"ept_violation.accept.{LEVEL_NAMES[level]}"
        elif self.vt_is_tdx_private_gpa(vcpu.kvm, vcpu.tdx.exit_gpa):
            name = "ept_violation.access.private"
        else:
            name = "ept_violation.access.shared"
        vcpu.kvm.stat.add(name)
