"""A guest's access to shared memory: through the shared EPT that KVM maintains.

Source: Intel SDM vol. 3 ch. 29 (EPT walk); TDX module td_ept_violation_exit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.exitqual import EXIT_QUAL_GLA_VALID, EXIT_QUAL_GVA_TRANSLATED
from septum.abi.spte import VMX_EPT_SUPPRESS_VE_BIT
from septum.guest.cpu import VirtualizationException
from septum.module.guest import VE_INFO_NONE, inject_ve
from septum.module.metadata import field_key
from septum.module.state import Vcpu
from septum.module.vp_enter import ept_violation_exit, note_vm_exit

if TYPE_CHECKING:
    from septum.guest.tdcpu import TdGuestCpu
    from septum.machine import LogicalProcessor
    from septum.module import Module

TDVPS_SHARED_EPTP = 3 << 32 | 0x203C
PFN_MASK = (1 << 52) - (1 << 12)
PRESENT = 7
HUGE = 1 << 7
READ = 1
WRITE = 2
SHARED_HKID = 0
"""The key of shared memory: none, or that of TME."""


def shared_walk(module: Module, lp: LogicalProcessor, gpa: int) -> tuple[int, int]:
    """(KVM level, entry) where a walk of the shared EPT for `gpa` (with its shared bit) ends: at a
    leaf, or at what is not present.

    MODEL: a root of 4 levels.
    """
    vcpu = lp.guest
    assert isinstance(vcpu, Vcpu)
    table = module.machine.tables.get(
        (vcpu.fields.get(field_key(TDVPS_SHARED_EPTP), 0) & PFN_MASK) >> 12
    )
    for level in (4, 3, 2, 1):
        if table is None:
            break
        entry = table.entry(gpa >> (3 + 9 * level) & 511)
        if level == 1 or entry & HUGE or not entry & PRESENT:
            return level, entry
        table = module.machine.tables.get((entry & PFN_MASK) >> 12)
    return 0, VMX_EPT_SUPPRESS_VE_BIT  # no table


def shared_translate(module: Module, lp: LogicalProcessor, gpa: int) -> int | None:
    """The PFN that `lp` takes for `gpa` (with its shared bit): what its TLB keeps, else what the
    shared EPT has, which is kept from then on; None when not present.

    The processor tags translations of shared memory with the private EPTP, so that what flushes a
    TD's private ones flushes these, too. Source: vmx/tdx.c tdx_flush_tlb_current().
    """
    vcpu = lp.guest
    assert isinstance(vcpu, Vcpu)
    tag, gfn = vcpu.td.tdr_pfn, gpa >> 12
    cached = lp.tlb.lookup(tag, gfn)
    if cached is not None:
        return cached.pfn + gfn - cached.gfn
    level, entry = shared_walk(module, lp, gpa)
    if not entry & PRESENT:
        return None
    pfn = (entry & PFN_MASK) >> 12
    into = gfn & (1 << 9 * (level - 1)) - 1
    lp.tlb.insert(tag, gfn - into, level, pfn, True, SHARED_HKID)
    return pfn + into


def raises_ve(module: Module, lp: LogicalProcessor, gpa: int) -> bool:
    """What is not present at `gpa` (with its shared bit) is #VE, not an EPT violation exit: bit 63
    of the entry is clear, as KVM has it where there is no memslot (make_mmio_spte())."""
    return not shared_walk(module, lp, gpa)[1] & VMX_EPT_SUPPRESS_VE_BIT


def shared_access(cpu: TdGuestCpu, gpa: int, token: int | None) -> int:
    """Write `token` to the shared page at `gpa`, or (None) read it; the token that is there then.

    What is not mapped is an EPT violation, and the instruction restarts. Raises
    VirtualizationException where the processor makes a #VE of it.
    """
    module = cpu.machine.seam
    from septum.module import Module

    assert isinstance(module, Module)
    address = gpa | cpu.shared_bit
    access = READ if token is None else WRITE
    while True:
        lp = cpu.context.lp
        assert lp is not None
        lp = cpu.machine.poll_interrupts(lp)
        pfn = shared_translate(module, lp, address)
        if pfn is not None:
            if token is not None:
                cpu.machine.mem.write(pfn, 0, token)
                return token
            return cpu.machine.mem.read(pfn, 0)
        vcpu = lp.guest
        assert isinstance(vcpu, Vcpu)
        qualification = access | EXIT_QUAL_GLA_VALID | EXIT_QUAL_GVA_TRANSLATED
        if raises_ve(module, lp, address):
            inject_ve(vcpu, qualification, address, VE_INFO_NONE)
            raise VirtualizationException(cpu.veinfo_get())
        note_vm_exit(vcpu)
        cpu.machine.exit_to_host(lp, ept_violation_exit(module, lp, qualification, 0, address))
