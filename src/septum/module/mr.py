"""TDH.MR.EXTEND and FINALIZE: the measurement of what the TD starts with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi import leaves
from septum.abi.sept import PS, RWX_HW, STATE_MAPPED, STATE_MASK
from septum.abi.status import (
    OPERAND_ID_RCX,
    OPERAND_ID_RDX,
    TDX_EPT_ENTRY_NOT_PRESENT,
    TDX_NO_VCPUS,
    TDX_OPERAND_INVALID,
)
from septum.module.common import (
    check_state,
    leaf_hpa,
    lock_td,
    set_entry_details,
    unlock_td,
    walk_sept,
)
from septum.module.state import OP_STATE_RUNNABLE

if TYPE_CHECKING:
    from septum.abi.regs import Regs
    from septum.machine import LogicalProcessor
    from septum.module.module import Module

CHUNK_SIZE = 256
_MR_EXTEND = b"MR.EXTEND".ljust(16, b"\0")


def tdh_mr_extend(m: Module, lp: LogicalProcessor, regs: Regs, version: int) -> int:
    """Measure 256 bytes of a page that was added.

    RCX: GPA of the chunk. RDX: TDR. Source: TDH.MR.EXTEND.
    """
    # operands
    gpa, tdr_hpa = regs.rcx, regs.rdx
    regs.rcx = regs.rdx = 0
    # locks: the TDR exclusive stands for all others
    td = lock_td(m, tdr_hpa, OPERAND_ID_RDX, exclusive=True)
    if isinstance(td, int):
        return td
    status = check_state(m, td, leaves.TDH_MR_EXTEND, lock_op_state=False)
    # checks
    if not status and (gpa % CHUNK_SIZE or gpa & td.gpa_bad):
        status = TDX_OPERAND_INVALID | OPERAND_ID_RCX
    if not status:
        _, _, entry, level = walk_sept(m, td, gpa, 0)
        if not entry & PS or not entry & RWX_HW:
            set_entry_details(m, regs, entry, level)
            status = TDX_EPT_ENTRY_NOT_PRESENT | OPERAND_ID_RCX
        elif entry & STATE_MASK != STATE_MAPPED:
            status = TDX_EPT_ENTRY_NOT_PRESENT
        else:
            # effects
            m.sim.point("module.commit")
            size = 1 << 12 + 9 * level
            hpa = leaf_hpa(m, entry, level) | gpa & size - 1
            data = m.mem.page_bytes(hpa >> 12)
            offset = gpa & 0xFFF
            assert td.mrtd_hash is not None
            td.mrtd_hash.update(_MR_EXTEND + gpa.to_bytes(8, "little") + bytes(104))
            td.mrtd_hash.update(data[offset : offset + CHUNK_SIZE])
    # return
    unlock_td(td, exclusive=True)
    return status


def tdh_mr_finalize(m: Module, lp: LogicalProcessor, regs: Regs, version: int) -> int:
    """Close the measurement; the TD can run.

    RCX: TDR. Source: TDH.MR.FINALIZE.
    """
    # operands, locks
    td = lock_td(m, regs.rcx, OPERAND_ID_RCX, exclusive=True)
    if isinstance(td, int):
        return td
    # checks
    status = check_state(m, td, leaves.TDH_MR_FINALIZE, lock_op_state=False)
    if not status and not td.num_vcpus:
        status = TDX_NO_VCPUS
    if not status:
        # effects
        m.sim.point("module.commit")
        assert td.mrtd_hash is not None
        td.mrtd = td.mrtd_hash.digest()
        td.op_state = OP_STATE_RUNNABLE
    # return
    unlock_td(td, exclusive=True)
    return status
