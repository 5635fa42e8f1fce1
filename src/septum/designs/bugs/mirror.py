"""The mirror page table: freezing of entries, and walks that drop mmu_lock."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.designs.bugs._seeded import seeded
from septum.linux.kvm.lpage import LPAGE_LEVELS, set_lpage_info_slot
from septum.linux.kvm.mmu import KvmMmu
from septum.linux.kvm.tdp_mmu import TdpMmu
from septum.linux.kvm.tdx import KvmTdxUnit
from septum.linux.kvm.types import KvmGfnRange

if TYPE_CHECKING:
    from septum.linux.kvm.tdp_iter import TdpIter
    from septum.linux.kvm.types import Kvm, KvmMemorySlot, KvmMmuPage, KvmVcpu


class FrozenIgnored(TdpMmu):
    """A fault takes a frozen entry for one that is not present."""

    __slots__ = ()

    def is_frozen_spte(self, spte: int) -> bool:
        return False


class NotFrozen(TdpMmu):
    """The new value is in the mirror while the S-EPT is still to be changed."""

    __slots__ = ()

    def _freeze_spte(self, it: TdpIter, old_spte: int, new_spte: int) -> bool:
        self.sim.point("cmpxchg")
        return it.table.try_cmpxchg(it.index, old_spte, new_spte) == old_spte


class FrozenForEver(TdpMmu):
    """When the S-EPT change fails, the entry stays frozen."""

    __slots__ = ()

    def _thaw_spte(self, it: TdpIter, old_spte: int, new_spte: int, ret: int) -> None:
        if not ret:
            super()._thaw_spte(it, old_spte, new_spte, ret)


class StaleAfterLock(TdpMmu):
    """A split goes on with the entry that it saw before mmu_lock was dropped to allocate."""

    __slots__ = ()

    def _look_again(self, it: TdpIter) -> None:
        """Nothing."""


class AllocUnderLock(TdpMmu):
    """A split allocates with waiting while it holds mmu_lock."""

    __slots__ = ()

    def _alloc_sp_without_mmu_lock(
        self, kvm: Kvm, root: KvmMmuPage, shared: bool
    ) -> KvmMmuPage | None:
        return self.tdp_mmu_alloc_sp_for_split(root.is_mirror)


class AllocInRcu(TdpMmu):
    """mmu_lock is dropped for the allocation, and RCU is not."""

    __slots__ = ()

    def _alloc_sp_without_mmu_lock(
        self, kvm: Kvm, root: KvmMmuPage, shared: bool
    ) -> KvmMmuPage | None:
        self.rcu_read_lock()
        sp = super()._alloc_sp_without_mmu_lock(kvm, root, shared)
        self.rcu_read_unlock()
        return sp


class RcuTakenAgain(TdpMmu):
    """topup_external_split_cache() comes back with RCU, too, when it fails: its caller leaves that
    out when it gives up."""

    __slots__ = ()

    def topup_external_split_cache(self, kvm: Kvm, level: int, shared: bool) -> int:
        r = super().topup_external_split_cache(kvm, level, shared)
        if r:
            self.rcu_read_lock()
        return r


class HeadOnly(TdpMmu):
    """Of the huge leaves that cross a range, the one at its start is split."""

    __slots__ = ()

    def kvm_tdp_mmu_gfn_range_split_cross_boundary_leafs(
        self, kvm: Kvm, rng: KvmGfnRange, shared: bool
    ) -> int:
        head = KvmGfnRange(rng.slot, rng.start, rng.start + 1, rng.attr_filter, rng.may_block)
        return super().kvm_tdp_mmu_gfn_range_split_cross_boundary_leafs(kvm, head, shared)


class InhibitTooLate(KvmTdxUnit):
    """mmu_lock is dropped between the split and the flag in lpage_info."""

    __slots__ = ()

    def _tdx_split_for_accept(
        self, vcpu: KvmVcpu, slot: KvmMemorySlot, gfn: int, level: int
    ) -> int:
        ret = super()._tdx_split_for_accept(vcpu, slot, gfn, level)
        vcpu.kvm.mmu_lock.write_unlock()
        vcpu.kvm.mmu_lock.write_lock()
        return ret


class LevelOffByOne(KvmTdxUnit):
    """The exit qualification's level, which counts from 0, is taken for a PG_LEVEL_*."""

    __slots__ = ()

    def tdx_guest_accept_level(self, vcpu: KvmVcpu) -> int:
        level = super().tdx_guest_accept_level(vcpu)
        return max(level - 1, 0)


class SlotEndUnmarked(KvmMmu):
    """lpage_info does not know of the frame that a slot ends in."""

    __slots__ = ()

    def kvm_alloc_memslot_metadata(self, kvm: Kvm, slot: KvmMemorySlot) -> int:
        ret = super().kvm_alloc_memslot_metadata(kvm, slot)
        for level in LPAGE_LEVELS:
            set_lpage_info_slot(slot.end_gfn - 1, slot, level, 0)
        return ret


DESIGNS = (
    seeded(
        "frozen-ignored",
        "tdp_mmu.c kvm_tdp_mmu_map()",
        "A fault takes a frozen mirror SPTE for one that is not present",
        "fault-against-fault",
        "no-bug",
        tdp_mmu=FrozenIgnored,
    ),
    seeded(
        "not-frozen",
        "v3 patch 09, set_external_spte_present()",
        "A mirror SPTE gets its new value before the SEAMCALL, without FROZEN_SPTE",
        "fault-against-fault",
        "no-bug",
        tdp_mmu=NotFrozen,
    ),
    seeded(
        "frozen-for-ever",
        "v3 patch 09, set_external_spte_present()",
        "When TDH.MEM.PAGE.AUG fails the mirror SPTE stays frozen",
        "fault-against-fault",
        "progress",
        tdp_mmu=FrozenForEver,
    ),
    seeded(
        "stale-after-lock",
        "v3 patch 19, tdp_mmu_split_huge_pages_root()",
        "A split goes on with the SPTE that it read before it dropped mmu_lock",
        "convert-against-accept-4k",
        "no-bug",
        tdp_mmu=StaleAfterLock,
    ),
    seeded(
        "alloc-under-mmu-lock",
        "v3 patch 10, tdp_mmu_split_huge_pages_root()",
        "A split allocates with GFP_KERNEL while it holds mmu_lock",
        "convert-one-page",
        "locking",
        tdp_mmu=AllocUnderLock,
    ),
    seeded(
        "alloc-in-rcu",
        "v3 patch 10, tdp_mmu_split_huge_pages_root()",
        "A split allocates with GFP_KERNEL in a read section of RCU, with mmu_lock dropped",
        "convert-one-page",
        "locking",
        tdp_mmu=AllocInRcu,
    ),
    seeded(
        "rcu-taken-again",
        "v3 patch 19, topup_external_split_cache()",
        "A split whose cache cannot be filled returns in a read section of RCU",
        "dpamt-topup-enomem",
        "locking",
        tdp_mmu=RcuTakenAgain,
    ),
    seeded(
        "split-head-only",
        "v3 patch 11",
        "Only the leaf at the start of a range is split, not the one at its end",
        "convert-straddling-per-vm",
        "precise-zap",
        "guest-data",
        "accept-once",
        tdp_mmu=HeadOnly,
    ),
    seeded(
        "lock-dropped-early",
        "v3 patch 13, tdx_honor_guest_accept_level()",
        "mmu_lock is dropped between the split and the flag that keeps 2 MB away",
        "accept-4k-against-2m",
        "no-bug",
        tdx=InhibitTooLate,
    ),
    seeded(
        "accept-level-off-by-one",
        "v3 patch 13, tdx_honor_guest_accept_level()",
        "The TDX level of an ACCEPT is taken for a PG_LEVEL_*",
        "accept-level-prefault",
        "progress",
        tdx=LevelOffByOne,
    ),
    seeded(
        "slot-end-unmarked",
        "x86.c kvm_alloc_memslot_metadata()",
        "2 MB may be mapped where a memslot ends within them",
        "odd-slots-huge-folio",
        "mapping-in-folio",
        mmu=SlotEndUnmarked,
    ),
)
