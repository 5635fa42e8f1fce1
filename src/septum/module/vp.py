"""TDH.VP.CREATE, ADDCX, INIT, FLUSH: a virtual CPU's pages, and its ties to a processor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi import leaves
from septum.abi.status import (
    OPERAND_ID_R8,
    OPERAND_ID_RAX,
    OPERAND_ID_RCX,
    OPERAND_ID_RDX,
    OPERAND_ID_TDR,
    TDX_MAX_VCPUS_EXCEEDED,
    TDX_OPERAND_BUSY,
    TDX_OPERAND_INVALID,
    TDX_TD_KEYS_NOT_CONFIGURED,
    TDX_TDCX_NUM_INCORRECT,
    TDX_VCPU_ASSOCIATED,
    TDX_VCPU_NOT_ASSOCIATED,
    TDX_VCPU_STATE_INCORRECT,
    TDX_X2APIC_ID_NOT_UNIQUE,
)
from septum.module.common import (
    CONTROL_TOKEN,
    check_state,
    lock_implicit_td,
    lock_td,
    unlock_implicit_td,
    unlock_td,
)
from septum.module.locks import READER
from septum.module.pamt import PT_TDCX, PT_TDVPR
from septum.module.state import (
    LAST_EXIT_ASYNC_FAULT,
    MAX_TDVPS_PAGES,
    MIN_TDVPS_PAGES,
    NO_LP,
    TD_KEYS_CONFIGURED,
    VCPU_DISABLED,
    VCPU_READY,
    VCPU_UNINITIALIZED,
    Vcpu,
)

if TYPE_CHECKING:
    from septum.abi.regs import Regs
    from septum.machine import LogicalProcessor
    from septum.module.module import Module
    from septum.module.pamt import PamtWalk
    from septum.module.state import Td

LockedVcpu = tuple[Vcpu, "PamtWalk"]


def lock_vcpu(m: Module, tdvpr_hpa: int, operand: int, exclusive: bool) -> LockedVcpu | int:
    """Check and lock an explicit TDVPR operand, which is the first lock of every leaf that has
    one."""
    walk = m.pamt.lock_page(tdvpr_hpa, operand, PT_TDVPR, 0, exclusive)
    if isinstance(walk, int):
        return walk
    return m.vcpus[tdvpr_hpa >> 12], walk


def tdh_vp_create(m: Module, lp: LogicalProcessor, regs: Regs, version: int) -> int:
    """Create a vCPU: its TDVPR page.

    RCX: the page. RDX: TDR. Source: TDH.VP.CREATE.
    """
    # operands, locks
    tdvpr_hpa = regs.rcx
    td = lock_td(m, regs.rdx, OPERAND_ID_RDX)
    if isinstance(td, int):
        return td
    status = check_state(m, td, leaves.TDH_VP_CREATE)
    if status:
        unlock_td(td)
        return status
    # checks
    m.sim.point("module.pamt")
    leaf = m.pamt.lock_new_page(tdvpr_hpa, OPERAND_ID_RCX)
    if isinstance(leaf, int):
        status = leaf
    else:
        # effects
        m.sim.point("module.commit")
        m.mem.write(tdvpr_hpa >> 12, td.hkid, CONTROL_TOKEN)
        vcpu = Vcpu(tdvpr_hpa, td)
        m.vcpus[vcpu.tdvpr_pfn] = vcpu
        td.chldcnt += 1
        m.pamt.take(leaf, tdvpr_hpa, PT_TDVPR, td.tdr_pfn)
        m.pamt.unlock_new_page(leaf, tdvpr_hpa)
    # return
    td.op_state_lock.lock -= READER
    unlock_td(td)
    return status


def tdh_vp_addcx(m: Module, lp: LogicalProcessor, regs: Regs, version: int) -> int:
    """Add a page to a vCPU that is not initialised yet.

    RCX: the page. RDX: TDVPR. Source: TDH.VP.ADDCX.
    """
    # operands, locks
    page_hpa = regs.rcx
    locked = lock_vcpu(m, regs.rdx, OPERAND_ID_RDX, exclusive=True)
    if isinstance(locked, int):
        return locked
    vcpu, walk = locked
    td = lock_implicit_td(m, walk[1].owner)
    if isinstance(td, int):
        m.pamt.unwalk(walk, True)
        return td
    status = check_state(m, td, leaves.TDH_VP_ADDCX)
    if status:
        unlock_implicit_td(td)
        m.pamt.unwalk(walk, True)
        return status
    # checks
    if vcpu.state != VCPU_UNINITIALIZED:
        status = TDX_VCPU_STATE_INCORRECT | vcpu.state
        m.sim.point("module.refused")
    elif len(vcpu.pages) >= MAX_TDVPS_PAGES:
        status = TDX_TDCX_NUM_INCORRECT
        m.sim.point("module.refused")
    else:
        m.sim.point("module.pamt")
        leaf = m.pamt.lock_new_page(page_hpa, OPERAND_ID_RCX)
        if isinstance(leaf, int):
            status = leaf
        else:
            # effects
            m.sim.point("module.commit")
            m.mem.write(page_hpa >> 12, td.hkid, CONTROL_TOKEN)
            vcpu.pages.append(page_hpa)
            td.chldcnt += 1
            m.pamt.take(leaf, page_hpa, PT_TDCX, td.tdr_pfn)
            m.pamt.unlock_new_page(leaf, page_hpa)
    # return
    td.op_state_lock.lock -= READER
    unlock_implicit_td(td)
    m.pamt.unwalk(walk, True)
    return status


def tdh_vp_init(m: Module, lp: LogicalProcessor, regs: Regs, version: int) -> int:
    """Initialise a vCPU and associate it with the executing processor.

    RCX: TDVPR. RDX: initial RCX and R8 of the guest. Version 1: R8 is the x2APIC id.
    Source: TDH.VP.INIT.
    """
    # operands
    if version > 1:
        return TDX_OPERAND_INVALID | OPERAND_ID_RAX
    # locks
    locked = lock_vcpu(m, regs.rcx, OPERAND_ID_RCX, exclusive=True)
    if isinstance(locked, int):
        return locked
    vcpu, walk = locked
    td = lock_implicit_td(m, walk[1].owner, exclusive=version > 0)
    if isinstance(td, int):
        m.pamt.unwalk(walk, True)
        return td
    status = check_state(m, td, leaves.TDH_VP_INIT)
    if status:
        unlock_implicit_td(td, exclusive=version > 0)
        m.pamt.unwalk(walk, True)
        return status
    # checks
    m.sim.point("module.commit")
    if len(vcpu.pages) < MIN_TDVPS_PAGES:
        status = TDX_TDCX_NUM_INCORRECT
    elif vcpu.state != VCPU_UNINITIALIZED:
        status = TDX_VCPU_STATE_INCORRECT | vcpu.state
    elif td.num_vcpus >= td.max_vcpus:
        status = TDX_MAX_VCPUS_EXCEEDED
    elif version:
        status = _set_x2apic_id(td, regs.r8)
    if not status:
        # effects
        vcpu.index = td.num_vcpus
        td.num_vcpus += 1
        vcpu.init_rcx = regs.rdx
        vcpu.state = VCPU_READY
        vcpu.last_exit = LAST_EXIT_ASYNC_FAULT
        vcpu.assoc_lp = lp.id
        td.num_assoc_vcpus += 1
    # return
    td.op_state_lock.lock -= READER
    unlock_implicit_td(td, exclusive=version > 0)
    m.pamt.unwalk(walk, True)
    return status


def _set_x2apic_id(td: Td, x2apic_id: int) -> int:
    """The x2APIC id of the vCPU with index `td.num_vcpus`: 32 bits, unique in the TD."""
    if x2apic_id > 0xFFFFFFFF:
        return TDX_OPERAND_INVALID | OPERAND_ID_R8
    index = td.num_vcpus
    # A vCPU that was initialised without an id counts as having id 0.
    if any(td.x2apic_ids.get(other, 0) == x2apic_id for other in range(index)):
        return TDX_X2APIC_ID_NOT_UNIQUE | x2apic_id
    td.x2apic_ids[index] = x2apic_id
    return 0


def tdh_vp_flush(m: Module, lp: LogicalProcessor, regs: Regs, version: int) -> int:
    """Undo the association of a vCPU with the executing processor.

    RCX: TDVPR. Source: TDH.VP.FLUSH.
    """
    # operands, locks
    locked = lock_vcpu(m, regs.rcx, OPERAND_ID_RCX, exclusive=True)
    if isinstance(locked, int):
        return locked
    vcpu, walk = locked
    td = lock_implicit_td(m, walk[1].owner)
    if isinstance(td, int):
        m.pamt.unwalk(walk, True)
        return TDX_OPERAND_BUSY | OPERAND_ID_TDR
    # checks
    status = 0
    if td.lifecycle != TD_KEYS_CONFIGURED:
        status = TDX_TD_KEYS_NOT_CONFIGURED
    elif len(vcpu.pages) < MIN_TDVPS_PAGES:
        status = TDX_TDCX_NUM_INCORRECT
    elif vcpu.assoc_lp != lp.id:
        status = TDX_VCPU_NOT_ASSOCIATED
    else:
        # effects
        m.sim.point("module.commit")
        lp.tlb.flush(td.tdr_pfn)
        vcpu.assoc_lp = NO_LP
        td.num_assoc_vcpus -= 1
        m.lp_states[lp.id].last_tdvpr_pfn = -1
    # return
    unlock_implicit_td(td)
    m.pamt.unwalk(walk, True)
    return status


def associate_vcpu(
    lp: LogicalProcessor, td: Td, vcpu: Vcpu, allow_disabled: bool
) -> tuple[int, bool]:
    """The vCPU must be READY and free, or associated with this processor already.

    Returns (status, whether the association is new). Source: check_and_associate_vcpu.
    """
    if vcpu.state != VCPU_READY and not (allow_disabled and vcpu.state == VCPU_DISABLED):
        return TDX_VCPU_STATE_INCORRECT | vcpu.state, False
    if vcpu.assoc_lp == lp.id:
        return 0, False
    if vcpu.assoc_lp != NO_LP:
        return TDX_VCPU_ASSOCIATED, False
    vcpu.assoc_lp = lp.id
    td.num_assoc_vcpus += 1
    return 0, True
