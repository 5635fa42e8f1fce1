"""Which function is which leaf."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi import leaves
from septum.module import (
    mem_demote,
    mem_page,
    mem_range,
    mem_sept,
    metadata,
    mng,
    mng_init,
    mr,
    phymem,
    phymem_pamt,
    tdg,
    vp,
    vp_enter,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from septum.abi.regs import Regs
    from septum.machine import LogicalProcessor
    from septum.module.module import Module
    from septum.module.outcome import GuestOutcome
    from septum.module.state import Vcpu

    SeamcallFunction = Callable[[Module, LogicalProcessor, Regs, int], int]
    TdcallFunction = Callable[[Module, LogicalProcessor, Vcpu, Regs, int], int | GuestOutcome]


def _vp_enter(m: Module, lp: LogicalProcessor, regs: Regs, version: int) -> int:
    """TDH.VP.ENTER is dispatched by Module.seamcall, which also runs the guest."""
    return vp_enter.enter(m, lp, regs)


# MODEL: migration, service TDs, TD partitioning, system initialisation and the DEBUG-only
# MEM.RD/WR are not modelled; their leaves are refused like unknown ones.
SEAMCALLS: dict[int, SeamcallFunction] = {
    leaves.TDH_VP_ENTER: _vp_enter,
    leaves.TDH_MNG_ADDCX: mng.tdh_mng_addcx,
    leaves.TDH_MEM_PAGE_ADD: mem_page.tdh_mem_page_add,
    leaves.TDH_MEM_SEPT_ADD: mem_sept.tdh_mem_sept_add,
    leaves.TDH_VP_ADDCX: vp.tdh_vp_addcx,
    leaves.TDH_MEM_PAGE_RELOCATE: mem_page.tdh_mem_page_relocate,
    leaves.TDH_MEM_PAGE_AUG: mem_page.tdh_mem_page_aug,
    leaves.TDH_MEM_RANGE_BLOCK: mem_range.tdh_mem_range_block,
    leaves.TDH_MNG_KEY_CONFIG: mng.tdh_mng_key_config,
    leaves.TDH_MNG_CREATE: mng.tdh_mng_create,
    leaves.TDH_VP_CREATE: vp.tdh_vp_create,
    leaves.TDH_MNG_RD: metadata.tdh_mng_rd,
    leaves.TDH_MNG_WR: metadata.tdh_mng_wr,
    leaves.TDH_MEM_PAGE_DEMOTE: mem_demote.tdh_mem_page_demote,
    leaves.TDH_MR_EXTEND: mr.tdh_mr_extend,
    leaves.TDH_MR_FINALIZE: mr.tdh_mr_finalize,
    leaves.TDH_VP_FLUSH: vp.tdh_vp_flush,
    leaves.TDH_MNG_VPFLUSHDONE: mng.tdh_mng_vpflushdone,
    leaves.TDH_MNG_KEY_FREEID: mng.tdh_mng_key_freeid,
    leaves.TDH_MNG_INIT: mng_init.tdh_mng_init,
    leaves.TDH_VP_INIT: vp.tdh_vp_init,
    leaves.TDH_MEM_PAGE_PROMOTE: mem_demote.tdh_mem_page_promote,
    leaves.TDH_PHYMEM_PAGE_RDMD: phymem.tdh_phymem_page_rdmd,
    leaves.TDH_MEM_SEPT_RD: mem_sept.tdh_mem_sept_rd,
    leaves.TDH_VP_RD: metadata.tdh_vp_rd,
    leaves.TDH_MNG_KEY_RECLAIMID: mng.tdh_mng_key_reclaimid,
    leaves.TDH_PHYMEM_PAGE_RECLAIM: phymem.tdh_phymem_page_reclaim,
    leaves.TDH_MEM_PAGE_REMOVE: mem_page.tdh_mem_page_remove,
    leaves.TDH_MEM_SEPT_REMOVE: mem_sept.tdh_mem_sept_remove,
    leaves.TDH_SYS_RD: metadata.tdh_sys_rd,
    leaves.TDH_MEM_TRACK: mem_range.tdh_mem_track,
    leaves.TDH_MEM_RANGE_UNBLOCK: mem_range.tdh_mem_range_unblock,
    leaves.TDH_PHYMEM_CACHE_WB: phymem.tdh_phymem_cache_wb,
    leaves.TDH_PHYMEM_PAGE_WBINVD: phymem.tdh_phymem_page_wbinvd,
    leaves.TDH_VP_WR: metadata.tdh_vp_wr,
    leaves.TDH_PHYMEM_PAMT_ADD: phymem_pamt.tdh_phymem_pamt_add,
    leaves.TDH_PHYMEM_PAMT_REMOVE: phymem_pamt.tdh_phymem_pamt_remove,
}

# MODEL: reports, RTMRs, CPUID #VE control and the L2 leaves are not modelled.
TDCALLS: dict[int, TdcallFunction] = {
    leaves.TDG_VP_VMCALL: tdg.tdg_vp_vmcall,
    leaves.TDG_VP_INFO: tdg.tdg_vp_info,
    leaves.TDG_VP_VEINFO_GET: tdg.tdg_vp_veinfo_get,
    leaves.TDG_MEM_PAGE_ACCEPT: tdg.tdg_mem_page_accept,
    leaves.TDG_VM_RD: metadata.tdg_vm_rd,
    leaves.TDG_SYS_RD: metadata.tdg_sys_rd,
    leaves.TDG_MEM_PAGE_ATTR_RD: tdg.tdg_mem_page_attr_rd,
    leaves.TDG_MEM_PAGE_ATTR_WR: tdg.tdg_mem_page_attr_wr,
}
