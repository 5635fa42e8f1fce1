"""Changing an entry of the TDP MMU, and what follows from it in KVM and in the S-EPT.

Under mmu_lock for reading an entry is changed by compare-exchange. A mirror entry is frozen first,
then the external page table is changed, then the new value is written or the old one restored.
Under mmu_lock for writing the mirror entry is simply written, and the external page table follows.

Source: arch/x86/kvm/mmu/tdp_mmu.c; patches 07 and 09 of the v3 series.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.errno import EBUSY
from septum.abi.kvm import LEVEL_NAMES, PAGES_PER_HPAGE, PG_LEVEL_4K, PT64_ROOT_MAX_LEVEL
from septum.abi.spte import (
    FROZEN_SPTE,
    PT_PAGE_SIZE_MASK,
    SPTE_BASE_ADDR_MASK,
    SPTE_MMU_PRESENT_MASK,
    is_last_spte,
    is_mmio_spte,
    is_shadow_present_pte,
    make_nonleaf_spte,
)
from septum.linux.kvm.events import KvmMmuPrepareZapPage, KvmTdpMmuSpteChanged
from septum.linux.kvm.tdp_mmu_roots import TdpMmuRoots
from septum.sim import RunStopped

if TYPE_CHECKING:
    from septum.linux.kvm.tdp_iter import TdpIter
    from septum.linux.kvm.types import Kvm, KvmMmuPage
    from septum.machine.tables import TablePage

_PAGE_STATS = tuple(f"pages_{name}" for name in LEVEL_NAMES)


class TdpMmuSpte(TdpMmuRoots):
    """Entries: bookkeeping of a change, and the ways to make one."""

    __slots__ = ()

    def kvm_update_page_stats(self, kvm: Kvm, level: int, count: int) -> None:
        """pages_4k, pages_2m, pages_1g. Source: mmu.h kvm_update_page_stats."""
        values = kvm.stat.values
        name = _PAGE_STATS[level]
        values[name] = values.get(name, 0) + count

    def spte_to_child_sp(self, spte: int) -> KvmMmuPage:
        """spte_to_child_sp(): the table that a present non-leaf entry points to."""
        return self.host.page_private[(spte & SPTE_BASE_ADDR_MASK) >> 12]

    def is_frozen_spte(self, spte: int) -> bool:
        """is_frozen_spte(): another task is changing the entry."""
        return spte == FROZEN_SPTE

    def is_mirror_sptep(self, table: TablePage) -> bool:
        """is_mirror_sptep(): whether an entry of `table` belongs to a mirror root."""
        return self.host.page_private[table.pfn].is_mirror

    # Bookkeeping

    def handle_changed_spte(
        self,
        kvm: Kvm,
        gfn: int,
        old_spte: int,
        new_spte: int,
        level: int,
        shared: bool,
        mirror: bool,
    ) -> None:
        """What follows from an entry's change: trace, statistics, removed tables.

        Under mmu_lock for writing it is called before the S-EPT is changed (patch 07), so that
        statistics and trace tell of the mirror, whatever becomes of the S-EPT.
        Source: tdp_mmu.c handle_changed_spte.
        """
        was_present = old_spte & SPTE_MMU_PRESENT_MASK
        is_present = new_spte & SPTE_MMU_PRESENT_MASK
        leaf_level = level == PG_LEVEL_4K
        was_leaf = bool(was_present and (leaf_level or old_spte & PT_PAGE_SIZE_MASK))
        is_leaf = bool(is_present and (leaf_level or new_spte & PT_PAGE_SIZE_MASK))
        if level > PT64_ROOT_MAX_LEVEL or gfn & (PAGES_PER_HPAGE[level] - 1):
            self.warn_on_once(f"gfn {gfn:#x} at level {level}", "handle_changed_spte")
        pfn_changed = bool((old_spte ^ new_spte) & SPTE_BASE_ADDR_MASK)
        if was_leaf and is_leaf and pfn_changed:
            # MODEL: BUG() is the end of the host; here it is a finding, and the run goes on.
            self.sim.find(
                "no-bug",
                f"BUG: a present leaf of gfn {gfn:#x} is replaced by one of another PFN "
                f"({old_spte:#x} -> {new_spte:#x}, level {level})",
                where="handle_changed_spte",
            )
        if old_spte == new_spte:
            return
        if self.sim.tracing:
            task = self.sim.current
            self.sim.emit(
                KvmTdpMmuSpteChanged(
                    task.time_ns,
                    task.name,
                    task.cpu,
                    gfn,
                    level,
                    old_spte,
                    new_spte,
                    0,
                    mirror,
                    kvm.id,
                )
            )
        if not was_present and not is_present:
            self._check_nonpresent_change(kvm, gfn, old_spte, new_spte, level)
            return
        if is_leaf != was_leaf:
            values = kvm.stat.values
            name = _PAGE_STATS[level]
            values[name] = values.get(name, 0) + (1 if is_leaf else -1)
        if was_present and not was_leaf:
            if is_present and not is_leaf and pfn_changed:
                self.warn_on_once(f"the table at gfn {gfn:#x} is replaced", "handle_changed_spte")
            if is_leaf or not is_present or pfn_changed:
                self.handle_removed_pt(kvm, self.spte_to_child_sp(old_spte), shared)

    def _check_nonpresent_change(
        self, kvm: Kvm, gfn: int, old_spte: int, new_spte: int, level: int
    ) -> None:
        mmio = kvm.arch.shadow_mmio_value
        if is_mmio_spte(old_spte, mmio) or is_mmio_spte(new_spte, mmio) or new_spte == FROZEN_SPTE:
            return
        self.warn_on_once(
            f"nonpresent SPTE of gfn {gfn:#x} level {level} is replaced by another "
            f"({old_spte:#x} -> {new_spte:#x})",
            "handle_changed_spte",
        )

    def tdp_mmu_unlink_sp(self, kvm: Kvm, sp: KvmMmuPage) -> None:
        """A table is not in use any more. Source: tdp_mmu.c tdp_mmu_unlink_sp."""
        kvm.arch.tdp_mmu_pages -= 1
        if sp.nx_huge_page_disallowed:
            assert kvm.arch.tdp_mmu_pages_lock is not None
            with kvm.arch.tdp_mmu_pages_lock:
                sp.nx_huge_page_disallowed = False

    def handle_removed_pt(self, kvm: Kvm, sp: KvmMmuPage, shared: bool) -> None:
        """A table was removed from the paging structure: clear it, and the tables below it.

        Of a mirror, leaves go out of the S-EPT first, then the S-EPT page itself is reclaimed;
        a page that could not be is leaked. Source: tdp_mmu.c handle_removed_pt.
        """
        if self.sim.tracing:
            task = self.sim.current
            self.sim.emit(
                KvmMmuPrepareZapPage(
                    task.time_ns, task.name, task.cpu, sp.gfn, sp.level, sp.is_mirror
                )
            )
        self.tdp_mmu_unlink_sp(kvm, sp)
        level = sp.level
        step = PAGES_PER_HPAGE[level]
        spt = sp.spt
        if not shared and spt.entries is None and not spt.base & SPTE_MMU_PRESENT_MASK:
            indexes: tuple[int, ...] | range = ()  # nothing is present in the whole table
        else:
            indexes = range(512)
        for i in indexes:
            if shared:
                self.sim.point("xchg")
                old_spte = spt.entry(i)
                # MODEL: another task's frozen entry is waited for at scheduling points.
                while old_spte == FROZEN_SPTE:
                    self.sim.retry("cpu_relax")
                    old_spte = spt.entry(i)
                spt.set_entry(i, FROZEN_SPTE)
            else:
                old_spte = spt.entry(i)
                if not old_spte & SPTE_MMU_PRESENT_MASK:
                    continue
                spt.set_entry(i, FROZEN_SPTE)
            gfn = sp.gfn + i * step
            self.handle_changed_spte(kvm, gfn, old_spte, FROZEN_SPTE, level, shared, sp.is_mirror)
            if sp.is_mirror:
                self.host.main.kvm_bug_on(
                    kvm, shared, "a mirror table is removed under mmu_lock for reading"
                )
                self.remove_external_spte(kvm, gfn, old_spte, level)
        if sp.is_mirror:
            assert sp.external_spt is not None
            if self.host.tdx.free_external_spt(kvm, sp.gfn, level, sp.external_spt):
                self.warn_on(f"S-EPT page of gfn {sp.gfn:#x} leaks", "handle_removed_pt")
                sp.external_spt = None
        self._call_rcu_free_sp(sp)

    # The external page table

    def get_external_spt(self, gfn: int, new_spte: int, level: int) -> int | None:
        """The S-EPT page of the table that `new_spte` points to; None for a leaf."""
        if not is_shadow_present_pte(new_spte) or is_last_spte(new_spte, level):
            return None
        sp = self.spte_to_child_sp(new_spte)
        if sp.level + 1 != level or sp.gfn != gfn:
            self.warn_on_once(f"gfn {gfn:#x} links a table of {sp.gfn:#x}", "get_external_spt")
        return sp.external_spt

    def _must_get_external_spt(self, kvm: Kvm, gfn: int, new_spte: int, level: int) -> int:
        external_spt = self.get_external_spt(gfn, new_spte, level)
        if external_spt is None:
            self.host.main.kvm_bug_on(kvm, True, "a mirror table has no S-EPT page")
            # MODEL: the kernel goes on with virt_to_page(NULL) and oopses: the run ends here.
            raise RunStopped(self.sim.findings[-1])
        return external_spt

    def remove_external_spte(self, kvm: Kvm, gfn: int, old_spte: int, level: int) -> None:
        """A leaf goes out of the S-EPT; it cannot fail. Tables are freed by free_external_spt.

        Source: tdp_mmu.c remove_external_spte.
        """
        if level != PG_LEVEL_4K and not old_spte & PT_PAGE_SIZE_MASK:
            return
        if not kvm.mmu_lock.held_write():
            self.lockdep_assert(False, "mmu_lock is not held for writing", "remove_external_spte")
        self.host.tdx.remove_external_spte(kvm, gfn, level, old_spte)

    def split_external_spte(
        self, kvm: Kvm, gfn: int, old_spte: int, new_spte: int, level: int, shared: bool
    ) -> int:
        """A huge leaf of the S-EPT becomes a table. 0 or -errno of the TDX side.

        Source: patches 07 and 09, tdp_mmu.c split_external_spte.
        """
        new_external_spt = self._must_get_external_spt(kvm, gfn, new_spte, level)
        return self.host.tdx.split_external_spte(
            kvm, gfn, level, old_spte, new_external_spt, shared
        )

    def set_external_spte_present(self, kvm: Kvm, it: TdpIter, old_spte: int, new_spte: int) -> int:
        """Freeze a mirror entry, change the S-EPT, write the entry. 0, -EBUSY or the TDX error.

        Valid: not present -> leaf or table, leaf -> table (a split, which TDX refuses here).
        On failure the old value is back in the entry.
        Source: patch 09, tdp_mmu.c set_external_spte_present.
        """
        gfn, level = it.gfn, it.level
        was_present = is_shadow_present_pte(old_spte)
        splits = was_present and is_last_spte(old_spte, level) and not is_last_spte(new_spte, level)
        if was_present and not splits:
            change = f"gfn {gfn:#x}: mirror SPTE {old_spte:#x} -> {new_spte:#x}"
            self.host.main.kvm_bug_on(kvm, True, f"{change} under mmu_lock for reading")
        if not kvm.mmu_lock.held():
            self.lockdep_assert(False, "mmu_lock is not held", "set_external_spte_present")
        # SUSPECT: `old_spte` is a copy, so that iter->old_spte is not updated when the exchange
        # fails, as it is for other roots: a caller that tries again with the same iterator never
        # succeeds. Fixed after v3 by 02eaaffdd865.
        if not self._freeze_spte(it, old_spte, new_spte):
            return -EBUSY
        ret = self._propagate_to_external_shared(kvm, gfn, old_spte, new_spte, level)
        self._thaw_spte(it, old_spte, new_spte, ret)
        return ret

    def _propagate_to_external_shared(
        self, kvm: Kvm, gfn: int, old_spte: int, new_spte: int, level: int
    ) -> int:
        """The S-EPT's part of set_external_spte_present(), while the mirror entry is frozen."""
        if is_shadow_present_pte(old_spte):
            if is_last_spte(old_spte, level) and not is_last_spte(new_spte, level):
                return self.split_external_spte(kvm, gfn, old_spte, new_spte, level, True)
            return 0
        if is_last_spte(new_spte, level):
            return self.host.tdx.set_external_spte(kvm, gfn, level, new_spte)
        return self._link_external_spt(kvm, gfn, new_spte, level)

    def _link_external_spt(self, kvm: Kvm, gfn: int, new_spte: int, level: int) -> int:
        """An S-EPT page for the mirror table that `new_spte` points to. 0 or the TDX error."""
        external_spt = self._must_get_external_spt(kvm, gfn, new_spte, level)
        return self.host.tdx.link_external_spt(kvm, gfn, level, external_spt)

    def _freeze_spte(self, it: TdpIter, old_spte: int, new_spte: int) -> bool:
        """Keep others away from a mirror entry while the S-EPT is changed for it; false when it
        is not `old_spte` any more. Source: the try_cmpxchg64() of set_external_spte_present()."""
        self.sim.point("cmpxchg")
        return it.table.try_cmpxchg(it.index, old_spte, FROZEN_SPTE) == old_spte

    def _thaw_spte(self, it: TdpIter, old_spte: int, new_spte: int, ret: int) -> None:
        """The mirror entry gets its new value, or its old one when the S-EPT change failed.

        Source: the __kvm_tdp_mmu_write_spte() of set_external_spte_present().
        """
        self.sim.point("write_spte")
        it.table.set_entry(it.index, old_spte if ret else new_spte)

    # Setting an entry

    def _tdp_mmu_set_spte_atomic(self, kvm: Kvm, it: TdpIter, new_spte: int) -> int:
        """__tdp_mmu_set_spte_atomic(): set without bookkeeping. 0, -EBUSY, or the TDX error."""
        if it.yielded or it.old_spte == FROZEN_SPTE:
            self.warn_on_once(f"gfn {it.gfn:#x} frozen or yielded", "__tdp_mmu_set_spte_atomic")
        if self.is_mirror_sptep(it.table) and new_spte != FROZEN_SPTE:
            # Atomic zapping is not for mirror roots.
            if self.host.main.kvm_bug_on(
                kvm, not is_shadow_present_pte(new_spte), "atomic zap of a mirror SPTE"
            ):
                return -EBUSY
            return self.set_external_spte_present(kvm, it, it.old_spte, new_spte)
        self.sim.point("cmpxchg")
        found = it.table.try_cmpxchg(it.index, it.old_spte, new_spte)
        if found != it.old_spte:
            it.old_spte = found
            return -EBUSY
        return 0

    def tdp_mmu_set_spte_atomic(self, kvm: Kvm, it: TdpIter, new_spte: int) -> int:
        """Set an entry under mmu_lock for reading. 0; -EBUSY: it changed meanwhile; TDX error.

        Source: tdp_mmu.c tdp_mmu_set_spte_atomic.
        """
        if not kvm.mmu_lock.held_read():
            self.lockdep_assert(False, "not a reader", "tdp_mmu_set_spte_atomic")
        self._rcu_dereference("tdp_mmu_set_spte_atomic")
        ret = self._tdp_mmu_set_spte_atomic(kvm, it, new_spte)
        if ret:
            return ret
        self.handle_changed_spte(
            kvm, it.gfn, it.old_spte, new_spte, it.level, True, it.root.is_mirror
        )
        return 0

    def tdp_mmu_set_spte(
        self,
        kvm: Kvm,
        table: TablePage,
        index: int,
        old_spte: int,
        new_spte: int,
        gfn: int,
        level: int,
    ) -> int:
        """Set an entry under mmu_lock for writing, then the S-EPT; returns the old value.

        Source: patches 07 and 09, tdp_mmu.c tdp_mmu_set_spte.

        SUSPECT: the return value of the split hook is ignored, so that a failed split leaves a
        split mirror over an S-EPT that is not split. Only the KVM_BUG_ON() inside the hook keeps
        the guest from running on; statistics and trace say that the split succeeded.
        """
        if not kvm.mmu_lock.held_write():
            self.lockdep_assert(False, "mmu_lock is not held for writing", "tdp_mmu_set_spte")
        if old_spte == FROZEN_SPTE or new_spte == FROZEN_SPTE:
            self.warn_on_once(f"gfn {gfn:#x} is frozen", "tdp_mmu_set_spte")
        table.set_entry(index, new_spte)
        mirror = self.host.page_private[table.pfn].is_mirror
        self.handle_changed_spte(kvm, gfn, old_spte, new_spte, level, False, mirror)
        if mirror:
            self._propagate_to_external(kvm, gfn, old_spte, new_spte, level)
        return old_spte

    def _propagate_to_external(
        self, kvm: Kvm, gfn: int, old_spte: int, new_spte: int, level: int
    ) -> None:
        """The last part of tdp_mmu_set_spte(), for a mirror: leaf or table -> not present, and
        leaf -> table (a split); anything else is KVM_BUG_ON. Source: patch 07."""
        if not new_spte & SPTE_MMU_PRESENT_MASK:
            self.remove_external_spte(kvm, gfn, old_spte, level)
        elif is_last_spte(old_spte, level) and not is_last_spte(new_spte, level):
            self.split_external_spte(kvm, gfn, old_spte, new_spte, level, False)
        else:
            self.host.main.kvm_bug_on(
                kvm, True, f"gfn {gfn:#x}: mirror SPTE {old_spte:#x} -> {new_spte:#x}"
            )

    def _rcu_dereference(self, where: str) -> None:
        """rcu_dereference(iter->sptep): the table may be freed under who is not in RCU."""
        if not self.host.rcu.held():
            self.lockdep_assert(False, "suspicious RCU usage, rcu_read_lock not held", where)

    def tdp_mmu_iter_set_spte(self, kvm: Kvm, it: TdpIter, new_spte: int) -> None:
        """tdp_mmu_set_spte() at the iterator's position. Source: tdp_mmu_iter_set_spte."""
        self._rcu_dereference("tdp_mmu_iter_set_spte")
        if it.yielded:
            self.warn_on_once(f"gfn {it.gfn:#x} after a yield", "tdp_mmu_iter_set_spte")
        it.old_spte = self.tdp_mmu_set_spte(
            kvm, it.table, it.index, it.old_spte, new_spte, it.gfn, it.level
        )

    def tdp_mmu_link_sp(self, kvm: Kvm, it: TdpIter, sp: KvmMmuPage, shared: bool) -> int:
        """Replace the iterator's entry by one that points to `sp`. 0 or -errno (shared only).

        Source: tdp_mmu.c tdp_mmu_link_sp.
        """
        spte = make_nonleaf_spte(sp.spt.pfn)
        if shared:
            ret = self.tdp_mmu_set_spte_atomic(kvm, it, spte)
            if ret:
                return ret
        else:
            self.tdp_mmu_iter_set_spte(kvm, it, spte)
        kvm.arch.tdp_mmu_pages += 1
        return 0

    def tdp_mmu_iter_cond_resched(self, kvm: Kvm, it: TdpIter, flush: bool, shared: bool) -> bool:
        """Yield mmu_lock when the choice point `need_resched` says so.

        True: the lock was dropped and the walk must go on with `next()`. Never before the walk
        has moved since the last time. A preemptible kernel (`preempt_full`) also yields when
        somebody waits for the lock. Source: tdp_mmu.c tdp_mmu_iter_cond_resched.
        """
        if it.yielded:
            self.warn_on_once("yield twice", "tdp_mmu_iter_cond_resched")
        lock = kvm.mmu_lock
        if not self.sim.choose("need_resched") and not (
            self.host.params.preempt_full and lock.is_contended()
        ):
            return False
        if it.next_last_level_gfn == it.yielded_gfn:
            return False
        if flush:
            self.host.main.kvm_flush_remote_tlbs(kvm)
        self.rcu_read_unlock()
        if shared:
            lock.read_unlock()
            self.sim.point("cond_resched")
            lock.read_lock()
        else:
            lock.write_unlock()
            self.sim.point("cond_resched")
            lock.write_lock()
            kvm.stat.add("mmu_lock_write.tdp_mmu_iter_cond_resched")
        self.rcu_read_lock()
        if it.gfn > it.next_last_level_gfn:
            self.warn_on_once(f"gfn {it.gfn:#x}", "tdp_mmu_iter_cond_resched")
        it.yielded = True
        return True
