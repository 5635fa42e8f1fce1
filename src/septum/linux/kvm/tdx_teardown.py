"""The end of a TD: reclaim of pages, vCPU flush, release of the key id.

Source: vmx/tdx.c with patch 05 and Dynamic PAMT v4 14/16.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.errno import EIO
from septum.abi.status import (
    TDX_FLUSHVP_NOT_DONE,
    TDX_INTERRUPTED_RESUMABLE,
    TDX_NO_HKID_READY_TO_WBCACHE,
    TDX_SUCCESS,
    TDX_VCPU_NOT_ASSOCIATED,
)
from septum.linux.kvm.tdx_base import TdxBase, is_hkid_assigned
from septum.linux.kvm.tdx_defs import (
    TD_STATE_UNINITIALIZED,
    VCPU_TD_STATE_INITIALIZED,
    VCPU_TD_STATE_UNINITIALIZED,
)

if TYPE_CHECKING:
    from septum.linux.kvm.types import Kvm, KvmTdx, KvmVcpu
    from septum.linux.mm.folio import Folio

TDX_SEAMCALL_RETRIES = 10000


class TdxTeardown(TdxBase):
    """Reclaim and release."""

    __slots__ = ()

    # TDH.PHYMEM.PAGE.RECLAIM is allowed only when destroying the TD.

    def tdx_reclaim_folio(self, folio: Folio, start_idx: int, npages: int, reset: bool) -> int:
        """Take pages back from a TD without key. 0 or -EIO. Source: patch 05."""
        x86 = self.host.x86_tdx
        err, tdx_pt, tdx_owner, tdx_size = x86.tdh_phymem_page_reclaim(folio, start_idx, npages)
        if self.tdx_bug_on(err, "TDH_PHYMEM_PAGE_RECLAIM", None, tdx_pt, tdx_owner, tdx_size):
            return -EIO
        if reset:
            x86.tdx_quirk_reset_folio(folio, start_idx, npages)
        return 0

    def tdx_reclaim_page(self, page: int) -> int:
        """Take one control or S-EPT page back."""
        folio = self.host.mm.page_folio(page)
        return self.tdx_reclaim_folio(folio, page - folio.pfn, 1, True)

    def tdx_reclaim_page_noreset(self, page: int) -> int:
        """As `tdx_reclaim_page`, for the TDR, which is reset after its cache lines are flushed."""
        folio = self.host.mm.page_folio(page)
        return self.tdx_reclaim_folio(folio, page - folio.pfn, 1, False)

    def tdx_reclaim_control_page(self, ctrl_page: int) -> None:
        """Reclaim and free; the page leaks when it cannot be reclaimed."""
        if self.tdx_reclaim_page(ctrl_page):
            return
        self.host.x86_tdx.tdx_free_page(ctrl_page)

    # vCPU association

    def tdx_disassociate_vp(self, vcpu: KvmVcpu) -> None:
        """The vCPU belongs to no CPU any more."""
        cpu_list = self.state.associated_tdvcpus[vcpu.cpu]
        if vcpu in cpu_list:
            cpu_list.remove(vcpu)
        vcpu.cpu = -1

    def tdx_flush_vp(self, vcpu: KvmVcpu, cpu: int) -> int:
        """TDH.VP.FLUSH on this CPU (`cpu`), in IPI context: the status to report, or 0."""
        if vcpu.cpu != cpu:
            return 0
        ret = 0
        if vcpu.tdx.state != VCPU_TD_STATE_UNINITIALIZED:
            err = self.host.x86_tdx.tdh_vp_flush(vcpu.tdx)
            if err and err != TDX_VCPU_NOT_ASSOCIATED:
                ret = err
        self.tdx_disassociate_vp(vcpu)
        return ret

    def tdx_flush_vp_on_cpu(self, vcpu: KvmVcpu) -> None:
        """Flush the vCPU on the CPU where it was loaded last."""
        cpu = vcpu.cpu
        if cpu == -1:
            return
        err = self.host.main.smp_call_function_single(cpu, self.tdx_flush_vp, vcpu)
        self.tdx_bug_on(err, "TDH_VP_FLUSH", vcpu.kvm)

    # The key id

    def tdx_hkid_free(self, kvm_tdx: KvmTdx) -> None:
        """The key id can be used by another TD."""
        self.host.x86_tdx.tdx_guest_keyid_free(kvm_tdx.hkid)
        kvm_tdx.hkid = -1

    def smp_func_do_phymem_cache_wb(self) -> None:
        """TDH.PHYMEM.CACHE.WB on this package, resumed until it is done."""
        err = 0
        for _ in range(TDX_SEAMCALL_RETRIES):
            err = self.host.x86_tdx.tdh_phymem_cache_wb(err != 0)
            if err == TDX_INTERRUPTED_RESUMABLE:
                continue
            if err == TDX_NO_HKID_READY_TO_WBCACHE:
                err = TDX_SUCCESS
            break
        self.tdx_bug_on(err, "TDH_PHYMEM_CACHE_WB", None)

    def tdx_mmu_release_hkid(self, kvm: Kvm) -> None:
        """Flush vCPUs and caches and give the key id back; it leaks where the module refuses."""
        kvm_tdx = kvm.tdx
        if not is_hkid_assigned(kvm_tdx):
            return
        vcpus = tuple(kvm.vcpus)
        for vcpu in vcpus:
            self.tdx_flush_vp_on_cpu(vcpu)
        x86 = self.host.x86_tdx
        # CACHE.WB takes the module's global lock: keep other TDs' out.
        with x86.state.tdx_lock:
            err = x86.tdh_mng_vpflushdone(kvm_tdx)
            if err == TDX_FLUSHVP_NOT_DONE:
                return
            if self.tdx_bug_on(err, "TDH_MNG_VPFLUSHDONE", kvm):
                return  # the HKID is leaked
            packages: set[int] = set()
            for lp in self.machine.lps:
                if lp.package in packages:
                    continue
                packages.add(lp.package)
                self.host.main.smp_call_on_cpu(lp.id, self.smp_func_do_phymem_cache_wb)
            # Fails when a cache write-back did.
            err = x86.tdh_mng_key_freeid(kvm_tdx)
            if not self.tdx_bug_on(err, "TDH_MNG_KEY_FREEID", kvm):
                self.tdx_hkid_free(kvm_tdx)

    # Control pages

    def tdx_reclaim_td_control_pages(self, kvm: Kvm) -> None:
        """TDCS pages, then the TDR. Everything leaks when the key id could not be released."""
        kvm_tdx = kvm.tdx
        if is_hkid_assigned(kvm_tdx):
            return
        pages = tuple(kvm_tdx.tdcs_pages)
        for page in pages:
            self.tdx_reclaim_control_page(page)
        kvm_tdx.tdcs_pages = []
        tdr_page = kvm_tdx.tdr_page
        if tdr_page is None:
            return
        if self.tdx_reclaim_page_noreset(tdr_page):
            return
        # The module may access the TDR with its own key while it reclaims the TDCS.
        x86 = self.host.x86_tdx
        err = x86.tdh_phymem_page_wbinvd_tdr(kvm_tdx)
        if self.tdx_bug_on(err, "TDH_PHYMEM_PAGE_WBINVD", kvm):
            return
        x86.tdx_quirk_reset_page(tdr_page)
        x86.tdx_free_page(tdr_page)
        kvm_tdx.tdr_page = None

    def tdx_vcpu_free(self, vcpu: KvmVcpu) -> None:
        """Give the vCPU's control pages back."""
        tdx = vcpu.tdx
        kvm = vcpu.kvm
        if vcpu.cpu != -1:
            self.host.main.kvm_bug_on(
                kvm, tdx.state == VCPU_TD_STATE_INITIALIZED, "tdx_vcpu_free of an associated vCPU"
            )
            self.tdx_flush_vp_on_cpu(vcpu)
            return
        if is_hkid_assigned(kvm.tdx):
            return
        pages = tuple(tdx.tdcx_pages)
        for page in pages:
            self.tdx_reclaim_control_page(page)
        tdx.tdcx_pages = []
        if tdx.tdvpr_page is not None:
            self.tdx_reclaim_control_page(tdx.tdvpr_page)
            tdx.tdvpr_page = None
        tdx.state = VCPU_TD_STATE_UNINITIALIZED

    def free_external_fault_cache(self, vcpu: KvmVcpu) -> None:
        """x86 op: free the pages that were preallocated for faults of this vCPU."""
        x86 = self.host.x86_tdx
        while (page := x86.get_tdx_prealloc_page(vcpu.tdx.prealloc)) is not None:
            self.host.mm.free_page(page)

    def tdx_vm_destroy(self, kvm: Kvm) -> None:
        """x86 op vm_destroy."""
        self.tdx_reclaim_td_control_pages(kvm)
        kvm.tdx.state = TD_STATE_UNINITIALIZED
