"""The protocol of mmu_invalidate_seq, in faults and in those who take memory away."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.kvm import (
    INVALID_GPA,
    KVM_MEMSLOT_INVALID,
    KVM_REQ_UNBLOCK,
    PAGES_PER_HPAGE,
    PG_LEVEL_2M,
    RET_PF_RETRY,
    gfn_round_for_level,
)
from septum.designs.bugs._seeded import seeded
from septum.linux.kvm.guest_memfd import GuestMemfd
from septum.linux.kvm.main import KvmMain
from septum.linux.kvm.mmu import KvmMmu
from septum.linux.kvm.tdx import KvmTdxUnit
from septum.linux.kvm.types import KvmGfnRange
from septum.linux.kvm.x86 import KvmX86

if TYPE_CHECKING:
    from septum.linux.kvm.types import GmemInode, Kvm, KvmPageFault, KvmVcpu


class SeqNotChecked(KvmMmu):
    """A fault maps what it has found, whatever was invalidated since."""

    __slots__ = ()

    def mmu_invalidate_retry_gfn(self, kvm: Kvm, mmu_seq: int, gfn: int) -> bool:
        return False


class SeqNotBumped(KvmMmu):
    """The end of an invalidation leaves no trace for a fault that slept through all of it."""

    __slots__ = ()

    def kvm_mmu_invalidate_end(self, kvm: Kvm) -> None:
        seq = kvm.mmu_invalidate_seq
        super().kvm_mmu_invalidate_end(kvm)
        kvm.mmu_invalidate_seq = seq


class SnapshotLate(KvmMmu):
    """The snapshot of mmu_invalidate_seq is taken after the attributes were looked at."""

    __slots__ = ()

    def _kvm_mmu_faultin_pfn(self, vcpu: KvmVcpu, fault: KvmPageFault) -> int:
        self.sim.point("smp_rmb")
        fault.mmu_seq = vcpu.kvm.mmu_invalidate_seq
        return super()._kvm_mmu_faultin_pfn(vcpu, fault)


class LastPageNotCovered(KvmMmu):
    """The invalidation takes the end of a range for its last page."""

    __slots__ = ()

    def kvm_mmu_invalidate_range_add(self, kvm: Kvm, start: int, end: int) -> None:
        super().kvm_mmu_invalidate_range_add(kvm, start, end - 1)


class EdgesNotCovered(KvmMmu):
    """The invalidation covers the range, not the huge pages that it cuts through."""

    __slots__ = ()

    def _invalidate_edge_hugepages(self, kvm: Kvm, rng: KvmGfnRange) -> None:
        """Nothing."""


class TailEdgeNotCovered(KvmMmu):
    """Of the huge pages at the edges of a range, the invalidation covers the one at its start."""

    __slots__ = ()

    def _invalidate_edge_hugepages(self, kvm: Kvm, rng: KvmGfnRange) -> None:
        head_end = gfn_round_for_level(rng.start, PG_LEVEL_2M) + PAGES_PER_HPAGE[PG_LEVEL_2M]
        end = min(rng.end, head_end)
        super()._invalidate_edge_hugepages(
            kvm, KvmGfnRange(rng.slot, rng.start, end, rng.attr_filter, rng.may_block)
        )


class PunchNeverEnds(GuestMemfd):
    """A hole that could not be punched leaves its invalidation open."""

    __slots__ = ()

    def _kvm_gmem_punch_failed(self, inode: GmemInode, start: int, end: int) -> None:
        inode.invalidate_lock.up_write()


class PunchKeepsLock(GuestMemfd):
    """A hole that cannot be punched keeps the invalidate_lock."""

    __slots__ = ()

    def _kvm_gmem_punch_failed(self, inode: GmemInode, start: int, end: int) -> None:
        self.kvm_gmem_invalidate_end(inode, start, end)


class RetriesGoingSlot(KvmTdxUnit):
    """The local retry of an EPT violation does not look at the slot."""

    __slots__ = ()

    def _slot_is_going(self, vcpu: KvmVcpu, gpa: int) -> bool:
        return False


class PrefaultsGoingSlot(KvmMmu):
    """KVM_PRE_FAULT_MEMORY retries in a slot that is being deleted, like a guest's fault."""

    __slots__ = ()

    def kvm_mmu_faultin_pfn(self, vcpu: KvmVcpu, fault: KvmPageFault) -> int:
        slot = fault.slot
        if slot is not None and slot.flags & KVM_MEMSLOT_INVALID:
            return RET_PF_RETRY
        return super().kvm_mmu_faultin_pfn(vcpu, fault)


class HaltsInSrcu(KvmX86):
    """A vCPU that halts does not leave SRCU: who changes a slot waits for its wake-up."""

    __slots__ = ()

    def vcpu_block(self, vcpu: KvmVcpu) -> int:
        if not self.kvm_arch_vcpu_runnable(vcpu):
            vcpu.wq.wait_event(
                lambda: vcpu.pi_desc.on or vcpu.signal_pending or KVM_REQ_UNBLOCK in vcpu.requests
            )
        return super().vcpu_block(vcpu)


class NoSrcu(KvmMain):
    """A slot goes without waiting for faults that have not seen that it does."""

    __slots__ = ()

    def kvm_swap_active_memslots(self, kvm: Kvm) -> None:
        self.sim.point("rcu_assign_pointer")


class OneGracePeriod(KvmMain):
    """synchronize_srcu() between a slot's last fault and its unmapping, none before it is freed."""

    __slots__ = ()

    def kvm_swap_active_memslots(self, kvm: Kvm) -> None:
        if any(slot.flags & KVM_MEMSLOT_INVALID for slot in kvm.memslots.values()):
            super().kvm_swap_active_memslots(kvm)


class NotifierIgnored(KvmMain):
    """The MMU notifier does nothing: the guest keeps a page that is free."""

    __slots__ = ()

    def mmu_notifier_invalidate_range_start(self, start: int, end: int) -> list[Kvm]:
        return []


class SecondBeginResets(KvmMmu):
    """An invalidation that begins during another one forgets its range."""

    __slots__ = ()

    def kvm_mmu_invalidate_begin(self, kvm: Kvm) -> None:
        super().kvm_mmu_invalidate_begin(kvm)
        kvm.mmu_invalidate_range_start = kvm.mmu_invalidate_range_end = INVALID_GPA


class LastRangeOnly(KvmMmu):
    """Of the ranges of an invalidation the last one is kept."""

    __slots__ = ()

    def kvm_mmu_invalidate_range_add(self, kvm: Kvm, start: int, end: int) -> None:
        super().kvm_mmu_invalidate_range_add(kvm, start, end)
        kvm.mmu_invalidate_range_start = start
        kvm.mmu_invalidate_range_end = end


DESIGNS = (
    seeded(
        "seq-not-checked",
        "kvm_host.h mmu_invalidate_retry_gfn()",
        "A fault does not check mmu_invalidate_seq before it maps",
        "convert-against-fault-there",
        "mapping-in-folio",
        mmu=SeqNotChecked,
    ),
    seeded(
        "seq-not-bumped",
        "kvm_main.c kvm_mmu_invalidate_end()",
        "The end of an invalidation does not change mmu_invalidate_seq",
        "convert-against-fault-there",
        "mapping-in-folio",
        mmu=SeqNotBumped,
    ),
    seeded(
        "snapshot-late",
        "mmu.c kvm_mmu_faultin_pfn(), comment at the snapshot",
        "mmu_invalidate_seq is read after the memory attributes, not before",
        "convert-against-fault-there",
        "mapping-in-folio",
        mmu=SnapshotLate,
    ),
    seeded(
        "edges-not-covered",
        "commit 9129633d568e",
        "A 2 MB page that a conversion cuts through can be mapped in the middle of it",
        "convert-against-fault",
        "mapping-in-folio",
        mmu=EdgesNotCovered,
    ),
    seeded(
        "tail-edge-not-covered",
        "commit 9129633d568e",
        "The 2 MB page in which a conversion ends can be mapped in the middle of it",
        "convert-across-against-fault",
        "mapping-in-folio",
        mmu=TailEdgeNotCovered,
    ),
    seeded(
        "punch-never-ends",
        "v3 patch 16, kvm_gmem_punch_hole()",
        "When a hole cannot be punched, the invalidation that it began is never ended",
        "punch-enomem",
        "progress",
        gmem=PunchNeverEnds,
    ),
    seeded(
        "punch-keeps-lock",
        "v3 patch 16, kvm_gmem_punch_hole()",
        "When a hole cannot be punched, its way out keeps the invalidate_lock",
        "punch-enomem",
        "locking",
        gmem=PunchKeepsLock,
    ),
    seeded(
        "retries-going-slot",
        "commit 2bc2694fe20b",
        "A vCPU retries a fault in a slot whose deletion waits for the vCPU",
        "slot-delete-against-fault",
        "progress",
        tdx=RetriesGoingSlot,
    ),
    seeded(
        "prefaults-going-slot",
        "commit 3ccbf6f47098",
        "KVM_PRE_FAULT_MEMORY retries in a slot whose deletion waits for it",
        "slot-delete-against-prefault",
        "progress",
        mmu=PrefaultsGoingSlot,
    ),
    seeded(
        "no-srcu",
        "kvm_main.c kvm_swap_active_memslots()",
        "A memory slot is deleted without synchronize_srcu()",
        "slot-delete-against-prefault",
        "mapping-in-folio",
        "no-bug",
        main=NoSrcu,
    ),
    seeded(
        "one-grace-period",
        "kvm_main.c kvm_swap_active_memslots()",
        "A memory slot that is deleted is freed without a second synchronize_srcu()",
        "slot-delete-against-prefault",
        "no-bug",
        main=OneGracePeriod,
    ),
    seeded(
        "notifier-ignored",
        "kvm_main.c kvm_mmu_notifier_invalidate_range_start()",
        "KVM does not unmap a shared page that user space gives back",
        "discard-shared",
        "expectation",
        main=NotifierIgnored,
    ),
    seeded(
        "last-page-uncovered",
        "kvm_main.c kvm_mmu_invalidate_range_add()",
        "Faults in the last page of a range are not held off while it is taken away",
        "punch-edges-against-fault",
        "mapping-in-folio",
        mmu=LastPageNotCovered,
    ),
    seeded(
        "halts-in-srcu",
        "x86.c vcpu_block()",
        "A vCPU halts in KVM_RUN without leaving SRCU: a change of slots waits for its wake-up",
        "slot-delete-halted",
        "progress",
        x86=HaltsInSrcu,
    ),
    seeded(
        "second-begin-resets",
        "kvm_main.c kvm_mmu_invalidate_begin()",
        "Where two invalidations overlap in time the range of the first is forgotten",
        "discard-as-punch-begins",
        "mapping-in-folio",
        mmu=SecondBeginResets,
    ),
    seeded(
        "last-range-only",
        "kvm_main.c kvm_mmu_invalidate_range_add()",
        "Of a range over two memslots only the part in the second holds faults off",
        "punch-two-slots-against-fault",
        "mapping-in-folio",
        mmu=LastRangeOnly,
    ),
)
