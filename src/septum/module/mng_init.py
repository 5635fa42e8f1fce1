"""TDH.MNG.INIT: the TD's configuration, from TD_PARAMS.

The layout is that of `septum.abi.td_params`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi import leaves
from septum.abi.features import (
    TDX_ATTRIBUTES_FIXED0,
    TDX_CONFIG_FLAGS_FIXED0,
    TDX_CONFIG_FLAGS_GPAW,
    TDX_CONFIG_FLAGS_MAXGPA_VIRT,
    TDX_CONFIG_FLAGS_MAXPA_VIRT,
    TDX_TD_ATTR_DEBUG,
    TDX_TD_ATTR_ICSSD,
    TDX_TD_ATTR_MIGRATABLE,
    TDX_TD_ATTR_PERFMON,
    TDX_TD_ATTR_SEPT_VE_DISABLE,
    TDX_XFAM_FIXED1,
)
from septum.abi.status import (
    OPERAND_ID_ATTRIBUTES,
    OPERAND_ID_EPTP_CONTROLS,
    OPERAND_ID_EXEC_CONTROLS,
    OPERAND_ID_MAX_VCPUS,
    OPERAND_ID_NUM_L2_VMS,
    OPERAND_ID_RCX,
    OPERAND_ID_RDX,
    OPERAND_ID_TSC_FREQUENCY,
    OPERAND_ID_XFAM,
    TDX_OPERAND_INVALID,
)
from septum.abi.td_params import TD_PARAMS_SIZE
from septum.module.common import check_state, lock_td, unlock_td
from septum.module.state import MAX_VCPUS_PER_TD, OP_STATE_INITIALIZED, MeasurementHash
from septum.sim import OfTime

if TYPE_CHECKING:
    from septum.abi.regs import Regs
    from septum.machine import LogicalProcessor
    from septum.module.module import Module
    from septum.module.state import Td

VIRT_TSC_FREQUENCY_MIN = 4
VIRT_TSC_FREQUENCY_MAX = 400
VIRT_TSC_FREQUENCY_UNIT_HZ = 25_000_000
XFAM_AVX = 1 << 2
XFAM_AVX3 = (1 << 5, 1 << 6, 1 << 7)
XFAM_CET = (1 << 11, 1 << 12)
XFAM_AMX = (1 << 17, 1 << 18)


def tdh_mng_init(m: Module, lp: LogicalProcessor, regs: Regs, version: int) -> int:
    """Initialise a TD from TD_PARAMS; the measurement starts here.

    RCX: TDR (bit 0: event filters in R8). RDX: TD_PARAMS, 1024-aligned shared memory.
    MODEL: event filters are not looked at.
    Source: TDH.MNG.INIT.
    """
    # operands
    tdr_hpa, params_hpa = regs.rcx & ~1, regs.rdx
    regs.rcx = 0
    # locks
    td = lock_td(m, tdr_hpa, OPERAND_ID_RCX, exclusive=True)
    if isinstance(td, int):
        return td
    # checks
    status = check_state(m, td, leaves.TDH_MNG_INIT, lock_op_state=False)
    if not status and m.shared_hpa_invalid(params_hpa, TD_PARAMS_SIZE):
        status = TDX_OPERAND_INVALID | OPERAND_ID_RDX
    if not status:
        offset = params_hpa & 0xFFF
        page = m.mem.page_bytes((params_hpa & m.pfn_mask) >> 12)
        params = page[offset : offset + TD_PARAMS_SIZE]
        m.sim.point("module.commit")
        status = _configure(m, td, params)
    if not status:
        # effects
        td.num_vcpus = td.num_assoc_vcpus = 0
        td.td_epoch = 1
        td.refcount = [0, 0]
        td.mrtd_hash = MeasurementHash()
        td.op_state = OP_STATE_INITIALIZED
    # return
    unlock_td(td, exclusive=True)
    return status


def _u64(params: bytes, offset: int) -> int:
    return int.from_bytes(params[offset : offset + 8], "little")


def _u16(params: bytes, offset: int) -> int:
    return int.from_bytes(params[offset : offset + 2], "little")


def _configure(m: Module, td: Td, params: bytes) -> int:
    """Check TD_PARAMS field by field, in the module's order, and take it over."""
    attributes, xfam = _u64(params, 0), _u64(params, 8)
    max_vcpus, num_l2_vms = _u16(params, 16), params[18]
    eptp, config_flags, tsc_frequency = _u64(params, 24), _u64(params, 32), _u16(params, 40)
    if not _attributes_valid(attributes):
        return TDX_OPERAND_INVALID | OPERAND_ID_ATTRIBUTES
    if not _xfam_valid(xfam, m.xfam_fixed0):
        return TDX_OPERAND_INVALID | OPERAND_ID_XFAM
    if not 0 < max_vcpus <= MAX_VCPUS_PER_TD:
        return TDX_OPERAND_INVALID | OPERAND_ID_MAX_VCPUS
    # MODEL: no TD partitioning, so a TD has no L2 VMs.
    if num_l2_vms:
        return TDX_OPERAND_INVALID | OPERAND_ID_NUM_L2_VMS
    if any(params[20:24]):
        return TDX_OPERAND_INVALID | OPERAND_ID_RDX
    both = TDX_CONFIG_FLAGS_MAXPA_VIRT | TDX_CONFIG_FLAGS_MAXGPA_VIRT
    if config_flags & ~TDX_CONFIG_FLAGS_FIXED0 or config_flags & both == both:
        return TDX_OPERAND_INVALID | OPERAND_ID_EXEC_CONTROLS
    gpaw = config_flags & TDX_CONFIG_FLAGS_GPAW
    root_level = eptp >> 3 & 7
    # Memory type WB, 4 or 5 levels, nothing else; GPAW needs 5 levels.
    if (
        eptp & ~0x38 != 6
        or not 3 <= root_level <= (4 if m.has_5_level_ept else 3)
        or (gpaw and root_level < 4)
    ):
        return TDX_OPERAND_INVALID | OPERAND_ID_EPTP_CONTROLS
    if not VIRT_TSC_FREQUENCY_MIN <= tsc_frequency <= VIRT_TSC_FREQUENCY_MAX:
        return TDX_OPERAND_INVALID | OPERAND_ID_TSC_FREQUENCY
    # MODEL: CPUID_CONFIG and IA32_ARCH_CAPABILITIES_CONFIG are not looked at.
    if any(params[42:80]) or params[19] & ~1 or any(params[232:256]):
        return TDX_OPERAND_INVALID | OPERAND_ID_RDX
    td.attributes, td.xfam, td.max_vcpus = attributes, xfam, max_vcpus
    td.config_flags, td.gpaw, td.root_level = config_flags, gpaw, root_level
    td.pending_ve_disable = bool(attributes & TDX_TD_ATTR_SEPT_VE_DISABLE)
    td.tsc_frequency = tsc_frequency
    td.tsc_multiplier = tsc_frequency * VIRT_TSC_FREQUENCY_UNIT_HZ * (1 << 48) // m.native_tsc_hz
    tsc = m.sim.now_ns() * m.native_tsc_hz // 1_000_000_000
    td.tsc_offset = OfTime(-(tsc * td.tsc_multiplier >> 48) & (1 << 64) - 1)
    gpa_width = 52 if gpaw else 48
    highest = min(m.max_pa, gpa_width)
    td.virt_maxpa = highest if config_flags & both else m.max_pa
    # The SHARED bit, and every bit from the highest of a GPA up.
    td.gpa_bad = (1 << 64) - (1 << highest) | 1 << gpa_width - 1
    td.mrconfigid, td.mrowner, td.mrownerconfig = params[80:128], params[128:176], params[176:224]
    return 0


def _attributes_valid(attributes: int) -> bool:
    if attributes & ~TDX_ATTRIBUTES_FIXED0:
        return False
    if attributes & TDX_TD_ATTR_MIGRATABLE and attributes & (
        TDX_TD_ATTR_DEBUG | TDX_TD_ATTR_PERFMON
    ):
        return False
    both = TDX_TD_ATTR_PERFMON | TDX_TD_ATTR_ICSSD
    return attributes & both != both


def _xfam_valid(xfam: int, fixed0: int) -> bool:
    if xfam & ~fixed0 or xfam & TDX_XFAM_FIXED1 != TDX_XFAM_FIXED1:
        return False
    avx3 = [bool(xfam & bit) for bit in XFAM_AVX3]
    if avx3[0] and not xfam & XFAM_AVX:
        return False
    return (
        len(set(avx3)) == 1
        and len({bool(xfam & bit) for bit in XFAM_CET}) == 1
        and len({bool(xfam & bit) for bit in XFAM_AMX}) == 1
    )
