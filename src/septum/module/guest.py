"""A guest's access to private memory: page walk, TLB, #VE or TD exit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.exitqual import (
    EEQ_NONE,
    EEQ_PENDING_EPT_VIOLATION,
    EVENT_DF,
    EVENT_VE,
    EXIT_QUAL_GLA_VALID,
    EXIT_QUAL_GVA_TRANSLATED,
    EXIT_QUAL_PERMISSIONS_SHIFT,
    EXIT_REASON_EPT_VIOLATION,
)
from septum.abi.sept import PS, RWX_HW, STATE_MASK, STATE_PENDING
from septum.module.common import leaf_hpa, walk_sept
from septum.module.outcome import RETURNED, GuestOutcome, OutcomeKind
from septum.module.state import EPF_GPA_LIST_SIZE, STEPPING_EPF_THRESHOLD, Vcpu
from septum.module.vp_enter import ept_violation_exit, note_vm_exit

if TYPE_CHECKING:
    from septum.machine import LogicalProcessor
    from septum.module.module import Module

INSTRUCTION_LENGTH = 4
VE_INFO_NONE = 0
"""#VE category: the processor's own."""
VE_INFO_PENDING = 1
"""#VE category: access to a pending page."""


def access_step(m: Module, lp: LogicalProcessor, gpa: int, access: int) -> GuestOutcome:
    """One access (1 read, 2 write, 3 both) without a cached translation.

    The processor walks the S-EPT: a present leaf is cached in the TLB. Otherwise an EPT violation
    goes to the module, which injects #VE (pending page, SEPT_VE_DISABLE 0) or does a TD exit.
    MODEL: no GPA has bits above the TD's width, which would be a #PF or another #VE.
    Source: td_ept_violation_exit.
    """
    vcpu = lp.guest
    assert isinstance(vcpu, Vcpu)
    td = vcpu.td
    _, _, entry, level = walk_sept(m, td, gpa, 0)
    if entry & RWX_HW and entry & PS:
        size_gfn = (1 << 9 * level) - 1
        lp.tlb.insert(
            td.tdr_pfn,
            gpa >> 12 & ~size_gfn,
            level + 1,
            leaf_hpa(m, entry, level) >> 12,
            True,
            td.hkid,
        )
        return RETURNED
    # Not present: permissions are those where the walk stopped.
    qualification = (
        access
        | (entry & RWX_HW) << EXIT_QUAL_PERMISSIONS_SHIFT
        | EXIT_QUAL_GLA_VALID
        | EXIT_QUAL_GVA_TRANSLATED
    )
    note_vm_exit(vcpu)
    eeq = EEQ_NONE
    if entry & STATE_MASK == STATE_PENDING:
        if not td.pending_ve_disable:
            return GuestOutcome(OutcomeKind.EVENT, event=inject_ve(vcpu, qualification, gpa))
        eeq = EEQ_PENDING_EPT_VIOLATION
    log_epf(vcpu, gpa)
    return GuestOutcome(OutcomeKind.TD_EXIT, ept_violation_exit(m, lp, qualification, eeq, gpa))


def inject_ve(vcpu: Vcpu, qualification: int, gpa: int, category: int = VE_INFO_PENDING) -> int:
    """Record VE_INFO and inject #VE; #DF when the last #VE was not read yet.

    Returns the VM-entry interruption information. Source: tdx_inject_ve.
    """
    info = vcpu.ve_info
    if info.valid:
        return EVENT_DF
    info.valid = True
    info.reason = EXIT_REASON_EPT_VIOLATION
    info.exit_qualification = qualification
    info.gpa = gpa
    info.gla = 0
    info.category = category
    info.instruction = INSTRUCTION_LENGTH
    return EVENT_VE


def log_epf(vcpu: Vcpu, gpa: int) -> None:
    """Remember EPT violations without progress, for zero-step mitigation at VP.ENTER.

    Source: td_exit_epf_stepping_log.
    """
    if vcpu.epf_count < STEPPING_EPF_THRESHOLD:
        vcpu.epf_count += 1
    elif len(vcpu.epf_gpas) < EPF_GPA_LIST_SIZE and gpa not in vcpu.epf_gpas:
        vcpu.epf_gpas.append(gpa)
