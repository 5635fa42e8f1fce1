"""Unmapping and splitting ranges, memory slots and whole VMs, for both kinds of roots.

Source: arch/x86/kvm/mmu/mmu.c; patch 11 of the v3 series.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.errno import EOPNOTSUPP
from septum.abi.kvm import (
    KVM_DIRECT_ROOTS,
    KVM_REQ_MMU_FREE_OBSOLETE_ROOTS,
)
from septum.linux.kvm.events import KvmMmuZapAllFast
from septum.linux.kvm.lpage import MmuLpage
from septum.linux.kvm.tdp_mmu_roots import kvm_has_mirrored_tdp
from septum.linux.kvm.types import KVM_FILTER_PRIVATE, KVM_FILTER_SHARED, KvmGfnRange

if TYPE_CHECKING:
    from septum.linux.kvm.types import Kvm, KvmMemorySlot


class MmuZap(MmuLpage):
    """Range operations and teardown."""

    __slots__ = ()

    def kvm_split_cross_boundary_leafs(self, kvm: Kvm, rng: KvmGfnRange, shared: bool) -> int:
        """Split the huge leaves that reach out of the range, so that a zap of it is precise.

        0: done. -EOPNOTSUPP: the range may not block. 1: the split failed. mmu_lock is held and may
        be dropped; no TLB is flushed. Source: patch 11, mmu.c kvm_split_cross_boundary_leafs.

        SUSPECT: the posted code keeps the result in a C `bool`, so that -ENOMEM becomes 1 on its
        way out, which callers that test for a negative error take for success.
        """
        ret = False
        self.lockdep_assert(
            kvm.mmu_invalidate_in_progress != 0 or kvm.slots_lock.held() or kvm.srcu.held(),
            "no invalidation is under way, neither slots_lock nor kvm->srcu is held",
            "kvm_split_cross_boundary_leafs",
        )
        if not rng.may_block:
            return -EOPNOTSUPP
        if self.host.params.tdp_mmu:
            ret = bool(
                self.host.tdp_mmu.kvm_tdp_mmu_gfn_range_split_cross_boundary_leafs(kvm, rng, shared)
            )
        return int(ret)

    def kvm_unmap_gfn_range(self, kvm: Kvm, rng: KvmGfnRange) -> bool:
        """Zap every leaf that overlaps the range. Returns whether a TLB flush is wanted.

        mmu_lock is held for writing. Source: mmu.c kvm_unmap_gfn_range.
        """
        self.lockdep_assert(
            kvm.mmu_invalidate_in_progress != 0 or kvm.slots_lock.held(),
            "no invalidation is under way and slots_lock is not held",
            "kvm_unmap_gfn_range",
        )
        return self.host.tdp_mmu.kvm_tdp_mmu_unmap_gfn_range(kvm, rng, False)

    def kvm_mmu_unmap_gfn_range(self, kvm: Kvm, rng: KvmGfnRange) -> int:
        """Add the range to the invalidation under way and unmap it: 1 flush wanted, 0 not.

        Source: kvm_main.c kvm_mmu_unmap_gfn_range, patch 14.
        """
        self.kvm_mmu_invalidate_range_add(kvm, rng.start, rng.end)
        return int(self.kvm_unmap_gfn_range(kvm, rng))

    # Memory slots

    def _memslot_range(self, slot: KvmMemorySlot) -> KvmGfnRange:
        """All of a slot, private and shared. Source: mmu.c kvm_mmu_zap_memslot."""
        return KvmGfnRange(
            slot,
            slot.base_gfn,
            slot.base_gfn + slot.npages,
            KVM_FILTER_PRIVATE | KVM_FILTER_SHARED,
            True,
        )

    def kvm_mmu_zap_memslot(self, kvm: Kvm, slot: KvmMemorySlot) -> None:
        """Zap one slot in all roots. Source: mmu.c kvm_mmu_zap_memslot."""
        rng = self._memslot_range(slot)
        kvm.mmu_lock.write_lock()
        kvm.stat.add("mmu_lock_write.kvm_mmu_zap_memslot")
        if self.kvm_unmap_gfn_range(kvm, rng):
            self.host.main.kvm_flush_remote_tlbs(kvm)
        kvm.mmu_lock.write_unlock()

    def kvm_memslot_flush_zap_all(self, kvm: Kvm) -> bool:
        """Whether deleting a slot zaps the whole VM: KVM_X86_QUIRK_SLOT_ZAP_ALL, which only an
        ordinary VM has. Source: mmu.c kvm_memslot_flush_zap_all."""
        return kvm.arch.vm_type == 0

    def kvm_arch_flush_shadow_memslot(self, kvm: Kvm, slot: KvmMemorySlot) -> None:
        """A slot is about to go or to move. Source: mmu.c kvm_arch_flush_shadow_memslot."""
        if self.kvm_memslot_flush_zap_all(kvm):
            self.kvm_mmu_zap_all_fast(kvm)
        else:
            self.kvm_mmu_zap_memslot(kvm, slot)

    def kvm_mmu_zap_all_fast(self, kvm: Kvm) -> None:
        """Invalidate the direct roots and zap them under mmu_lock for reading.

        Source: mmu.c kvm_mmu_zap_all_fast.
        """
        self.lockdep_assert(kvm.slots_lock.held(), "slots_lock", "kvm_mmu_zap_all_fast")
        tdp_mmu = self.host.tdp_mmu
        kvm.mmu_lock.write_lock()
        kvm.stat.add("mmu_lock_write.kvm_mmu_zap_all_fast")
        if self.sim.tracing:
            task = self.sim.current
            self.sim.emit(
                KvmMmuZapAllFast(task.time_ns, task.name, task.cpu, kvm.arch.tdp_mmu_pages)
            )
        tdp_mmu.kvm_tdp_mmu_invalidate_roots(kvm, KVM_DIRECT_ROOTS)
        self.host.main.kvm_make_all_cpus_request(kvm, KVM_REQ_MMU_FREE_OBSOLETE_ROOTS)
        kvm.mmu_lock.write_unlock()
        tdp_mmu.kvm_tdp_mmu_zap_invalidated_roots(kvm, True)

    # VMs

    def kvm_mmu_init_vm(self, kvm: Kvm) -> int:
        """A VM is created. Source: mmu.c kvm_mmu_init_vm."""
        self.host.tdp_mmu.kvm_mmu_init_tdp_mmu(kvm)
        return 0

    def kvm_mmu_zap_all(self, kvm: Kvm) -> None:
        """Zap the direct roots: kvm_arch_flush_shadow_all(). Source: mmu.c kvm_mmu_zap_all."""
        kvm.mmu_lock.write_lock()
        kvm.stat.add("mmu_lock_write.kvm_mmu_zap_all")
        self.host.tdp_mmu.kvm_tdp_mmu_zap_all(kvm)
        kvm.mmu_lock.write_unlock()

    def kvm_arch_flush_shadow_all(self, kvm: Kvm) -> None:
        """Host user space is gone. Source: x86.c kvm_arch_flush_shadow_all."""
        self.kvm_mmu_zap_all(kvm)

    def mmu_free_vm_memory_caches(self, kvm: Kvm) -> None:
        """Source: mmu.c mmu_free_vm_memory_caches, patch 19."""
        if kvm_has_mirrored_tdp(kvm):
            self.host.tdx.free_external_per_vm_split_cache(kvm)

    def kvm_mmu_uninit_vm(self, kvm: Kvm) -> None:
        """A VM is destroyed: its roots, then its caches. Source: mmu.c kvm_mmu_uninit_vm."""
        self.host.tdp_mmu.kvm_mmu_uninit_tdp_mmu(kvm)
        self.mmu_free_vm_memory_caches(kvm)
