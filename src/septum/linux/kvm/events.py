"""KVM's tracepoints as typed events, with the fields and the text that ftrace shows.

Source: arch/x86/kvm/trace.h, arch/x86/kvm/mmu/mmutrace.h, include/trace/events/kvm.h.
"""

from __future__ import annotations

from septum.abi.kvm import KVM_EXIT_NAMES
from septum.abi.spte import spte_permissions
from septum.sim import Event


class KvmEntry(Event, tag="kvm_entry", frozen=True):
    """kvm:kvm_entry. `rip` is 0 for a guest with protected state."""

    vcpu_id: int
    rip: int = 0
    intr_info: int = 0
    error_code: int = 0

    def text(self) -> str:
        """What ftrace prints after the event's name."""
        return (
            f"vcpu {self.vcpu_id}, rip {self.rip:#x} intr_info 0x{self.intr_info:08x} "
            f"error_code 0x{self.error_code:08x}"
        )


class KvmExit(Event, tag="kvm_exit", frozen=True):
    """kvm:kvm_exit. info1 is the exit qualification, info2 the extended exit qualification."""

    vcpu_id: int
    exit_reason: str
    guest_rip: int = 0
    info1: int = 0
    info2: int = 0
    intr_info: int = 0
    error_code: int = 0
    requests: int = 0

    def text(self) -> str:
        """What ftrace prints after the event's name."""
        return (
            f"vcpu {self.vcpu_id} reason {self.exit_reason} rip {self.guest_rip:#x} "
            f"info1 0x{self.info1:016x} info2 0x{self.info2:016x} "
            f"intr_info 0x{self.intr_info:08x} error_code 0x{self.error_code:08x} "
            f"requests 0x{self.requests:016x}"
        )


class KvmPageFaultEvent(Event, tag="kvm_page_fault", frozen=True):
    """kvm:kvm_page_fault. `fault_address` is a GPA, with the shared bit of a shared access."""

    vcpu_id: int
    fault_address: int
    error_code: int
    guest_rip: int = 0

    def text(self) -> str:
        """What ftrace prints after the event's name."""
        return (
            f"vcpu {self.vcpu_id} rip {self.guest_rip:#x} "
            f"address 0x{self.fault_address:016x} error_code {self.error_code:#x}"
        )


class KvmUserspaceExit(Event, tag="kvm_userspace_exit", frozen=True):
    """kvm:kvm_userspace_exit. `errno` is KVM_RUN's return value."""

    reason: int
    errno: int

    def text(self) -> str:
        """What ftrace prints. Its symbol table ends before KVM_EXIT_MEMORY_FAULT."""
        if self.errno < 0:
            return "reason restart (4)" if self.errno == -4 else f"reason error ({-self.errno})"
        if self.reason >= 39:
            return f"reason {self.reason:#x} ({self.reason})"
        name = KVM_EXIT_NAMES.get(self.reason, hex(self.reason))
        return f"reason KVM_EXIT_{name.upper()} ({self.reason})"


class KvmHypercall(Event, tag="kvm_hypercall", frozen=True):
    """kvm:kvm_hypercall: a KVM hypercall by TDVMCALL."""

    nr: int
    a0: int
    a1: int
    a2: int
    a3: int

    def text(self) -> str:
        """What ftrace prints after the event's name."""
        return f"nr {self.nr:#x} a0 {self.a0:#x} a1 {self.a1:#x} a2 {self.a2:#x} a3 {self.a3:#x}"


class KvmUnmapHvaRange(Event, tag="kvm_unmap_hva_range", frozen=True):
    """kvm:kvm_unmap_hva_range: host mappings of shared memory go away."""

    start: int
    end: int

    def text(self) -> str:
        """What ftrace prints after the event's name."""
        return f"mmu notifier unmap range: {self.start:#016x} -- {self.end:#016x}"


class KvmMmuSpteRequested(Event, tag="kvm_mmu_spte_requested", frozen=True):
    """kvmmmu:kvm_mmu_spte_requested. `level` is the goal level after the huge page adjustment."""

    gfn: int
    pfn: int
    level: int

    def text(self) -> str:
        """What ftrace prints after the event's name."""
        return f"gfn {self.gfn:x} pfn {self.pfn:x} level {self.level}"


class KvmTdpMmuSpteChanged(Event, tag="kvm_tdp_mmu_spte_changed", frozen=True):
    """kvmmmu:kvm_tdp_mmu_spte_changed, of mirror and direct roots alike.

    `mirror` and `vm` are Septum's: the kernel's event does not say which.
    """

    gfn: int
    level: int
    old_spte: int
    new_spte: int
    as_id: int = 0
    mirror: bool = False
    vm: int = 0

    def text(self) -> str:
        """What ftrace prints after the event's name."""
        return (
            f"as id {self.as_id} gfn {self.gfn:x} level {self.level} "
            f"old_spte {self.old_spte:x} new_spte {self.new_spte:x}"
        )


class KvmMmuSplitHugePage(Event, tag="kvm_mmu_split_huge_page", frozen=True):
    """kvmmmu:kvm_mmu_split_huge_page. `level` is that of the huge page; errno 0 or negative.

    `cause` is Septum's: accept, conversion, punch_hole, fault.
    """

    gfn: int
    spte: int
    level: int
    errno: int
    cause: str = ""

    def text(self) -> str:
        """What ftrace prints after the event's name."""
        return f"gfn {self.gfn:x} spte {self.spte:x} level {self.level} errno {self.errno}"


class KvmMmuSetSpte(Event, tag="kvm_mmu_set_spte", frozen=True):
    """kvmmmu:kvm_mmu_set_spte. `sptep` is the PFN of the table and the index in it."""

    gfn: int
    spte: int
    level: int
    sptep: int

    def text(self) -> str:
        """What ftrace prints after the event's name."""
        return (
            f"gfn {self.gfn:x} spte {self.spte:x} ({spte_permissions(self.spte)}) "
            f"level {self.level} at {self.sptep:x}"
        )


class KvmMmuGetPage(Event, tag="kvm_mmu_get_page", frozen=True):
    """kvmmmu:kvm_mmu_get_page: a page table was made."""

    gfn: int
    level: int
    mirror: bool

    def text(self) -> str:
        """What ftrace prints after the event's name."""
        return (
            f"sp gen 0 gfn {self.gfn:x} l{self.level} 8-byte q0 direct wux nxe ad root 0 sync new"
        )


class KvmMmuPrepareZapPage(Event, tag="kvm_mmu_prepare_zap_page", frozen=True):
    """kvmmmu:kvm_mmu_prepare_zap_page: a page table was unlinked."""

    gfn: int
    level: int
    mirror: bool

    def text(self) -> str:
        """What ftrace prints after the event's name."""
        return f"sp gen 0 gfn {self.gfn:x} l{self.level} 8-byte q0 direct wux nxe ad root 0 sync"


class KvmMmuZapAllFast(Event, tag="kvm_mmu_zap_all_fast", frozen=True):
    """kvmmmu:kvm_mmu_zap_all_fast."""

    used_pages: int = 0

    def text(self) -> str:
        """What ftrace prints after the event's name."""
        return f"kvm-mmu-valid-gen 0 used_pages {self.used_pages:x}"


# What no tracepoint of KVM shows: Septum's own.


class KvmTdEvent(Event, tag="kvm_td", frozen=True):
    """The VM `vm` is the TD whose TDR is the page `tdr`."""

    vm: int
    tdr: int


class KvmMemslotEvent(Event, tag="kvm_memslot", frozen=True):
    """The memslot `slot` [base_gfn, base_gfn + npages) was created, or deleted."""

    vm: int
    slot: int
    base_gfn: int
    npages: int
    deleted: bool = False


class KvmMemoryAttributesEvent(Event, tag="kvm_memory_attributes", frozen=True):
    """[gfn, gfn + npages) has these KVM_MEMORY_ATTRIBUTES now, whether the VM or guest_memfd holds
    them."""

    vm: int
    gfn: int
    npages: int
    attributes: int


class KvmGmemFolioEvent(Event, tag="kvm_gmem_folio", frozen=True):
    """guest_memfd has the frames from `pfn` on for [gfn, gfn + npages) now, in folios of `order`.

    `order` -1: no folio. `split`: folios of order 0 that were one huge folio.
    """

    vm: int
    gfn: int
    npages: int
    pfn: int
    order: int
    split: bool = False


class KvmMirrorLeavesEvent(Event, tag="kvm_mirror_leaves", frozen=True):
    """At the beginning of a trace: `nr_leaves` leaves of the mirror of KVM level `level`.

    The first entry is `spte`; the others map the frames that follow.
    """

    vm: int
    gfn: int
    level: int
    nr_leaves: int
    spte: int
