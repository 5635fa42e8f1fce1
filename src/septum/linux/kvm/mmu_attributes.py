"""KVM_SET_MEMORY_ATTRIBUTES in the MMU: what happens before and after the attributes change.

Source: arch/x86/kvm/mmu/mmu.c; patches 14 and 15 of the v3 series.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.kvm import (
    KVM_MEMORY_ATTRIBUTE_PRIVATE,
    PAGES_PER_HPAGE,
    gfn_round_for_level,
)
from septum.linux.kvm.lpage import LPAGE_LEVELS
from septum.linux.kvm.mmu_zap import MmuZap
from septum.linux.kvm.types import KVM_FILTER_PRIVATE, KVM_FILTER_SHARED

if TYPE_CHECKING:
    from septum.linux.kvm.types import Kvm, KvmGfnRange


class MmuAttributes(MmuZap):
    """Handlers of kvm_vm_set_mem_attributes()."""

    __slots__ = ()

    def _invalidate_edge_hugepages(self, kvm: Kvm, rng: KvmGfnRange) -> None:
        """No huge page that the range covers partly may be mapped before it is known as mixed: the
        invalidation covers it, too. Source: commit 9129633d568e."""
        slot = rng.slot
        slot_end = slot.base_gfn + slot.npages
        for level in LPAGE_LEVELS:
            start = gfn_round_for_level(rng.start, level)
            end = gfn_round_for_level(rng.end - 1, level)
            nr_pages = PAGES_PER_HPAGE[level]
            if (
                (start != rng.start or start + nr_pages > rng.end)
                and start >= slot.base_gfn
                and start + nr_pages <= slot_end
                and not self.hugepage_test_mixed(slot, start, level)
            ):
                self.kvm_mmu_invalidate_range_add(kvm, start, start + nr_pages)
            if end == start:
                continue
            if (
                end + nr_pages > rng.end
                and end + nr_pages <= slot_end
                and not self.hugepage_test_mixed(slot, end, level)
            ):
                self.kvm_mmu_invalidate_range_add(kvm, end, end + nr_pages)

    def kvm_arch_pre_set_memory_attributes(self, kvm: Kvm, rng: KvmGfnRange) -> int:
        """Before attributes change: cover edge huge pages by the invalidation, split what crosses
        the range (to shared only), and unmap the range.

        1: flush wanted, 0: not, negative: error. Source: mmu.c with patches 14 and 15.
        """
        if not kvm.arch.has_private_mem:
            self.warn_on_once("no private memory", "kvm_arch_pre_set_memory_attributes")
            return 0
        if rng.end <= rng.start:
            self.warn_on_once("empty range", "kvm_arch_pre_set_memory_attributes")
            return 0
        self._invalidate_edge_hugepages(kvm, rng)
        if rng.attributes & KVM_MEMORY_ATTRIBUTE_PRIVATE:
            rng.attr_filter = KVM_FILTER_SHARED
        else:
            rng.attr_filter = KVM_FILTER_PRIVATE
            # SUSPECT: a failed split arrives here as 1 (see kvm_split_cross_boundary_leafs), the
            # caller takes it for "flush", nothing was unmapped, and the attributes change anyway.
            ret = self._split_before_unmap(kvm, rng)
            if ret:
                return ret
        return self._unmap_old_attributes(kvm, rng)

    def _unmap_old_attributes(self, kvm: Kvm, rng: KvmGfnRange) -> int:
        """The end of kvm_arch_pre_set_memory_attributes(): unmap the old attributes' pages. 1 when
        a flush is wanted, else 0."""
        return self.kvm_unmap_gfn_range(kvm, rng)

    def _split_before_unmap(self, kvm: Kvm, rng: KvmGfnRange) -> int:
        """Split the huge leaves that cross a range which becomes shared: what
        kvm_split_cross_boundary_leafs() returns. Source: patch 15."""
        return self.kvm_split_cross_boundary_leafs(kvm, rng, False)

    def kvm_arch_post_set_memory_attributes(self, kvm: Kvm, rng: KvmGfnRange) -> int:
        """After attributes changed: MIXED of the huge pages that the range touches. Returns 0.

        2M comes first, as 1G is settled from it. Source: mmu.c.
        """
        attrs = rng.attributes
        slot = rng.slot
        where = "kvm_arch_post_set_memory_attributes"
        if not kvm.mmu_lock.held_write():
            self.lockdep_assert(False, "mmu_lock not written", where)
        if not kvm.slots_lock.held():
            self.lockdep_assert(False, "slots_lock is not held", where)
        if not kvm.arch.has_private_mem:
            self.warn_on_once("no private memory", where)
            return 0
        slot_end = slot.base_gfn + slot.npages
        for level in LPAGE_LEVELS:
            nr_pages = PAGES_PER_HPAGE[level]
            gfn = gfn_round_for_level(rng.start, level)
            # The head, if it reaches out of the range, and the slot has all of it.
            if gfn != rng.start or gfn + nr_pages > rng.end:
                if gfn >= slot.base_gfn and gfn + nr_pages <= slot_end:
                    self._settle_mixed(kvm, slot, gfn, level, attrs)
                gfn += nr_pages
            # Pages wholly in the range have the attributes just set.
            while gfn + nr_pages <= rng.end:
                self.hugepage_clear_mixed(slot, gfn, level)
                gfn += nr_pages
            # The tail.
            if gfn < rng.end and gfn + nr_pages <= slot_end:
                self._settle_mixed(kvm, slot, gfn, level, attrs)
        return 0
