"""TDCALL leaves of the guest: what a TD asks of the module.

Each leaf returns the guest's RAX, or a GuestOutcome when control does not come straight back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.exitqual import (
    EEQ_ACCEPT,
    EEQ_ATTR_WR,
    EXIT_QUAL_PERMISSIONS_SHIFT,
    EXIT_QUAL_WRITE,
    eeq_ept,
)
from septum.abi.features import TDX_CONFIG_FLAGS_NO_RBP_MOD
from septum.abi.sept import (
    ACCEPT_COUNTER,
    ACCEPT_COUNTER_SHIFT,
    ARCH_STATE,
    HP,
    LOCK,
    PENDING,
    PS,
    RWX,
    RWX_HW,
    STATE_FREE,
    STATE_MAPPED,
    STATE_MASK,
    STATE_PENDING,
)
from septum.abi.status import (
    OPERAND_ID_R8,
    OPERAND_ID_RAX,
    OPERAND_ID_RCX,
    OPERAND_ID_RDX,
    TDX_NO_VALID_VE_INFO,
    TDX_OPERAND_INVALID,
    TDX_PAGE_ALREADY_ACCEPTED,
    TDX_PAGE_SIZE_MISMATCH,
)
from septum.module.common import GPA_BAD_BY_LEVEL, leaf_hpa, walk_sept
from septum.module.outcome import INTERRUPTED, GuestOutcome, OutcomeKind
from septum.module.vp_enter import ept_violation_exit, tdvmcall_exit

if TYPE_CHECKING:
    from septum.abi.regs import Regs
    from septum.machine import LogicalProcessor, TablePage
    from septum.module.module import Module
    from septum.module.state import Td, Vcpu

NR_4K_IN_2M = 512
MAX_VEINFO_VERSION = 2


def tdg_mem_page_accept(
    m: Module, lp: LogicalProcessor, vcpu: Vcpu, regs: Regs, version: int
) -> int | GuestOutcome:
    """Accept a PENDING page: it is zeroed with the TD's key and mapped.

    RCX: GPA and level 0 or 1. A page that the host must do something about is a TD exit, after
    which the instruction runs again. 2 MB is done in 4 KB chunks; a pending interrupt stops it
    after a chunk, and the entry remembers how far it came.
    Source: TDG.MEM.PAGE.ACCEPT.
    """
    # operands
    td = vcpu.td
    rcx = regs.rcx
    level = rcx & 7
    if level > 1 or rcx & (GPA_BAD_BY_LEVEL[level] | td.gpa_bad):
        return TDX_OPERAND_INVALID | OPERAND_ID_RCX
    page, index, entry, reached = walk_sept(m, td, rcx, level)
    if reached != level:
        if entry & STATE_MASK == STATE_MAPPED:
            return TDX_PAGE_ALREADY_ACCEPTED | reached
        return _ept_exit(m, lp, rcx, level, entry, reached, EEQ_ACCEPT)
    # locks: the entry's alone. Whether it is a leaf was seen before the lock.
    leaf_before_lock = bool(entry & PS)
    status = m.lock_entry_guest(page, index)
    if status:
        return status | OPERAND_ID_RCX
    # checks
    entry = page.entry(index)
    state = entry & STATE_MASK
    if state != STATE_FREE and not leaf_before_lock:
        unlock_entry(page, index)
        return TDX_PAGE_SIZE_MISMATCH | level
    if state == STATE_MAPPED:
        unlock_entry(page, index)
        return TDX_PAGE_ALREADY_ACCEPTED | level
    if state != STATE_PENDING:
        # The host meets the lock here: BUSY for whatever call works on this entry.
        m.sim.point("module.sept_entry")
        unlock_entry(page, index)
        return _ept_exit(m, lp, rcx, level, entry, level, EEQ_ACCEPT)
    # effects
    if level:
        done = _zero_2m(m, lp, td, entry)
        if done < NR_4K_IN_2M:
            entry = entry & ~ACCEPT_COUNTER | done << ACCEPT_COUNTER_SHIFT
            unlock_entry(page, index, entry)
            return INTERRUPTED
        entry &= ~ACCEPT_COUNTER
    else:
        m.sim.point("module.commit")
        m.mem.fill((entry & m.pfn_mask) >> 12, 1, td.hkid, 0)
    # return
    unlock_entry(page, index, entry & ~PENDING | RWX)
    return 0


def _zero_2m(m: Module, lp: LogicalProcessor, td: Td, entry: int) -> int:
    """Zero the 4 KB chunks that are not done yet; returns how many are done.

    MODEL: the interrupt poll after each chunk but the last is made after the first one only, so
    an interrupt that comes later during the call is taken at its end.
    """
    pfn = leaf_hpa(m, entry, 1) >> 12
    done = m.accept_resumes_at(entry)
    m.sim.point("module.accept_chunk")
    if done < NR_4K_IN_2M - 1 and (lp.interrupt_pending() or m.sim.choose("accept_interrupted")):
        m.mem.fill(pfn + done, 1, td.hkid, 0)
        return done + 1
    m.mem.fill(pfn + done, NR_4K_IN_2M - done, td.hkid, 0)
    return NR_4K_IN_2M


def unlock_entry(page: TablePage, index: int, entry: int | None = None) -> None:
    """Drop an entry's lock, writing `entry` if given; host priority set meanwhile stays."""
    now = page.entry(index)
    if entry is None:
        page.set_lock(index, now & ~LOCK)
    else:
        page.set_entry(index, entry & ~LOCK | now & HP)


def _ept_exit(
    m: Module, lp: LogicalProcessor, gpa: int, requested: int, entry: int, level: int, eeq: int
) -> GuestOutcome:
    """TD exit that asks the host for a page: write, permissions of the entry, what was wanted.

    Source: async_tdexit_ept_violation.
    """
    qualification = EXIT_QUAL_WRITE | (entry & RWX_HW) << EXIT_QUAL_PERMISSIONS_SHIFT
    extended = eeq_ept(eeq, requested, level, ARCH_STATE[entry & STATE_MASK], bool(entry & PS))
    return GuestOutcome(
        OutcomeKind.TD_EXIT, ept_violation_exit(m, lp, qualification, extended, gpa)
    )


def tdg_vp_vmcall(
    m: Module, lp: LogicalProcessor, vcpu: Vcpu, regs: Regs, version: int
) -> int | GuestOutcome:
    """Leave the TD to ask the host for something; it completes when the vCPU is entered again.

    RCX: registers to pass (15:0 GPRs, 31:16 XMMs). Source: TDG.VP.VMCALL.
    """
    forbidden = 0xFFFFFFFF_00000000 | 1 << 0 | 1 << 1 | 1 << 4
    if vcpu.td.config_flags & TDX_CONFIG_FLAGS_NO_RBP_MOD:
        forbidden |= 1 << 5
    if regs.rcx & forbidden:
        return TDX_OPERAND_INVALID | OPERAND_ID_RCX
    return GuestOutcome(OutcomeKind.TD_EXIT, tdvmcall_exit(m, lp, vcpu, regs))


def tdg_vp_veinfo_get(
    m: Module, lp: LogicalProcessor, vcpu: Vcpu, regs: Regs, version: int
) -> int | GuestOutcome:
    """Read what the last #VE was about, which also makes room for the next.

    Returns RCX exit reason, RDX exit qualification, R8 GLA, R9 GPA, R10 instruction length.
    Source: TDG.VP.VEINFO.GET.
    """
    regs.rcx = regs.rdx = regs.r8 = regs.r9 = regs.r10 = 0
    if version > MAX_VEINFO_VERSION:
        return TDX_OPERAND_INVALID | OPERAND_ID_RAX
    info = vcpu.ve_info
    if not info.valid:
        return TDX_NO_VALID_VE_INFO
    regs.rcx = info.reason
    if version:
        regs.rcx |= info.category << 32
    if version >= 2:
        regs.r11 = regs.r12 = 0
    regs.rdx, regs.r8, regs.r9 = info.exit_qualification, info.gla, info.gpa
    regs.r10 = info.instruction
    info.valid = False
    # MODEL: the module leaves the fields as they are; cleared, they tell no two states apart.
    info.exit_qualification = info.gpa = 0
    return 0


def tdg_vp_info(
    m: Module, lp: LogicalProcessor, vcpu: Vcpu, regs: Regs, version: int
) -> int | GuestOutcome:
    """RCX GPA width, RDX ATTRIBUTES, R8 vCPU numbers, R9 vCPU index. Source: TDG.VP.INFO."""
    td = vcpu.td
    regs.rcx = 52 if td.gpaw else 48
    regs.rdx = td.attributes
    regs.r8 = td.num_vcpus | td.max_vcpus << 32
    regs.r9 = vcpu.index
    regs.r10 = 1
    regs.r11 = 0
    return 0


def tdg_mem_page_attr_rd(
    m: Module, lp: LogicalProcessor, vcpu: Vcpu, regs: Regs, version: int
) -> int | GuestOutcome:
    """Read a page's size and attributes (L1 has none to show).

    RCX: GPA. Returns RCX: GPA, level, and bit 63 pending; RDX attributes.
    Source: TDG.MEM.PAGE.ATTR.RD.
    """
    td = vcpu.td
    gpa = regs.rcx
    if gpa & td.gpa_bad:
        regs.rcx = regs.rdx = 0
        return TDX_OPERAND_INVALID | OPERAND_ID_RCX
    page, index, _, level = walk_sept(m, td, gpa, 0)
    status = m.lock_entry_guest(page, index)
    if status:
        regs.rcx = regs.rdx = 0
        return status | OPERAND_ID_RCX
    state = page.entry(index) & STATE_MASK
    unlock_entry(page, index)
    if state not in (STATE_MAPPED, STATE_PENDING):
        return GuestOutcome(OutcomeKind.TD_EXIT, ept_violation_exit(m, lp, 0, 0, gpa))
    pending = GPA_PENDING if state == STATE_PENDING else 0
    regs.rcx = gpa >> 12 + 9 * level << 12 + 9 * level | level | pending
    regs.rdx = 0
    return 0


GPA_PENDING = 1 << 63


def tdg_mem_page_attr_wr(
    m: Module, lp: LogicalProcessor, vcpu: Vcpu, regs: Regs, version: int
) -> int | GuestOutcome:
    """Write a page's attributes. MODEL: no L2 VMs, so there is none that can be written.

    RCX: GPA and level 0..2. RDX: attributes and R8: mask, both 0. Source: TDG.MEM.PAGE.ATTR.WR.
    """
    td = vcpu.td
    rcx, rdx, r8 = regs.rcx, regs.rdx, regs.r8
    level = rcx & 7
    regs.rcx = regs.rdx = 0
    # Attributes and mask are looked at VM by VM, 16 bits each.
    for shift in (0, 16, 32, 48):
        if rdx >> shift & 0xFFFF:
            return TDX_OPERAND_INVALID | OPERAND_ID_RDX
        if r8 >> shift & 0xFFFF:
            return TDX_OPERAND_INVALID | OPERAND_ID_R8
    if level > 2 or rcx & (GPA_BAD_BY_LEVEL[level] | td.gpa_bad):
        return TDX_OPERAND_INVALID | OPERAND_ID_RCX
    page, index, entry, reached = walk_sept(m, td, rcx, level)
    if reached != level:
        regs.rcx, regs.rdx = rcx, rdx
        return _ept_exit(m, lp, rcx, level, entry, reached, EEQ_ATTR_WR)
    status = m.lock_entry_guest(page, index)
    if status:
        return status | OPERAND_ID_RCX
    entry = page.entry(index)
    state = entry & STATE_MASK
    unlock_entry(page, index)
    if not entry & PS and state != STATE_FREE:
        return TDX_PAGE_SIZE_MISMATCH | level
    if state not in (STATE_MAPPED, STATE_PENDING):
        regs.rcx, regs.rdx = rcx, rdx
        return _ept_exit(m, lp, rcx, level, entry, level, EEQ_ATTR_WR)
    regs.rcx = rcx | (GPA_PENDING if state == STATE_PENDING else 0)
    return 0
