"""Building blocks that most leaves begin and end with: TDR, TD state, S-EPT tree and entry.

Each returns what it found, or the status of the check that failed with nothing left locked.
Scheduling points stand before each lock and before each commit, so that a call can meet another
one at every stage. That of the first lock is the instruction's own (`Machine.seamcall`): before it
a leaf only looks at its operands (SEPT.RD at the TD's DEBUG, too). A call that comes to no other
point while it has locks that somebody may want has one before it gives them back
(`module.refused`, `module.return`).

Source: TDX module 1.5.25, helpers and sept_manager.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi import leaves
from septum.abi.sept import (
    ARCH_STATE,
    FREE_ENTRY,
    HP,
    HPA_MASK,
    LOCK,
    PS,
    RWX,
    RWX_HW,
    STATE_BLOCKED,
    STATE_FREE,
    STATE_MAPPED,
    STATE_MASK,
    STATE_NL_BLOCKED,
    STATE_NL_MAPPED,
    STATE_PENDING,
    STATE_PENDING_BLOCKED,
    SVE,
)
from septum.abi.status import (
    OPERAND_ID_OP_STATE,
    OPERAND_ID_RCX,
    OPERAND_ID_RDX,
    OPERAND_ID_SEPT_TREE,
    OPERAND_ID_TDR,
    TDX_EPT_WALK_FAILED,
    TDX_GPA_RANGE_NOT_BLOCKED,
    TDX_OP_STATE_INCORRECT,
    TDX_OPERAND_BUSY,
    TDX_OPERAND_INVALID,
    TDX_TD_FATAL,
    TDX_TD_KEYS_NOT_CONFIGURED,
    TDX_TDCS_NOT_ALLOCATED,
    TDX_TLB_TRACKING_NOT_DONE,
)
from septum.module.locks import (
    BUSY_FOR_SHARED,
    READER,
    hp_lock_ex,
    hp_lock_sh,
    hp_unlock_ex,
    hp_unlock_sh,
)
from septum.module.locks import HP as LOCK_HP
from septum.module.pamt import PT_TDR
from septum.module.state import MIN_TDCS_PAGES, OP_STATE_RUNNABLE, TD_KEYS_CONFIGURED
from septum.module.steps import end

if TYPE_CHECKING:
    from septum.abi.regs import Regs
    from septum.machine import TablePage
    from septum.module.module import Module
    from septum.module.pamt import AnyEntry
    from septum.module.state import Td

# OP_STATEs (UNINITIALIZED, INITIALIZED, RUNNABLE) in which a leaf is allowed.
_UNINIT = (True, False, False)
_INIT = (False, True, False)
_RUN = (False, False, True)
_INIT_RUN = (False, True, True)
_NONE = (False, False, False)
OP_STATES: dict[int, tuple[bool, bool, bool]] = {
    leaves.TDH_VP_ENTER: _RUN,
    leaves.TDH_MNG_ADDCX: _UNINIT,
    leaves.TDH_MNG_INIT: _UNINIT,
    leaves.TDH_MEM_PAGE_ADD: _INIT,
    leaves.TDH_VP_CREATE: _INIT,
    leaves.TDH_VP_ADDCX: _INIT,
    leaves.TDH_VP_INIT: _INIT,
    leaves.TDH_MR_EXTEND: _INIT,
    leaves.TDH_MR_FINALIZE: _INIT,
    leaves.TDH_MEM_SEPT_ADD: _INIT_RUN,
    leaves.TDH_MEM_PAGE_RELOCATE: _INIT_RUN,
    leaves.TDH_MEM_PAGE_AUG: _INIT_RUN,
    leaves.TDH_MEM_RANGE_BLOCK: _INIT_RUN,
    leaves.TDH_MNG_RD: _INIT_RUN,
    leaves.TDH_MNG_WR: _INIT_RUN,
    leaves.TDH_MEM_PAGE_DEMOTE: _INIT_RUN,
    leaves.TDH_MEM_PAGE_PROMOTE: _INIT_RUN,
    leaves.TDH_MEM_SEPT_RD: _INIT_RUN,
    leaves.TDH_VP_RD: _INIT_RUN,
    leaves.TDH_VP_WR: _INIT_RUN,
    leaves.TDH_MEM_PAGE_REMOVE: _INIT_RUN,
    leaves.TDH_MEM_SEPT_REMOVE: _INIT_RUN,
    leaves.TDH_MEM_TRACK: _INIT_RUN,
    leaves.TDH_MEM_RANGE_UNBLOCK: _INIT_RUN,
}

# What must be zero in a GPA-and-level operand, by level: reserved bits and alignment.
PAGE_INFO_RESERVED = 0xFFF0_0000_0000_0FF8
GPA_BAD_BY_LEVEL = tuple(
    PAGE_INFO_RESERVED | ((1 << 12 + 9 * level) - 1) & ~0xFFF for level in range(8)
)
TDR_FLAGS_RESERVED = 0xFFF0_0000_0000_0FFE
"""RDX bits that must be zero where bit 0 is a flag beside the TDR's address."""

LEAF_STATES = frozenset((STATE_MAPPED, STATE_BLOCKED, STATE_PENDING, STATE_PENDING_BLOCKED))
NL_STATES = frozenset((STATE_NL_MAPPED, STATE_NL_BLOCKED))
BLOCKED_STATES = frozenset((STATE_BLOCKED, STATE_NL_BLOCKED, STATE_PENDING_BLOCKED))

SeptWalk = tuple["Td", "TablePage", int, int]
"""TD, table page, index, and the entry's value, which is locked (shown without lock and HP)."""


# ---- TDR and TD state


def lock_td(m: Module, tdr_hpa: int, operand: int, exclusive: bool = False) -> Td | int:
    """Check and lock an explicit TDR operand, which is the first lock of every leaf that has one.

    Source: check_lock_and_map_explicit_tdr.
    """
    td = m.td_by_hpa.get(tdr_hpa)
    if td is not None and not exclusive:
        p1g, p2m, p4k = td.p1g, td.p2m, td.p4k
        if not (p1g.lock | p2m.lock | p4k.lock) & BUSY_FOR_SHARED:
            p1g.lock += READER
            p2m.lock += READER
            p4k.lock += READER
            return td
    walk = m.pamt.lock_page(tdr_hpa, operand, PT_TDR, 0, exclusive)
    if isinstance(walk, int):
        return walk
    return m.td_by_hpa[tdr_hpa]


def unlock_td(td: Td, exclusive: bool = False) -> None:
    """Drop the locks of `lock_td`."""
    if exclusive:
        td.p4k.lock &= LOCK_HP
    else:
        td.p4k.lock -= READER
    td.p2m.lock -= READER
    td.p1g.lock -= READER


def lock_implicit_td(m: Module, owner_pfn: int, exclusive: bool = False) -> Td | int:
    """Lock the TDR that owns a page: its own PAMT entry only. BUSY carries operand id TDR.

    Source: lock_and_map_implicit_tdr.
    """
    m.sim.point("module.tdr")
    td = m.tds[owner_pfn]
    if not (hp_lock_ex(td.p4k) if exclusive else hp_lock_sh(td.p4k)):
        return TDX_OPERAND_BUSY | OPERAND_ID_TDR
    return td


def unlock_implicit_td(td: Td, exclusive: bool = False) -> None:
    """Drop the lock of `lock_implicit_td`."""
    if exclusive:
        hp_unlock_ex(td.p4k)
    else:
        hp_unlock_sh(td.p4k)


def check_state(m: Module, td: Td, leaf: int, lock_op_state: bool = True) -> int:
    """FATAL, life cycle, TDCS pages; then the op_state lock (shared) and OP_STATE for `leaf`.

    Source: check_state_map_tdcs_and_lock.
    """
    if td.fatal:
        return TDX_TD_FATAL
    if td.lifecycle != TD_KEYS_CONFIGURED:
        return TDX_TD_KEYS_NOT_CONFIGURED
    if len(td.tdcx) < MIN_TDCS_PAGES:
        return TDX_TDCS_NOT_ALLOCATED
    # Only migration takes this lock exclusively. It is not modelled, so the lock is always free.
    if lock_op_state and not hp_lock_sh(td.op_state_lock):
        return TDX_OPERAND_BUSY | OPERAND_ID_OP_STATE
    if not OP_STATES[leaf][td.op_state]:
        if lock_op_state:
            m.sim.point("module.refused")
            td.op_state_lock.lock -= READER
        return TDX_OP_STATE_INCORRECT | td.op_state
    return 0


# ---- S-EPT


def set_entry_details(m: Module, regs: Regs, entry: int, level: int) -> None:
    """RCX and RDX describe an S-EPT entry. Source: set_arch_septe_details_in_vmm_regs."""
    state = entry & STATE_MASK
    if state == STATE_FREE:
        regs.rcx = SVE
    elif entry & PS:
        regs.rcx = entry & m.leaf_view
    else:
        regs.rcx = entry & (RWX | PS)
    regs.rdx = level | ARCH_STATE[state] << 8


def walk_sept(m: Module, td: Td, gpa: int, level: int) -> tuple[TablePage, int, int, int]:
    """Walk to `gpa`'s entry at `level`, or to the entry where the walk stops.

    Returns (table, index, entry, level reached). It stops at a leaf and at R = W = X = 0.
    Source: secure_ept_walk.
    """
    page = td.root
    assert page is not None
    tables = m.tables
    pfn_mask = m.pfn_mask
    at = td.root_level
    while True:
        index = gpa >> 12 + 9 * at & 511
        entry = page.entry(index)
        if at == level or not entry & RWX_HW or entry & PS:
            return page, index, entry, at
        page = tables[(entry & pfn_mask) >> 12]
        at -= 1


def begin(
    m: Module,
    regs: Regs,
    leaf: int,
    rcx: int,
    tdr_hpa: int,
    min_level: int,
    max_level: int,
    exclusive: bool,
) -> SeptWalk | int:
    """The standard beginning: TDR (RDX, shared), TD state, GPA operand (RCX), tree, walk, entry.

    `max_level` -1 means the level of the root table. On failure RCX and RDX describe the entry
    where that is defined; otherwise they keep what the leaf put there.
    """
    sim = m.sim
    td = lock_td(m, tdr_hpa, OPERAND_ID_RDX)
    if isinstance(td, int):
        return td
    status = check_state(m, td, leaf)
    if status:
        unlock_td(td)
        return status
    level = rcx & 7
    if (
        rcx & (GPA_BAD_BY_LEVEL[level] | td.gpa_bad)
        or level < min_level
        or level > (td.root_level if max_level < 0 else max_level)
    ):
        sim.point("module.refused")
        td.op_state_lock.lock -= READER
        unlock_td(td)
        return TDX_OPERAND_INVALID | OPERAND_ID_RCX
    sim.point("module.sept_tree")
    tree = td.sept_lock
    if not (hp_lock_ex(tree) if exclusive else hp_lock_sh(tree)):
        td.op_state_lock.lock -= READER
        unlock_td(td)
        return TDX_OPERAND_BUSY | OPERAND_ID_SEPT_TREE
    page, index, entry, reached = walk_sept(m, td, rcx, level)
    if reached != level:
        end(td, exclusive)
        set_entry_details(m, regs, entry, reached)
        return TDX_EPT_WALK_FAILED | OPERAND_ID_RCX
    sim.point("module.sept_entry")
    found = page.entry(index)
    if found & LOCK:
        m.entry_busy(td, page, index, found, exclusive)
        set_entry_details(m, regs, entry, level)
        return TDX_OPERAND_BUSY | OPERAND_ID_RCX
    return td, page, index, m.lock_entry_host(page, index, found)


def fail(found: SeptWalk, exclusive: bool, status: int) -> int:
    """Unlock the entry as it is, drop the rest, and return `status`."""
    td, page, index, _ = found
    page.set_lock(index, page.entry(index) & ~LOCK)
    end(td, exclusive)
    return status


def commit(found: SeptWalk, exclusive: bool, entry: int) -> int:
    """Write the entry unlocked, keeping host priority that another call set; drop the rest."""
    td, page, index, _ = found
    page.set_entry(index, entry | page.entry(index) & HP)
    end(td, exclusive)
    return 0


def leaf_hpa(m: Module, entry: int, level: int) -> int:
    """The HPA (without HKID) of the page that a leaf entry of `level` maps."""
    return entry & m.pfn_mask & GPA_ALIGN[level]


GPA_ALIGN = tuple(~((1 << 12 + 9 * level) - 1) & HPA_MASK for level in range(5))


def check_tracking(
    m: Module, regs: Regs, td: Td, entry: int, level: int, pamt_entry: AnyEntry
) -> int:
    """In RUNNABLE: the entry must be blocked, and TLB tracking since then complete.

    Source: is_tlb_tracked and its callers. Every state but FREE and REMOVED requires it.
    """
    if td.op_state != OP_STATE_RUNNABLE:
        return 0
    if entry & STATE_MASK not in BLOCKED_STATES:
        set_entry_details(m, regs, entry, level)
        return TDX_GPA_RANGE_NOT_BLOCKED | OPERAND_ID_RCX
    return check_tracked(td, pamt_entry.bepoch)


def check_tracked(td: Td, bepoch: int) -> int:
    """BEPOCH is older than the previous epoch, or equal to it with no vCPU left in it."""
    previous = td.td_epoch - 1
    if bepoch < previous or (bepoch == previous and not td.refcount[bepoch & 1]):
        return 0
    return TDX_TLB_TRACKING_NOT_DONE | OPERAND_ID_RCX


def init_sept_page(m: Module, td: Td, hpa: int) -> None:
    """A page becomes an S-EPT page full of FREE entries, written with the TD's key."""
    pfn = hpa >> 12
    m.machine.alloc_table(pfn, FREE_ENTRY)
    m.mem.write(pfn, td.hkid, CONTROL_TOKEN)


CONTROL_TOKEN = 0x5EA0_7D1F
"""Content token of pages that the module keeps its own structures in."""
