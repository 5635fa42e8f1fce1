"""TDH.PHYMEM.PAMT.ADD and REMOVE: the page pair of a 2 MB range (Dynamic PAMT)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.status import (
    OPERAND_ID_R8,
    OPERAND_ID_RAX,
    OPERAND_ID_RCX,
    OPERAND_ID_RDX,
    TDX_HPA_RANGE_NOT_FREE,
    TDX_NO_PAMT_PAGE_PAIR,
    TDX_OPERAND_ADDR_RANGE_ERROR,
    TDX_OPERAND_BUSY,
    TDX_OPERAND_INVALID,
    TDX_PAGE_NOT_FREE,
    TDX_PAMT_PAGE_NOT_EMPTY,
)
from septum.module.mem_demote import lock_free_pair
from septum.module.pamt import PT_NDA, PT_PAMT, PamtEntry2M

if TYPE_CHECKING:
    from septum.abi.regs import Regs
    from septum.machine import LogicalProcessor
    from septum.module.module import Module

RANGE_RESERVED = 0xFFF0_0000_001F_FFF8


def _range_invalid(m: Module, rcx: int) -> bool:
    """RCX is not a 2 MB page of level 1."""
    return bool(rcx & (RANGE_RESERVED | m.pamt.hkid_mask) or rcx & 7 != 1)


def tdh_phymem_pamt_add(m: Module, lp: LogicalProcessor, regs: Regs, version: int) -> int:
    """Give a free 2 MB range the two pages that hold its 4 KB entries.

    RCX: the range and level 1. RDX, R8: the pages. They may lie inside the range itself.
    Source: TDH.PHYMEM.PAMT.ADD.
    """
    # operands
    pamt = m.pamt
    rcx, page0, page1 = regs.rcx, regs.rdx, regs.r8
    if not pamt.dynamic:
        return TDX_OPERAND_INVALID | OPERAND_ID_RAX
    if _range_invalid(m, rcx):
        return TDX_OPERAND_INVALID | OPERAND_ID_RCX
    for hpa, operand in ((page0, OPERAND_ID_RDX), (page1, OPERAND_ID_R8)):
        if hpa & pamt.bad_pa:
            return TDX_OPERAND_INVALID | operand
        if pamt.entry_2m(hpa) is None:
            return TDX_OPERAND_ADDR_RANGE_ERROR | operand
    base = rcx & ~7
    if pamt.entry_2m(base) is None:
        return TDX_OPERAND_ADDR_RANGE_ERROR | OPERAND_ID_RCX
    # locks
    walk = pamt.walk(base, 1, True)
    if walk is None:
        return TDX_OPERAND_BUSY | OPERAND_ID_RCX
    entry = walk[1]
    # checks
    if not isinstance(entry, PamtEntry2M) or entry.pt != PT_NDA:
        pamt.unwalk(walk, True)
        return TDX_HPA_RANGE_NOT_FREE | OPERAND_ID_RCX
    m.sim.point("module.pamt")
    outside = tuple(
        (hpa, operand)
        for hpa, operand in ((page0, OPERAND_ID_RDX), (page1, OPERAND_ID_R8))
        if hpa >> 21 != base >> 21
    )
    status, walks = lock_free_pair(m, outside)
    if not status:
        if not pamt.mark_pamt_page(page0):
            status = TDX_PAGE_NOT_FREE | OPERAND_ID_RDX
        elif not pamt.mark_pamt_page(page1):
            pamt.unmark_pamt_page(page0)
            status = TDX_PAGE_NOT_FREE | OPERAND_ID_R8
        else:
            # effects
            m.init_pamt_pages(page0, page1)
            entry.fill_children(PT_NDA, 0, 0)
            entry.used = 0
            entry.pt = PT_PAMT
            entry.set_pages(page0, page1)
    # return
    for inner in walks:
        pamt.unwalk(inner, False)
    pamt.unwalk(walk, True)
    return status


def tdh_phymem_pamt_remove(m: Module, lp: LogicalProcessor, regs: Regs, version: int) -> int:
    """Take back the page pair of a 2 MB range none of whose 4 KB pages is in use.

    RCX: the range and level 1. Returns RDX, R8: the pages. Source: TDH.PHYMEM.PAMT.REMOVE.
    """
    # operands
    pamt = m.pamt
    if not pamt.dynamic:
        return TDX_OPERAND_INVALID | OPERAND_ID_RAX
    if _range_invalid(m, regs.rcx):
        return TDX_OPERAND_INVALID | OPERAND_ID_RCX
    base = regs.rcx & ~7
    if pamt.entry_2m(base) is None:
        return TDX_OPERAND_ADDR_RANGE_ERROR | OPERAND_ID_RCX
    # locks
    walk = pamt.walk(base, 1, True)
    if walk is None:
        return TDX_OPERAND_BUSY | OPERAND_ID_RCX
    entry = walk[1]
    # checks
    status = 0
    if not isinstance(entry, PamtEntry2M) or entry.pt != PT_PAMT:
        status = TDX_NO_PAMT_PAGE_PAIR | OPERAND_ID_RCX
    elif entry.used:
        first = next(i for i in range(512) if entry.child_type(i) != PT_NDA)
        status = TDX_PAMT_PAGE_NOT_EMPTY | first >> 8
    else:
        # effects
        m.sim.point("module.commit")
        pamt.unmark_pamt_page(entry.page0)
        pamt.unmark_pamt_page(entry.page1)
        regs.rdx, regs.r8 = entry.page0, entry.page1
        entry.fill_children(PT_NDA, 0, 0)
        entry.pt = PT_NDA
    # return
    pamt.unwalk(walk, True)
    return status
