"""An event as a step that a person reads: what was done, to what, with which result, in which
kernel function. All renderings but ftrace's take their words from here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from septum.abi import leaves
from septum.abi.errno import errno_name
from septum.abi.exitqual import EEQ_ACCEPT, EEQ_TYPE_MASK, eeq_requested_level
from septum.abi.kvm import KVM_EXIT_MEMORY_FAULT, KVM_EXIT_NAMES, KVM_MEMORY_ATTRIBUTE_PRIVATE
from septum.abi.leaves import seamcall_name, tdcall_name
from septum.abi.spte import (
    SHADOW_NONPRESENT_VALUE,
    is_frozen_spte,
    is_last_spte,
    is_shadow_present_pte,
    spte_to_pfn,
)
from septum.abi.status import status_name
from septum.checks.text import agree
from septum.guest.events import GuestPhaseEvent, GuestReportEvent
from septum.linux.kvm import events as kvm
from septum.module.events import (
    GuestAccessEvent,
    PamtPairEvent,
    SeamcallEvent,
    SeptLeavesEvent,
    TdcallEvent,
    TdExitEvent,
)
from septum.module.outcome import OutcomeKind
from septum.sim.events import ChoiceEvent, FindingEvent, LockEvent, SwitchEvent
from septum.vmm.events import ConversionEvent
from septum.words import TDX_LEVELS

if TYPE_CHECKING:
    from collections.abc import Callable

    from septum.sim.events import Event

KVM_LEVELS = ("none", *TDX_LEVELS)
PAGE_MASK = ~0xFFF
FOLIO_SIZES = {0: "4K", 9: "2M", 18: "1G"}


class Step(msgspec.Struct, frozen=True):
    """A step in words. Steps with the same `verb` are of one kind; `result` is "" for the ordinary
    outcome.

    `where` is the function of the kernel, or of the VMM, that did it; "" outside of both.
    """

    verb: str
    detail: str = ""
    result: str = ""
    where: str = ""

    @property
    def text(self) -> str:
        """The step in one line."""
        line = f"{self.verb} {self.detail}".rstrip()
        return f"{line} -> {self.result}" if self.result else line


def _level(names: tuple[str, ...], level: int) -> str:
    return names[level] if 0 <= level < len(names) else f"level {level}"


def seamcall_address(event: SeamcallEvent) -> int | None:
    """The address that a SEAMCALL's step shows: of its GPA or page; None when RCX is 0."""
    if event.leaf in leaves.GPA_LEAVES:
        return event.rcx & PAGE_MASK
    return event.rcx if event.rcx or event.leaf == leaves.TDH_MR_EXTEND else None


def _seamcall(event: SeamcallEvent) -> Step:
    name = seamcall_name(event.leaf)
    address = seamcall_address(event)
    detail = "" if address is None else f"{address:#x}"
    if event.leaf in leaves.GPA_LEAVES:
        detail += f" {_level(TDX_LEVELS, event.rcx & 7)}"
    result = status_name(event.status) if event.status else ""
    return Step(name, detail, result, name.lower().replace(".", "_"))


def _tdcall(event: TdcallEvent) -> Step:
    name = tdcall_name(event.leaf)
    detail = ""
    if event.leaf == leaves.TDG_MEM_PAGE_ACCEPT:
        detail = f"{event.rcx & PAGE_MASK:#x} {_level(TDX_LEVELS, event.rcx & 7)}"
    if event.outcome != OutcomeKind.TD:
        return Step(name, detail, _outcome(event.outcome))
    return Step(name, detail, status_name(event.status) if event.status else "")


def _outcome(outcome: int) -> str:
    return {
        OutcomeKind.TD_EXIT: "TD exit",
        OutcomeKind.INTERRUPTED: "interrupted",
        OutcomeKind.EVENT: "event injected",
    }.get(OutcomeKind(outcome), "")


def _guest_access(event: GuestAccessEvent) -> Step:
    kind = {1: "read", 2: "write", 4: "fetch"}.get(event.access, f"access {event.access}")
    return Step(f"guest {kind}", f"{event.gpa:#x}", _outcome(event.outcome))


def _td_exit(event: TdExitEvent) -> Step:
    return Step("TD exit", f"vCPU {event.vcpu:#x} reason {event.rax & 0xFFFF}")


def _kvm_exit(event: kvm.KvmExit) -> Step:
    detail = event.exit_reason
    if event.info2 & EEQ_TYPE_MASK == EEQ_ACCEPT:
        detail += f" (ACCEPT {_level(TDX_LEVELS, eeq_requested_level(event.info2))})"
    return Step("kvm_exit", detail, "", "tdx_handle_exit")


def _page_fault(event: kvm.KvmPageFaultEvent) -> Step:
    return Step("page fault", f"{event.fault_address:#x}", "", "tdx_handle_ept_violation")


def _spte_requested(event: kvm.KvmMmuSpteRequested) -> Step:
    detail = f"gfn {event.gfn:#x} {_level(KVM_LEVELS, event.level)} pfn {event.pfn:#x}"
    return Step("map", detail, "", "kvm_tdp_mmu_map")


def spte_text(spte: int, level: int) -> str:
    """What an SPTE of KVM level `level` is, and to which PFN it points."""
    if is_frozen_spte(spte):
        return "frozen"
    if not is_shadow_present_pte(spte):
        return "none" if spte == SHADOW_NONPRESENT_VALUE else f"{spte:#x}"
    kind = "page" if is_last_spte(spte, level) else "table"
    return f"{kind} {spte_to_pfn(spte):#x}"


def _spte_changed(event: kvm.KvmTdpMmuSpteChanged) -> Step:
    which = "mirror" if event.mirror else "shared"
    old, new = (spte_text(spte, event.level) for spte in (event.old_spte, event.new_spte))
    detail = f"gfn {event.gfn:#x} {_level(KVM_LEVELS, event.level)}: {old} -> {new}"
    return Step(f"{which} SPTE", detail, "", "handle_changed_spte")


def _set_spte(event: kvm.KvmMmuSetSpte) -> Step:
    words = spte_text(event.spte, event.level)
    detail = f"gfn {event.gfn:#x} {_level(KVM_LEVELS, event.level)}: {words}"
    return Step("set SPTE", detail, "", "tdp_mmu_map_handle_target_level")


def _split(event: kvm.KvmMmuSplitHugePage) -> Step:
    cause = f" for {event.cause}" if event.cause else ""
    detail = f"gfn {event.gfn:#x} {_level(KVM_LEVELS, event.level)}{cause}"
    result = errno_name(event.errno) if event.errno else ""
    return Step("split", detail, result, "tdp_mmu_split_huge_page")


def _conversion(event: ConversionEvent) -> Step:
    detail = f"{event.gpa:#x} {event.size_bytes:#x} bytes by {event.cause}"
    to = "private" if event.to_private else "shared"
    result = errno_name(event.ret) if event.ret < 0 else ""
    return Step(f"convert to {to}", detail, result, "kvm_convert_memory")


def _get_page(event: kvm.KvmMmuGetPage) -> Step:
    detail = f"gfn {event.gfn:#x} {_level(KVM_LEVELS, event.level)}"
    return Step("new page table", detail, "", "tdp_mmu_init_sp")


def _zap_page(event: kvm.KvmMmuPrepareZapPage) -> Step:
    detail = f"gfn {event.gfn:#x} {_level(KVM_LEVELS, event.level)}"
    return Step("unlink page table", detail, "", "handle_removed_pt")


def _userspace_exit(event: kvm.KvmUserspaceExit) -> Step:
    """KVM_RUN returns: with an exit reason, an error, or both, as for KVM_EXIT_MEMORY_FAULT."""
    words = f"KVM_EXIT_{KVM_EXIT_NAMES.get(event.reason, hex(event.reason)).upper()}"
    if event.errno:
        both = event.reason == KVM_EXIT_MEMORY_FAULT
        words = f"{words}, {errno_name(event.errno)}" if both else errno_name(event.errno)
    return Step("exit to user space", words, "", "kvm_arch_vcpu_ioctl_run")


def _memslot(event: kvm.KvmMemslotEvent) -> Step:
    end = event.base_gfn + event.npages
    verb = "delete memslot" if event.deleted else "memslot"
    return Step(
        verb, f"{event.slot}: gfn {event.base_gfn:#x} to {end:#x}", "", "kvm_set_memory_region"
    )


def _pages(gfn: int, npages: int) -> str:
    return f"gfn {gfn:#x} + {npages:#x} {agree(npages, 'page', 'pages')}"


def _attributes(event: kvm.KvmMemoryAttributesEvent) -> Step:
    what = "private" if event.attributes & KVM_MEMORY_ATTRIBUTE_PRIVATE else "shared"
    return Step("attributes", f"{_pages(event.gfn, event.npages)}: {what}")


def _gmem_folio(event: kvm.KvmGmemFolioEvent) -> Step:
    where = _pages(event.gfn, event.npages)
    if event.order < 0:
        return Step("guest_memfd", f"{where}: no folio")
    size = FOLIO_SIZES.get(event.order, f"order {event.order}")
    folios = agree(event.npages >> event.order, "folio", "folios")
    split = ", split" if event.split else ""
    return Step("guest_memfd", f"{where}: {size} {folios}, pfn {event.pfn:#x}{split}")


def _leaves(names: tuple[str, ...], event: SeptLeavesEvent | kvm.KvmMirrorLeavesEvent) -> str:
    word = agree(event.nr_leaves, "leaf", "leaves")
    return f"{_level(names, event.level)} + {event.nr_leaves:#x} {word}"


def _sept_leaves(event: SeptLeavesEvent) -> Step:
    return Step("S-EPT has", f"{event.gpa:#x} {_leaves(TDX_LEVELS, event)}")


def _mirror_leaves(event: kvm.KvmMirrorLeavesEvent) -> Step:
    return Step("mirror has", f"gfn {event.gfn:#x} {_leaves(KVM_LEVELS, event)}")


def _hypercall(event: kvm.KvmHypercall) -> Step:
    args = ", ".join(f"{arg:#x}" for arg in (event.a0, event.a1, event.a2, event.a3))
    return Step("kvm_hypercall", f"{event.nr}: {args}", "", "tdx_emulate_vmcall")


def _lock(event: LockEvent) -> Step:
    how = {"ex": "", "sh": " (shared)"}.get(event.mode, f" ({event.mode})")
    return Step({"wait": "waits for"}.get(event.op, event.op), f"{event.lock}{how}")


_DESCRIBE: dict[type[Event], Callable[..., Step]] = {
    SeamcallEvent: _seamcall,
    TdcallEvent: _tdcall,
    TdExitEvent: _td_exit,
    GuestAccessEvent: _guest_access,
    kvm.KvmEntry: lambda event: Step("kvm_entry", "", "", "tdx_vcpu_run"),
    kvm.KvmExit: _kvm_exit,
    kvm.KvmHypercall: _hypercall,
    kvm.KvmPageFaultEvent: _page_fault,
    kvm.KvmMmuSpteRequested: _spte_requested,
    kvm.KvmTdpMmuSpteChanged: _spte_changed,
    kvm.KvmMmuSetSpte: _set_spte,
    kvm.KvmMmuSplitHugePage: _split,
    kvm.KvmMmuGetPage: _get_page,
    kvm.KvmMmuPrepareZapPage: _zap_page,
    kvm.KvmUnmapHvaRange: lambda event: Step(
        "MMU notifier",
        f"unmaps [{event.start:#x}, {event.end:#x})",
        "",
        "kvm_mmu_notifier_invalidate_range_start",
    ),
    kvm.KvmUserspaceExit: _userspace_exit,
    kvm.KvmTdEvent: lambda event: Step("TD", f"of VM {event.vm}: TDR page {event.tdr:#x}"),
    kvm.KvmMemslotEvent: _memslot,
    kvm.KvmMemoryAttributesEvent: _attributes,
    kvm.KvmGmemFolioEvent: _gmem_folio,
    kvm.KvmMirrorLeavesEvent: _mirror_leaves,
    SeptLeavesEvent: _sept_leaves,
    PamtPairEvent: lambda event: Step("PAMT pair", f"{event.hpa:#x}"),
    ConversionEvent: _conversion,
    LockEvent: _lock,
    SwitchEvent: lambda event: Step("switch", f"to {event.to} at {event.at}"),
    ChoiceEvent: lambda event: Step("CHOICE", f"{event.name} = {event.value}"),
    FindingEvent: lambda event: Step("FINDING", f"{event.promise}: {event.text}"),
    GuestPhaseEvent: lambda event: Step("phase", event.phase),
    GuestReportEvent: lambda event: Step("guest reports", str(event.code)),
}


def describe(event: Event) -> Step:
    """The event as a step. An event type without a description here shows its fields."""
    made = _DESCRIBE.get(type(event))
    if made is not None:
        return made(event)
    fields = {
        name: value
        for name, value in msgspec.structs.asdict(event).items()
        if name not in ("time_ns", "task", "cpu")
    }
    detail = " ".join(
        f"{name} {value:#x}" if isinstance(value, int) else f"{name} {value}"
        for name, value in fields.items()
    )
    tag = event.__struct_config__.tag
    return Step(str(tag), detail)
