"""Roots and page-table pages of the TDP MMU: how they are made, found, referenced and freed.

Source: arch/x86/kvm/mmu/tdp_mmu.c, tdp_mmu.h, first part.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from septum.abi.kvm import (
    KVM_DIRECT_ROOTS,
    KVM_INVALID_ROOTS,
    KVM_MIRROR_ROOTS,
    KVM_VALID_ROOTS,
)
from septum.abi.spte import SHADOW_NONPRESENT_VALUE
from septum.linux.kvm.events import KvmMmuGetPage
from septum.linux.kvm.types import KVM_FILTER_PRIVATE, KVM_FILTER_SHARED, KvmMmuPage
from septum.linux.unit import Unit
from septum.sim import SpinLock

if TYPE_CHECKING:
    from septum.linux.kvm.tdp_iter import TdpIter
    from septum.linux.kvm.types import Kvm, KvmVcpu


def kvm_has_mirrored_tdp(kvm: Kvm) -> bool:
    """kvm_has_mirrored_tdp(): private memory has a page table of its own, outside of KVM."""
    return kvm.arch.has_private_mem and kvm.arch.has_protected_state


def kvm_gfn_root_bits(kvm: Kvm, root: KvmMmuPage) -> int:
    """kvm_gfn_root_bits(): GFN bits that select the entry in `root` besides the GFN itself."""
    return 0 if root.is_mirror else kvm.arch.gfn_direct_bits


def kvm_gfn_range_filter_to_root_types(kvm: Kvm, process: int) -> int:
    """kvm_gfn_range_filter_to_root_types(): the roots that a KVM_FILTER_* mask concerns."""
    if not kvm_has_mirrored_tdp(kvm):
        return KVM_DIRECT_ROOTS
    types = 0
    if process & KVM_FILTER_PRIVATE:
        types |= KVM_MIRROR_ROOTS
    if process & KVM_FILTER_SHARED:
        types |= KVM_DIRECT_ROOTS
    return types


def tdp_mmu_root_match(root: KvmMmuPage, types: int) -> bool:
    """tdp_mmu_root_match(): whether `root` is one of KVM_*_ROOTS `types`."""
    if root.invalid and not types & KVM_INVALID_ROOTS:
        return False
    return bool(types & (KVM_MIRROR_ROOTS if root.is_mirror else KVM_DIRECT_ROOTS))


class TdpMmuRoots(Unit):
    """Page-table pages and roots. `mmu_page` is the class of what they are described by."""

    __slots__ = ()
    mmu_page: ClassVar[type[KvmMmuPage]] = KvmMmuPage

    def kvm_mmu_init_tdp_mmu(self, kvm: Kvm) -> None:
        """Called when a VM is created. Source: tdp_mmu.c kvm_mmu_init_tdp_mmu."""
        kvm.arch.tdp_mmu_roots = []
        kvm.arch.tdp_mmu_pages_lock = SpinLock(self.sim, f"kvm{kvm.id}.tdp_mmu_pages_lock")

    # RCU, as far as it keeps page tables from being freed under a walker.

    def rcu_read_lock(self) -> None:
        """rcu_read_lock()."""
        self.host.rcu.enter()
        self.host.rcu_readers += 1

    def rcu_read_unlock(self) -> None:
        """rcu_read_unlock().

        MODEL: a grace period ends as soon as no section is open; the callbacks run there.
        """
        host = self.host
        if not host.rcu.leave():
            return
        host.rcu_readers -= 1
        if not host.rcu_readers and host.rcu_free_sps:
            self.rcu_barrier()

    def rcu_barrier(self) -> None:
        """rcu_barrier(): every pending call_rcu() callback runs."""
        sps = self.host.rcu_free_sps
        self.host.rcu_free_sps = []
        for sp in sps:
            self.tdp_mmu_free_sp(sp)

    def _call_rcu_free_sp(self, sp: KvmMmuPage) -> None:
        """call_rcu(&sp->rcu_head, tdp_mmu_free_sp_rcu_callback)."""
        if self.host.rcu_readers:
            self.host.rcu_free_sps.append(sp)
        else:
            self.tdp_mmu_free_sp(sp)

    # struct kvm_mmu_page

    def tdp_mmu_alloc_sp(self, vcpu: KvmVcpu) -> KvmMmuPage:
        """A page table from the vCPU's caches. Source: tdp_mmu.c tdp_mmu_alloc_sp.

        MODEL: an empty cache is a WARN in the kernel and then a GFP_ATOMIC allocation.
        """
        if vcpu.mmu_page_header_cache:
            vcpu.mmu_page_header_cache -= 1
        else:
            self.warn_on_once("kvm_mmu_memory_cache is empty", "kvm_mmu_memory_cache_alloc")
        cache = vcpu.mmu_shadow_page_cache
        return self.new_sp(cache.pop() if cache else self._alloc_atomic())

    def kvm_mmu_alloc_external_spt(self, vcpu: KvmVcpu, sp: KvmMmuPage) -> None:
        """The S-EPT page of a new mirror table, from the vCPU's external cache.

        Source: mmu_internal.h kvm_mmu_alloc_external_spt, with Dynamic PAMT v4.
        """
        sp.external_spt = self.host.tdx.alloc_external_fault_cache(vcpu)

    def _alloc_atomic(self) -> int:
        self.warn_on_once("kvm_mmu_memory_cache is empty", "kvm_mmu_memory_cache_alloc")
        pfn = self.host.mm.alloc_page("kvm_mmu_memory_cache_alloc", atomic=True)
        if pfn is None:
            raise MemoryError("BUG_ON: kvm_mmu_memory_cache_alloc() has no page to return")
        return pfn

    def new_sp(self, spt_pfn: int) -> KvmMmuPage:
        """A struct kvm_mmu_page whose table is page `spt_pfn`, every entry not present."""
        spt = self.machine.alloc_table(spt_pfn, SHADOW_NONPRESENT_VALUE)
        return self.mmu_page(spt, 0, 0, False)

    def tdp_mmu_free_sp(self, sp: KvmMmuPage) -> None:
        """Free the S-EPT page (unless leaked: None), the table and the header.

        Source: tdp_mmu.c tdp_mmu_free_sp.
        """
        mm = self.host.mm
        if sp.external_spt is not None:
            mm.free_page(sp.external_spt)
        pfn = sp.spt.pfn
        self.machine.free_table(pfn)
        self.host.page_private.pop(pfn, None)
        mm.free_page(pfn)

    def tdp_mmu_init_sp(self, sp: KvmMmuPage, gfn: int, level: int, is_mirror: bool) -> None:
        """Say what `sp` maps. Source: tdp_mmu.c tdp_mmu_init_sp."""
        self.host.page_private[sp.spt.pfn] = sp
        sp.level = level
        sp.gfn = gfn
        sp.is_mirror = is_mirror
        if self.sim.tracing:
            task = self.sim.current
            self.sim.emit(KvmMmuGetPage(task.time_ns, task.name, task.cpu, gfn, level, is_mirror))

    def tdp_mmu_init_child_sp(self, child_sp: KvmMmuPage, it: TdpIter) -> None:
        """`child_sp` will hang below the iterator's entry. Source: tdp_mmu_init_child_sp."""
        parent_sp = self.host.page_private[it.table.pfn]
        self.tdp_mmu_init_sp(child_sp, it.gfn, parent_sp.level - 1, parent_sp.is_mirror)

    # Roots

    def kvm_tdp_mmu_get_root(self, root: KvmMmuPage) -> bool:
        """refcount_inc_not_zero(): false when the root is on its way out."""
        if not root.root_count:
            return False
        root.root_count += 1
        return True

    def kvm_tdp_mmu_put_root(self, kvm: Kvm, root: KvmMmuPage) -> None:
        """Drop a reference; the last one, of an invalid root, frees it.

        Source: tdp_mmu.c kvm_tdp_mmu_put_root.
        """
        root.root_count -= 1
        if root.root_count:
            return
        self.host.main.kvm_bug_on(
            kvm, not root.invalid, "the last reference of a valid TDP MMU root is put"
        )
        assert kvm.arch.tdp_mmu_pages_lock is not None
        with kvm.arch.tdp_mmu_pages_lock:
            kvm.arch.tdp_mmu_roots.remove(root)
        self._call_rcu_free_sp(root)

    def tdp_mmu_next_root(
        self, kvm: Kvm, prev_root: KvmMmuPage | None, types: int
    ) -> KvmMmuPage | None:
        """The next root of `types` after `prev_root`, with a reference; drops that of `prev_root`.

        mmu_lock is held. None: there are no more. Source: tdp_mmu.c tdp_mmu_next_root.
        """
        if not kvm.mmu_lock.held():
            self.lockdep_assert(False, "mmu_lock is not held", "tdp_mmu_next_root")
        roots = kvm.arch.tdp_mmu_roots
        at = roots.index(prev_root) + 1 if prev_root is not None else 0
        next_root = None
        while at < len(roots):
            if tdp_mmu_root_match(roots[at], types) and self.kvm_tdp_mmu_get_root(roots[at]):
                next_root = roots[at]
                break
            at += 1
        if prev_root is not None:
            self.kvm_tdp_mmu_put_root(kvm, prev_root)
        return next_root

    def kvm_tdp_mmu_alloc_root(self, vcpu: KvmVcpu, mirror: bool) -> None:
        """Give the vCPU the VM's valid root of one kind, made if there is none.

        The VM itself holds one reference until the root is invalidated, the vCPU another.
        Source: tdp_mmu.c kvm_tdp_mmu_alloc_root.
        """
        kvm = vcpu.kvm
        arch = kvm.arch
        types = KVM_MIRROR_ROOTS if mirror else KVM_DIRECT_ROOTS
        assert arch.tdp_mmu_pages_lock is not None
        kvm.mmu_lock.read_lock()
        # A valid root of the same role is shared by all vCPUs.
        root = self.tdp_mmu_next_root(kvm, None, types)
        if root is None:
            with arch.tdp_mmu_pages_lock:
                # Another vCPU may have made one since.
                root = self._find_root(kvm, types)
                if root is None:
                    root = self.tdp_mmu_alloc_sp(vcpu)
                    self.tdp_mmu_init_sp(root, 0, arch.root_level, mirror)
                    root.root_count = 2
                    arch.tdp_mmu_roots.insert(0, root)
        kvm.mmu_lock.read_unlock()
        if mirror:
            arch.mirror_root = vcpu.mmu_mirror_root = root
        else:
            arch.direct_root = vcpu.mmu_root = root

    def _find_root(self, kvm: Kvm, types: int) -> KvmMmuPage | None:
        for root in kvm.arch.tdp_mmu_roots:
            if tdp_mmu_root_match(root, types):
                if self.kvm_tdp_mmu_get_root(root):
                    return root
                self.warn_on_once("a valid root has no reference", "kvm_tdp_mmu_alloc_root")
        return None

    def kvm_tdp_mmu_invalidate_roots(self, kvm: Kvm, root_types: int) -> None:
        """Mark roots of `root_types` invalid and to be zapped.

        Source: tdp_mmu.c kvm_tdp_mmu_invalidate_roots.
        """
        if root_types & KVM_INVALID_ROOTS:
            self.warn_on_once("invalid roots are invalidated", "kvm_tdp_mmu_invalidate_roots")
            root_types &= ~KVM_INVALID_ROOTS
        self.lockdep_assert(
            kvm.mmu_lock.held_write() or not kvm.created_vcpus or not kvm.users_count,
            "mmu_lock is not held for writing",
            "kvm_tdp_mmu_invalidate_roots",
        )
        arch = kvm.arch
        for root in arch.tdp_mmu_roots:
            if not tdp_mmu_root_match(root, root_types & KVM_VALID_ROOTS):
                continue
            # An invalid root can outlive this, as a task may hold a reference.
            if not root.invalid:
                root.scheduled_root_to_zap = True
                root.invalid = True
            if arch.direct_root is root:
                arch.direct_root = None
            if arch.mirror_root is root:
                arch.mirror_root = None
