"""Small pages become a huge page again where the TDX module lets them.

What v3 rules out (patch 06; cover letter, design 7): the module merges 512 pages only if all are
PENDING or all are accepted, PROMOTE needs a BLOCK before it, and a page that comes back from shared
is PENDING among accepted ones. "After we support S-EPT promotion later": Yan Zhao, 2026-01-12. Sean
Christopherson, 2026-01-26, names what a fault would need besides: break before make, and the entry
frozen meanwhile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.errno import EBUSY, EIO
from septum.abi.kvm import PAGES_PER_HPAGE, PG_LEVEL_2M, PG_LEVEL_4K, RET_PF_FIXED
from septum.abi.leaves import TDH_MEM_PAGE_PROMOTE
from septum.abi.regs import Regs
from septum.abi.spte import (
    FROZEN_SPTE,
    PT_PAGE_SIZE_MASK,
    SPTE_MMU_PRESENT_MASK,
    is_shadow_present_pte,
    spte_to_pfn,
)
from septum.abi.status import (
    STATUS_MASK,
    TDX_EPT_INVALID_PROMOTE_CONDITIONS,
    TDX_INTERRUPTED_RESTARTABLE,
)
from septum.abi.types import Pfn
from septum.designs.proposals.range_unblock import UnblockTdxArch
from septum.designs.registry import Design, on_v3
from septum.linux.kvm.mmu import KvmMmu
from septum.linux.kvm.tdp_iter import TdpIter
from septum.linux.kvm.tdp_mmu import TdpMmu
from septum.linux.kvm.tdx import KvmTdxUnit

if TYPE_CHECKING:
    from septum.linux.kvm.types import Kvm, KvmMmuPage, KvmPageFault, KvmTdx, KvmVcpu
    from septum.linux.x86.tdx import SeamcallRet


class PromotionMmu(KvmMmu):
    """An MMU that tries to promote after a fault that patch 06 has kept at 4 KB.

    Assumed, as the thread leaves all of it open: the fault maps its page as in v3, then takes
    mmu_lock for writing, where vCPUs can be kept out, so that no BUSY is left to handle.
    """

    __slots__ = ()

    def kvm_tdp_mmu_page_fault(self, vcpu: KvmVcpu, fault: KvmPageFault) -> int:
        r = super().kvm_tdp_mmu_page_fault(vcpu, fault)
        kept_small = fault.req_level == PG_LEVEL_2M and fault.goal_level == PG_LEVEL_4K
        if r == RET_PF_FIXED and fault.is_private and kept_small:
            self._promote(vcpu, fault)
        return r

    def _promote(self, vcpu: KvmVcpu, fault: KvmPageFault) -> None:
        kvm = vcpu.kvm
        tdp_mmu = self.host.tdp_mmu
        assert isinstance(tdp_mmu, PromotionTdpMmu)
        kvm.mmu_lock.write_lock()
        kvm.stat.add("promote.write_lock")
        root = vcpu.mmu_mirror_root
        if root is not None and not self.is_page_fault_stale(vcpu, fault):
            tdp_mmu.tdp_mmu_promote_huge_page(kvm, root, fault.gfn)
        kvm.mmu_lock.write_unlock()


class PromotionTdpMmu(TdpMmu):
    """A TDP MMU that replaces a full mirror table by one leaf."""

    __slots__ = ()

    def tdp_mmu_promote_huge_page(self, kvm: Kvm, root: KvmMmuPage, gfn: int) -> None:
        """Promote the 2 MB around `gfn` when each of its pages is mapped; mmu_lock is held for
        writing. The S-EPT comes first, as it may refuse."""
        it = TdpIter(self.machine.tables, root, PG_LEVEL_2M, gfn, 0)
        while it.valid and it.level != PG_LEVEL_2M:
            it.next()
        old_spte = it.old_spte
        if not old_spte & SPTE_MMU_PRESENT_MASK or old_spte & PT_PAGE_SIZE_MASK:
            return
        sp = self.spte_to_child_sp(old_spte)
        first = sp.spt.entry(0)
        pfn = spte_to_pfn(first)
        for i in range(PAGES_PER_HPAGE[PG_LEVEL_2M]):
            spte = sp.spt.entry(i)
            if not is_shadow_present_pte(spte) or spte_to_pfn(spte) != pfn + i:
                return
        tdx = self.host.tdx
        assert isinstance(tdx, PromotionTdx)
        assert sp.external_spt is not None
        it.table.set_entry(it.index, FROZEN_SPTE)
        if tdx.tdx_sept_promote_private_spte(kvm, it.gfn, it.level, pfn, sp.external_spt):
            it.table.set_entry(it.index, old_spte)
            return
        it.table.set_entry(it.index, first | PT_PAGE_SIZE_MASK)
        self.kvm_update_page_stats(kvm, PG_LEVEL_4K, -PAGES_PER_HPAGE[PG_LEVEL_2M])
        self.kvm_update_page_stats(kvm, PG_LEVEL_2M, 1)
        self.tdp_mmu_unlink_sp(kvm, sp)
        self._call_rcu_free_sp(sp)


class PromotionTdx(KvmTdxUnit):
    """TDX with tdx_sept_promote_private_spte()."""

    __slots__ = ()

    def tdx_sept_promote_private_spte(
        self, kvm: Kvm, gfn: int, level: int, pfn: int, private_spt: int
    ) -> int:
        """BLOCK, TRACK and kick, PROMOTE; UNBLOCK when the module refuses.

        0: the S-EPT page is KVM's again. -EBUSY: nothing has changed. -EIO: the VM is bugged.
        """
        gpa = gfn << 12
        x86 = self.host.x86_tdx
        assert isinstance(x86, PromotionTdxArch)
        if self._block_and_track(kvm, gpa, level):
            return -EIO
        err, entry, level_state = self.tdh_do_no_vcpus(
            x86.tdh_mem_page_promote, kvm, kvm.tdx, gpa, level - 1, pfn
        )
        if err & STATUS_MASK == TDX_EPT_INVALID_PROMOTE_CONDITIONS:
            kvm.stat.add("promote.refused")
            err, entry, level_state = self.tdh_do_no_vcpus(
                x86.tdh_mem_range_unblock, kvm, kvm.tdx, gpa, level - 1
            )
            if self.tdx_bug_on(err, "TDH_MEM_RANGE_UNBLOCK", kvm, entry, level_state):
                return -EIO
            return -EBUSY
        if self.tdx_bug_on(err, "TDH_MEM_PAGE_PROMOTE", kvm, entry, level_state):
            return -EIO
        kvm.stat.add("promote.done")
        folio = self.host.mm.page_folio(private_spt)
        err = x86.tdh_phymem_page_wbinvd_hkid(kvm.tdx.hkid, folio, private_spt - folio.pfn, 1)
        if self.tdx_bug_on(err, "TDH_PHYMEM_PAGE_WBINVD", kvm):
            return -EIO
        x86.tdx_quirk_reset_page(private_spt)
        self._tdx_sept_page_put(private_spt)
        return 0


class PromotionTdxArch(UnblockTdxArch):
    """The SEAMCALL wrappers with tdh_mem_page_promote()."""

    __slots__ = ()

    def tdh_mem_page_promote(self, td: KvmTdx, gpa: int, level: int, pfn: int) -> SeamcallRet:
        """TDH.MEM.PAGE.PROMOTE, again while it is interrupted: (status, ext_err1, ext_err2).

        With Dynamic PAMT the pair of the guest's 2 MB comes back and is freed; the reference count
        goes from 512 to 0.
        """
        while True:
            regs = Regs(rcx=gpa | level, rdx=self.tdx_tdr_pa(td))
            err = self.seamcall(TDH_MEM_PAGE_PROMOTE, regs)
            if err & STATUS_MASK != TDX_INTERRUPTED_RESTARTABLE:
                break
            self.sim.point("cpu_relax")
        if not err and self._demote_takes_pair(level):
            self.state.pamt_refcounts.pop(pfn >> 9, None)
            self.free_pamt_array([Pfn(regs.r12 >> 12), Pfn(regs.r13 >> 12)])
        return err, regs.rcx, regs.rdx


DESIGN = Design(
    "promotion",
    "ruled out by PATCH v3 06/24 and its cover letter, design 7, 2026-01-06, Yan Zhao (author)",
    "a fault that finds its 2 MB mapped by 4 KB pages tries to promote them",
    on_v3(mmu=PromotionMmu, tdp_mmu=PromotionTdpMmu, tdx=PromotionTdx, x86_tdx=PromotionTdxArch),
    scenarios=("promotion-after-return", "promotion-all-pending"),
)
