"""TDH.VP.ENTER and TD exit: the two halves of a vCPU's stay on a logical processor.

From entry to exit the vCPU holds its TDVPR and TDR shared and counts in REFCOUNT of its epoch.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from septum.abi import leaves
from septum.abi.exitqual import (
    EXIT_QUAL_TD_CLEARED,
    EXIT_QUAL_WRITE,
    EXIT_REASON_EPT_VIOLATION,
    EXIT_REASON_EXTERNAL_INTERRUPT,
    EXIT_REASON_TDCALL,
    INTR_INFO_EXTERNAL,
)
from septum.abi.features import TDX_CONFIG_FLAGS_NO_RBP_MOD
from septum.abi.regs import Regs
from septum.abi.sept import PS, RWX_HW, STATE_MASK, STATE_PENDING
from septum.abi.status import (
    OPERAND_ID_RCX,
    OPERAND_ID_SEPT_TREE,
    OPERAND_ID_TD_EPOCH,
    STATUS_HOST_RECOVERABILITY_HINT,
    TDX_OPERAND_BUSY,
    TDX_OPERAND_INVALID,
    TDX_TDCX_NUM_INCORRECT,
)
from septum.module.common import (
    check_state,
    lock_implicit_td,
    unlock_implicit_td,
    walk_sept,
)
from septum.module.events import TdExitEvent
from septum.module.locks import READER, hp_lock_ex, hp_lock_sh, hp_unlock_ex, hp_unlock_sh
from septum.module.state import (
    LAST_EXIT_ASYNC_FAULT,
    LAST_EXIT_ASYNC_TRAP,
    LAST_EXIT_TDVMCALL,
    MIN_TDVPS_PAGES,
    VCPU_ACTIVE,
    VCPU_READY,
    Vcpu,
)
from septum.module.vp import associate_vcpu, lock_vcpu

if TYPE_CHECKING:
    from septum.machine import LogicalProcessor
    from septum.module.module import Module
    from septum.module.state import Td

VCPU_FLAGS_RESERVED = 0xFFC0_0000_0000_0FFF
VCPU_HOST_RECOVERABILITY_HINT = 1 << 52
VCPU_RESUME_L1 = 1 << 53

# TDG.VP.VMCALL's register mask: bit number to register. RAX, RCX and RSP never pass.
VMCALL_REGISTERS = (
    (2, "rdx"),
    (3, "rbx"),
    (5, "rbp"),
    (6, "rsi"),
    (7, "rdi"),
    (8, "r8"),
    (9, "r9"),
    (10, "r10"),
    (11, "r11"),
    (12, "r12"),
    (13, "r13"),
    (14, "r14"),
    (15, "r15"),
)
EXTERNAL_VECTOR = 0xEC


@lru_cache(64)
def _named_by(control: int) -> tuple[str, ...]:
    """The registers that TDG.VP.VMCALL's RCX names."""
    return tuple(name for bit, name in VMCALL_REGISTERS if control >> bit & 1)


def enter(m: Module, lp: LogicalProcessor, regs: Regs) -> int:
    """The entry half of TDH.VP.ENTER. 0: the vCPU runs on `lp`. Else the status, not entered.

    RCX: TDVPR, bit 52 host recoverability hint, bit 53 resume L1; the other registers go to the
    guest as the TDG.VP.VMCALL that it left with asked for.
    Source: TDH.VP.ENTER.
    """
    # operands
    rcx = regs.rcx
    if rcx & VCPU_FLAGS_RESERVED:
        return TDX_OPERAND_INVALID | OPERAND_ID_RCX
    # locks
    tdvpr_hpa = rcx & ~(VCPU_HOST_RECOVERABILITY_HINT | VCPU_RESUME_L1)
    locked = lock_vcpu(m, tdvpr_hpa, OPERAND_ID_RCX, exclusive=False)
    if isinstance(locked, int):
        return locked
    vcpu, walk = locked
    td = lock_implicit_td(m, walk[1].owner)
    if isinstance(td, int):
        m.pamt.unwalk(walk, False)
        return td
    status = check_state(m, td, leaves.TDH_VP_ENTER)
    if not status:
        # checks
        status = _check_and_track(m, lp, td, vcpu, rcx, regs)
        if status:
            m.sim.point("module.refused")
        td.op_state_lock.lock -= READER
    if status:
        unlock_implicit_td(td)
        m.pamt.unwalk(walk, False)
        return status
    # effects
    lp_state = m.lp_states[lp.id]
    if lp_state.last_tdvpr_pfn != vcpu.tdvpr_pfn:
        lp.tlb.flush(td.tdr_pfn)
        lp_state.last_tdvpr_pfn = vcpu.tdvpr_pfn
    m.entered[vcpu.tdvpr_pfn] = walk
    guest_regs = vcpu.guest_regs
    if vcpu.last_exit == LAST_EXIT_TDVMCALL:
        assert guest_regs is not None
        _complete_vmcall(guest_regs, regs)
    elif vcpu.last_exit == LAST_EXIT_ASYNC_TRAP and guest_regs is not None:
        guest_regs.rax &= ~STATUS_HOST_RECOVERABILITY_HINT
        if rcx & VCPU_HOST_RECOVERABILITY_HINT:
            guest_regs.rax |= STATUS_HOST_RECOVERABILITY_HINT
    vcpu.guest_regs = None
    vcpu.state = VCPU_ACTIVE
    vcpu.lp = lp
    lp.guest = vcpu
    # return
    return 0


def _check_and_track(
    m: Module, lp: LogicalProcessor, td: Td, vcpu: Vcpu, rcx: int, regs: Regs
) -> int:
    """vCPU state, association, flags; then the epoch, and zero-step mitigation."""
    if len(vcpu.pages) < MIN_TDVPS_PAGES:
        return TDX_TDCX_NUM_INCORRECT
    # The TDVPR is held shared, so that VP.FLUSH is kept out. MODEL: there is no scheduling point
    # after the TDR's lock was taken, so no other call can see the TDR busy before the vCPU is. KVM
    # does not depend on it: it enters a vCPU on one processor only, and takes a TDR exclusively
    # only when no vCPU runs.
    status, new = associate_vcpu(lp, td, vcpu, allow_disabled=False)
    if status:
        return status
    # The association stands even when the flags turn out to be wrong.
    if rcx & VCPU_HOST_RECOVERABILITY_HINT and vcpu.last_exit != LAST_EXIT_ASYNC_TRAP:
        return TDX_OPERAND_INVALID | OPERAND_ID_RCX
    if rcx & VCPU_RESUME_L1:
        return TDX_OPERAND_INVALID | OPERAND_ID_RCX
    m.sim.point("module.epoch")
    if not td.epoch_lock.try_sh():
        return TDX_OPERAND_BUSY | OPERAND_ID_TD_EPOCH
    m.sim.point("module.commit")
    epoch = m.enter_epoch(lp, td, vcpu, new)
    if not vcpu.epf_gpas:
        return 0
    status = _zero_step_filter(m, td, vcpu, regs)
    if status:
        td.refcount[epoch & 1] -= 1
    return status


def _zero_step_filter(m: Module, td: Td, vcpu: Vcpu, regs: Regs) -> int:
    """Refuse entry while a GPA that faulted again and again without progress would fault still.

    The refusal looks like an EPT violation TD exit. Source: td_entry_stepping_filter.
    """
    exclusive = m.profile.zero_step_tree_exclusive
    m.sim.point("module.sept_tree")
    if not (hp_lock_ex if exclusive else hp_lock_sh)(td.sept_lock):
        return TDX_OPERAND_BUSY | OPERAND_ID_SEPT_TREE
    m.sim.point("module.commit")
    fault = next((gpa for gpa in vcpu.epf_gpas if _epf_expected(m, td, gpa)), None)
    (hp_unlock_ex if exclusive else hp_unlock_sh)(td.sept_lock)
    # MODEL: TDs do not ask to be notified (NOTIFY_ENABLES), so no #VE is injected here.
    if fault is None:
        return 0
    vcpu.last_exit = LAST_EXIT_ASYNC_FAULT
    _clear_exit_regs(regs, td)
    regs.rcx = EXIT_QUAL_WRITE
    regs.r8 = fault & ~0xFFF
    return EXIT_REASON_EPT_VIOLATION


def _epf_expected(m: Module, td: Td, gpa: int) -> bool:
    """An access to `gpa` would be an EPT violation that goes to the host. `is_epf_expected`."""
    _, _, entry, _ = walk_sept(m, td, gpa, 0)
    if entry & RWX_HW == RWX_HW and entry & PS:
        return False
    return not (entry & STATE_MASK == STATE_PENDING and not td.pending_ve_disable)


def _complete_vmcall(guest: Regs, host: Regs) -> None:
    """TDG.VP.VMCALL completes: the guest gets the host's values of the registers it named."""
    for name in _named_by(guest.rcx):
        setattr(guest, name, getattr(host, name))
    guest.rax = 0


# ---- TD exit


def leave(m: Module, lp: LogicalProcessor, vcpu: Vcpu, last_exit: int) -> None:
    """The exit half: state, REFCOUNT, shared locks. Source: td_vmexit_to_vmm."""
    td = vcpu.td
    m.sim.point("module.td_exit")
    vcpu.state = VCPU_READY
    vcpu.last_exit = last_exit
    vcpu.progressed = False  # not read before it is entered again
    vcpu.lp = None
    lp.guest = None
    m.leave_epoch(lp, td, vcpu)
    td.p4k.lock -= READER
    m.pamt.unwalk(m.entered.pop(vcpu.tdvpr_pfn), False)


def note_vm_exit(vcpu: Vcpu) -> None:
    """The guest left non-root mode: progress since entry clears the zero-step suspicion.

    Source: vmexit_stepping_filter.
    """
    if vcpu.progressed:
        vcpu.epf_count = 0
        vcpu.epf_gpas.clear()


def _clear_exit_regs(regs: Regs, td: Td) -> None:
    """Registers that an asynchronous TD exit does not define return 0."""
    for name in Regs.__slots__:
        if name != "rbp" or not td.config_flags & TDX_CONFIG_FLAGS_NO_RBP_MOD:
            setattr(regs, name, 0)


def async_exit(
    m: Module,
    lp: LogicalProcessor,
    rax: int,
    qualification: int = 0,
    eeq: int = 0,
    gpa: int = 0,
    intr_info: int = 0,
    last_exit: int = LAST_EXIT_ASYNC_FAULT,
) -> Regs:
    """An asynchronous TD exit of the vCPU on `lp`; the registers that TDH.VP.ENTER returns.

    Source: async_tdexit_internal.
    """
    vcpu = lp.guest
    assert isinstance(vcpu, Vcpu)
    leave(m, lp, vcpu, last_exit)
    exit_regs = Regs(rax=rax, rcx=qualification & 0xFFFFFFFF, rdx=eeq, r8=gpa, r9=intr_info)
    trace_exit(m, lp, vcpu, exit_regs)
    return exit_regs


def trace_exit(m: Module, lp: LogicalProcessor, vcpu: Vcpu, regs: Regs) -> None:
    """Emit the event of a TD exit."""
    if m.sim.tracing:
        current = m.sim.current
        m.sim.emit(
            TdExitEvent(
                current.time_ns,
                current.name,
                lp.id,
                vcpu.td.tdr_pfn,
                vcpu.index,
                regs.rax,
                regs.rcx,
                regs.rdx,
                regs.r8,
            )
        )


def ept_violation_exit(
    m: Module, lp: LogicalProcessor, qualification: int, eeq: int, gpa: int
) -> Regs:
    """TD exit with reason EPT violation. Source: tdx_ept_violation_exit_to_vmm."""
    return async_exit(
        m,
        lp,
        EXIT_REASON_EPT_VIOLATION,
        qualification & ~EXIT_QUAL_TD_CLEARED,
        eeq,
        gpa & ~0xFFF,
    )


def external_interrupt_exit(m: Module, lp: LogicalProcessor) -> Regs:
    """TD exit with reason external interrupt. MODEL: the guest always made progress before."""
    vcpu = lp.guest
    assert isinstance(vcpu, Vcpu)
    vcpu.retire()
    note_vm_exit(vcpu)
    return async_exit(
        m, lp, EXIT_REASON_EXTERNAL_INTERRUPT, intr_info=INTR_INFO_EXTERNAL | EXTERNAL_VECTOR
    )


def tdvmcall_exit(m: Module, lp: LogicalProcessor, vcpu: Vcpu, guest: Regs) -> Regs:
    """The synchronous TD exit of TDG.VP.VMCALL: the registers that RCX names go to the host."""
    control = guest.rcx
    out = Regs(rax=EXIT_REASON_TDCALL, rcx=control & 0xFFFFFFFF)
    for name in _named_by(control):
        setattr(out, name, getattr(guest, name))
    vcpu.guest_regs = guest
    vcpu.retire()
    leave(m, lp, vcpu, LAST_EXIT_TDVMCALL)
    trace_exit(m, lp, vcpu, out)
    return out
