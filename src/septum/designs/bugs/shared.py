"""Shared memory and memory slots: what is flushed, and when, and the shared EPT's entries."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.errno import EBUSY
from septum.designs.bugs._seeded import seeded
from septum.linux.kvm.main import KvmMain
from septum.linux.kvm.mmu import KvmMmu
from septum.linux.kvm.tdp_mmu import TdpMmu
from septum.linux.kvm.types import IN_GUEST_MODE, KVM_FILTER_PRIVATE, KvmGfnRange
from septum.linux.kvm.x86 import KvmX86

if TYPE_CHECKING:
    from septum.linux.kvm.tdp_iter import TdpIter
    from septum.linux.kvm.types import Kvm, KvmMemorySlot, KvmVcpu


class SlotPrivateOnly(KvmMmu):
    """A slot that goes loses its private mappings."""

    __slots__ = ()

    def _memslot_range(self, slot: KvmMemorySlot) -> KvmGfnRange:
        end = slot.base_gfn + slot.npages
        return KvmGfnRange(slot, slot.base_gfn, end, KVM_FILTER_PRIVATE, True)


class SlotFlushedLate(KvmMmu):
    """A slot is zapped, mmu_lock dropped, and then the TLBs are flushed."""

    __slots__ = ()

    def kvm_mmu_zap_memslot(self, kvm: Kvm, slot: KvmMemorySlot) -> None:
        kvm.mmu_lock.write_lock()
        flush = self.kvm_unmap_gfn_range(kvm, self._memslot_range(slot))
        kvm.mmu_lock.write_unlock()
        if flush:
            self.host.main.kvm_flush_remote_tlbs(kvm)


class SlotSeenEarly(KvmMmu):
    """A new slot can be found before its lpage_info is filled in."""

    __slots__ = ()

    def kvm_alloc_memslot_metadata(self, kvm: Kvm, slot: KvmMemorySlot) -> int:
        slot.lpage_info = [{}, {}]
        kvm.memslots[slot.id] = slot
        self.sim.point("rcu_assign_pointer")
        return super().kvm_alloc_memslot_metadata(kvm, slot)


class SlotsDoNotWait(KvmMain):
    """Slots change while an MMU notifier's invalidation is under way."""

    __slots__ = ()

    def _wait_for_mmu_notifiers(self, kvm: Kvm) -> None:
        """Nothing."""


class YieldUnflushed(TdpMmu):
    """A walk that has zapped something drops mmu_lock before it flushes."""

    __slots__ = ()

    def tdp_mmu_iter_cond_resched(self, kvm: Kvm, it: TdpIter, flush: bool, shared: bool) -> bool:
        return super().tdp_mmu_iter_cond_resched(kvm, it, False, shared)


class CmpxchgLost(TdpMmu):
    """An entry of the shared EPT that another vCPU has changed counts as set."""

    __slots__ = ()

    def _tdp_mmu_set_spte_atomic(self, kvm: Kvm, it: TdpIter, new_spte: int) -> int:
        old_spte = it.old_spte
        ret = super()._tdp_mmu_set_spte_atomic(kvm, it, new_spte)
        if ret == -EBUSY and not self.is_mirror_sptep(it.table):
            it.old_spte = old_spte
            return 0
        return ret


class ModeSetLate(KvmX86):
    """A vCPU looks for requests, and is in IN_GUEST_MODE after that."""

    __slots__ = ()

    def _into_guest_mode(self, vcpu: KvmVcpu) -> bool:
        exits = self.kvm_vcpu_exit_request(vcpu)
        self.kvm_vcpu_srcu_read_unlock(vcpu)
        self.sim.point("vcpu->mode")
        vcpu.mode = IN_GUEST_MODE
        return not exits


DESIGNS = (
    seeded(
        "slot-private-only",
        "mmu.c kvm_mmu_zap_memslot(), KVM_FILTER_*",
        "A slot is deleted and its shared pages stay mapped",
        "slot-delete-shared",
        "mapping-in-folio",
        "expectation",
        mmu=SlotPrivateOnly,
    ),
    seeded(
        "slot-flushed-late",
        "mmu.c kvm_mmu_zap_memslot()",
        "The TLB flush for a deleted slot comes when mmu_lock is dropped: the next sees no need",
        "slot-delete-against-discard",
        "expectation",
        "tlb",
        mmu=SlotFlushedLate,
    ),
    seeded(
        "slot-seen-early",
        "kvm_main.c kvm_set_memslot()",
        "A new memslot is seen by faults before its lpage_info is filled in",
        "slot-create-against-fault",
        "mapping-in-folio",
        "expectation",
        mmu=SlotSeenEarly,
    ),
    seeded(
        "slots-do-not-wait",
        "kvm_main.c kvm_swap_active_memslots(), mn_active_invalidate_count",
        "Memslots change between an MMU notifier's start and end, which meet other slots",
        "slot-change-against-discard",
        "no-bug",
        "progress",
        main=SlotsDoNotWait,
    ),
    seeded(
        "yield-unflushed",
        "tdp_mmu.c tdp_mmu_iter_cond_resched()",
        "A zap yields mmu_lock without a flush for what it has zapped by then",
        "discard-yields",
        "expectation",
        "tlb",
        tdp_mmu=YieldUnflushed,
    ),
    seeded(
        "cmpxchg-lost",
        "tdp_mmu.c __tdp_mmu_set_spte_atomic()",
        "A fault in shared memory that loses a compare-exchange goes on as if it had won",
        "shared-fault-against-fault",
        "mirror",
        "no-bug",
        "teardown",
        tdp_mmu=CmpxchgLost,
    ),
    seeded(
        "mode-set-late",
        "x86.c vcpu_enter_guest()",
        "vcpu->mode is IN_GUEST_MODE after the vCPU has looked for requests: nobody kicks it",
        "discard-against-entry",
        "expectation",
        "tlb",
        x86=ModeSetLate,
    ),
)
