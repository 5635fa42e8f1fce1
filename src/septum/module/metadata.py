"""TDH.MNG.RD/WR, VP.RD/WR, SYS.RD and TDG.VM.RD, SYS.RD: fields by their metadata ids.

MODEL: only the fields that hosts and guests of this model use; any other id is
TDX_METADATA_FIELD_ID_INCORRECT. Version 1 reads do not return the id of the next field.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi import features as f
from septum.abi import leaves
from septum.abi.status import (
    OPERAND_ID_RAX,
    OPERAND_ID_RCX,
    TDX_METADATA_FIELD_ID_INCORRECT,
    TDX_METADATA_FIELD_NOT_WRITABLE,
    TDX_OPERAND_INVALID,
    TDX_TDCX_NUM_INCORRECT,
)
from septum.module.common import (
    check_state,
    lock_implicit_td,
    lock_td,
    unlock_implicit_td,
    unlock_td,
)
from septum.module.locks import READER
from septum.module.state import (
    HP_LOCK_TIMEOUT_NS,
    MAX_VCPUS_PER_TD,
    MIN_TDCS_PAGES,
    MIN_TDVPS_PAGES,
)
from septum.module.vp import associate_vcpu, lock_vcpu

if TYPE_CHECKING:
    from septum.abi.regs import Regs
    from septum.machine import LogicalProcessor
    from septum.module.module import Module
    from septum.module.outcome import GuestOutcome
    from septum.module.state import Td, Vcpu

PAMT_ENTRY_SIZE = 16
MAX_RESERVED_PER_TDMR = 16
MAX_TDMRS = 64


def field_key(field_id: int) -> int:
    """Class and field code of a field id."""
    return field_id & f.FIELD_ID_KEY_MASK


def sys_field(m: Module, field_id: int) -> int | None:
    """The value of a global field, or None when it is not modelled."""
    values = {
        f.MD_FIELD_ID_MAJOR_VERSION: m.profile.major,
        f.MD_FIELD_ID_MINOR_VERSION: m.profile.minor,
        f.MD_FIELD_ID_UPDATE_VERSION: m.profile.update,
        f.MD_FIELD_ID_TDX_FEATURES0: m.profile.features0,
        f.MD_FIELD_ID_MAX_TDMRS: MAX_TDMRS,
        f.MD_FIELD_ID_MAX_RESERVED_PER_TDMR: MAX_RESERVED_PER_TDMR,
        f.MD_FIELD_ID_PAMT_4K_ENTRY_SIZE: PAMT_ENTRY_SIZE,
        f.MD_FIELD_ID_PAMT_2M_ENTRY_SIZE: PAMT_ENTRY_SIZE,
        f.MD_FIELD_ID_PAMT_1G_ENTRY_SIZE: PAMT_ENTRY_SIZE,
        f.MD_FIELD_ID_PAMT_PAGE_BITMAP_ENTRY_BITS: 1,
        f.MD_FIELD_ID_TDR_BASE_SIZE: 4096,
        f.MD_FIELD_ID_TDCS_BASE_SIZE: MIN_TDCS_PAGES * 4096,
        f.MD_FIELD_ID_TDVPS_BASE_SIZE: MIN_TDVPS_PAGES * 4096,
        f.MD_FIELD_ID_ATTRIBUTES_FIXED0: f.TDX_ATTRIBUTES_FIXED0,
        f.MD_FIELD_ID_ATTRIBUTES_FIXED1: 0,
        f.MD_FIELD_ID_XFAM_FIXED0: m.xfam_fixed0,
        f.MD_FIELD_ID_XFAM_FIXED1: f.TDX_XFAM_FIXED1,
        f.MD_FIELD_ID_NUM_CPUID_CONFIG: 0,
        f.MD_FIELD_ID_CONFIG_FLAGS_FIXED0: f.TDX_CONFIG_FLAGS_FIXED0,
        f.MD_FIELD_ID_CONFIG_FLAGS_FIXED1: 0,
        f.MD_FIELD_ID_MAX_VCPUS_PER_TD: MAX_VCPUS_PER_TD,
    }
    return {field_key(k): v for k, v in values.items()}.get(field_key(field_id))


def td_field(m: Module, td: Td, field_id: int) -> int | None:
    """The value of a TDR or TDCS field (64-bit element), or None when it is not modelled."""
    key = field_key(field_id)
    for first, data in (
        (f.MD_FIELD_ID_TDCS_MRTD, td.mrtd),
        (f.MD_FIELD_ID_TDCS_MRCONFIGID, td.mrconfigid),
        (f.MD_FIELD_ID_TDCS_MROWNER, td.mrowner),
        (f.MD_FIELD_ID_TDCS_MROWNERCONFIG, td.mrownerconfig),
        (f.MD_FIELD_ID_TDCS_RTMR, b"".join(td.rtmr)),
    ):
        offset = 8 * (key - field_key(first))
        if 0 <= offset < len(data):
            return int.from_bytes(data[offset : offset + 8], "little")
    values = {
        f.MD_FIELD_ID_TDR_FATAL: int(td.fatal),
        f.MD_FIELD_ID_TDR_NUM_TDCX: len(td.tdcx),
        f.MD_FIELD_ID_TDR_CHLDCNT: td.chldcnt,
        f.MD_FIELD_ID_TDR_LIFECYCLE_STATE: td.lifecycle,
        f.MD_FIELD_ID_TDR_HKID: td.hkid,
        f.MD_FIELD_ID_TDCS_NUM_VCPUS: td.num_vcpus,
        f.MD_FIELD_ID_TDCS_NUM_ASSOC_VCPUS: td.num_assoc_vcpus,
        f.MD_FIELD_ID_TDCS_OP_STATE: td.op_state,
        f.MD_FIELD_ID_TDCS_NUM_L2_VMS: 0,
        f.MD_FIELD_ID_TDCS_ATTRIBUTES: td.attributes,
        f.MD_FIELD_ID_TDCS_XFAM: td.xfam,
        f.MD_FIELD_ID_TDCS_MAX_VCPUS: td.max_vcpus,
        f.MD_FIELD_ID_TDCS_GPAW: int(bool(td.gpaw)),
        f.MD_FIELD_ID_TDCS_TSC_OFFSET: td.tsc_offset,
        f.MD_FIELD_ID_TDCS_TSC_MULTIPLIER: td.tsc_multiplier,
        f.MD_FIELD_ID_TDCS_TSC_FREQUENCY: td.tsc_frequency,
        f.MD_FIELD_ID_TDCS_NOTIFY_ENABLES: int(td.notify_ept_faults),
        f.MD_FIELD_ID_TDCS_HP_LOCK_TIMEOUT: HP_LOCK_TIMEOUT_NS // 1000,
        f.MD_FIELD_ID_TDCS_CONFIG_FLAGS: td.config_flags,
        f.MD_FIELD_ID_TDCS_TD_CTLS: int(td.pending_ve_disable),
        f.MD_FIELD_ID_TDCS_VIRT_MAXPA: td.virt_maxpa,
        f.MD_FIELD_ID_TDCS_TD_EPOCH: td.td_epoch,
        f.MD_FIELD_ID_TDCS_REFCOUNT: td.refcount[0],
    }
    return {field_key(k): v for k, v in values.items()}.get(key)


def _vcpu_state_details(m: Module, vcpu: Vcpu) -> int:
    """VCPU_STATE_DETAILS: what the processor has pending for the guest."""
    context = m.machine.guest_contexts.get(vcpu.tdvpr_pfn)
    return f.VCPU_STATE_DETAILS_VMXIP if context is not None and context.interrupt else 0


def tdh_sys_rd(m: Module, lp: LogicalProcessor, regs: Regs, version: int) -> int:
    """Read a global field. RDX: field id. Returns R8: value. Source: TDH.SYS.RD."""
    field_id = regs.rdx
    regs.rdx = f.FIELD_ID_NA
    regs.r8 = 0
    if field_id & f.FIELD_ID_NOT_SINGLE:
        return TDX_METADATA_FIELD_ID_INCORRECT
    value = sys_field(m, field_id)
    if value is None:
        return TDX_METADATA_FIELD_ID_INCORRECT
    regs.r8 = value
    return 0


def tdh_mng_rd(m: Module, lp: LogicalProcessor, regs: Regs, version: int) -> int:
    """Read a TD field. RCX: TDR. RDX: field id. Returns R8: value. Source: TDH.MNG.RD."""
    return _mng_rdwr(m, regs, version, write=False)


def tdh_mng_wr(m: Module, lp: LogicalProcessor, regs: Regs, version: int) -> int:
    """Write a TD field. RCX: TDR. RDX: field id. R8: data. R9: mask. Source: TDH.MNG.WR.

    MODEL: no modelled field may be written by the host of a TD.
    """
    return _mng_rdwr(m, regs, version, write=True)


def _mng_rdwr(m: Module, regs: Regs, version: int, *, write: bool) -> int:
    # operands
    field_id = regs.rdx
    if version and not write:
        regs.rdx = f.FIELD_ID_NA
    regs.r8 = 0
    if version > 1:
        return TDX_OPERAND_INVALID | OPERAND_ID_RAX
    # locks
    td = lock_td(m, regs.rcx, OPERAND_ID_RCX)
    if isinstance(td, int):
        return td
    status = check_state(m, td, leaves.TDH_MNG_WR if write else leaves.TDH_MNG_RD)
    if status:
        unlock_td(td)
        return status
    # checks
    value = None if field_id & f.FIELD_ID_NOT_SINGLE else td_field(m, td, field_id)
    if value is None:
        status = TDX_METADATA_FIELD_ID_INCORRECT
    elif write:
        status = TDX_METADATA_FIELD_NOT_WRITABLE
    else:
        # effects
        regs.r8 = value
    # return
    m.sim.point("module.return")
    td.op_state_lock.lock -= READER
    unlock_td(td)
    return status


def tdh_vp_rd(m: Module, lp: LogicalProcessor, regs: Regs, version: int) -> int:
    """Read a vCPU field. RCX: TDVPR. RDX: field id. Returns R8: value. Source: TDH.VP.RD."""
    return _vp_rdwr(m, lp, regs, version, write=False)


def tdh_vp_wr(m: Module, lp: LogicalProcessor, regs: Regs, version: int) -> int:
    """Write a vCPU field. RCX: TDVPR. RDX: field id. R8: data. R9: mask.

    Returns R8: the old value. Source: TDH.VP.WR.
    """
    return _vp_rdwr(m, lp, regs, version, write=True)


def _vp_rdwr(m: Module, lp: LogicalProcessor, regs: Regs, version: int, *, write: bool) -> int:
    # operands
    field_id, data, mask = regs.rdx, regs.r8, regs.r9
    if version and not write:
        regs.rdx = f.FIELD_ID_NA
    regs.r8 = 0
    if version > 1:
        return TDX_OPERAND_INVALID | OPERAND_ID_RAX
    # locks
    locked = lock_vcpu(m, regs.rcx, OPERAND_ID_RCX, exclusive=False)
    if isinstance(locked, int):
        return locked
    vcpu, walk = locked
    td = lock_implicit_td(m, walk[1].owner)
    if isinstance(td, int):
        m.pamt.unwalk(walk, False)
        return td
    status = check_state(m, td, leaves.TDH_VP_WR if write else leaves.TDH_VP_RD)
    if not status:
        # checks
        if len(vcpu.pages) < MIN_TDVPS_PAGES:
            status = TDX_TDCX_NUM_INCORRECT
        else:
            status, _ = associate_vcpu(lp, td, vcpu, allow_disabled=not write)
        if not status and field_id & f.FIELD_ID_NOT_SINGLE:
            status = TDX_METADATA_FIELD_ID_INCORRECT
        if not status:
            # effects. MODEL: every vCPU field exists, is 0 at first, and holds what is written.
            key = field_key(field_id)
            if key == field_key(f.MD_FIELD_ID_VCPU_STATE_DETAILS) and not write:
                old = _vcpu_state_details(m, vcpu)
            else:
                old = vcpu.fields.get(key, 0)
            if write:
                vcpu.fields[key] = old & ~mask | data & mask
            regs.r8 = old
        m.sim.point("module.return")
        td.op_state_lock.lock -= READER
    # return
    unlock_implicit_td(td)
    m.pamt.unwalk(walk, False)
    return status


def tdg_vm_rd(
    m: Module, lp: LogicalProcessor, vcpu: Vcpu, regs: Regs, version: int
) -> int | GuestOutcome:
    """Read a field of the own TD. RDX: field id. Returns R8: value. Source: TDG.VM.RD."""
    field_id = regs.rdx
    if version:
        regs.rdx = f.FIELD_ID_NA
    regs.r8 = 0
    if version > 1:
        return TDX_OPERAND_INVALID | OPERAND_ID_RAX
    value = None if field_id & f.FIELD_ID_NOT_SINGLE else td_field(m, vcpu.td, field_id)
    if value is None:
        return TDX_METADATA_FIELD_ID_INCORRECT
    regs.r8 = value
    return 0


def tdg_sys_rd(
    m: Module, lp: LogicalProcessor, vcpu: Vcpu, regs: Regs, version: int
) -> int | GuestOutcome:
    """Read a global field. RDX: field id. Returns R8: value. Source: TDG.SYS.RD."""
    return tdh_sys_rd(m, lp, regs, version)
