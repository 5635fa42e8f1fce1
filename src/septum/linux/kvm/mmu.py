"""Page faults of a guest: from the error code to a mapping, or to user space.

`KvmMmu` is the whole of arch/x86/kvm/mmu/mmu.c; its other parts are in invalidate, lpage,
mmu_zap, mmu_attributes and mmu_load.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.errno import EAGAIN, EFAULT, EINTR, EINVAL, EIO, ENOENT, EOPNOTSUPP
from septum.abi.kvm import (
    KVM_EXIT_MEMORY_FAULT,
    KVM_MAX_HUGEPAGE_LEVEL,
    KVM_MEM_GUEST_MEMFD,
    KVM_MEM_LOG_DIRTY_PAGES,
    KVM_MEM_READONLY,
    KVM_MEMORY_EXIT_FLAG_PRIVATE,
    KVM_MEMSLOT_GMEM_ONLY,
    KVM_MEMSLOT_INVALID,
    KVM_PFN_ERR_MASK,
    KVM_PFN_ERR_NOSLOT_MASK,
    KVM_PFN_ERR_SIGPENDING,
    KVM_PFN_NOSLOT,
    KVM_REQ_MMU_FREE_OBSOLETE_ROOTS,
    KVM_REQ_VM_DEAD,
    LEVEL_NAMES,
    PAGES_PER_HPAGE,
    PFERR_FETCH_MASK,
    PFERR_GUEST_FINAL_MASK,
    PFERR_PRESENT_MASK,
    PFERR_PRIVATE_ACCESS,
    PFERR_USER_MASK,
    PFERR_WRITE_MASK,
    PG_LEVEL_1G,
    PG_LEVEL_2M,
    PG_LEVEL_4K,
    RET_PF_CONTINUE,
    RET_PF_EMULATE,
    RET_PF_FIXED,
    RET_PF_INVALID,
    RET_PF_RETRY,
    RET_PF_SPURIOUS,
    RET_PF_WRITE_PROTECTED,
    kvm_hpage_size,
)
from septum.abi.spte import PT_PAGE_SIZE_MASK, SPTE_MMU_PRESENT_MASK
from septum.linux.kvm.lpage import lpage_info_slot
from septum.linux.kvm.mmu_load import MmuLoad
from septum.linux.kvm.types import KvmPageFault

if TYPE_CHECKING:
    from septum.linux.kvm.types import Kvm, KvmMemorySlot, KvmVcpu


def kvm_max_level_for_order(order: int) -> int:
    """kvm_max_level_for_order(): the largest level that a folio of `order` can back."""
    if order >= 18:
        return PG_LEVEL_1G
    if order >= 9:
        return PG_LEVEL_2M
    return PG_LEVEL_4K


def is_error_pfn(pfn: int) -> bool:
    """is_error_pfn(): an error instead of a page frame; KVM_PFN_NOSLOT is none."""
    return pfn & KVM_PFN_ERR_MASK != 0


def is_error_noslot_pfn(pfn: int) -> bool:
    """is_error_noslot_pfn(): an error or KVM_PFN_NOSLOT instead of a page frame."""
    return pfn & KVM_PFN_ERR_NOSLOT_MASK != 0


class KvmMmu(MmuLoad):
    """arch/x86/kvm/mmu/mmu.c."""

    __slots__ = ()

    # How large a mapping may be

    def host_pfn_mapping_level(self, kvm: Kvm, gfn: int, slot: KvmMemorySlot) -> int:
        """The level at which the host maps the user address of `gfn`. Source: mmu.c.

        MODEL: host user space maps shared memory by 4 KB pages.
        """
        return PG_LEVEL_4K

    def kvm_gmem_max_mapping_level(self, kvm: Kvm, fault: KvmPageFault, is_private: bool) -> int:
        """The level that the folio, and then TDX, allow. Source: mmu.c."""
        max_level = fault.max_level
        if max_level == PG_LEVEL_4K:
            return max_level
        # 0 says: no further limit.
        coco_level = self.host.tdx.gmem_max_mapping_level(kvm, fault.pfn, is_private)
        if coco_level:
            max_level = min(max_level, coco_level)
        return max_level

    def kvm_mmu_max_mapping_level(
        self, kvm: Kvm, fault: KvmPageFault, slot: KvmMemorySlot, gfn: int
    ) -> int:
        """The level at which `gfn` may be mapped: lpage_info, then folio and TDX, or the host.

        mmu_lock is held. Source: mmu.c kvm_mmu_max_mapping_level.
        """
        if not kvm.mmu_lock.held():
            self.lockdep_assert(False, "mmu_lock is not held", "kvm_mmu_max_mapping_level")
        max_level = min(fault.max_level, KVM_MAX_HUGEPAGE_LEVEL)
        while max_level > PG_LEVEL_4K and lpage_info_slot(gfn, slot, max_level):
            max_level -= 1
        if max_level == PG_LEVEL_4K:
            return PG_LEVEL_4K
        if fault.is_private or slot.flags & KVM_MEMSLOT_GMEM_ONLY:
            host_level = self.kvm_gmem_max_mapping_level(kvm, fault, fault.is_private)
        else:
            host_level = self.host_pfn_mapping_level(kvm, gfn, slot)
        return min(host_level, max_level)

    def kvm_mmu_hugepage_adjust(self, vcpu: KvmVcpu, fault: KvmPageFault) -> None:
        """Settle the level that the fault wants (`goal_level`), and round its PFN down to it.

        Source: mmu.c kvm_mmu_hugepage_adjust.
        """
        fault.huge_page_disallowed = fault.exec and fault.nx_huge_page_workaround_enabled
        if fault.max_level == PG_LEVEL_4K or is_error_noslot_pfn(fault.pfn):
            return
        slot = fault.slot
        if slot is None:
            return
        self._check_memslot(slot, "kvm_mmu_hugepage_adjust")
        if slot.flags & KVM_MEM_LOG_DIRTY_PAGES:
            return
        fault.req_level = self.kvm_mmu_max_mapping_level(vcpu.kvm, fault, slot, fault.gfn)
        if fault.req_level == PG_LEVEL_4K or fault.huge_page_disallowed:
            return
        if not PG_LEVEL_4K < fault.req_level <= PG_LEVEL_1G:
            text = f"BUG: gfn {fault.gfn:#x} is to be mapped at level {fault.req_level} of 1 to 3"
            self.sim.find("no-bug", text, where="kvm_mmu_max_mapping_level")
            return
        fault.goal_level = fault.req_level
        mask = PAGES_PER_HPAGE[fault.goal_level] - 1
        if (fault.gfn ^ fault.pfn) & mask:
            self.sim.find(
                "no-bug",
                f"VM_BUG_ON: gfn {fault.gfn:#x} and pfn {fault.pfn:#x} are not alike within a "
                f"{LEVEL_NAMES[fault.goal_level]} page",
                where="kvm_mmu_hugepage_adjust",
            )
        fault.pfn &= ~mask

    def disallowed_hugepage_adjust(self, fault: KvmPageFault, spte: int, cur_level: int) -> None:
        """A table at the goal level lowers the goal by one: of a mirror always, as its S-EPT page
        cannot be taken away (no promotion). Source: mmu.c disallowed_hugepage_adjust, patch 06.
        """
        if (
            cur_level > PG_LEVEL_4K
            and cur_level == fault.goal_level
            and spte & SPTE_MMU_PRESENT_MASK
            and not spte & PT_PAGE_SIZE_MASK
        ):
            child_sp = self.host.tdp_mmu.spte_to_child_sp(spte)
            if child_sp.nx_huge_page_disallowed or child_sp.is_mirror:
                page_mask = PAGES_PER_HPAGE[cur_level] - PAGES_PER_HPAGE[cur_level - 1]
                fault.pfn |= fault.gfn & page_mask
                fault.goal_level -= 1

    # The page behind a GFN

    def kvm_mmu_prepare_memory_fault_exit(self, vcpu: KvmVcpu, fault: KvmPageFault) -> None:
        """KVM_RUN will come back with KVM_EXIT_MEMORY_FAULT for the 4 KB page of the fault.

        Source: mmu_internal.h kvm_mmu_prepare_memory_fault_exit.
        """
        run = vcpu.run
        run.exit_reason = KVM_EXIT_MEMORY_FAULT
        run.gpa = fault.gfn << 12
        run.size_bytes = 1 << 12
        run.flags = KVM_MEMORY_EXIT_FLAG_PRIVATE if fault.is_private else 0

    def kvm_handle_noslot_fault(self, vcpu: KvmVcpu, fault: KvmPageFault) -> int:
        """No memory at the GFN: MMIO if shared, user space's problem if private.

        RET_PF_CONTINUE or -EFAULT. Source: mmu.c kvm_handle_noslot_fault.
        """
        if fault.is_private:
            self.kvm_mmu_prepare_memory_fault_exit(vcpu, fault)
            return -EFAULT
        fault.slot = None
        fault.pfn = KVM_PFN_NOSLOT
        fault.map_writable = False
        return RET_PF_CONTINUE

    def kvm_handle_error_pfn(self, vcpu: KvmVcpu, fault: KvmPageFault) -> int:
        """The host has no page for the GFN: -EINTR, or -EFAULT with no exit. Source: mmu.c."""
        if fault.pfn == KVM_PFN_ERR_SIGPENDING:
            return -EINTR
        return -EFAULT

    def kvm_mmu_faultin_pfn_gmem(self, vcpu: KvmVcpu, fault: KvmPageFault) -> int:
        """The page of a private (or guest_memfd only) GFN, and how large its folio is.

        RET_PF_CONTINUE, or -errno with a memory fault exit prepared. Source: mmu.c.
        """
        slot = fault.slot
        assert slot is not None
        if not slot.flags & KVM_MEM_GUEST_MEMFD:
            self.kvm_mmu_prepare_memory_fault_exit(vcpu, fault)
            return -EFAULT
        r: int
        r, pfn, folio, max_order = self.host.gmem.kvm_gmem_get_pfn(vcpu.kvm, slot, fault.gfn)
        if r:
            self.kvm_mmu_prepare_memory_fault_exit(vcpu, fault)
            return r
        fault.pfn = pfn
        fault.refcounted_page = folio
        fault.map_writable = not slot.flags & KVM_MEM_READONLY
        fault.max_level = kvm_max_level_for_order(max_order)
        return RET_PF_CONTINUE

    def _kvm_mmu_faultin_pfn(self, vcpu: KvmVcpu, fault: KvmPageFault) -> int:
        """__kvm_mmu_faultin_pfn(): from guest_memfd, or from host user space."""
        slot = fault.slot
        assert slot is not None
        if fault.is_private or slot.flags & KVM_MEMSLOT_GMEM_ONLY:
            return self.kvm_mmu_faultin_pfn_gmem(vcpu, fault)
        # MODEL: pages of user space are faulted in at once, without async page faults.
        pfn, writable, folio = self.host.main.kvm_faultin_pfn(vcpu.kvm, slot, fault.gfn)
        fault.pfn = pfn
        fault.map_writable = writable
        fault.refcounted_page = folio
        return RET_PF_CONTINUE

    def kvm_mmu_faultin_pfn(self, vcpu: KvmVcpu, fault: KvmPageFault) -> int:
        """Find the page to map, without mmu_lock, after a snapshot of mmu_invalidate_seq.

        RET_PF_CONTINUE with `pfn` set; RET_PF_RETRY when an invalidation is in the way; -EFAULT
        with a memory fault exit when the access is private and the GFN shared or the reverse;
        other errors of guest_memfd. Source: mmu.c kvm_mmu_faultin_pfn.
        """
        kvm = vcpu.kvm
        slot = fault.slot
        if fault.gfn & kvm.arch.gfn_direct_bits:
            self.host.main.kvm_bug_on(kvm, True, f"gfn {fault.gfn:#x} has the shared bit")
            return -EFAULT
        fault.mmu_seq = kvm.mmu_invalidate_seq
        self.sim.point("smp_rmb")
        if slot is not None:
            self._check_memslot(slot, "kvm_mmu_faultin_pfn")
        # The snapshot above also catches attributes that change after this test.
        if fault.is_private != self.host.main.kvm_mem_is_private(kvm, fault.gfn):
            self.kvm_mmu_prepare_memory_fault_exit(vcpu, fault)
            return -EFAULT
        if slot is None:
            return self.kvm_handle_noslot_fault(vcpu, fault)
        if slot.flags & KVM_MEMSLOT_INVALID:
            return -EAGAIN if fault.prefetch else RET_PF_RETRY
        # Do not bother to get the page when it is being taken away.
        if self.mmu_invalidate_retry_gfn_unsafe(kvm, fault.mmu_seq, fault.gfn):
            return RET_PF_RETRY
        ret = self._kvm_mmu_faultin_pfn(vcpu, fault)
        if ret != RET_PF_CONTINUE:
            return ret
        if is_error_pfn(fault.pfn):
            return self.kvm_handle_error_pfn(vcpu, fault)
        # Do not contend mmu_lock in vain.
        if self.mmu_invalidate_retry_gfn_unsafe(kvm, fault.mmu_seq, fault.gfn):
            self.kvm_mmu_finish_page_fault(vcpu, fault, RET_PF_RETRY)
            return RET_PF_RETRY
        return RET_PF_CONTINUE

    def _check_memslot(self, slot: KvmMemorySlot, where: str) -> None:
        """A fault has found the memslot, and `where` it goes on with it. What it would read, and
        KASAN may tell of, is another matter: nobody may have it any more."""
        if slot.freed:
            text = f"use after free: memslot {slot.id} was freed while a fault has it"
            self.sim.find("no-bug", text, where=where)

    def kvm_mmu_finish_page_fault(self, vcpu: KvmVcpu, fault: KvmPageFault, r: int) -> None:
        """Drop the reference to the page: a mapping holds none. Source: mmu.c."""
        folio = fault.refcounted_page
        if folio is not None:
            fault.refcounted_page = None
            self.host.mm.folio_put(folio)

    # The fault

    def is_page_fault_stale(self, vcpu: KvmVcpu, fault: KvmPageFault) -> bool:
        """Whether the root or the page of the fault is not current any more; mmu_lock is held.

        Only the direct root is looked at, for private faults too, as in the kernel.
        Source: mmu.c is_page_fault_stale.
        """
        root = vcpu.mmu_root
        if root is not None and root.invalid:
            return True
        if root is None and KVM_REQ_MMU_FREE_OBSOLETE_ROOTS in vcpu.requests:
            return True
        return fault.slot is not None and self.mmu_invalidate_retry_gfn(
            vcpu.kvm, fault.mmu_seq, fault.gfn
        )

    def fast_page_fault(self, vcpu: KvmVcpu, fault: KvmPageFault) -> int:
        """MODEL: nothing is write-protected or access-tracked, so it never applies: INVALID."""
        return RET_PF_INVALID

    def kvm_tdp_mmu_page_fault(self, vcpu: KvmVcpu, fault: KvmPageFault) -> int:
        """Fill caches, find the page, map it under mmu_lock for reading.

        A RET_PF_* or -errno. Source: mmu.c kvm_tdp_mmu_page_fault.
        """
        r = self.fast_page_fault(vcpu, fault)
        if r != RET_PF_INVALID:
            return r
        r = self.mmu_topup_memory_caches(vcpu)
        if r:
            return r
        r = self.kvm_mmu_faultin_pfn(vcpu, fault)
        if r != RET_PF_CONTINUE:
            return r
        r = RET_PF_RETRY
        mmu_lock = vcpu.kvm.mmu_lock
        mmu_lock.read_lock()
        if not self.is_page_fault_stale(vcpu, fault):
            r = self.host.tdp_mmu.kvm_tdp_mmu_map(vcpu, fault)
        self.kvm_mmu_finish_page_fault(vcpu, fault, r)
        mmu_lock.read_unlock()
        return r

    def kvm_tdp_page_fault(self, vcpu: KvmVcpu, fault: KvmPageFault) -> int:
        """mmu->page_fault of every VM here. Source: mmu.c kvm_tdp_page_fault."""
        return self.kvm_tdp_mmu_page_fault(vcpu, fault)

    def kvm_mmu_do_page_fault(
        self, vcpu: KvmVcpu, cr2_or_gpa: int, err: int, prefetch: bool
    ) -> tuple[int, int]:
        """Handle one fault: (RET_PF_* or -errno, level reached).

        Source: mmu_internal.h kvm_mmu_do_page_fault.
        """
        kvm = vcpu.kvm
        gfn = (cr2_or_gpa >> 12) & ~kvm.arch.gfn_direct_bits
        fault = KvmPageFault(cr2_or_gpa, err, gfn, KVM_MAX_HUGEPAGE_LEVEL)
        fault.exec = err & PFERR_FETCH_MASK != 0
        fault.write = err & PFERR_WRITE_MASK != 0
        fault.present = err & PFERR_PRESENT_MASK != 0
        fault.user = err & PFERR_USER_MASK != 0
        fault.prefetch = prefetch
        fault.is_private = err & PFERR_PRIVATE_ACCESS != 0
        fault.nx_huge_page_workaround_enabled = self.host.params.nx_huge_pages
        fault.slot = self.host.main.gfn_to_memslot(kvm, gfn)
        r = self.kvm_tdp_page_fault(vcpu, fault)
        if r == RET_PF_EMULATE and fault.is_private:
            self.kvm_mmu_prepare_memory_fault_exit(vcpu, fault)
            r = -EFAULT
        return r, fault.goal_level

    def kvm_mmu_page_fault(self, vcpu: KvmVcpu, cr2_or_gpa: int, error_code: int) -> int:
        """An EPT violation. RET_PF_* (positive: back to the guest or try again) or -errno.

        Counts `pf_fixed.<private|shared>.<level>` besides.
        MODEL: emulation of an MMIO instruction is the guest's own work in a TD (a #VE), so that
        RET_PF_EMULATE of a shared access goes back to the guest as 1.
        Source: mmu.c kvm_mmu_page_fault.
        """
        if vcpu.mmu_root is None:
            self.warn_on_once("no root is loaded", "kvm_mmu_page_fault")
            return RET_PF_RETRY
        stat = vcpu.stat
        stat.add("pf_taken")
        r, level = self.kvm_mmu_do_page_fault(vcpu, cr2_or_gpa, error_code, False)
        if r == RET_PF_INVALID:
            self.host.main.kvm_bug_on(vcpu.kvm, True, "a fault came back as RET_PF_INVALID")
            return -EIO
        if r < 0:
            return r
        if r == RET_PF_FIXED:
            stat.add("pf_fixed")
            kind = "private" if error_code & PFERR_PRIVATE_ACCESS else "shared"
            vcpu.kvm.stat.add(f"pf_fixed.{kind}.{LEVEL_NAMES[level]}")
        elif r == RET_PF_EMULATE:
            stat.add("pf_emulate")
        elif r == RET_PF_SPURIOUS:
            stat.add("pf_spurious")
        if r != RET_PF_EMULATE:
            return r
        return 1

    # Without a guest access

    def kvm_tdp_page_prefault(self, vcpu: KvmVcpu, gpa: int, error_code: int) -> tuple[int, int]:
        """Fault a page in until it is there: (0 or -errno, level).

        -EINTR: signal; -EIO: the VM is dead; -EAGAIN: the slot is going; -ENOENT: no memory there.
        Source: mmu.c kvm_tdp_page_prefault (kvm_tdp_map_page before).
        """
        while True:
            if vcpu.signal_pending or self.sim.choose("signal_pending:kvm_tdp_page_prefault"):
                return -EINTR, PG_LEVEL_4K
            if self.host.main.kvm_test_request(KVM_REQ_VM_DEAD, vcpu):
                return -EIO, PG_LEVEL_4K
            self.sim.point("cond_resched")
            r, level = self.kvm_mmu_do_page_fault(vcpu, gpa, error_code, True)
            if r != RET_PF_RETRY:
                break
        if r < 0:
            return r, level
        if r in (RET_PF_FIXED, RET_PF_SPURIOUS, RET_PF_WRITE_PROTECTED):
            return 0, level
        if r == RET_PF_EMULATE:
            return -ENOENT, level
        self.warn_on_once("could not fix page fault during prefault", "kvm_tdp_page_prefault")
        return -EIO, level

    def kvm_arch_vcpu_pre_fault_memory(self, vcpu: KvmVcpu, gpa: int, size_bytes: int) -> int:
        """One step of KVM_PRE_FAULT_MEMORY: bytes done from `gpa` on, or -errno.

        Source: mmu.c kvm_arch_vcpu_pre_fault_memory.
        """
        kvm = vcpu.kvm
        error_code = PFERR_GUEST_FINAL_MASK
        if not kvm.arch.pre_fault_allowed:
            return -EOPNOTSUPP
        if (gpa >> 12) & kvm.arch.gfn_direct_bits:
            return -EINVAL
        r = self.kvm_mmu_reload(vcpu)
        if r:
            return r
        direct_bits = 0
        if kvm.arch.has_private_mem and self.host.main.kvm_mem_is_private(kvm, gpa >> 12):
            error_code |= PFERR_PRIVATE_ACCESS
        else:
            direct_bits = kvm.arch.gfn_direct_bits << 12
        r, level = self.kvm_tdp_page_prefault(vcpu, gpa | direct_bits, error_code)
        if r < 0:
            return r
        # A huge page may begin before `gpa` and end after the range.
        hpage_size = kvm_hpage_size(level)
        end = (gpa & -hpage_size) + hpage_size
        return min(size_bytes, end - gpa)

    def kvm_assert_gmem_invalidate_lock_held(self, slot: KvmMemorySlot | None) -> None:
        """Nothing can go from the slot's guest_memfd. Source: mmu.c, the same name."""
        where = "kvm_assert_gmem_invalidate_lock_held"
        if slot is None or not slot.flags & KVM_MEM_GUEST_MEMFD or slot.gmem_file is None:
            self.warn_on_once("the slot has no guest_memfd", where)
            return
        held = self.host.gmem.filemap_invalidate_lock_held(slot.gmem_file.inode)
        self.lockdep_assert(held, "invalidate_lock not held", where)

    def kvm_tdp_mmu_map_private_pfn(self, vcpu: KvmVcpu, gfn: int, pfn: int) -> int:
        """Map a page of the initial image, which PAGE.ADD then copies in: 0 or -errno.

        -EINTR, -EIO (also when something was there already). slots_lock and the invalidate lock of
        the guest_memfd are held. Source: mmu.c kvm_tdp_mmu_map_private_pfn.
        """
        kvm = vcpu.kvm
        fault = KvmPageFault(
            gfn << 12, PFERR_GUEST_FINAL_MASK | PFERR_PRIVATE_ACCESS, gfn, PG_LEVEL_4K
        )
        fault.prefetch = True
        fault.is_private = True
        fault.nx_huge_page_workaround_enabled = self.host.params.nx_huge_pages
        fault.slot = self.host.main.gfn_to_memslot(kvm, gfn)
        fault.pfn = pfn
        fault.map_writable = True
        self.lockdep_assert(kvm.slots_lock.held(), "slots_lock", "kvm_tdp_mmu_map_private_pfn")
        self.kvm_assert_gmem_invalidate_lock_held(fault.slot)
        r = self.kvm_mmu_reload(vcpu)
        if r:
            return r
        # SUSPECT: filled once, before the loop; a retry may find the caches used up.
        r = self.mmu_topup_memory_caches(vcpu)
        if r:
            return r
        while True:
            if vcpu.signal_pending or self.sim.choose("signal_pending:map_private_pfn"):
                return -EINTR
            if self.host.main.kvm_test_request(KVM_REQ_VM_DEAD, vcpu):
                return -EIO
            self.sim.point("cond_resched")
            kvm.mmu_lock.read_lock()
            r = self.host.tdp_mmu.kvm_tdp_mmu_map(vcpu, fault)
            kvm.mmu_lock.read_unlock()
            if r != RET_PF_RETRY:
                break
        return 0 if r == RET_PF_FIXED else -EIO
