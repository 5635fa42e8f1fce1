"""Secure EPT operations: the x86 ops through which the TDP MMU changes the external page table.

Source: vmx/tdx.c with patches 01, 03, 04, 17, 24 and Dynamic PAMT v4 13/16, 14/16.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.errno import EBUSY, EINVAL, EIO
from septum.abi.kvm import (
    KVM_REQ_OUTSIDE_GUEST_MODE,
    PAGES_PER_HPAGE,
    PG_LEVEL_2M,
    PG_LEVEL_4K,
    PT64_ROOT_MAX_LEVEL,
)
from septum.abi.spte import VMX_EPT_RWX_MASK, is_shadow_present_pte, spte_to_pfn
from septum.abi.status import STATUS_MASK, TDX_OPERAND_BUSY
from septum.linux.kvm.tdx_base import is_hkid_assigned
from septum.linux.kvm.tdx_defs import TD_STATE_RUNNABLE
from septum.linux.kvm.tdx_init import TdxInit

if TYPE_CHECKING:
    from collections.abc import Callable

    from septum.abi.types import Pfn
    from septum.linux.kvm.types import Kvm, KvmVcpu, TdxPrealloc
    from septum.linux.mm.folio import Folio
    from septum.linux.x86.tdx import SeamcallRet


class TdxSept(TdxInit):
    """Map, link, remove, free."""

    __slots__ = ()

    # Calls that must not fail

    def tdh_do_no_vcpus(
        self, tdh_func: Callable[..., SeamcallRet], kvm: Kvm, *args: object
    ) -> SeamcallRet:
        """Call `tdh_func`; when it is BUSY, force all vCPUs out of the guest, keep them out, and
        call it once more. Under write mmu_lock, so that only guests can contend.

        Returns what the last call returned: (status, ext_err1, ext_err2).
        """
        if not kvm.mmu_lock.held_write():
            self.lockdep_assert(False, "mmu_lock not written", "tdh_do_no_vcpus")
        ret = tdh_func(*args)
        if ret[0] & STATUS_MASK == TDX_OPERAND_BUSY:
            kvm.stat.add("tdh_do_no_vcpus.busy")
            self.tdx_no_vcpus_enter_start(kvm)
            ret = tdh_func(*args)
            self.tdx_no_vcpus_enter_stop(kvm)
        return ret

    def tdx_no_vcpus_enter_start(self, kvm: Kvm) -> None:
        """From here on no vCPU enters the guest, then those that are in it leave."""
        kvm.tdx.wait_for_sept_zap = True
        self.host.main.kvm_make_all_cpus_request(kvm, KVM_REQ_OUTSIDE_GUEST_MODE)

    def tdx_no_vcpus_enter_stop(self, kvm: Kvm) -> None:
        """vCPUs may enter again."""
        kvm.tdx.wait_for_sept_zap = False
        kvm.tdx.zap_wq.wake_up_all()

    def tdx_track(self, kvm: Kvm) -> None:
        """Start a new TLB epoch and force every vCPU out of the guest, so that none uses a
        translation of before."""
        kvm_tdx = kvm.tdx
        if kvm_tdx.state != TD_STATE_RUNNABLE:
            return  # no vCPU has run yet
        err, _, _ = self.tdh_do_no_vcpus(self.host.x86_tdx.tdh_mem_track, kvm, kvm_tdx)
        if err:
            self.tdx_bug_on(err, "TDH_MEM_TRACK", kvm)
        self.host.main.kvm_make_all_cpus_request(kvm, KVM_REQ_OUTSIDE_GUEST_MODE)

    # The Dynamic PAMT count of S-EPT pages: up before the module gets one, down when it is back

    def _tdx_sept_page_get(self, private_spt: int, prealloc: TdxPrealloc) -> int:
        """An S-EPT page is about to be given to the module. 0 or -ENOMEM."""
        return self.host.x86_tdx.tdx_pamt_get(private_spt, prealloc)

    def _tdx_sept_page_put(self, private_spt: int) -> None:
        """An S-EPT page is back, or the module did not take it."""
        self.host.x86_tdx.tdx_pamt_put(private_spt)

    # Preallocation for a fault

    def topup_external_fault_cache(self, vcpu: KvmVcpu, cnt: int = 0) -> int:
        """x86 op: `cnt` S-EPT pages and the Dynamic PAMT pages for a whole walk and its leaf.

        0 or -ENOMEM. Source: Dynamic PAMT v4 12/16.
        """
        x86 = self.host.x86_tdx
        cnt += x86.tdx_dpamt_entry_pages() * PT64_ROOT_MAX_LEVEL
        return x86.topup_tdx_prealloc_page(vcpu.tdx.prealloc, cnt)

    def alloc_external_fault_cache(self, vcpu: KvmVcpu) -> Pfn | None:
        """x86 op: an S-EPT page out of the vCPU's cache; WARN and GFP_ATOMIC when it is empty."""
        page = self.host.x86_tdx.get_tdx_prealloc_page(vcpu.tdx.prealloc)
        if page is None:
            self.warn_on_once("external fault cache is empty", "tdx_alloc_external_fault_cache")
            return self.host.mm.alloc_page("external_spt_atomic", atomic=True)
        return page

    # Mapping

    def tdx_mem_page_add(self, kvm: Kvm, gfn: int, level: int, pfn: int) -> int:
        """TDH.MEM.PAGE.ADD while the TD image is built. 0, -EBUSY or -EIO."""
        main = self.host.main
        self.lockdep_assert(kvm.slots_lock.held(), "slots_lock not held", "tdx_mem_page_add")
        source = kvm.tdx.page_add_src
        if main.kvm_bug_on(kvm, kvm.arch.pre_fault_allowed, "PAGE.ADD of a finalized TD"):
            return -EIO
        if source is None:
            main.kvm_bug_on(kvm, True, "PAGE.ADD without a source page")
            return -EIO
        err, entry, level_state = self.host.x86_tdx.tdh_mem_page_add(
            kvm.tdx, gfn << 12, pfn, source
        )
        if err & STATUS_MASK == TDX_OPERAND_BUSY:
            return -EBUSY
        if self.tdx_bug_on(err, "TDH_MEM_PAGE_ADD", kvm, entry, level_state):
            return -EIO
        return 0

    def tdx_mem_page_aug(self, kvm: Kvm, gfn: int, level: int, pfn: int) -> int:
        """TDH.MEM.PAGE.AUG of a running TD. 0, -EBUSY or -EIO. Source: patch 01."""
        folio = self.host.mm.page_folio(pfn)
        err, entry, level_state = self.host.x86_tdx.tdh_mem_page_aug(
            kvm.tdx, gfn << 12, level - 1, folio, pfn - folio.pfn
        )
        if not err:
            return 0
        if err & STATUS_MASK == TDX_OPERAND_BUSY:
            return -EBUSY
        self.tdx_bug_on(err, "TDH_MEM_PAGE_AUG", kvm, entry, level_state)
        return -EIO

    def tdx_sept_set_private_spte(self, kvm: Kvm, gfn: int, level: int, mirror_spte: int) -> int:
        """Map a leaf: AUG in a running TD, ADD while it is built.

        0, -EBUSY (the fault is retried), -ENOMEM (no Dynamic PAMT page), -EIO, -EINVAL.
        Source: patches 17, 24.
        """
        main = self.host.main
        kvm_tdx = kvm.tdx
        vcpu = main.kvm_get_running_vcpu()
        if vcpu is None:
            main.kvm_bug_on(kvm, True, "set_external_spte without a running vCPU")
            return -EINVAL
        runnable = kvm_tdx.state == TD_STATE_RUNNABLE
        # Large pages are not supported before the TD runs, nor with tdx_huge_page off.
        if level != PG_LEVEL_4K and not (self.state.enable_tdx_huge_page and runnable):
            main.kvm_bug_on(kvm, True, f"mapping of level {level} where only 4 KB is allowed")
            return -EIO
        if not is_shadow_present_pte(mirror_spte) or (
            mirror_spte & VMX_EPT_RWX_MASK != VMX_EPT_RWX_MASK
        ):
            self.warn_on_once(
                f"mirror SPTE {mirror_spte:#x} is not RWX", "tdx_sept_set_private_spte"
            )
        pfn = spte_to_pfn(mirror_spte)
        x86 = self.host.x86_tdx
        if self._needs_pamt_pair(level):
            ret = x86.tdx_pamt_get(pfn, vcpu.tdx.prealloc)
            if ret:
                return ret
        if runnable:
            ret = self.tdx_mem_page_aug(kvm, gfn, level, pfn)
        else:
            ret = self.tdx_mem_page_add(kvm, gfn, level, pfn)
        if ret and self._needs_pamt_pair(level):
            self._tdx_page_unused(pfn)
        return ret

    def _tdx_page_unused(self, pfn: int) -> None:
        """The page could not be mapped after all: undo its tdx_pamt_get(). Source: patch 17."""
        self.host.x86_tdx.tdx_pamt_put(pfn)

    def _needs_pamt_pair(self, level: int) -> bool:
        """Whether a leaf of this level needs the PAMT page pair of its 2 MB. Source: patch 17."""
        return level == PG_LEVEL_4K

    def tdx_sept_link_private_spt(self, kvm: Kvm, gfn: int, level: int, private_spt: int) -> int:
        """Add an S-EPT page below the entry of `level` at `gfn`. 0, -EBUSY, -ENOMEM, -EIO."""
        main = self.host.main
        vcpu = main.kvm_get_running_vcpu()
        if vcpu is None:
            main.kvm_bug_on(kvm, True, "link_external_spt without a running vCPU")
            return -EINVAL
        x86 = self.host.x86_tdx
        ret = self._tdx_sept_page_get(private_spt, vcpu.tdx.prealloc)
        if ret:
            return ret
        err, entry, level_state = x86.tdh_mem_sept_add(kvm.tdx, gfn << 12, level - 1, private_spt)
        if err & STATUS_MASK == TDX_OPERAND_BUSY:
            self._tdx_sept_page_put(private_spt)
            return -EBUSY
        if self.tdx_bug_on(err, "TDH_MEM_SEPT_ADD", kvm, entry, level_state):
            self._tdx_sept_page_put(private_spt)
            return -EIO
        return 0

    # Removal

    def tdx_sept_remove_private_spte(self, kvm: Kvm, gfn: int, level: int, mirror_spte: int) -> int:
        """BLOCK, TRACK and kick, REMOVE, flush the page's cache lines. Callers cannot handle an
        error, so each bugs the VM and leaves the page where it is.

        0 or -EIO; the C function returns nothing. Source: patches 03, 04, 17, 24.
        """
        kvm_tdx = kvm.tdx
        if not is_hkid_assigned(kvm_tdx):
            self.host.main.kvm_bug_on(kvm, True, "zap of a private page after HKID release")
            return -EIO
        if level != PG_LEVEL_4K and (
            not self.state.enable_tdx_huge_page or kvm_tdx.state != TD_STATE_RUNNABLE
        ):
            self.host.main.kvm_bug_on(kvm, True, f"zap at level {level} where only 4 KB can be")
            return -EIO
        x86 = self.host.x86_tdx
        gpa = gfn << 12
        pfn = spte_to_pfn(mirror_spte)
        folio = self.host.mm.page_folio(pfn)

        err, entry, level_state = self.tdh_do_no_vcpus(
            x86.tdh_mem_range_block, kvm, kvm_tdx, gpa, level - 1
        )
        if err:
            self.tdx_bug_on(err, "TDH_MEM_RANGE_BLOCK", kvm, entry, level_state)
            return -EIO

        # TLBs must be clean before the page can go.
        self.tdx_track(kvm)

        err, entry, level_state = self.tdh_do_no_vcpus(
            x86.tdh_mem_page_remove, kvm, kvm_tdx, gpa, level - 1
        )
        if err:
            self.tdx_bug_on(err, "TDH_MEM_PAGE_REMOVE", kvm, entry, level_state)
            return -EIO

        if self._write_back_and_reset(kvm, folio, pfn - folio.pfn, PAGES_PER_HPAGE[level]):
            return -EIO
        if self._needs_pamt_pair(level):
            x86.tdx_pamt_put(pfn)
        return 0

    def _write_back_and_reset(self, kvm: Kvm, folio: Folio, start_idx: int, npages: int) -> int:
        """Removed pages become the host's: the TD's dirty lines go to memory, which is then reset.
        0 or -EIO. Source: tdx_sept_remove_private_spte(), patches 03, 04."""
        x86 = self.host.x86_tdx
        err = x86.tdh_phymem_page_wbinvd_hkid(kvm.tdx.hkid, folio, start_idx, npages)
        if err:
            self.tdx_bug_on(err, "TDH_PHYMEM_PAGE_WBINVD", kvm)
            return -EIO
        x86.tdx_quirk_reset_folio(folio, start_idx, npages)
        return 0

    def tdx_sept_free_private_spt(self, kvm: Kvm, gfn: int, level: int, private_spt: int) -> int:
        """Reclaim an S-EPT page of a TD without key. 0, or -EIO and the page leaks."""
        # KVM never frees mirror page tables while the TD is alive.
        if self.host.main.kvm_bug_on(
            kvm, is_hkid_assigned(kvm.tdx), "S-EPT page freed while the HKID is assigned"
        ):
            return -EIO
        ret = self.tdx_reclaim_page(private_spt)
        if ret:
            return ret
        self._tdx_sept_page_put(private_spt)
        return 0

    # The x86 ops by name

    def link_external_spt(self, kvm: Kvm, gfn: int, level: int, external_spt: int) -> int:
        """kvm_x86_ops.link_external_spt."""
        return self.tdx_sept_link_private_spt(kvm, gfn, level, external_spt)

    def set_external_spte(self, kvm: Kvm, gfn: int, level: int, mirror_spte: int) -> int:
        """kvm_x86_ops.set_external_spte."""
        return self.tdx_sept_set_private_spte(kvm, gfn, level, mirror_spte)

    def remove_external_spte(self, kvm: Kvm, gfn: int, level: int, mirror_spte: int) -> None:
        """kvm_x86_ops.remove_external_spte."""
        self.tdx_sept_remove_private_spte(kvm, gfn, level, mirror_spte)

    def free_external_spt(self, kvm: Kvm, gfn: int, level: int, external_spt: int) -> int:
        """kvm_x86_ops.free_external_spt."""
        return self.tdx_sept_free_private_spt(kvm, gfn, level, external_spt)

    def gmem_max_mapping_level(self, kvm: Kvm, pfn: int, is_private: bool) -> int:
        """kvm_x86_ops.gmem_max_mapping_level: the largest level that TDX allows; 0: no opinion.

        Source: patch 24.
        """
        if not is_private:
            return 0
        if not self.state.enable_tdx_huge_page or kvm.tdx.state != TD_STATE_RUNNABLE:
            return PG_LEVEL_4K
        return PG_LEVEL_2M
