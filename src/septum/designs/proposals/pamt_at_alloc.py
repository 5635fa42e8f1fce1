"""Dynamic PAMT when an S-EPT page is allocated, and a split's other pair in its page-table page.

Proposed by Kai Huang (TDX), 2026-01-21, against the per-VM cache of patches 19 to 22; taken further
by Sean Christopherson (KVM) the same day: tdx_pamt_get() at allocation. In RFC v5; Dynamic PAMT v6
went back to a plain cache, as it did not want to free TDX pages from RCU callbacks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from septum.abi.errno import ENOMEM
from septum.designs.registry import Design, on_v3
from septum.linux.kvm.mmu_load import KVM_ARCH_NR_OBJS_PER_MEMORY_CACHE
from septum.linux.kvm.tdp_mmu import TdpMmu
from septum.linux.kvm.tdx import KvmTdxUnit
from septum.linux.kvm.types import KvmMmuPage
from septum.linux.x86.tdx import TdxArch

if TYPE_CHECKING:
    from septum.abi.types import Pfn
    from septum.linux.kvm.types import Kvm, KvmVcpu, TdxPrealloc
    from septum.machine.tables import TablePage


_SPLIT_SITE = "tdp_mmu_alloc_sp_for_split.external_spt"
_FAULT_SITE = "tdx_fault_cache.external_spt"
_SITES = (_SPLIT_SITE, _FAULT_SITE)


class PamtMmuPage(KvmMmuPage):
    """struct kvm_mmu_page with `leaf_level_private`: the pair for the 2 MB that it will map."""

    __slots__ = ("leaf_level_private",)

    def __init__(self, spt: TablePage, level: int, gfn: int, is_mirror: bool) -> None:
        super().__init__(spt, level, gfn, is_mirror)
        self.leaf_level_private: list[Pfn] = []


class ControlPageTdpMmu(TdpMmu):
    """A TDP MMU whose S-EPT pages are from tdx_alloc_page(), with their PAMT, and go back to
    tdx_free_page(), from RCU callbacks, too."""

    __slots__ = ()

    def _alloc_external_for_split(self, sp: KvmMmuPage) -> bool:
        sp.external_spt = self.host.x86_tdx.tdx_alloc_page(_SPLIT_SITE)
        return sp.external_spt is not None

    def tdp_mmu_free_sp(self, sp: KvmMmuPage) -> None:
        self.host.x86_tdx.tdx_free_page(sp.external_spt)
        sp.external_spt = None
        super().tdp_mmu_free_sp(sp)


class PamtAtAllocTdpMmu(ControlPageTdpMmu):
    """A TDP MMU whose page tables bring all that the S-EPT needs for a split."""

    __slots__ = ()
    mmu_page: ClassVar[type[KvmMmuPage]] = PamtMmuPage

    def _alloc_external_for_split(self, sp: KvmMmuPage) -> bool:
        assert isinstance(sp, PamtMmuPage)
        x86 = self.host.x86_tdx
        if not super()._alloc_external_for_split(sp):
            return False
        if x86.alloc_pamt_array(sp.leaf_level_private, None):
            self._free_pair(sp)
            x86.tdx_free_page(sp.external_spt)
            return False
        return True

    def tdp_mmu_free_sp(self, sp: KvmMmuPage) -> None:
        self._free_pair(sp)
        super().tdp_mmu_free_sp(sp)

    def _free_pair(self, sp: KvmMmuPage) -> None:
        assert isinstance(sp, PamtMmuPage)
        self.host.x86_tdx.free_pamt_array(sp.leaf_level_private)
        sp.leaf_level_private = []

    def split_external_spte(
        self, kvm: Kvm, gfn: int, old_spte: int, new_spte: int, level: int, shared: bool
    ) -> int:
        # MODEL: the op has no argument for the pair, which is handed over where v3 looks for it.
        sp = self.spte_to_child_sp(new_spte)
        assert isinstance(sp, PamtMmuPage)
        cache = kvm.tdx.prealloc_split_cache
        cache.page_list, sp.leaf_level_private = sp.leaf_level_private, []
        cache.cnt = len(cache.page_list)
        ret = super().split_external_spte(kvm, gfn, old_spte, new_spte, level, shared)
        sp.leaf_level_private, cache.page_list = cache.page_list, []
        cache.cnt = 0
        return ret


class ControlPageTdx(KvmTdxUnit):
    """TDX that has its S-EPT pages from tdx_alloc_page(), those of the vCPUs' caches, too."""

    __slots__ = ()

    def topup_external_fault_cache(self, vcpu: KvmVcpu, cnt: int = 0) -> int:
        """x86 op: `cnt` S-EPT pages with their PAMT, and the pages for the leaf's. 0 or -ENOMEM."""
        x86 = self.host.x86_tdx
        if len(vcpu.mmu_external_spt_cache) < cnt and not self._topup_external_spt(vcpu, cnt):
            return -ENOMEM
        return x86.topup_tdx_prealloc_page(vcpu.tdx.prealloc, x86.tdx_dpamt_entry_pages())

    def _topup_external_spt(self, vcpu: KvmVcpu, cnt: int) -> bool:
        """Fill the kvm_mmu_memory_cache, in which there are less than `cnt`, up to its capacity.
        False if there are less still."""
        cache = vcpu.mmu_external_spt_cache
        while len(cache) < KVM_ARCH_NR_OBJS_PER_MEMORY_CACHE:
            page = self.host.x86_tdx.tdx_alloc_page(_FAULT_SITE)
            if page is None:
                return len(cache) >= cnt
            cache.append(page)
        return True

    def alloc_external_fault_cache(self, vcpu: KvmVcpu) -> Pfn | None:
        cache = vcpu.mmu_external_spt_cache
        if not cache:
            self.warn_on_once("external fault cache is empty", "tdx_alloc_external_fault_cache")
            return None
        return cache.pop()

    def free_external_fault_cache(self, vcpu: KvmVcpu) -> None:
        super().free_external_fault_cache(vcpu)
        for page in vcpu.mmu_external_spt_cache:
            self.host.x86_tdx.tdx_free_page(page)
        vcpu.mmu_external_spt_cache = []

    # The S-EPT page has its PAMT already, and keeps it until it is freed.

    def _tdx_sept_page_get(self, private_spt: int, prealloc: TdxPrealloc) -> int:
        return 0

    def _tdx_sept_page_put(self, private_spt: int) -> None:
        pass

    def _split_pamt_get(self, kvm: Kvm, new_private_spt: int) -> int:
        return 0

    def _split_pamt_put(self, new_private_spt: int) -> None:
        pass


class PamtAtAllocTdx(ControlPageTdx):
    """TDX without a per-VM cache."""

    __slots__ = ()

    def tdx_min_split_cache_sz(self, kvm: Kvm, level: int) -> int:
        return 0


class ControlPageTdxArch(TdxArch):
    """What counts as a TDX page before the module has it."""

    __slots__ = ()

    def pages_counted_ahead(self) -> list[int]:
        """S-EPT pages: in the vCPUs' caches, and in the hands of a split."""
        site_of = self.host.mm.state.site_of
        return [page for page, site in sorted(site_of.items()) if site in _SITES]


class PamtAtAllocTdxArch(ControlPageTdxArch):
    """DEMOTE that leaves the pair with its caller when it fails.

    Assumed: the mails do not say what becomes of it; as it belongs to the page table, a second
    attempt finds it there.
    """

    __slots__ = ()

    def _pamt_array_unused(self, pages: list[Pfn], prealloc: TdxPrealloc | None) -> None:
        assert prealloc is not None
        prealloc.page_list.extend(pages)
        prealloc.cnt += len(pages)


DESIGN = Design(
    "pamt-at-alloc",
    "Kai Huang (TDX) and Sean Christopherson (KVM), 2026-01-21, review of 19/24",
    "an S-EPT page gets its PAMT when it is allocated; the page table carries the split's pair",
    on_v3(tdp_mmu=PamtAtAllocTdpMmu, tdx=PamtAtAllocTdx, x86_tdx=PamtAtAllocTdxArch),
    scenarios=("finding-demote-busy-dpamt", "dpamt-topup-enomem", "dpamt-convert"),
)
