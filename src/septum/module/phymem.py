"""TDH.PHYMEM.*: physical pages and caches, whichever TD owns them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.status import (
    OPERAND_ID_KOT,
    OPERAND_ID_RCX,
    OPERAND_ID_WBCACHE,
    TDX_INTERRUPTED_RESUMABLE,
    TDX_LIFECYCLE_STATE_INCORRECT,
    TDX_NO_HKID_READY_TO_WBCACHE,
    TDX_OPERAND_ADDR_RANGE_ERROR,
    TDX_OPERAND_BUSY,
    TDX_OPERAND_INVALID,
    TDX_PAGE_METADATA_INCORRECT,
    TDX_TD_ASSOCIATED_PAGES_EXIST,
    TDX_WBCACHE_RESUME_ERROR,
)
from septum.module.common import PAGE_INFO_RESERVED, lock_implicit_td, unlock_implicit_td
from septum.module.pamt import (
    PT_EPT,
    PT_NDA,
    PT_PAMT,
    PT_REG,
    PT_RSVD,
    PT_TDR,
    PT_TDVPR,
    PamtEntry2M,
)
from septum.module.state import HKID_FLUSHED, TD_TEARDOWN

if TYPE_CHECKING:
    from septum.abi.regs import Regs
    from septum.machine import LogicalProcessor
    from septum.module.module import Module
    from septum.module.pamt import PamtWalk

NON_LEAF = 1 << 63
NUM_CACHE_SUB_BLOCKS = 8


def tdh_phymem_page_rdmd(m: Module, lp: LogicalProcessor, regs: Regs, version: int) -> int:
    """Read a page's metadata.

    RCX: page and, in dynamic mode, level. Returns RCX type (bit 63 non-leaf), RDX owner, R8 size,
    R9 BEPOCH (REG and EPT), R10, R11 the page pair of a PAMT node. The owner of a page that is
    free again stays readable.
    Source: TDH.PHYMEM.PAGE.RDMD.
    """
    # operands
    rcx = regs.rcx
    regs.rcx = regs.rdx = regs.r8 = regs.r9 = regs.r10 = regs.r11 = 0
    level = rcx & 7
    pamt = m.pamt
    if rcx & PAGE_INFO_RESERVED or level > (2 if pamt.dynamic else 0):
        return TDX_OPERAND_INVALID | OPERAND_ID_RCX
    hpa = rcx & ~7
    if hpa & (pamt.hkid_mask | (1 << 12 + 9 * level) - 1):
        return TDX_OPERAND_INVALID | OPERAND_ID_RCX
    if pamt.entry_2m(hpa) is None:
        return TDX_OPERAND_ADDR_RANGE_ERROR | OPERAND_ID_RCX
    # locks
    walk = pamt.walk(hpa, level, False)
    if walk is None:
        return TDX_OPERAND_BUSY | OPERAND_ID_RCX
    # effects
    reached, entry, _, _ = walk
    leaf = pamt.entry_2m(hpa)
    assert leaf is not None
    pt = entry.pt
    if level == 0 and pt == PT_NDA and pamt.dynamic and leaf.bitmap >> (hpa >> 12 & 511) & 1:
        regs.rcx = PT_PAMT
    elif pt == PT_PAMT:
        assert isinstance(entry, PamtEntry2M)
        regs.rcx = PT_PAMT | NON_LEAF
        regs.r8 = reached
        regs.r10, regs.r11 = entry.page0, entry.page1
    else:
        regs.rcx = pt
        regs.r8 = reached
        regs.rdx = entry.owner << 12
    if pt in (PT_REG, PT_EPT):
        regs.r9 = entry.bepoch
    # return
    pamt.unwalk(walk, False)
    return 0


def tdh_phymem_page_reclaim(m: Module, lp: LogicalProcessor, regs: Regs, version: int) -> int:
    """Take back a page of a TD in teardown; its TDR page last.

    RCX: the page. Returns RCX type, RDX owner, R8 size (also on the later errors), R9 the hint.
    Source: TDH.PHYMEM.PAGE.RECLAIM.
    """
    # operands
    hpa = regs.rcx
    regs.rcx = regs.rdx = regs.r8 = regs.r9 = regs.r10 = regs.r11 = 0
    pamt = m.pamt
    if hpa & pamt.bad_pa:
        return TDX_OPERAND_INVALID | OPERAND_ID_RCX
    if pamt.entry_2m(hpa) is None:
        return TDX_OPERAND_ADDR_RANGE_ERROR | OPERAND_ID_RCX
    # locks
    walk = pamt.walk(hpa, 0, True)
    if walk is None:
        return TDX_OPERAND_BUSY | OPERAND_ID_RCX
    status = _reclaim(m, regs, hpa, walk)
    # return
    pamt.unwalk(walk, True)
    return status


def _reclaim(m: Module, regs: Regs, hpa: int, walk: PamtWalk) -> int:
    """Checks and effects of RECLAIM, with the page's PAMT entry locked."""
    level, entry, _, _ = walk
    # checks
    if entry.pt in (PT_NDA, PT_RSVD):
        return TDX_PAGE_METADATA_INCORRECT | OPERAND_ID_RCX
    regs.rcx, regs.rdx, regs.r8 = entry.pt, entry.owner << 12, level
    if hpa & (1 << 12 + 9 * level) - 1:
        return TDX_OPERAND_INVALID | OPERAND_ID_RCX
    if entry.pt == PT_TDR:
        td = m.td_by_hpa[hpa]
        if td.lifecycle != TD_TEARDOWN:
            return TDX_LIFECYCLE_STATE_INCORRECT
        if td.chldcnt:
            return TDX_TD_ASSOCIATED_PAGES_EXIST
        # effects
        del m.td_by_hpa[hpa]
        del m.tds[td.tdr_pfn]
        regs.r9 = m.pamt.release(hpa, level, entry)
        return 0
    owner = lock_implicit_td(m, entry.owner)
    if isinstance(owner, int):
        return owner
    if owner.lifecycle != TD_TEARDOWN:
        unlock_implicit_td(owner)
        return TDX_LIFECYCLE_STATE_INCORRECT
    # effects
    m.sim.point("module.commit")
    owner.chldcnt -= 1 << 9 * level
    if entry.pt == PT_TDVPR:
        del m.vcpus[hpa >> 12]
    else:
        m.machine.free_table(hpa >> 12)
    regs.r9 = m.pamt.release(hpa, level, entry)
    unlock_implicit_td(owner)
    return 0


def tdh_phymem_page_wbinvd(m: Module, lp: LogicalProcessor, regs: Regs, version: int) -> int:
    """Write back and invalidate the cache lines of a free page that have the HKID in RCX.

    RCX: the page, with any HKID, which is not checked. Source: TDH.PHYMEM.PAGE.WBINVD.
    """
    # operands, locks
    hpa = regs.rcx & ~m.pamt.hkid_mask
    walk = m.pamt.lock_page(hpa, OPERAND_ID_RCX, PT_NDA, 0, False, to_target=False)
    if isinstance(walk, int):
        return walk
    # effects
    m.sim.point("module.commit")
    m.mem.wbinvd_page(hpa >> 12, m.hkid_of(regs.rcx))
    # return
    m.pamt.unwalk(walk, False)
    return 0


def tdh_phymem_cache_wb(m: Module, lp: LogicalProcessor, regs: Regs, version: int) -> int:
    """Write back this package's caches, so that HKIDs that are being given up leave them.

    RCX: 0 start, 1 resume after TDX_INTERRUPTED_RESUMABLE. Source: TDH.PHYMEM.CACHE.WB.
    """
    # operands
    command = regs.rcx
    if command > 1:
        return TDX_OPERAND_INVALID | OPERAND_ID_RCX
    # locks
    cache = m.caches[lp.package]
    if cache.mutex:
        return TDX_OPERAND_BUSY | OPERAND_ID_WBCACHE
    cache.mutex = True
    m.sim.point("module.kot")
    if not m.kot.lock.try_sh():
        cache.mutex = False
        return TDX_OPERAND_BUSY | OPERAND_ID_KOT
    status = _write_back(m, lp, command)
    # return
    m.kot.lock.unlock_sh()
    cache.mutex = False
    return status


def _write_back(m: Module, lp: LogicalProcessor, command: int) -> int:
    """Checks and effects of CACHE.WB."""
    cache = m.caches[lp.package]
    # checks
    if command == 0:
        cache.intr_point = 0
        hkids = tuple(h for h, key in m.kot.entries.items() if key.state == HKID_FLUSHED)
        if not hkids:
            return TDX_NO_HKID_READY_TO_WBCACHE
        cache.hkids = hkids
    elif not cache.intr_point:
        return TDX_WBCACHE_RESUME_ERROR
    # effects
    at = cache.intr_point
    while at < NUM_CACHE_SUB_BLOCKS:
        at += 1
        m.sim.point("module.cache_sub_block")
        if at < NUM_CACHE_SUB_BLOCKS and m.host_interrupt_pending(lp):
            cache.intr_point = at
            return TDX_INTERRUPTED_RESUMABLE
    cache.intr_point = 0
    # MODEL: caches are per machine; all lines are written when the last sub-block is done.
    m.mem.wbinvd()
    for hkid in cache.hkids:
        m.kot.entries[hkid].wbinvd_bitmap &= ~(1 << lp.package)
    return 0
