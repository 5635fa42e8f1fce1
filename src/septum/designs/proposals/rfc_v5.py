"""What came of the review: Sean Christopherson's RFC v5, with Dynamic PAMT, of 2026-01-28.

"TDX: Dynamic PAMT + S-EPT Hugepage", 45 patches, message id 20260129011517, with the corrections
that its author mailed on 2026-01-29 (41/45 and 44/45) and 2026-02-06 (the mutex is initialised). It
is the other proposals together, and has a cache of its own for the pair of a split.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.designs.proposals.accept_to_level import AcceptToLevelTdx
from septum.designs.proposals.gmem_convert_hook import GmemConvertHook, GmemConvertTdx
from septum.designs.proposals.head_tail import HeadTailMmu, MirrorsSplitTdpMmu
from septum.designs.proposals.no_vm_attributes import NoVmAttributesTdx
from septum.designs.proposals.one_hook import OneHookTdpMmu, OneHookTdx
from septum.designs.proposals.pamt_at_alloc import (
    ControlPageTdpMmu,
    ControlPageTdx,
    ControlPageTdxArch,
)
from septum.designs.proposals.pfn_wrappers import PfnGuestMemfd, PfnTdxArch
from septum.designs.registry import Design, on_v3
from septum.linux.kvm.types import KvmTdx
from septum.sim import Mutex

if TYPE_CHECKING:
    from septum.linux.kvm.types import Kvm, KvmVcpu, TdxPrealloc
    from septum.sim import SpinLock

PT64_ROOT_MAX_LEVEL = 5


class RfcV5KvmTdx(KvmTdx):
    """struct kvm_tdx with the mutex of its PAMT cache."""

    __slots__ = ("pamt_cache_lock",)

    def __init__(self, prealloc_split_cache_lock: SpinLock, pamt_cache_lock: Mutex) -> None:
        super().__init__(prealloc_split_cache_lock)
        self.pamt_cache_lock = pamt_cache_lock


class RfcV5TdpMmu(OneHookTdpMmu, MirrorsSplitTdpMmu, ControlPageTdpMmu):
    """One hook, an API to split mirror roots, S-EPT pages that are control pages."""

    __slots__ = ()


class RfcV5Tdx(OneHookTdx, AcceptToLevelTdx, GmemConvertTdx, NoVmAttributesTdx, ControlPageTdx):
    """TDX whose split has one pair, out of the running vCPU's cache, else out of the VM's.

    The VM's cache is filled and used under a mutex that is taken outside mmu_lock. As in v3, and in
    the DEMOTE wrapper that is in the review of 02/24 (2026-01-28), a pair goes to the page
    allocator when DEMOTE fails. MODEL: the caches are filled
    where v3 fills its own, with mmu_lock dropped once more than in the RFC; v3's spinlock is taken
    besides, and never contended.
    """

    __slots__ = ()

    def tdx_vm_init(self, kvm: Kvm) -> int:
        lock = Mutex(self.sim, f"vm{kvm.id} pamt_cache_lock")
        kvm.tdx = RfcV5KvmTdx(kvm.tdx.prealloc_split_cache_lock, lock)
        return super().tdx_vm_init(kvm)

    def tdx_gmem_convert(self, kvm: Kvm, start: int, end: int, to_private: bool) -> int:
        assert isinstance(kvm.tdx, RfcV5KvmTdx)
        if to_private:
            return 0
        with kvm.tdx.pamt_cache_lock:
            return super().tdx_gmem_convert(kvm, start, end, to_private)

    def _split_cache(self, kvm: Kvm) -> TdxPrealloc:
        """tdx_get_pamt_cache()."""
        vcpu = self.host.main.kvm_get_running_vcpu()
        if vcpu is not None:
            return vcpu.tdx.prealloc
        assert isinstance(kvm.tdx, RfcV5KvmTdx)
        self.lockdep_assert(
            kvm.tdx.pamt_cache_lock.held(), "pamt_cache_lock not held", "tdx_get_pamt_cache"
        )
        return kvm.tdx.prealloc_split_cache

    def tdx_min_split_cache_sz(self, kvm: Kvm, level: int) -> int:
        return self.host.x86_tdx.tdx_dpamt_entry_pages()

    def topup_external_per_vm_split_cache(self, kvm: Kvm, level: int) -> int:
        return self.host.x86_tdx.topup_tdx_prealloc_page(
            self._split_cache(kvm), self.tdx_min_split_cache_sz(kvm, level)
        )

    def need_topup_external_per_vm_split_cache(self, kvm: Kvm, level: int) -> bool:
        return self._split_cache(kvm).cnt < self.tdx_min_split_cache_sz(kvm, level)

    def topup_external_fault_cache(self, vcpu: KvmVcpu, cnt: int = 0) -> int:
        x86 = self.host.x86_tdx
        ret = super().topup_external_fault_cache(vcpu, cnt)
        pages = x86.tdx_dpamt_entry_pages() * PT64_ROOT_MAX_LEVEL
        return ret if ret else x86.topup_tdx_prealloc_page(vcpu.tdx.prealloc, pages)


class RfcV5GuestMemfd(GmemConvertHook, PfnGuestMemfd):
    """The hook for conversions, and no word of folios to TDX.

    Assumed: a hole in a part of a huge page is split by the hook, too. The RFC has no split for it,
    and relies on the rule of the design punch-whole, under which QEMU does not boot with THP.
    """

    __slots__ = ()


class RfcV5TdxArch(ControlPageTdxArch, PfnTdxArch):
    """Control pages, and wrappers by PFN."""

    __slots__ = ()


DESIGN = Design(
    "rfc-v5",
    "Sean Christopherson (KVM), RFC PATCH v5 00/45, 2026-01-28, 20260129011517, and replies",
    "the RFC that came of the review: most proposals here, in one series",
    on_v3(
        mmu=HeadTailMmu,
        tdp_mmu=RfcV5TdpMmu,
        tdx=RfcV5Tdx,
        gmem=RfcV5GuestMemfd,
        x86_tdx=RfcV5TdxArch,
    ),
    breaks=("no-bug", "mapping-in-folio", "teardown"),
    scenarios=("dpamt-demote-busy", "finding-attributes-enomem", "folio-1g-convert-4k"),
)
