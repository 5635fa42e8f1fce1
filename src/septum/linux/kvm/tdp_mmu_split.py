"""Splitting huge leaves of the TDP MMU.

Source: arch/x86/kvm/mmu/tdp_mmu.c; patches 10, 11 and 19 of the v3 series.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.errno import ENOMEM
from septum.abi.kvm import PAGES_PER_HPAGE, PG_LEVEL_4K
from septum.abi.spte import (
    PT_PAGE_SIZE_MASK,
    SPTE_MMU_PRESENT_MASK,
    make_small_spte_template,
)
from septum.linux.kvm.events import KvmMmuSplitHugePage
from septum.linux.kvm.tdp_iter import TdpIter
from septum.linux.kvm.tdp_mmu_roots import (
    kvm_gfn_range_filter_to_root_types,
    kvm_gfn_root_bits,
)
from septum.linux.kvm.tdp_mmu_spte import TdpMmuSpte

if TYPE_CHECKING:
    from septum.linux.kvm.types import Kvm, KvmGfnRange, KvmMmuPage


class TdpMmuSplit(TdpMmuSpte):
    """Splitting."""

    __slots__ = ()

    def tdp_mmu_alloc_sp_for_split(self, mirror: bool) -> KvmMmuPage | None:
        """Header, table and, for a mirror, S-EPT page of a split; None without memory.

        Allocates with waiting: no lock is held. Source: patch 10, tdp_mmu_alloc_sp_for_split.
        """
        mm = self.host.mm
        self.sim.might_sleep("tdp_mmu_alloc_sp_for_split")
        if mm.fails("tdp_mmu_alloc_sp_for_split"):
            return None
        spt = mm.alloc_page("tdp_mmu_alloc_sp_for_split.spt")
        if spt is None:
            return None
        sp = self.new_sp(spt)
        if mirror and not self._alloc_external_for_split(sp):
            self.machine.free_table(spt)
            mm.free_page(spt)
            return None
        return sp

    def _alloc_external_for_split(self, sp: KvmMmuPage) -> bool:
        """What the S-EPT's side of a split needs: a page. Source: patch 10."""
        sp.external_spt = self.host.mm.get_zeroed_page("tdp_mmu_alloc_sp_for_split.external_spt")
        return sp.external_spt is not None

    def trace_kvm_mmu_split_huge_page(self, it: TdpIter, spte: int, errno: int) -> None:
        """trace_kvm_mmu_split_huge_page()."""
        if self.sim.tracing:
            cause = self.host.main.current_cause()
            task = self.sim.current
            self.sim.emit(
                KvmMmuSplitHugePage(
                    task.time_ns, task.name, task.cpu, it.gfn, spte, it.level, errno, cause
                )
            )

    def tdp_mmu_split_huge_page(self, kvm: Kvm, it: TdpIter, sp: KvmMmuPage, shared: bool) -> int:
        """Replace the huge leaf by `sp` with 512 smaller leaves. 0, or -errno when `shared`.

        Under mmu_lock for writing it reports success whatever the S-EPT did.
        Source: tdp_mmu.c tdp_mmu_split_huge_page.
        """
        huge_spte = it.old_spte
        level = it.level
        # Not linked yet: nobody else can see the table.
        base, stride = make_small_spte_template(huge_spte, sp.level)
        sp.spt.fill(base, stride)
        ret = self.tdp_mmu_link_sp(kvm, it, sp, shared)
        if not ret:
            self.kvm_update_page_stats(kvm, level - 1, 512)
            kvm.stat.add(f"split.{self.host.main.current_cause()}")
        self.trace_kvm_mmu_split_huge_page(it, huge_spte, ret)
        return ret

    def need_topup_external_split_cache(self, kvm: Kvm, level: int) -> bool:
        """Whether the per-VM cache lacks pages for one split. Source: patch 19."""
        return self.host.tdx.need_topup_external_per_vm_split_cache(kvm, level)

    def topup_external_split_cache(self, kvm: Kvm, level: int, shared: bool) -> int:
        """Fill the per-VM cache with mmu_lock dropped. 0 or -ENOMEM.

        On failure it comes back with mmu_lock but outside of RCU, which its caller expects.
        Source: patch 19, topup_external_split_cache.
        """
        self.rcu_read_unlock()
        self._mmu_unlock(kvm, shared)
        r = self.host.tdx.topup_external_per_vm_split_cache(kvm, level)
        self._mmu_lock(kvm, shared, "topup_external_split_cache")
        if not r:
            self.rcu_read_lock()
        return r

    def _mmu_unlock(self, kvm: Kvm, shared: bool) -> None:
        if shared:
            kvm.mmu_lock.read_unlock()
        else:
            kvm.mmu_lock.write_unlock()

    def _mmu_lock(self, kvm: Kvm, shared: bool, caller: str) -> None:
        if shared:
            kvm.mmu_lock.read_lock()
        else:
            kvm.mmu_lock.write_lock()
            kvm.stat.add(f"mmu_lock_write.{caller}")

    def _alloc_sp_without_mmu_lock(
        self, kvm: Kvm, root: KvmMmuPage, shared: bool
    ) -> KvmMmuPage | None:
        """tdp_mmu_alloc_sp_for_split() with mmu_lock dropped for it."""
        self._mmu_unlock(kvm, shared)
        sp = self.tdp_mmu_alloc_sp_for_split(root.is_mirror)
        self._mmu_lock(kvm, shared, "tdp_mmu_split_huge_pages_root")
        return sp

    def iter_cross_boundary(self, it: TdpIter, start: int, end: int) -> bool:
        """Whether the entry reaches out of [start, end). Source: patch 11, iter_cross_boundary."""
        return not (it.gfn >= start and it.gfn + PAGES_PER_HPAGE[it.level] <= end)

    def _look_again(self, it: TdpIter) -> None:
        """mmu_lock was dropped: walk down to the same GFN again, whatever is there now."""
        it.yielded = True
        it.next()

    def tdp_mmu_split_huge_pages_root(
        self,
        kvm: Kvm,
        root: KvmMmuPage,
        start: int,
        end: int,
        target_level: int,
        shared: bool,
        only_cross_boundary: bool,
    ) -> int:
        """Split the huge leaves above `target_level` in [start, end). 0 or -ENOMEM.

        With `only_cross_boundary`, those only that reach out of the range. mmu_lock is dropped to
        allocate, and the walk then looks again at where it is; splits already made stay.
        Source: patches 11 and 19, tdp_mmu_split_huge_pages_root.
        """
        sp: KvmMmuPage | None = None
        r = 0
        self.rcu_read_lock()
        gfn_bits = kvm_gfn_root_bits(kvm, root)
        it = TdpIter(self.machine.tables, root, target_level + 1, start, gfn_bits)
        while it.valid and it.gfn < end:
            old_spte = it.old_spte
            if not old_spte & SPTE_MMU_PRESENT_MASK:
                # MODEL: the walk does not offer to yield at entries that are not present.
                it.skip_nonpresent(end)
                continue
            # A retry (below) comes back here, with the lock possibly dropped.
            if self.tdp_mmu_iter_cond_resched(kvm, it, False, shared):
                it.next()
                continue
            if not old_spte & PT_PAGE_SIZE_MASK or (
                only_cross_boundary and not self.iter_cross_boundary(it, start, end)
            ):
                it.next()
                continue
            if sp is None:
                self.rcu_read_unlock()
                sp = self._alloc_sp_without_mmu_lock(kvm, root, shared)
                if sp is None:
                    self.trace_kvm_mmu_split_huge_page(it, old_spte, -ENOMEM)
                    return -ENOMEM
                self.rcu_read_lock()
                self._look_again(it)
                continue
            if root.is_mirror and self.need_topup_external_split_cache(kvm, it.level):
                r = self.topup_external_split_cache(kvm, it.level, shared)
                if r:
                    self.trace_kvm_mmu_split_huge_page(it, old_spte, r)
                    break
                self._look_again(it)
                continue
            self.tdp_mmu_init_child_sp(sp, it)
            if self.tdp_mmu_split_huge_page(kvm, it, sp, shared):
                continue  # retry: look at this entry again
            sp = None
            it.next()
        if not r:
            self.rcu_read_unlock()
        # Left over when another task split the leaf while mmu_lock was dropped, or on failure.
        if sp is not None:
            self.tdp_mmu_free_sp(sp)
        return r

    def _split_huge_pages_in_roots(
        self,
        kvm: Kvm,
        types: int,
        start: int,
        end: int,
        target_level: int,
        shared: bool,
        only_cross_boundary: bool,
    ) -> int:
        """tdp_mmu_split_huge_pages_root() in every root of `types`, up to the first failure. 0 or
        -ENOMEM.

        Source: the loop of kvm_tdp_mmu_gfn_range_split_cross_boundary_leafs(), patch 11.
        """
        root = self.tdp_mmu_next_root(kvm, None, types)
        while root is not None:
            r = self.tdp_mmu_split_huge_pages_root(
                kvm, root, start, end, target_level, shared, only_cross_boundary
            )
            if r:
                self.kvm_tdp_mmu_put_root(kvm, root)
                return r
            root = self.tdp_mmu_next_root(kvm, root, types)
        return 0

    def kvm_tdp_mmu_gfn_range_split_cross_boundary_leafs(
        self, kvm: Kvm, rng: KvmGfnRange, shared: bool
    ) -> int:
        """Split the leaves that reach out of a range, in the roots its filter names.

        0 or -ENOMEM, with nothing undone. Invalid roots are not split.
        Source: patch 11, kvm_tdp_mmu_gfn_range_split_cross_boundary_leafs.
        """
        lock = kvm.mmu_lock
        self.lockdep_assert(
            lock.held_read() if shared else lock.held_write(),
            "mmu_lock",
            "kvm_tdp_mmu_gfn_range_split_cross_boundary_leafs",
        )
        types = kvm_gfn_range_filter_to_root_types(kvm, rng.attr_filter)
        return self._split_huge_pages_in_roots(
            kvm, types, rng.start, rng.end, PG_LEVEL_4K, shared, True
        )
