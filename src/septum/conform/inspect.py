"""Entry and lock state around one step, in words, for the report of a divergence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi import sept
from septum.conform.transcript import GUEST_ACCESS
from septum.module.pamt import PAGE_TYPE_NAMES
from septum.module.state import (
    OP_STATE_NAMES,
    TD_BLOCKED,
    TD_HKID_ASSIGNED,
    TD_KEYS_CONFIGURED,
    TD_TEARDOWN,
    Td,
    Vcpu,
)

if TYPE_CHECKING:
    from septum.conform.testbed import Testbed
    from septum.conform.transcript import Step

LIFECYCLE_NAMES = {
    TD_HKID_ASSIGNED: "HKID_ASSIGNED",
    TD_KEYS_CONFIGURED: "KEYS_CONFIGURED",
    TD_BLOCKED: "BLOCKED",
    TD_TEARDOWN: "TEARDOWN",
}


def hp_lock_text(word: int) -> str:
    """A host-priority lock word in words."""
    parts = []
    if word & 1:
        parts.append("exclusive")
    if word >> 2:
        parts.append(f"{word >> 2} shared")
    if word & 2:
        parts.append("host priority")
    return ", ".join(parts) or "free"


def plain_lock_text(word: int) -> str:
    """A plain shared/exclusive lock word in words."""
    if word & 1:
        return "exclusive"
    return f"{word >> 1} shared" if word else "free"


def entry_text(entry: int, level: int) -> str:
    """A raw S-EPT entry in words."""
    flags = [
        name for bit, name in ((sept.LOCK, "locked"), (sept.HP, "host priority")) if entry & bit
    ]
    extra = f" ({', '.join(flags)})" if flags else ""
    return f"level {level} {sept.state_name(entry)} {entry:#018x}{extra}"


def td_lines(td: Td) -> list[str]:
    """State and locks of a TD."""
    return [
        (
            f"TD {td.tdr_hpa:#x}: {LIFECYCLE_NAMES.get(td.lifecycle, td.lifecycle)}, "
            f"{OP_STATE_NAMES.get(td.op_state, td.op_state)}, HKID {td.hkid}, "
            f"{len(td.tdcx)} TDCX pages, CHLDCNT {td.chldcnt}"
        ),
        (
            f"  TD_EPOCH {td.td_epoch}, REFCOUNT {td.refcount[0]}/{td.refcount[1]}, "
            f"vCPUs {td.num_vcpus} ({td.num_assoc_vcpus} associated)"
        ),
        (
            f"  locks: op_state {hp_lock_text(td.op_state_lock.lock)}; "
            f"S-EPT tree {hp_lock_text(td.sept_lock.lock)}; "
            f"epoch {plain_lock_text(td.epoch_lock.word)}"
        ),
    ]


def pamt_line(bed: Testbed, name: str, hpa: int) -> str | None:
    """The PAMT entry of a page and the lock words on the way; None outside every TDMR."""
    pamt = bed.module.pamt
    hpa &= ~(bed.hkid_mask | 0xFFF)
    found = pamt.lookup(hpa)
    if found is None:
        return None
    level, page_type, owner, bepoch = found
    leaf = pamt.entry_2m(hpa)
    assert leaf is not None
    locks = f"1G {hp_lock_text(leaf.parent.lock)}; 2M {hp_lock_text(leaf.lock)}"
    small = leaf.children.get(hpa >> 12 & 511)
    if small is not None:
        locks += f"; 4K {hp_lock_text(small.lock)}"
    return (
        f"PAMT {hpa:#x} ({name}): level {level} {PAGE_TYPE_NAMES.get(page_type, page_type)}, "
        f"owner {owner << 12:#x}, BEPOCH {bepoch}; locks: {locks}"
    )


def _td_of(bed: Testbed, step: Step, operands: dict[str, int]) -> Td | None:
    guest = bed.machine.lps[step.lp].guest
    if isinstance(guest, Vcpu):
        return guest.td
    for name in ("rdx", "rcx"):
        pfn = operands.get(name, 0) >> 12
        td = bed.module.tds.get(pfn)
        if td is None and pfn in bed.module.vcpus:
            td = bed.module.vcpus[pfn].td
        if td is not None:
            return td
    return None


def state_lines(bed: Testbed, step: Step) -> list[str]:
    """What the operands of `step` name: TD, vCPU, S-EPT entry, PAMT entries, and their locks."""
    operands = {name: int(value, 16) for name, value in step.inputs.items()}
    lines: list[str] = []
    td = _td_of(bed, step, operands)
    if td is not None:
        lines += td_lines(td)
    vcpu = bed.machine.lps[step.lp].guest or bed.module.vcpus.get(operands.get("rcx", 0) >> 12)
    if isinstance(vcpu, Vcpu):
        lines.append(
            f"vCPU {vcpu.tdvpr_hpa:#x}: state {vcpu.state}, associated with LP {vcpu.assoc_lp}, "
            f"VCPU_EPOCH {vcpu.vcpu_epoch}"
        )
    takes_gpa = step.call == GUEST_ACCESS or step.call.startswith(("TDH.MEM.", "TDG.MEM."))
    if td is not None and td.root is not None and takes_gpa and step.call != "TDH.MEM.TRACK":
        gpa = operands.get("gpa", operands.get("rcx", 0)) & 0x000F_FFFF_FFFF_F000
        level, entry = bed.module.sept_entry(td.tdr_pfn, gpa)
        lines.append(f"S-EPT of GPA {gpa:#x}: walk ends at {entry_text(entry, level)}")
        if entry & sept.STATE_MASK != sept.STATE_FREE:
            line = pamt_line(bed, "entry", entry & sept.HPA_MASK)
            if line:
                lines.append(line)
    for name in ("rcx", "rdx", "r8", "r12", "r13"):
        if name in operands:
            line = pamt_line(bed, name, operands[name] & 0x000F_FFFF_FFFF_F000)
            if line:
                lines.append(line)
    lines.append(f"KOT lock {plain_lock_text(bed.module.kot.lock.word)}")
    return lines
