"""The SEAMCALL wrappers of arch/x86/virt/vmx/tdx/tdx.c.

A wrapper returns the 64-bit status, or (status, ext_err1, ext_err2) where the C function has the
two output pointers. `td` is the kernel's struct tdx_td, here the KvmTdx that contains it; `vp` is
struct tdx_vp, here the VcpuTdx. Pages are PFNs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.leaves import (
    TDH_MEM_PAGE_ADD,
    TDH_MEM_PAGE_AUG,
    TDH_MEM_PAGE_REMOVE,
    TDH_MEM_RANGE_BLOCK,
    TDH_MEM_SEPT_ADD,
    TDH_MEM_TRACK,
    TDH_MNG_ADDCX,
    TDH_MNG_CREATE,
    TDH_MNG_INIT,
    TDH_MNG_KEY_CONFIG,
    TDH_MNG_KEY_FREEID,
    TDH_MNG_RD,
    TDH_MNG_VPFLUSHDONE,
    TDH_MR_EXTEND,
    TDH_MR_FINALIZE,
    TDH_PHYMEM_CACHE_WB,
    TDH_PHYMEM_PAGE_RECLAIM,
    TDH_PHYMEM_PAGE_WBINVD,
    TDH_VP_ADDCX,
    TDH_VP_CREATE,
    TDH_VP_ENTER,
    TDH_VP_FLUSH,
    TDH_VP_INIT,
    TDH_VP_RD,
    TDH_VP_WR,
    VERSION_SHIFT,
)
from septum.abi.regs import Regs
from septum.abi.status import TDX_OPERAND_INVALID, TDX_SW_ERROR
from septum.abi.types import PAGE_SHIFT, PAGE_SIZE, PTRS_PER_TABLE
from septum.linux.x86.pamt import TdxPamt
from septum.linux.x86.seamcall import SeamcallRet as SeamcallRet
from septum.linux.x86.state import PTE_SHIFT

if TYPE_CHECKING:
    from septum.linux.kvm.types import KvmTdx, VcpuTdx
    from septum.linux.mm.folio import Folio


class TdxArch(TdxPamt):
    """arch/x86/virt/vmx/tdx/tdx.c."""

    __slots__ = ()

    # The TD

    def tdh_mng_create(self, td: KvmTdx, hkid: int) -> int:
        """TDH.MNG.CREATE: make `td.tdr_page` the TDR of a TD with key `hkid`."""
        assert td.tdr_page is not None
        self.tdx_clflush_page(td.tdr_page)
        return self.seamcall(TDH_MNG_CREATE, Regs(rcx=td.tdr_page << 12, rdx=hkid))

    def tdh_mng_key_config(self, td: KvmTdx) -> int:
        """TDH.MNG.KEY.CONFIG on the package of this CPU."""
        return self.seamcall(TDH_MNG_KEY_CONFIG, Regs(rcx=self.tdx_tdr_pa(td)))

    def tdh_mng_addcx(self, td: KvmTdx, tdcs_page: int) -> int:
        """TDH.MNG.ADDCX: give the TD one TDCX page."""
        self.tdx_clflush_page(tdcs_page)
        regs = Regs(rcx=tdcs_page << 12, rdx=self.tdx_tdr_pa(td))
        return self.seamcall(TDH_MNG_ADDCX, regs)

    def tdh_mng_init(self, td: KvmTdx, td_params: int) -> tuple[int, int]:
        """TDH.MNG.INIT with the TD_PARAMS at physical address `td_params`: (status, rcx)."""
        regs = Regs(rcx=self.tdx_tdr_pa(td), rdx=td_params)
        err = self.seamcall(TDH_MNG_INIT, regs)
        return err, regs.rcx

    def tdh_mng_rd(self, td: KvmTdx, field: int) -> tuple[int, int]:
        """TDH.MNG.RD: (status, value of the metadata field)."""
        regs = Regs(rcx=self.tdx_tdr_pa(td), rdx=field)
        err = self.seamcall(TDH_MNG_RD, regs)
        return err, regs.r8

    def tdh_mng_vpflushdone(self, td: KvmTdx) -> int:
        """TDH.MNG.VPFLUSHDONE."""
        return self.seamcall(TDH_MNG_VPFLUSHDONE, Regs(rcx=self.tdx_tdr_pa(td)))

    def tdh_mng_key_freeid(self, td: KvmTdx) -> int:
        """TDH.MNG.KEY.FREEID."""
        return self.seamcall(TDH_MNG_KEY_FREEID, Regs(rcx=self.tdx_tdr_pa(td)))

    def tdx_tdr_pa(self, td: KvmTdx) -> int:
        """Physical address of the TDR."""
        assert td.tdr_page is not None
        return td.tdr_page << 12

    # vCPUs

    def tdh_vp_create(self, td: KvmTdx, vp: VcpuTdx) -> int:
        """TDH.VP.CREATE: make `vp.tdvpr_page` the TDVPR of a vCPU."""
        assert vp.tdvpr_page is not None
        self.tdx_clflush_page(vp.tdvpr_page)
        regs = Regs(rcx=vp.tdvpr_page << 12, rdx=self.tdx_tdr_pa(td))
        return self.seamcall(TDH_VP_CREATE, regs)

    def tdh_vp_addcx(self, vp: VcpuTdx, tdcx_page: int) -> int:
        """TDH.VP.ADDCX."""
        self.tdx_clflush_page(tdcx_page)
        return self.seamcall(TDH_VP_ADDCX, Regs(rcx=tdcx_page << 12, rdx=self.tdx_tdvpr_pa(vp)))

    def tdh_vp_init(self, vp: VcpuTdx, initial_rcx: int, x2apicid: int) -> int:
        """TDH.VP.INIT, version 1: it takes the x2APIC id."""
        regs = Regs(rcx=self.tdx_tdvpr_pa(vp), rdx=initial_rcx, r8=x2apicid)
        return self.seamcall(TDH_VP_INIT | 1 << VERSION_SHIFT, regs)

    def tdh_vp_wr(self, vp: VcpuTdx, field: int, data: int, mask: int) -> int:
        """TDH.VP.WR."""
        regs = Regs(rcx=self.tdx_tdvpr_pa(vp), rdx=field, r8=data, r9=mask)
        return self.seamcall(TDH_VP_WR, regs)

    def tdh_vp_rd(self, vp: VcpuTdx, field: int) -> SeamcallRet:
        """TDH.VP.RD: (status, value of the field, 0)."""
        regs = Regs(rcx=self.tdx_tdvpr_pa(vp), rdx=field)
        err = self.seamcall(TDH_VP_RD, regs)
        return err, regs.r8, 0

    def tdh_vp_flush(self, vp: VcpuTdx) -> int:
        """TDH.VP.FLUSH, on the CPU that the vCPU is associated with."""
        return self.seamcall(TDH_VP_FLUSH, Regs(rcx=self.tdx_tdvpr_pa(vp)))

    def tdh_vp_enter(self, vp: VcpuTdx, regs: Regs) -> int:
        """TDH.VP.ENTER: run the guest until it leaves; the exit is in `regs`. No retry stub."""
        regs.rax = TDH_VP_ENTER
        regs.rcx = self.tdx_tdvpr_pa(vp)
        self.machine.seamcall(self.sim.current.cpu, regs)
        return regs.rax

    def tdx_tdvpr_pa(self, vp: VcpuTdx) -> int:
        """Physical address of the TDVPR; 0 for a vCPU that was not initialised, which the module
        refuses. Source: vp->tdvpr_pa (6.18)."""
        return vp.tdvpr_page << 12 if vp.tdvpr_page is not None else 0

    # Secure EPT

    def tdh_mem_sept_add(self, td: KvmTdx, gpa: int, level: int, page: int) -> SeamcallRet:
        """TDH.MEM.SEPT.ADD of `page` below the entry of TDX level `level` at `gpa`."""
        self.tdx_clflush_page(page)
        regs = Regs(rcx=gpa | level, rdx=self.tdx_tdr_pa(td), r8=page << 12)
        err = self.seamcall(TDH_MEM_SEPT_ADD, regs)
        return err, regs.rcx, regs.rdx

    def tdh_mem_page_add(self, td: KvmTdx, gpa: int, page: int, source: int) -> SeamcallRet:
        """TDH.MEM.PAGE.ADD: copy `source` into `page` and map it at `gpa`."""
        self.tdx_clflush_page(page)
        regs = Regs(rcx=gpa, rdx=self.tdx_tdr_pa(td), r8=page << 12, r9=source << 12)
        err = self.seamcall(TDH_MEM_PAGE_ADD, regs)
        return err, regs.rcx, regs.rdx

    def tdh_mem_page_aug(
        self, td: KvmTdx, gpa: int, level: int, folio: Folio, start_idx: int
    ) -> SeamcallRet:
        """TDH.MEM.PAGE.AUG of the page(s) at `start_idx` in `folio`, at TDX level `level`.

        TDX_OPERAND_INVALID without a SEAMCALL when the folio does not hold them all.
        Source: patch 01. The C leaves *ext_err1/2 unwritten on that return; here they are 0.
        """
        npages = 1 << (level * PTE_SHIFT)
        if not self._folio_holds(folio, start_idx, npages):
            return TDX_OPERAND_INVALID, 0, 0
        pfn = folio.pfn + start_idx
        self._clflush_each(pfn, npages)
        regs = Regs(rcx=gpa | level, rdx=self.tdx_tdr_pa(td), r8=pfn << 12)
        err = self.seamcall(TDH_MEM_PAGE_AUG, regs)
        return err, regs.rcx, regs.rdx

    def _clflush_each(self, pfn: int, npages: int) -> None:
        """tdx_clflush_page() of each page. Source: patch 01."""
        self.machine.mem.clflush(pfn, npages)

    def tdh_mem_range_block(self, td: KvmTdx, gpa: int, level: int) -> SeamcallRet:
        """TDH.MEM.RANGE.BLOCK."""
        return self.seamcall_ret(TDH_MEM_RANGE_BLOCK, gpa | level, self.tdx_tdr_pa(td))

    def tdh_mem_track(self, td: KvmTdx) -> SeamcallRet:
        """TDH.MEM.TRACK; the extended errors, which the C function has not, are always 0."""
        err, _, _ = self.seamcall_ret(TDH_MEM_TRACK, self.tdx_tdr_pa(td))
        return err, 0, 0

    def tdh_mem_page_remove(self, td: KvmTdx, gpa: int, level: int) -> SeamcallRet:
        """TDH.MEM.PAGE.REMOVE."""
        return self.seamcall_ret(TDH_MEM_PAGE_REMOVE, gpa | level, self.tdx_tdr_pa(td))

    # Measurement

    def tdh_mr_extend(self, td: KvmTdx, gpa: int) -> SeamcallRet:
        """TDH.MR.EXTEND of the 256 bytes at `gpa`."""
        return self.seamcall_ret(TDH_MR_EXTEND, gpa, self.tdx_tdr_pa(td))

    def tdh_mr_finalize(self, td: KvmTdx) -> int:
        """TDH.MR.FINALIZE."""
        return self.seamcall(TDH_MR_FINALIZE, Regs(rcx=self.tdx_tdr_pa(td)))

    # Physical memory

    def tdh_phymem_page_reclaim(
        self, folio: Folio, start_idx: int, npages: int
    ) -> tuple[int, int, int, int]:
        """TDH.PHYMEM.PAGE.RECLAIM: (status, tdx_pt, tdx_owner, tdx_size).

        TDX_OPERAND_INVALID when the folio does not hold the range; TDX_SW_ERROR when what was
        reclaimed has another size. Source: patch 05.
        """
        if not self._folio_holds(folio, start_idx, npages):
            return TDX_OPERAND_INVALID, 0, 0, 0
        regs = Regs(rcx=(folio.pfn + start_idx) << 12)
        err = self.seamcall(TDH_PHYMEM_PAGE_RECLAIM, regs)
        tdx_pt, tdx_owner, tdx_size = regs.rcx, regs.rdx, regs.r8
        if not err and npages != 1 << (tdx_size * PTE_SHIFT):
            return TDX_SW_ERROR, tdx_pt, tdx_owner, tdx_size
        return err, tdx_pt, tdx_owner, tdx_size

    def tdh_phymem_cache_wb(self, resume: bool) -> int:
        """TDH.PHYMEM.CACHE.WB."""
        return self.seamcall(TDH_PHYMEM_CACHE_WB, Regs(rcx=1 if resume else 0))

    def tdh_phymem_page_wbinvd_tdr(self, td: KvmTdx) -> int:
        """TDH.PHYMEM.PAGE.WBINVD of the TDR, with the module's global key."""
        assert td.tdr_page is not None
        rcx = self.mk_keyed_paddr(self.machine.config.global_hkid, td.tdr_page)
        return self.seamcall(TDH_PHYMEM_PAGE_WBINVD, Regs(rcx=rcx))

    def tdh_phymem_page_wbinvd_hkid(
        self, hkid: int, folio: Folio, start_idx: int, npages: int
    ) -> int:
        """TDH.PHYMEM.PAGE.WBINVD of each 4 KB page; stops at the first error.

        Source: patch 03. The C returns an uninitialised variable for npages == 0, which no caller
        passes; here that is 0.
        """
        if not self._folio_holds(folio, start_idx, npages):
            return TDX_OPERAND_INVALID
        keyed = self.mk_keyed_paddr(hkid, folio.pfn + start_idx)
        # Nobody else uses these pages any more. So where the schedule is coarse, 2 MB of them are
        # flushed without a task switch, and by one call of the machine when none can fail.
        held = npages == PTRS_PER_TABLE and self.sim.hold()
        if held and not self.state.inject and self.machine.wbinvd_2m(keyed):
            err = 0
        else:
            err = self._wbinvd_each(keyed, npages)
        if held:
            self.sim.unhold()
        return err

    def _wbinvd_each(self, keyed: int, npages: int) -> int:
        """One SEAMCALL for each page, until one fails."""
        err = 0
        for offset in range(0, npages << PAGE_SHIFT, PAGE_SIZE):
            err, _, _ = self.seamcall_ret(TDH_PHYMEM_PAGE_WBINVD, keyed + offset)
            if err:
                break
        return err

    def tdx_quirk_reset_page(self, pfn: int) -> None:
        """tdx_quirk_reset_page()."""
        self.tdx_quirk_reset_paddr(pfn, 1)

    def tdx_quirk_reset_folio(self, folio: Folio, start_idx: int, npages: int) -> None:
        """Zero the pages on parts with the erratum. WARN when the folio does not hold them.

        Source: patch 04.
        """
        if not self._folio_holds(folio, start_idx, npages):
            self.warn_on_once("range outside the folio", "tdx_quirk_reset_folio")
            return
        self.tdx_quirk_reset_paddr(folio.pfn + start_idx, npages)
