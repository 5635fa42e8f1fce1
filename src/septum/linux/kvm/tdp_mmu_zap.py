"""Taking mappings out of the TDP MMU: ranges of leaves, and whole roots at the end of their life.

Source: arch/x86/kvm/mmu/tdp_mmu.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.kvm import (
    KVM_ALL_ROOTS,
    KVM_DIRECT_ROOTS,
    KVM_INVALID_ROOTS,
    KVM_VALID_ROOTS,
    PG_LEVEL_1G,
    PG_LEVEL_2M,
    PG_LEVEL_4K,
)
from septum.abi.spte import (
    PT_PAGE_SIZE_MASK,
    SHADOW_NONPRESENT_VALUE,
    SPTE_MMU_PRESENT_MASK,
)
from septum.linux.kvm.tdp_iter import TdpIter
from septum.linux.kvm.tdp_mmu_roots import (
    kvm_gfn_range_filter_to_root_types,
    kvm_gfn_root_bits,
)
from septum.linux.kvm.tdp_mmu_spte import TdpMmuSpte

if TYPE_CHECKING:
    from septum.linux.kvm.types import Kvm, KvmGfnRange, KvmMmuPage


class TdpMmuZap(TdpMmuSpte):
    """Zapping."""

    __slots__ = ()

    def tdp_mmu_max_gfn_exclusive(self) -> int:
        """First GFN that no guest can have. Source: tdp_mmu.c tdp_mmu_max_gfn_exclusive."""
        return 1 << (52 - 12)

    def tdp_mmu_zap_leafs(
        self, kvm: Kvm, root: KvmMmuPage, start: int, end: int, can_yield: bool, flush: bool
    ) -> bool:
        """Zap every leaf that overlaps [start, end). Returns whether a TLB flush is wanted.

        A huge leaf that only overlaps the range goes entirely: whoever needs a precise zap splits
        first. mmu_lock is held for writing and may be dropped in between if `can_yield`.
        Source: tdp_mmu.c tdp_mmu_zap_leafs.
        """
        end = min(end, self.tdp_mmu_max_gfn_exclusive())
        self.lockdep_assert(kvm.mmu_lock.held_write(), "mmu_lock not written", "tdp_mmu_zap_leafs")
        self.rcu_read_lock()
        it = TdpIter(self.machine.tables, root, PG_LEVEL_4K, start, kvm_gfn_root_bits(kvm, root))
        while it.valid and it.gfn < end:
            old_spte = it.old_spte
            if not old_spte & SPTE_MMU_PRESENT_MASK:
                # MODEL: the loop does not offer to yield at entries that are not present.
                it.skip_nonpresent(end)
                continue
            if can_yield and self.tdp_mmu_iter_cond_resched(kvm, it, flush, False):
                flush = False
            elif it.level == PG_LEVEL_4K or old_spte & PT_PAGE_SIZE_MASK:
                self.tdp_mmu_iter_set_spte(kvm, it, SHADOW_NONPRESENT_VALUE)
                if not root.invalid:
                    flush = True
            it.next()
        self.rcu_read_unlock()
        return flush

    def kvm_tdp_mmu_unmap_gfn_range(self, kvm: Kvm, rng: KvmGfnRange, flush: bool) -> bool:
        """Zap the leaves of a range in the roots that its filter names, invalid ones too.

        Source: tdp_mmu.c kvm_tdp_mmu_unmap_gfn_range.
        """
        types = kvm_gfn_range_filter_to_root_types(kvm, rng.attr_filter) | KVM_INVALID_ROOTS
        root = self.tdp_mmu_next_root(kvm, None, types)
        while root is not None:
            flush = self.tdp_mmu_zap_leafs(kvm, root, rng.start, rng.end, rng.may_block, flush)
            root = self.tdp_mmu_next_root(kvm, root, types)
        return flush

    def _tdp_mmu_zap_root(self, kvm: Kvm, root: KvmMmuPage, shared: bool, zap_level: int) -> None:
        """__tdp_mmu_zap_root(): zap everything present at `zap_level` and below.

        The walk is over all entries of the root, so that here the GFNs of a direct root carry the
        shared bit (in traces too), as in the kernel.
        """
        end = self.tdp_mmu_max_gfn_exclusive()
        it = TdpIter(self.machine.tables, root, zap_level, 0, 0)
        while it.valid and it.gfn < end:
            if not it.old_spte & SPTE_MMU_PRESENT_MASK:
                it.skip_nonpresent(end)
                continue
            if self.tdp_mmu_iter_cond_resched(kvm, it, False, shared):
                it.next()
                continue
            if it.level <= zap_level:
                if not shared:
                    self.tdp_mmu_iter_set_spte(kvm, it, SHADOW_NONPRESENT_VALUE)
                elif self.tdp_mmu_set_spte_atomic(kvm, it, SHADOW_NONPRESENT_VALUE):
                    continue  # retry: the entry changed
            it.next()

    def tdp_mmu_zap_root(self, kvm: Kvm, root: KvmMmuPage, shared: bool) -> None:
        """Zap a whole root, in passes of ever larger tables, so that each pass may yield.

        Source: tdp_mmu.c tdp_mmu_zap_root.
        """
        if not root.root_count:
            self.warn_on_once("a root without a reference is zapped", "tdp_mmu_zap_root")
        lock = kvm.mmu_lock
        self.lockdep_assert(
            lock.held_read() if shared else lock.held_write(), "mmu_lock", "tdp_mmu_zap_root"
        )
        self.rcu_read_lock()
        self._tdp_mmu_zap_root(kvm, root, shared, PG_LEVEL_4K)
        self._tdp_mmu_zap_root(kvm, root, shared, PG_LEVEL_2M)
        self._tdp_mmu_zap_root(kvm, root, shared, PG_LEVEL_1G)
        self._tdp_mmu_zap_root(kvm, root, shared, root.level)
        self.rcu_read_unlock()

    def kvm_tdp_mmu_zap_all(self, kvm: Kvm) -> None:
        """Zap the direct roots: host user space is gone. Mirror roots are left alone.

        Source: tdp_mmu.c kvm_tdp_mmu_zap_all.
        """
        self.lockdep_assert(kvm.mmu_lock.held_write(), "not written", "kvm_tdp_mmu_zap_all")
        types = KVM_DIRECT_ROOTS | KVM_INVALID_ROOTS
        root = self.tdp_mmu_next_root(kvm, None, types)
        while root is not None:
            self.tdp_mmu_zap_root(kvm, root, False)
            root = self.tdp_mmu_next_root(kvm, root, types)

    def kvm_tdp_mmu_zap_invalidated_roots(self, kvm: Kvm, shared: bool) -> None:
        """Zap the roots that were invalidated and drop the VM's reference to each.

        Source: tdp_mmu.c kvm_tdp_mmu_zap_invalidated_roots.
        """
        lock = kvm.mmu_lock
        if shared:
            lock.read_lock()
        else:
            lock.write_lock()
            kvm.stat.add("mmu_lock_write.kvm_tdp_mmu_zap_invalidated_roots")
        root = self.tdp_mmu_next_root(kvm, None, KVM_ALL_ROOTS)
        while root is not None:
            if root.scheduled_root_to_zap:
                root.scheduled_root_to_zap = False
                self.host.main.kvm_bug_on(kvm, not root.invalid, "a valid root is to be zapped")
                self.tdp_mmu_zap_root(kvm, root, shared)
                self.kvm_tdp_mmu_put_root(kvm, root)
            root = self.tdp_mmu_next_root(kvm, root, KVM_ALL_ROOTS)
        if shared:
            lock.read_unlock()
        else:
            lock.write_unlock()

    def kvm_mmu_uninit_tdp_mmu(self, kvm: Kvm) -> None:
        """The VM is destroyed: every root is zapped and freed, the mirror's S-EPT pages reclaimed.

        Source: tdp_mmu.c kvm_mmu_uninit_tdp_mmu.
        """
        self.kvm_tdp_mmu_invalidate_roots(kvm, KVM_VALID_ROOTS)
        self.kvm_tdp_mmu_zap_invalidated_roots(kvm, False)
        if kvm.arch.tdp_mmu_pages:
            self.warn_on(f"{kvm.arch.tdp_mmu_pages} page tables left", "kvm_mmu_uninit_tdp_mmu")
        if kvm.arch.tdp_mmu_roots:
            self.warn_on("roots are left", "kvm_mmu_uninit_tdp_mmu")
        self.rcu_barrier()
