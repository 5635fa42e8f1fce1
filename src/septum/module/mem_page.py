"""TDH.MEM.PAGE.ADD, AUG, REMOVE, RELOCATE: pages into and out of a TD."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi import leaves
from septum.abi.sept import (
    ACCEPT_COUNTER,
    BLOCKED,
    FREE_ENTRY,
    HPA_MASK,
    MAPPED_ENTRY,
    PENDING,
    PENDING_ENTRY,
    RWX,
    STATE_FREE,
    STATE_MASK,
    STATE_REMOVED,
)
from septum.abi.status import (
    OPERAND_ID_R8,
    OPERAND_ID_R9,
    OPERAND_ID_RCX,
    OPERAND_ID_RDX,
    TDX_EPT_ENTRY_STATE_INCORRECT,
    TDX_EPT_WALK_FAILED,
    TDX_OPERAND_BUSY,
    TDX_OPERAND_INVALID,
)
from septum.module.common import (
    GPA_BAD_BY_LEVEL,
    LEAF_STATES,
    begin,
    check_state,
    check_tracking,
    commit,
    fail,
    leaf_hpa,
    lock_td,
    set_entry_details,
    unlock_td,
    walk_sept,
)
from septum.module.locks import HP as LOCK_HP
from septum.module.locks import hp_lock_ex
from septum.module.pamt import MAX_PA_BITS, PT_REG

if TYPE_CHECKING:
    from septum.abi.regs import Regs
    from septum.machine import LogicalProcessor
    from septum.module.module import Module

_AUG_STATES = frozenset((STATE_FREE, STATE_REMOVED))


def tdh_mem_page_add(m: Module, lp: LogicalProcessor, regs: Regs, version: int) -> int:
    """Add a measured 4 KB page before the TD runs, copied from shared memory.

    RCX: GPA and level 0. RDX: TDR. R8: the new page. R9: the source page.
    Source: TDH.MEM.PAGE.ADD.
    """
    # operands
    rcx, tdr_hpa, page_hpa, source_hpa = regs.rcx, regs.rdx, regs.r8, regs.r9
    regs.rcx = regs.rdx = 0
    # locks: the TDR exclusive stands for all others
    td = lock_td(m, tdr_hpa, OPERAND_ID_RDX, exclusive=True)
    if isinstance(td, int):
        return td
    status = check_state(m, td, leaves.TDH_MEM_PAGE_ADD, lock_op_state=False)
    if status:
        unlock_td(td, exclusive=True)
        return status
    # checks
    if rcx & (GPA_BAD_BY_LEVEL[0] | td.gpa_bad) or rcx & 7:
        unlock_td(td, exclusive=True)
        return TDX_OPERAND_INVALID | OPERAND_ID_RCX
    table, index, entry, reached = walk_sept(m, td, rcx, 0)
    if reached or entry & STATE_MASK != STATE_FREE:
        unlock_td(td, exclusive=True)
        set_entry_details(m, regs, entry, reached)
        if reached:
            return TDX_EPT_WALK_FAILED | OPERAND_ID_RCX
        return TDX_EPT_ENTRY_STATE_INCORRECT | OPERAND_ID_RCX
    if m.shared_hpa_invalid(source_hpa, 4096):
        unlock_td(td, exclusive=True)
        return TDX_OPERAND_INVALID | OPERAND_ID_R9
    m.sim.point("module.pamt")
    leaf = m.pamt.lock_new_page(page_hpa, OPERAND_ID_R8)
    if isinstance(leaf, int):
        unlock_td(td, exclusive=True)
        return leaf
    # effects
    m.sim.point("module.commit")
    m.mem.copy_page(page_hpa >> 12, td.hkid, (source_hpa & m.pfn_mask) >> 12, m.hkid_of(source_hpa))
    table.set_entry(index, MAPPED_ENTRY | page_hpa | td.hkid_bits)
    assert td.mrtd_hash is not None
    td.mrtd_hash.update(_MR_PAGE_ADD + rcx.to_bytes(8, "little") + bytes(104))
    td.chldcnt += 1
    m.pamt.take(leaf, page_hpa, PT_REG, td.tdr_pfn).bepoch = 0
    # return
    m.pamt.unlock_new_page(leaf, page_hpa)
    unlock_td(td, exclusive=True)
    return 0


_MR_PAGE_ADD = b"MEM.PAGE.ADD".ljust(16, b"\0")


def tdh_mem_page_aug(m: Module, lp: LogicalProcessor, regs: Regs, version: int) -> int:
    """Add a 4 KB or 2 MB page in PENDING state, for the guest to accept.

    RCX: GPA and level 0 or 1. RDX: TDR. R8: the new page. Its content is not touched.
    MODEL: the entry and the page's metadata change in one step. The module unlocks the entry first;
    a REMOVE, RELOCATE or DEMOTE of it that came in between would be fatal to the module.
    Source: TDH.MEM.PAGE.AUG.
    """
    # operands
    rcx, tdr_hpa, page_hpa = regs.rcx, regs.rdx, regs.r8
    regs.rcx = regs.rdx = 0
    # locks
    found = begin(m, regs, leaves.TDH_MEM_PAGE_AUG, rcx, tdr_hpa, 0, 1, False)
    if isinstance(found, int):
        return found
    td, _, _, entry = found
    level = rcx & 7
    # checks
    if entry & STATE_MASK not in _AUG_STATES:
        set_entry_details(m, regs, entry, level)
        return fail(found, False, TDX_EPT_ENTRY_STATE_INCORRECT | OPERAND_ID_RCX)
    m.sim.point("module.pamt")
    pamt = m.pamt
    if level:
        leaf = pamt.lock_free_2m(page_hpa, OPERAND_ID_R8)
        if isinstance(leaf, int):
            return fail(found, False, leaf)
        # effects
        leaf.pt = PT_REG
        leaf.owner = td.tdr_pfn
        leaf.bepoch = 0
        td.chldcnt += 512
        pamt.unlock_2m(leaf)
    else:
        leaf = pamt.lock_new_page(page_hpa, OPERAND_ID_R8)
        if isinstance(leaf, int):
            return fail(found, False, leaf)
        # effects
        pamt.take(leaf, page_hpa, PT_REG, td.tdr_pfn).bepoch = 0
        td.chldcnt += 1
        pamt.unlock_new_page(leaf, page_hpa)
    # return
    return commit(found, False, PENDING_ENTRY | page_hpa | td.hkid_bits)


def tdh_mem_page_remove(m: Module, lp: LogicalProcessor, regs: Regs, version: int) -> int:
    """Take a blocked and tracked page out of the TD.

    RCX: GPA and level 0..2. RDX: TDR. Returns RCX: the page, bit 62 the PAMT removal hint.
    Source: TDH.MEM.PAGE.REMOVE.
    """
    # operands
    rcx, tdr_hpa = regs.rcx, regs.rdx
    regs.rcx = regs.rdx = 0
    # locks
    found = begin(m, regs, leaves.TDH_MEM_PAGE_REMOVE, rcx, tdr_hpa, 0, 2, False)
    if isinstance(found, int):
        return found
    td, _, _, entry = found
    level = rcx & 7
    # checks
    if entry & STATE_MASK not in LEAF_STATES:
        set_entry_details(m, regs, entry, level)
        return fail(found, False, TDX_EPT_ENTRY_STATE_INCORRECT | OPERAND_ID_RCX)
    hpa = leaf_hpa(m, entry, level)
    m.sim.point("module.pamt")
    pamt_entry = m.pamt.implicit(hpa, level)
    if pamt_entry.lock and not hp_lock_ex(pamt_entry):
        return fail(found, False, TDX_OPERAND_BUSY | OPERAND_ID_RCX)
    pamt_entry.lock = 1
    if entry & PENDING and level == 1:
        entry &= ~ACCEPT_COUNTER
    status = check_tracking(m, regs, td, entry, level, pamt_entry)
    if status:
        pamt_entry.lock &= LOCK_HP
        return fail(found, False, status)
    # effects
    m.sim.point("module.commit")
    td.chldcnt -= 1 << 9 * level
    hint = m.pamt.release(hpa, level, pamt_entry)
    pamt_entry.lock &= LOCK_HP
    # return
    regs.rcx = hpa | hint
    return commit(found, False, FREE_ENTRY)


def tdh_mem_page_relocate(m: Module, lp: LogicalProcessor, regs: Regs, version: int) -> int:
    """Move a blocked and tracked 4 KB page to another frame, and unblock it.

    RCX: GPA and level 0. RDX: TDR. R8: the new frame. Returns RCX: the old frame and the hint.
    Source: TDH.MEM.PAGE.RELOCATE.
    """
    # operands
    rcx, tdr_hpa, target_hpa = regs.rcx, regs.rdx, regs.r8
    regs.rcx = regs.rdx = 0
    # locks
    found = begin(m, regs, leaves.TDH_MEM_PAGE_RELOCATE, rcx, tdr_hpa, 0, 0, False)
    if isinstance(found, int):
        return found
    td, _, _, entry = found
    # checks
    if entry & STATE_MASK not in LEAF_STATES:
        set_entry_details(m, regs, entry, 0)
        return fail(found, False, TDX_EPT_ENTRY_STATE_INCORRECT | OPERAND_ID_RCX)
    hpa = leaf_hpa(m, entry, 0)
    # Compared without bits 63:52, which are looked at with the new frame, after TLB tracking.
    if hpa == target_hpa & ~MAX_PA_BITS:
        return fail(found, False, TDX_OPERAND_INVALID | OPERAND_ID_R8)
    m.sim.point("module.pamt")
    pamt_entry = m.pamt.implicit(hpa, 0)
    if not hp_lock_ex(pamt_entry):
        return fail(found, False, TDX_OPERAND_BUSY | OPERAND_ID_RCX)
    status = check_tracking(m, regs, td, entry, 0, pamt_entry)
    if status:
        pamt_entry.lock &= LOCK_HP
        return fail(found, False, status)
    m.sim.point("module.pamt")
    leaf = m.pamt.lock_new_page(target_hpa, OPERAND_ID_R8)
    if isinstance(leaf, int):
        pamt_entry.lock &= LOCK_HP
        return fail(found, False, leaf)
    # effects
    m.sim.point("module.commit")
    if not entry & PENDING:
        m.mem.copy_page(target_hpa >> 12, td.hkid, hpa >> 12, td.hkid)
    m.pamt.take(leaf, target_hpa, PT_REG, td.tdr_pfn).bepoch = 0
    hint = m.pamt.release(hpa, 0, pamt_entry)
    new = entry & ~(HPA_MASK | BLOCKED) | target_hpa | td.hkid_bits
    if not new & PENDING:
        new |= RWX
    m.pamt.unlock_new_page(leaf, target_hpa)
    pamt_entry.lock &= LOCK_HP
    # return
    regs.rcx = hpa | hint
    return commit(found, False, new)
