"""TDH.MEM.SEPT.ADD, REMOVE, RD: pages of the Secure EPT itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi import leaves
from septum.abi.sept import (
    FREE_ENTRY,
    LOCK,
    NL_MAPPED_ENTRY,
    STATE_FREE,
    STATE_MASK,
    STATE_NL_MAPPED,
)
from septum.abi.status import (
    OPERAND_ID_R8,
    OPERAND_ID_R9,
    OPERAND_ID_RAX,
    OPERAND_ID_RCX,
    OPERAND_ID_RDX,
    TDX_EPT_ENTRY_STATE_INCORRECT,
    TDX_EPT_PAGE_NOT_FREE,
    TDX_OPERAND_BUSY,
    TDX_OPERAND_INVALID,
)
from septum.module.common import (
    NL_STATES,
    PAGE_INFO_RESERVED,
    TDR_FLAGS_RESERVED,
    begin,
    check_tracking,
    commit,
    fail,
    init_sept_page,
    set_entry_details,
)
from septum.module.locks import HP as LOCK_HP
from septum.module.locks import hp_lock_ex
from septum.module.pamt import PT_EPT

if TYPE_CHECKING:
    from septum.abi.regs import Regs
    from septum.machine import LogicalProcessor, TablePage
    from septum.module.common import SeptWalk
    from septum.module.module import Module

NULL_PA = 0xFFFF_FFFF_FFFF_FFFF
UNUSED = 1 << 63
"""Set in a page operand on return: the page was not used."""


def tdh_mem_sept_add(m: Module, lp: LogicalProcessor, regs: Regs, version: int) -> int:
    """Add an S-EPT page below a FREE entry; with the flag, tolerate one that is there already.

    RCX: GPA and level 1.. of the entry. RDX: TDR, bit 0 allow existing. R8: the page; version 1
    also takes L2 pages in R9..R11 (-1: none) and returns R8..R11: -1 used, bit 63 not used.
    Source: TDH.MEM.SEPT.ADD.
    """
    # operands
    rcx, rdx, r8 = regs.rcx, regs.rdx, regs.r8
    regs.rcx = regs.rdx = 0
    if version > 1:
        return TDX_OPERAND_INVALID | OPERAND_ID_RAX
    page_hpa = r8 if r8 == NULL_PA else r8 & ~UNUSED
    if version:
        regs.r8 = page_hpa
        for name in ("r9", "r10", "r11"):
            value = getattr(regs, name)
            if value != NULL_PA:
                setattr(regs, name, value & ~UNUSED)
    if rdx & TDR_FLAGS_RESERVED:
        return TDX_OPERAND_INVALID | OPERAND_ID_RDX
    # locks
    found = begin(m, regs, leaves.TDH_MEM_SEPT_ADD, rcx, rdx & ~1, 1, -1, False)
    if isinstance(found, int):
        return found
    return _sept_add(m, regs, version, found, rcx & 7, page_hpa, bool(rdx & 1))


def _sept_add(
    m: Module, regs: Regs, version: int, found: SeptWalk, level: int, page_hpa: int, allow: bool
) -> int:
    """Checks and effects of SEPT.ADD, with the entry locked."""
    td, _, _, entry = found
    state = entry & STATE_MASK
    # checks
    if state not in (STATE_FREE, STATE_NL_MAPPED):
        set_entry_details(m, regs, entry, level)
        return fail(found, False, TDX_EPT_ENTRY_STATE_INCORRECT | OPERAND_ID_RCX)
    leaf = None
    if page_hpa == NULL_PA:
        if not version:
            return fail(found, False, TDX_OPERAND_INVALID | OPERAND_ID_R8)
        if state != STATE_NL_MAPPED:
            set_entry_details(m, regs, entry, level)
            return fail(found, False, TDX_EPT_ENTRY_STATE_INCORRECT | OPERAND_ID_RCX)
    elif state == STATE_FREE:
        m.sim.point("module.pamt")
        locked = m.pamt.lock_new_page(page_hpa, OPERAND_ID_R8)
        if isinstance(locked, int):
            return fail(found, False, locked)
        leaf = locked
    elif allow:
        if version:
            regs.r8 = page_hpa | UNUSED
    else:
        set_entry_details(m, regs, entry, level)
        return fail(found, False, TDX_EPT_ENTRY_STATE_INCORRECT | OPERAND_ID_RCX)
    if version:
        # MODEL: no TD has L2 VMs, so any L2 page is for a VM that does not exist.
        for offset, value in enumerate((regs.r9, regs.r10, regs.r11)):
            if value != NULL_PA:
                if leaf is not None:
                    m.pamt.unlock_new_page(leaf, page_hpa)
                return fail(found, False, TDX_OPERAND_INVALID | OPERAND_ID_R9 + offset)
    if leaf is None:
        return fail(found, False, 0)
    # effects
    m.sim.point("module.commit")
    init_sept_page(m, td, page_hpa)
    m.pamt.take(leaf, page_hpa, PT_EPT, td.tdr_pfn).bepoch = 0
    td.chldcnt += 1
    m.pamt.unlock_new_page(leaf, page_hpa)
    # return
    if version:
        regs.r8 = NULL_PA
    return commit(found, False, NL_MAPPED_ENTRY | page_hpa | td.hkid_bits)


def tdh_mem_sept_remove(m: Module, lp: LogicalProcessor, regs: Regs, version: int) -> int:
    """Remove an S-EPT page all of whose entries are FREE.

    RCX: GPA and level 1.. of the entry above it. RDX: TDR. Returns RCX: the page and the hint;
    version 1 sets R9..R11 to -1 first, so also on failure.
    Source: TDH.MEM.SEPT.REMOVE.
    """
    # operands
    rcx, tdr_hpa = regs.rcx, regs.rdx
    regs.rcx = regs.rdx = 0
    if version:
        regs.r9 = regs.r10 = regs.r11 = NULL_PA
        if version > 1:
            return TDX_OPERAND_INVALID | OPERAND_ID_RAX
    # locks
    found = begin(m, regs, leaves.TDH_MEM_SEPT_REMOVE, rcx, tdr_hpa, 1, -1, True)
    if isinstance(found, int):
        return found
    td, _, _, entry = found
    level = rcx & 7
    # checks
    if entry & STATE_MASK not in NL_STATES:
        set_entry_details(m, regs, entry, level)
        return fail(found, True, TDX_EPT_ENTRY_STATE_INCORRECT | OPERAND_ID_RCX)
    hpa = entry & m.pfn_mask
    m.sim.point("module.pamt")
    pamt_entry = m.pamt.implicit(hpa, 0)
    if not hp_lock_ex(pamt_entry):
        return fail(found, True, TDX_OPERAND_BUSY | OPERAND_ID_RCX)
    status = check_tracking(m, regs, td, entry, level, pamt_entry)
    if not status and not _all_free(m.tables[hpa >> 12]):
        set_entry_details(m, regs, entry, level)
        status = TDX_EPT_PAGE_NOT_FREE | OPERAND_ID_RCX
    if status:
        pamt_entry.lock &= LOCK_HP
        return fail(found, True, status)
    # effects
    m.sim.point("module.commit")
    m.machine.free_table(hpa >> 12)
    td.chldcnt -= 1
    hint = m.pamt.release(hpa, 0, pamt_entry)
    pamt_entry.lock &= LOCK_HP
    # return
    regs.rcx = hpa | hint
    return commit(found, True, FREE_ENTRY)


def _all_free(page: TablePage) -> bool:
    """Every entry is FREE (locks and host priority do not count)."""
    template = page.uniform()
    if template is not None:
        return template == (FREE_ENTRY, 0)
    return all(value & STATE_MASK == STATE_FREE for value in page.values())


def tdh_mem_sept_rd(m: Module, lp: LogicalProcessor, regs: Regs, version: int) -> int:
    """Read an S-EPT entry's architectural view.

    RCX: GPA and level. RDX: TDR, bit 0 asks for L2 attributes (DEBUG TDs only). Returns RCX, RDX,
    and R8: L2 attributes when asked for.
    Source: TDH.MEM.SEPT.RD.
    """
    # operands
    rcx, rdx = regs.rcx, regs.rdx
    regs.rcx = regs.rdx = 0
    # locks. L2 attributes of a TD without DEBUG are refused where the GPA operand is checked
    refused = bool(rdx & 1) and m.lacks_debug(rdx & ~1)
    found = begin(
        m,
        regs,
        leaves.TDH_MEM_SEPT_RD,
        rcx | PAGE_INFO_RESERVED if refused else rcx,
        rdx & ~1,
        0,
        -1,
        False,
    )
    if isinstance(found, int):
        if refused and found == TDX_OPERAND_INVALID | OPERAND_ID_RCX:
            return TDX_OPERAND_INVALID | OPERAND_ID_RDX
        return found
    _, page, index, entry = found
    # effects
    m.sim.point("module.commit")
    assert page.entry(index) & LOCK
    if rdx & 1:
        regs.r8 = 0
    # return
    set_entry_details(m, regs, entry, rcx & 7)
    return fail(found, False, 0)
