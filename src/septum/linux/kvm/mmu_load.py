"""A vCPU's memory caches and roots: filled before a fault, loaded before the guest runs.

Source: arch/x86/kvm/mmu/mmu.c, arch/x86/kvm/mmu.h, virt/kvm/kvm_main.c (memory caches).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.errno import ENOMEM
from septum.abi.kvm import KVM_REQ_MMU_FREE_OBSOLETE_ROOTS, PT64_ROOT_MAX_LEVEL
from septum.linux.kvm.mmu_attributes import MmuAttributes
from septum.linux.kvm.tdp_mmu_roots import kvm_has_mirrored_tdp

if TYPE_CHECKING:
    from septum.linux.kvm.types import KvmVcpu

KVM_ARCH_NR_OBJS_PER_MEMORY_CACHE = 40


class MmuLoad(MmuAttributes):
    """Caches and roots of a vCPU."""

    __slots__ = ()

    def mmu_topup_memory_caches(self, vcpu: KvmVcpu) -> int:
        """Make sure that the deepest fault finds its pages under mmu_lock. 0 or -ENOMEM.

        May sleep. A failure half way leaves what was allocated in the caches.
        MODEL: no cache of rmap descriptors. Source: mmu.c mmu_topup_memory_caches.
        """
        if kvm_has_mirrored_tdp(vcpu.kvm):
            r = self.host.tdx.topup_external_fault_cache(vcpu, PT64_ROOT_MAX_LEVEL)
            if r:
                return r
        if len(vcpu.mmu_shadow_page_cache) < PT64_ROOT_MAX_LEVEL:
            r = self._topup_shadow_page_cache(vcpu)
            if r:
                return r
        if vcpu.mmu_page_header_cache < PT64_ROOT_MAX_LEVEL:
            return self._topup_page_header_cache(vcpu)
        return 0

    def _topup_shadow_page_cache(self, vcpu: KvmVcpu) -> int:
        cache = vcpu.mmu_shadow_page_cache
        while len(cache) < KVM_ARCH_NR_OBJS_PER_MEMORY_CACHE:
            pfn = self.host.mm.alloc_page("mmu_topup_memory_caches.shadow_page")
            if pfn is None:
                return 0 if len(cache) >= PT64_ROOT_MAX_LEVEL else -ENOMEM
            cache.append(pfn)
        return 0

    def _topup_page_header_cache(self, vcpu: KvmVcpu) -> int:
        self.sim.might_sleep("mmu_topup_memory_caches")
        while vcpu.mmu_page_header_cache < KVM_ARCH_NR_OBJS_PER_MEMORY_CACHE:
            if self.host.mm.fails("mmu_topup_memory_caches.page_header"):
                return 0 if vcpu.mmu_page_header_cache >= PT64_ROOT_MAX_LEVEL else -ENOMEM
            vcpu.mmu_page_header_cache += 1
        return 0

    def mmu_free_memory_caches(self, vcpu: KvmVcpu) -> None:
        """Give the vCPU's caches back. Source: mmu.c mmu_free_memory_caches."""
        for pfn in vcpu.mmu_shadow_page_cache:
            self.host.mm.free_page(pfn)
        vcpu.mmu_shadow_page_cache = []
        vcpu.mmu_page_header_cache = 0
        if kvm_has_mirrored_tdp(vcpu.kvm):
            self.host.tdx.free_external_fault_cache(vcpu)

    # Roots

    def kvm_mmu_reload(self, vcpu: KvmVcpu) -> int:
        """Have valid roots before the guest runs or a page is faulted in. 0 or -errno.

        Source: mmu.h kvm_mmu_reload.
        """
        if KVM_REQ_MMU_FREE_OBSOLETE_ROOTS in vcpu.requests:
            vcpu.requests.discard(KVM_REQ_MMU_FREE_OBSOLETE_ROOTS)
            self.kvm_mmu_free_obsolete_roots(vcpu)
        if vcpu.mmu_root is not None:
            return 0
        return self.kvm_mmu_load(vcpu)

    def kvm_mmu_load(self, vcpu: KvmVcpu) -> int:
        """Allocate or find the roots and hand the direct one to the hardware. 0 or -errno.

        Source: mmu.c kvm_mmu_load.
        """
        r = self.mmu_topup_memory_caches(vcpu)
        if r:
            return r
        r = self.mmu_alloc_direct_roots(vcpu)
        if r:
            return r
        self.kvm_mmu_load_pgd(vcpu)
        # Whatever was cached of a root that had this page before.
        if kvm_has_mirrored_tdp(vcpu.kvm):
            self.host.tdx.tdx_flush_tlb_current(vcpu)
        return 0

    def mmu_alloc_direct_roots(self, vcpu: KvmVcpu) -> int:
        """The mirror root comes first: a valid direct root says that both are. Returns 0.

        Source: mmu.c mmu_alloc_direct_roots.
        """
        tdp_mmu = self.host.tdp_mmu
        if kvm_has_mirrored_tdp(vcpu.kvm) and vcpu.mmu_mirror_root is None:
            tdp_mmu.kvm_tdp_mmu_alloc_root(vcpu, True)
        tdp_mmu.kvm_tdp_mmu_alloc_root(vcpu, False)
        return 0

    def kvm_mmu_load_pgd(self, vcpu: KvmVcpu) -> None:
        """Tell the hardware (a TD: the module) where the shared EPT is. Source: mmu.h."""
        root = vcpu.mmu_root
        if root is not None and kvm_has_mirrored_tdp(vcpu.kvm):
            self.host.tdx.tdx_load_mmu_pgd(vcpu, root.spt.pfn << 12, root.level)

    def kvm_mmu_free_obsolete_roots(self, vcpu: KvmVcpu) -> None:
        """Let go of a direct root that was invalidated. Source: mmu.c kvm_mmu_free_obsolete_roots.

        The mirror root stays: it is invalidated only when the VM is destroyed.
        """
        root = vcpu.mmu_root
        if root is not None and root.invalid:
            self.kvm_mmu_free_roots(vcpu)

    def kvm_mmu_free_roots(self, vcpu: KvmVcpu) -> None:
        """Drop the vCPU's reference to its direct root. Source: mmu.c kvm_mmu_free_roots."""
        root = vcpu.mmu_root
        if root is None:
            return
        kvm = vcpu.kvm
        kvm.mmu_lock.read_lock()
        self.host.tdp_mmu.kvm_tdp_mmu_put_root(kvm, root)
        vcpu.mmu_root = None
        kvm.mmu_lock.read_unlock()

    def kvm_mmu_unload(self, vcpu: KvmVcpu) -> None:
        """The vCPU has no direct root any more. Source: mmu.c kvm_mmu_unload."""
        self.kvm_mmu_free_roots(vcpu)

    def kvm_mmu_destroy(self, vcpu: KvmVcpu) -> None:
        """A vCPU is destroyed: its roots and its caches. Source: mmu.c kvm_mmu_destroy."""
        self.kvm_mmu_unload(vcpu)
        kvm = vcpu.kvm
        kvm.mmu_lock.read_lock()
        if vcpu.mmu_mirror_root is not None:
            self.host.tdp_mmu.kvm_tdp_mmu_put_root(kvm, vcpu.mmu_mirror_root)
            vcpu.mmu_mirror_root = None
        kvm.mmu_lock.read_unlock()
        self.mmu_free_memory_caches(vcpu)
