"""TDH.MEM.PAGE.DEMOTE and PROMOTE: a large page into 512 small ones, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi import leaves
from septum.abi.sept import (
    ACCEPT_COUNTER,
    HP,
    NL_MAPPED_ENTRY,
    PENDING,
    STATE_MAPPED,
    STATE_MASK,
    STATE_PENDING,
    A,
    D,
)
from septum.abi.status import (
    OPERAND_ID_R8,
    OPERAND_ID_R12,
    OPERAND_ID_R13,
    OPERAND_ID_RAX,
    OPERAND_ID_RCX,
    OPERAND_ID_RDX,
    TDX_EPT_ENTRY_STATE_INCORRECT,
    TDX_EPT_INVALID_PROMOTE_CONDITIONS,
    TDX_INTERRUPTED_BUSY,
    TDX_INTERRUPTED_RESTARTABLE,
    TDX_OPERAND_ADDR_RANGE_ERROR,
    TDX_OPERAND_BUSY,
    TDX_OPERAND_INVALID,
    TDX_PAGE_NOT_FREE,
)
from septum.module.common import (
    CONTROL_TOKEN,
    GPA_ALIGN,
    LEAF_STATES,
    NL_STATES,
    TDR_FLAGS_RESERVED,
    begin,
    check_tracking,
    commit,
    fail,
    leaf_hpa,
    set_entry_details,
)
from septum.module.locks import HP as LOCK_HP
from septum.module.locks import hp_lock_ex, hp_unlock_ex
from septum.module.mem_sept import NULL_PA
from septum.module.pamt import PT_EPT, PT_NDA, PamtEntry1G, PamtEntry2M

if TYPE_CHECKING:
    from septum.abi.regs import Regs
    from septum.machine import LogicalProcessor, TablePage
    from septum.module.module import Module
    from septum.module.pamt import PamtWalk
    from septum.module.state import Td


def tdh_mem_page_demote(m: Module, lp: LogicalProcessor, regs: Regs, version: int) -> int:
    """Split a blocked and tracked large page into 512 small ones, which are unblocked.

    RCX: GPA and level 1 or 2. RDX: TDR, bit 0 L2 S-EPT add mode. R8: the new S-EPT page. R12, R13:
    the PAMT page pair (Dynamic PAMT, level 1).
    Source: TDH.MEM.PAGE.DEMOTE.
    """
    # operands
    rcx, rdx, sept_hpa = regs.rcx, regs.rdx, regs.r8
    regs.rcx = regs.rdx = 0
    if rdx & TDR_FLAGS_RESERVED:
        return TDX_OPERAND_INVALID | OPERAND_ID_RDX
    # locks
    found = begin(m, regs, leaves.TDH_MEM_PAGE_DEMOTE, rcx, rdx & ~1, 1, 2, False)
    if isinstance(found, int):
        return found
    td, _, _, entry = found
    level = rcx & 7
    # checks
    if entry & STATE_MASK not in LEAF_STATES:
        set_entry_details(m, regs, entry, level)
        return fail(found, False, TDX_EPT_ENTRY_STATE_INCORRECT | OPERAND_ID_RCX)
    hpa = leaf_hpa(m, entry, level)
    if entry & STATE_MASK == STATE_PENDING and level == 1:
        entry &= ~ACCEPT_COUNTER
    pamt_entry = m.pamt.implicit(hpa, level)
    status = check_tracking(m, regs, td, entry, level, pamt_entry) if m.demote_blocking else 0
    if status:
        return fail(found, False, status)
    m.sim.point("module.pamt")
    sept_leaf = m.pamt.lock_new_page(sept_hpa, OPERAND_ID_R8)
    if isinstance(sept_leaf, int):
        return fail(found, False, sept_leaf)
    # effects: the children are written before the last checks
    sept_pfn = sept_hpa >> 12
    m.mem.write(sept_pfn, td.hkid, CONTROL_TOKEN)
    if m.demote_interruptible:
        status = poll_host(m, lp, td)
        if status:
            regs.rcx, regs.rdx = rcx, rdx
            m.pamt.unlock_new_page(sept_leaf, sept_hpa)
            return fail(found, False, status)
    m.sim.point("module.pamt")
    status = _split_pamt(m, regs, pamt_entry, level)
    if status:
        m.pamt.unlock_new_page(sept_leaf, sept_hpa)
        return fail(found, False, status)
    child = m.demoted_entry(td, entry, hpa)
    m.machine.alloc_table(sept_pfn).fill(child, 1 << 3 + 9 * level)
    m.pamt.take(sept_leaf, sept_hpa, PT_EPT, td.tdr_pfn)
    td.chldcnt += 1
    m.pamt.unlock_new_page(sept_leaf, sept_hpa)
    # return
    return commit(found, False, NL_MAPPED_ENTRY | sept_hpa | td.hkid_bits)


def poll_host(m: Module, lp: LogicalProcessor, td: Td) -> int:
    """A pending interrupt, or a host call that waits for the S-EPT tree, ends the call.

    Source: check_host_interrupt_and_hp_bit.
    """
    if m.host_interrupt_pending(lp):
        return TDX_INTERRUPTED_RESTARTABLE
    if td.sept_lock.lock & LOCK_HP and m.profile.tree_has_host_priority:
        return TDX_INTERRUPTED_BUSY
    return 0


def _split_pamt(m: Module, regs: Regs, entry: object, level: int) -> int:
    """Split the PAMT entry of the demoted page. Source: pamt_demote."""
    if level == 2:
        assert isinstance(entry, PamtEntry1G)
        if not hp_lock_ex(entry):
            return TDX_OPERAND_BUSY | OPERAND_ID_RCX
        m.pamt.demote_1g(entry)
        hp_unlock_ex(entry)
        return 0
    assert isinstance(entry, PamtEntry2M)
    if entry.lock and not hp_lock_ex(entry):
        return TDX_OPERAND_BUSY | OPERAND_ID_RCX
    entry.lock = 1
    if not m.pamt.dynamic:
        m.pamt.demote_static(entry)
        status = 0
    else:
        status = _split_pamt_dynamic(m, regs.r12, regs.r13, entry)
    entry.lock &= LOCK_HP
    return status


def _split_pamt_dynamic(m: Module, page0: int, page1: int, entry: PamtEntry2M) -> int:
    """Give the 2 MB entry a page pair, whose 512 entries are like itself."""
    pamt = m.pamt
    for hpa, operand in ((page0, OPERAND_ID_R12), (page1, OPERAND_ID_R13)):
        if hpa & pamt.bad_pa:
            return TDX_OPERAND_INVALID | operand
    for hpa, operand in ((page0, OPERAND_ID_R12), (page1, OPERAND_ID_R13)):
        if pamt.entry_2m(hpa) is None:
            return TDX_OPERAND_ADDR_RANGE_ERROR | operand
    status, walks = lock_free_pair(m, ((page0, OPERAND_ID_R12), (page1, OPERAND_ID_R13)))
    # Others meet the locks here: PAMT.ADD and PAMT.REMOVE of the pages' own 2 MB.
    m.sim.point("module.pamt")
    if not status:
        if not pamt.mark_pamt_page(page0):
            status = TDX_PAGE_NOT_FREE | OPERAND_ID_R12
        elif not pamt.mark_pamt_page(page1):
            pamt.unmark_pamt_page(page0)
            status = TDX_PAGE_NOT_FREE | OPERAND_ID_R13
        else:
            m.init_pamt_pages(page0, page1)
            pamt.demote_dynamic(entry, page0, page1)
    for walk in walks:
        pamt.unwalk(walk, False)
    return status


def lock_free_pair(m: Module, pages: tuple[tuple[int, int], ...]) -> tuple[int, list[PamtWalk]]:
    """Lock each (page, operand id) shared and check that its PAMT entry is NDA."""
    walks: list[PamtWalk] = []
    for hpa, operand in pages:
        walk = m.pamt.walk(hpa, 0, False)
        if walk is None:
            return TDX_OPERAND_BUSY | operand, walks
        walks.insert(0, walk)
        if walk[1].pt != PT_NDA:
            return TDX_PAGE_NOT_FREE | operand, walks
    return 0, walks


def tdh_mem_page_promote(m: Module, lp: LogicalProcessor, regs: Regs, version: int) -> int:
    """Merge 512 small pages of one state into one large page, and free their S-EPT page.

    RCX: GPA and level 1 or 2. RDX: TDR. Returns RCX: the S-EPT page and the hint; R12, R13: the
    freed PAMT pair (Dynamic PAMT, level 1). Version 1 sets R9..R11 to -1 first.
    Source: TDH.MEM.PAGE.PROMOTE.
    """
    # operands
    rcx, rdx = regs.rcx, regs.rdx
    regs.rcx = regs.rdx = 0
    if version:
        regs.r9 = regs.r10 = regs.r11 = NULL_PA
        if version > 1:
            return TDX_OPERAND_INVALID | OPERAND_ID_RAX
    # locks
    exclusive = m.profile.promote_tree_exclusive
    found = begin(m, regs, leaves.TDH_MEM_PAGE_PROMOTE, rcx, rdx, 1, 2, exclusive)
    if isinstance(found, int):
        return found
    td, _, _, entry = found
    level = rcx & 7
    # checks
    if entry & STATE_MASK not in NL_STATES:
        set_entry_details(m, regs, entry, level)
        return fail(found, exclusive, TDX_EPT_ENTRY_STATE_INCORRECT | OPERAND_ID_RCX)
    sept_hpa = entry & m.pfn_mask
    m.sim.point("module.pamt")
    pamt_entry = m.pamt.implicit(sept_hpa, 0)
    if not hp_lock_ex(pamt_entry):
        return fail(found, exclusive, TDX_OPERAND_BUSY | OPERAND_ID_RCX)
    status = check_tracking(m, regs, td, entry, level, pamt_entry)
    table = m.tables[sept_hpa >> 12]
    if not status and not can_merge(m, table, level):
        set_entry_details(m, regs, entry, level)
        status = TDX_EPT_INVALID_PROMOTE_CONDITIONS | OPERAND_ID_RCX
    if not status:
        status = poll_host(m, lp, td)
        if status:
            regs.rcx, regs.rdx = rcx, rdx
    if not status:
        status = _merge_pamt(m, regs, level, table)
    if status:
        pamt_entry.lock &= LOCK_HP
        return fail(found, exclusive, status)
    # effects
    first = table.entry(0)
    m.machine.free_table(sept_hpa >> 12)
    td.chldcnt -= 1
    hint = m.pamt.release(sept_hpa, 0, pamt_entry)
    pamt_entry.lock &= LOCK_HP
    # return
    regs.rcx = sept_hpa | hint
    return commit(found, exclusive, first & ~HP)


def _merge_pamt(m: Module, regs: Regs, level: int, table: TablePage) -> int:
    """Merge the PAMT entries of the promoted range; R12 and R13 are the pair that Dynamic PAMT
    frees. 0 or TDX_OPERAND_BUSY. Source: pamt_promote."""
    m.sim.point("module.pamt")
    merged = m.pamt.promote(leaf_hpa(m, table.entry(0), level - 1), level)
    if merged is None:
        return TDX_OPERAND_BUSY | OPERAND_ID_RCX
    if m.pamt.dynamic and isinstance(merged, PamtEntry2M):
        regs.r12, regs.r13 = merged.page0, merged.page1
    return 0


def can_merge(m: Module, table: TablePage, level: int) -> bool:
    """All 512 entries map one aligned large range alike, MAPPED or PENDING.

    A/D and host priority are ignored, and in 2 MB PENDING entries the accept counter; a lock bit is
    not. Source: is_sept_page_valid_for_merge.
    """
    step = 1 << 3 + 9 * level
    first = table.entry(0)
    if first & m.pfn_mask & ~GPA_ALIGN[level] & GPA_ALIGN[level - 1]:
        return False
    if first & STATE_MASK not in (STATE_MAPPED, STATE_PENDING):
        return False
    template = table.uniform()
    if template is not None:
        return template[1] == step
    keep = ~(A | D | HP)
    pending_2m = level == 2
    expected = first & keep
    if pending_2m and first & PENDING:
        expected &= ~ACCEPT_COUNTER
    for value in table.values():
        if pending_2m and value & STATE_MASK == STATE_PENDING:
            value &= ~ACCEPT_COUNTER
        if value & keep != expected:
            return False
        expected += step
    return True
