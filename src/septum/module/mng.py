"""TDH.MNG.CREATE, ADDCX, KEY.*, VPFLUSHDONE: a TD's control pages and key, first to last."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi import leaves
from septum.abi.sept import FREE_ENTRY
from septum.abi.status import (
    OPERAND_ID_KOT,
    OPERAND_ID_RCX,
    OPERAND_ID_RDX,
    TDX_FLUSHVP_NOT_DONE,
    TDX_HKID_NOT_FREE,
    TDX_KEY_CONFIGURED,
    TDX_KEY_GENERATION_FAILED,
    TDX_LIFECYCLE_STATE_INCORRECT,
    TDX_OP_STATE_INCORRECT,
    TDX_OPERAND_BUSY,
    TDX_OPERAND_INVALID,
    TDX_RND_NO_ENTROPY,
    TDX_TD_FATAL,
    TDX_TD_KEYS_NOT_CONFIGURED,
    TDX_TDCX_NUM_INCORRECT,
    TDX_WBCACHE_NOT_COMPLETE,
)
from septum.module.common import CONTROL_TOKEN, OP_STATES, lock_td, unlock_td
from septum.module.pamt import PT_TDCX, PT_TDR
from septum.module.state import (
    HKID_ASSIGNED,
    HKID_FLUSHED,
    HKID_FREE,
    MAX_TDCS_PAGES,
    MIN_TDCS_PAGES,
    OP_STATE_UNINITIALIZED,
    SEPT_ROOT_PAGE_INDEX,
    TD_BLOCKED,
    TD_HKID_ASSIGNED,
    TD_KEYS_CONFIGURED,
    TD_TEARDOWN,
    Td,
)

if TYPE_CHECKING:
    from septum.abi.regs import Regs
    from septum.machine import LogicalProcessor
    from septum.module.module import Module


def tdh_mng_create(m: Module, lp: LogicalProcessor, regs: Regs, version: int) -> int:
    """Create a TD: its TDR page, and the ownership of a free private HKID.

    RCX: the TDR page. RDX: HKID. Source: TDH.MNG.CREATE.
    """
    # operands
    tdr_hpa, hkid = regs.rcx, regs.rdx
    if hkid > 0xFFFF or hkid not in m.kot.entries:
        return TDX_OPERAND_INVALID | OPERAND_ID_RDX
    # locks
    leaf = m.pamt.lock_new_page(tdr_hpa, OPERAND_ID_RCX)
    if isinstance(leaf, int):
        return leaf
    m.sim.point("module.kot")
    if not m.kot.lock.try_ex():
        m.pamt.unlock_new_page(leaf, tdr_hpa)
        return TDX_OPERAND_BUSY | OPERAND_ID_KOT
    # checks
    m.sim.point("module.commit")
    status = 0
    if m.kot.entries[hkid].state != HKID_FREE:
        status = TDX_HKID_NOT_FREE
    else:
        m.mem.write(tdr_hpa >> 12, m.global_hkid, CONTROL_TOKEN)
        if m.sim.choose("tdx_rnd_no_entropy"):
            status = TDX_RND_NO_ENTROPY
    if not status:
        # effects
        m.kot.entries[hkid].state = HKID_ASSIGNED
        m.pamt.take(leaf, tdr_hpa, PT_TDR, 0)
        td = Td(tdr_hpa, hkid, hkid << m.hkid_shift, leaf)
        m.tds[td.tdr_pfn] = td
        m.td_by_hpa[tdr_hpa] = td
    # return
    m.kot.lock.unlock_ex()
    m.pamt.unlock_new_page(leaf, tdr_hpa)
    return status


def tdh_mng_addcx(m: Module, lp: LogicalProcessor, regs: Regs, version: int) -> int:
    """Add a TDCS page: six are needed; more only before TDH.MNG.INIT, at most nine.

    RCX: the page. RDX: TDR. Source: TDH.MNG.ADDCX.
    """
    # operands, locks
    page_hpa = regs.rcx
    td = lock_td(m, regs.rdx, OPERAND_ID_RDX, exclusive=True)
    if isinstance(td, int):
        return td
    # checks
    status = 0
    index = len(td.tdcx)
    if td.fatal:
        status = TDX_TD_FATAL
    elif td.lifecycle != TD_KEYS_CONFIGURED:
        status = TDX_TD_KEYS_NOT_CONFIGURED
    elif index >= MAX_TDCS_PAGES:
        status = TDX_TDCX_NUM_INCORRECT
    if status:
        unlock_td(td, exclusive=True)
        return status
    m.sim.point("module.pamt")
    leaf = m.pamt.lock_new_page(page_hpa, OPERAND_ID_RCX)
    if isinstance(leaf, int):
        unlock_td(td, exclusive=True)
        return leaf
    # effects: the page is written before OP_STATE can be looked at
    m.sim.point("module.commit")
    m.mem.write(page_hpa >> 12, td.hkid, CONTROL_TOKEN)
    if index + 1 == MIN_TDCS_PAGES:
        if m.sim.choose("tdx_rnd_no_entropy"):
            status = TDX_RND_NO_ENTROPY
    elif index >= MIN_TDCS_PAGES and not OP_STATES[leaves.TDH_MNG_ADDCX][td.op_state]:
        status = TDX_OP_STATE_INCORRECT | td.op_state
    if not status:
        if index == SEPT_ROOT_PAGE_INDEX:
            td.root = m.machine.alloc_table(page_hpa >> 12, FREE_ENTRY)
        td.tdcx.append(page_hpa)
        td.chldcnt += 1
        m.pamt.take(leaf, page_hpa, PT_TDCX, td.tdr_pfn)
    # return
    m.pamt.unlock_new_page(leaf, page_hpa)
    unlock_td(td, exclusive=True)
    return status


def tdh_mng_key_config(m: Module, lp: LogicalProcessor, regs: Regs, version: int) -> int:
    """Configure the TD's key on this package; after the last package the TD has its keys.

    RCX: TDR. MODEL: the package's memory controller is never busy with the key of another TD
    (TDX_OPERAND_BUSY with KET). Source: TDH.MNG.KEY.CONFIG.
    """
    # operands, locks
    td = lock_td(m, regs.rcx, OPERAND_ID_RCX, exclusive=True)
    if isinstance(td, int):
        return td
    # checks
    bit = 1 << lp.package
    status = 0
    if td.fatal:
        status = TDX_TD_FATAL
    elif td.lifecycle != TD_HKID_ASSIGNED:
        status = TDX_LIFECYCLE_STATE_INCORRECT
    elif td.pkg_config_bitmap & bit:
        status = TDX_KEY_CONFIGURED
    elif m.sim.choose("tdx_key_generation_failed"):
        status = TDX_KEY_GENERATION_FAILED
    else:
        # effects
        m.sim.point("module.commit")
        td.pkg_config_bitmap |= bit
        if td.pkg_config_bitmap == m.all_packages:
            td.lifecycle = TD_KEYS_CONFIGURED
    # return
    unlock_td(td, exclusive=True)
    return status


def tdh_mng_vpflushdone(m: Module, lp: LogicalProcessor, regs: Regs, version: int) -> int:
    """No vCPU is associated any more: the TD is blocked and its HKID must leave all caches.

    RCX: TDR. Source: TDH.MNG.VPFLUSHDONE.
    """
    # operands, locks
    td = lock_td(m, regs.rcx, OPERAND_ID_RCX, exclusive=True)
    if isinstance(td, int):
        return td
    m.sim.point("module.kot")
    if not m.kot.lock.try_ex():
        unlock_td(td, exclusive=True)
        return TDX_OPERAND_BUSY | OPERAND_ID_KOT
    # checks
    m.sim.point("module.commit")
    status = 0
    if td.lifecycle not in (TD_KEYS_CONFIGURED, TD_HKID_ASSIGNED):
        status = TDX_LIFECYCLE_STATE_INCORRECT
    elif (
        len(td.tdcx) >= MIN_TDCS_PAGES
        and td.op_state != OP_STATE_UNINITIALIZED
        and td.num_assoc_vcpus
    ):
        status = TDX_FLUSHVP_NOT_DONE
    else:
        # effects
        key = m.kot.entries[td.hkid]
        key.wbinvd_bitmap = m.all_packages
        key.state = HKID_FLUSHED
        td.lifecycle = TD_BLOCKED
    # return
    m.kot.lock.unlock_ex()
    unlock_td(td, exclusive=True)
    return status


def tdh_mng_key_freeid(m: Module, lp: LogicalProcessor, regs: Regs, version: int) -> int:
    """The TD's HKID has left all caches: it is free again, and the TD in teardown.

    RCX: TDR. Source: TDH.MNG.KEY.FREEID.
    """
    # operands, locks
    td = lock_td(m, regs.rcx, OPERAND_ID_RCX, exclusive=True)
    if isinstance(td, int):
        return td
    if td.lifecycle != TD_BLOCKED:
        unlock_td(td, exclusive=True)
        return TDX_LIFECYCLE_STATE_INCORRECT
    m.sim.point("module.kot")
    if not m.kot.lock.try_ex():
        unlock_td(td, exclusive=True)
        return TDX_OPERAND_BUSY | OPERAND_ID_KOT
    # checks
    m.sim.point("module.commit")
    status = 0
    key = m.kot.entries[td.hkid]
    if key.wbinvd_bitmap:
        status = TDX_WBCACHE_NOT_COMPLETE
    else:
        # effects
        key.state = HKID_FREE
        td.lifecycle = TD_TEARDOWN
    # return
    m.kot.lock.unlock_ex()
    unlock_td(td, exclusive=True)
    return status


def tdh_mng_key_reclaimid(m: Module, lp: LogicalProcessor, regs: Regs, version: int) -> int:
    """Nothing: kept for compatibility. Source: TDH.MNG.KEY.RECLAIMID."""
    return 0
