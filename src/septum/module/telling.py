"""The trace event of a SEAMCALL: its operands, and the S-EPT entry that it was about.

Called only when the run is traced.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.leaves import GPA_LEAVES, LEAF_MASK, TDH_MEM_PAGE_DEMOTE, VERSION_SHIFT
from septum.abi.sept import HPA_MASK
from septum.module.common import walk_sept
from septum.module.events import SeamcallEvent

if TYPE_CHECKING:
    from septum.abi.regs import Regs
    from septum.machine import LogicalProcessor
    from septum.module.module import Module
    from septum.module.state import Td

Operands = tuple[int, int, int, int, int, int, int, int]


def operands(regs: Regs) -> Operands:
    """RCX, RDX and R8 to R13: what SEAMCALLs pass operands in."""
    return (
        regs.rcx,
        regs.rdx,
        int(regs.r8),  # a TSC offset is an OfTime
        regs.r9,
        regs.r10,
        regs.r11,
        regs.r12,
        regs.r13,
    )


def seamcall_event(
    m: Module, lp: LogicalProcessor, rax: int, inputs: Operands, regs: Regs
) -> SeamcallEvent:
    """The event of a SEAMCALL that has ended. `rax` and `inputs` are as it began."""
    current = m.sim.current
    leaf = rax & LEAF_MASK
    rcx, rdx, r8 = inputs[:3]
    outputs = operands(regs)
    sept = child = -1
    if leaf in GPA_LEAVES:
        sept = sept_entry(m, m.td_by_hpa.get(rdx & HPA_MASK), rcx)
        if leaf == TDH_MEM_PAGE_DEMOTE and not regs.rax:
            table = m.tables.get((sept & m.pfn_mask) >> 12)
            child = table.entry(0) & ~m.pamt.hkid_mask if table is not None else -1
    return SeamcallEvent(
        current.time_ns,
        current.name,
        lp.id,
        leaf,
        rax >> VERSION_SHIFT,
        rcx,
        rdx,
        r8,
        regs.rax,
        outputs[0],
        outputs[1],
        *inputs[3:],
        *outputs[2:],
        sept,
        child,
    )


def sept_entry(m: Module, td: Td | None, rcx: int) -> int:
    """The S-EPT entry at the GPA and level of `rcx`, without the HKID; -1 when the walk ends above
    it."""
    if td is None or td.root is None or rcx & 7 > td.root_level:
        return -1
    _, _, entry, reached = walk_sept(m, td, rcx, rcx & 7)
    return entry & ~m.pamt.hkid_mask if reached == rcx & 7 else -1
