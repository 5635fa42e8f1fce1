"""TDH.MEM.RANGE.BLOCK, RANGE.UNBLOCK, TRACK: how a mapping is taken from running vCPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi import leaves
from septum.abi.sept import (
    ACCEPT_COUNTER,
    BLOCKED,
    PENDING,
    PS,
    RWX,
    STATE_BLOCKED,
    STATE_MAPPED,
    STATE_MASK,
    STATE_NL_BLOCKED,
    STATE_NL_MAPPED,
    STATE_PENDING,
    STATE_PENDING_BLOCKED,
)
from septum.abi.status import (
    OPERAND_ID_RCX,
    OPERAND_ID_TD_EPOCH,
    TDX_EPT_ENTRY_STATE_INCORRECT,
    TDX_GPA_RANGE_ALREADY_BLOCKED,
    TDX_OPERAND_BUSY,
    TDX_PREVIOUS_TLB_EPOCH_BUSY,
)
from septum.module.common import (
    BLOCKED_STATES,
    begin,
    check_state,
    check_tracked,
    commit,
    fail,
    leaf_hpa,
    lock_td,
    set_entry_details,
    unlock_td,
)
from septum.module.locks import READER
from septum.module.state import OP_STATE_RUNNABLE

if TYPE_CHECKING:
    from septum.abi.regs import Regs
    from septum.machine import LogicalProcessor
    from septum.module.module import Module
    from septum.module.pamt import AnyEntry

_BLOCK_STATES = frozenset((STATE_NL_MAPPED, STATE_MAPPED, STATE_PENDING))
_UNBLOCK_STATES = frozenset((STATE_NL_BLOCKED, STATE_BLOCKED, STATE_PENDING_BLOCKED))


def tdh_mem_range_block(m: Module, lp: LogicalProcessor, regs: Regs, version: int) -> int:
    """Block an entry: no new translation is made through it. BEPOCH remembers when.

    RCX: GPA and level. RDX: TDR. An entry that is blocked already gives an informational status.
    Source: TDH.MEM.RANGE.BLOCK.
    """
    # operands
    rcx, tdr_hpa = regs.rcx, regs.rdx
    regs.rcx = regs.rdx = 0
    # locks
    found = begin(m, regs, leaves.TDH_MEM_RANGE_BLOCK, rcx, tdr_hpa, 0, -1, True)
    if isinstance(found, int):
        return found
    td, _, _, entry = found
    level = rcx & 7
    # checks
    state = entry & STATE_MASK
    if state not in _BLOCK_STATES:
        set_entry_details(m, regs, entry, level)
        if state in BLOCKED_STATES:
            return fail(found, True, TDX_GPA_RANGE_ALREADY_BLOCKED | OPERAND_ID_RCX)
        return fail(found, True, TDX_EPT_ENTRY_STATE_INCORRECT | OPERAND_ID_RCX)
    # effects
    m.sim.point("module.commit")
    if entry & PENDING and level == 1:
        entry &= ~ACCEPT_COUNTER
    _pamt_entry_below(m, entry, level).bepoch = td.td_epoch
    # return
    return commit(found, True, entry & ~RWX | BLOCKED)


def _pamt_entry_below(m: Module, entry: int, level: int) -> AnyEntry:
    """The PAMT entry of the page, or of the S-EPT page, that an entry of `level` points to: it has
    the entry's BEPOCH."""
    if entry & PS:
        return m.pamt.implicit(leaf_hpa(m, entry, level), level)
    return m.pamt.implicit(entry & m.pfn_mask, 0)


def tdh_mem_range_unblock(m: Module, lp: LogicalProcessor, regs: Regs, version: int) -> int:
    """Unblock a blocked entry; in RUNNABLE, TLB tracking must have been completed.

    RCX: GPA and level. RDX: TDR. Source: TDH.MEM.RANGE.UNBLOCK.
    """
    # operands
    rcx, tdr_hpa = regs.rcx, regs.rdx
    regs.rcx = regs.rdx = 0
    # locks
    found = begin(m, regs, leaves.TDH_MEM_RANGE_UNBLOCK, rcx, tdr_hpa, 0, -1, True)
    if isinstance(found, int):
        return found
    td, _, _, entry = found
    level = rcx & 7
    # checks
    if entry & STATE_MASK not in _UNBLOCK_STATES:
        set_entry_details(m, regs, entry, level)
        return fail(found, True, TDX_EPT_ENTRY_STATE_INCORRECT | OPERAND_ID_RCX)
    if td.op_state == OP_STATE_RUNNABLE:
        status = check_tracked(td, _pamt_entry_below(m, entry, level).bepoch)
        if status:
            return fail(found, True, status)
    # effects
    m.sim.point("module.commit")
    entry &= ~BLOCKED
    if not entry & PENDING:
        entry |= RWX
    # return
    return commit(found, True, entry)


def tdh_mem_track(m: Module, lp: LogicalProcessor, regs: Regs, version: int) -> int:
    """Move the TD to its next epoch, once no vCPU is left in the previous one.

    RCX: TDR. Source: TDH.MEM.TRACK.
    """
    # operands, locks
    td = lock_td(m, regs.rcx, OPERAND_ID_RCX)
    if isinstance(td, int):
        return td
    status = check_state(m, td, leaves.TDH_MEM_TRACK)
    if status:
        unlock_td(td)
        return status
    m.sim.point("module.epoch")
    if not td.epoch_lock.try_ex():
        status = TDX_OPERAND_BUSY | OPERAND_ID_TD_EPOCH
    else:
        # checks
        m.sim.point("module.commit")
        if td.refcount[1 - (td.td_epoch & 1)]:
            status = TDX_PREVIOUS_TLB_EPOCH_BUSY
        else:
            # effects
            td.td_epoch += 1
        td.epoch_lock.unlock_ex()
    # return
    td.op_state_lock.lock -= READER
    unlock_td(td)
    return status
