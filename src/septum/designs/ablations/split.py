"""Without the split of a mirror leaf: patches 06 to 11."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.spte import SPTE_MMU_PRESENT_MASK
from septum.designs.ablations.patches import VM_DIES, WHOLE_LEAF_GOES, ablation
from septum.designs.registry import on_v3
from septum.linux.kvm.mmu import KvmMmu
from septum.linux.kvm.tdp_mmu import TdpMmu
from septum.linux.kvm.tdx import KvmTdxUnit

if TYPE_CHECKING:
    from collections.abc import Callable

    from septum.linux.kvm.tdp_iter import TdpIter
    from septum.linux.kvm.types import Kvm, KvmGfnRange, KvmMmuPage, KvmPageFault, KvmVcpu
    from septum.linux.x86.tdx import SeamcallRet


class Promotes(KvmMmu):
    """kvm_tdp_mmu_map() asks disallowed_hugepage_adjust() for the NX workaround only."""

    __slots__ = ()

    def disallowed_hugepage_adjust(self, fault: KvmPageFault, spte: int, cur_level: int) -> None:
        if fault.nx_huge_page_workaround_enabled:
            super().disallowed_hugepage_adjust(fault, spte, cur_level)


class NoSplitHook(TdpMmu):
    """tdp_mmu_set_spte() as it was: of a mirror entry it knows the removal only."""

    __slots__ = ()

    def _propagate_to_external(
        self, kvm: Kvm, gfn: int, old_spte: int, new_spte: int, level: int
    ) -> None:
        self.host.main.kvm_bug_on(
            kvm,
            new_spte & SPTE_MMU_PRESENT_MASK != 0,
            f"gfn {gfn:#x}: a present mirror SPTE is set under mmu_lock for writing",
        )
        self.remove_external_spte(kvm, gfn, old_spte, level)


class HookNotImplemented(KvmTdxUnit):
    """split_external_spte is an optional op, and TDX leaves it NULL: the call does nothing."""

    __slots__ = ()

    def split_external_spte(self, *args: object, **kwargs: object) -> int:
        return 0


class DemoteWithoutBlock(KvmTdxUnit):
    """DEMOTE at once, as a module with NON-BLOCKING-RESIZE would allow."""

    __slots__ = ()

    def _block_and_track(self, kvm: Kvm, gpa: int, level: int) -> int:
        return 0


class DemoteWithoutSecondTry(KvmTdxUnit):
    """DEMOTE is called as it is: no kick of the vCPUs when it is BUSY, and no second attempt."""

    __slots__ = ()

    def tdh_do_no_vcpus(
        self, tdh_func: Callable[..., SeamcallRet], kvm: Kvm, *args: object
    ) -> SeamcallRet:
        if tdh_func == self.host.x86_tdx.tdh_mem_page_demote:
            return tdh_func(*args)
        return super().tdh_do_no_vcpus(tdh_func, kvm, *args)


class FaultNeverMeetsLeaf(TdpMmu):
    """The fault path as it was: KVM_BUG_ON() where a mirror leaf would have to be split, and
    set_external_spte_present() takes the new table for one below an entry that is not present."""

    __slots__ = ()

    def _map_make_table(self, vcpu: KvmVcpu, fault: KvmPageFault, it: TdpIter) -> int:
        self.host.main.kvm_bug_on(
            vcpu.kvm,
            it.old_spte & SPTE_MMU_PRESENT_MASK != 0 and self.is_mirror_sptep(it.table),
            f"gfn {fault.gfn:#x}: a fault wants a smaller page than the mirror leaf that is there",
        )
        return super()._map_make_table(vcpu, fault, it)

    def split_external_spte(
        self, kvm: Kvm, gfn: int, old_spte: int, new_spte: int, level: int, shared: bool
    ) -> int:
        if not shared:
            return super().split_external_spte(kvm, gfn, old_spte, new_spte, level, shared)
        return self._link_external_spt(kvm, gfn, new_spte, level)


class SplitsUnderSharedLock(KvmTdxUnit):
    """TDX does not refuse: BLOCK, TRACK, kick and DEMOTE with mmu_lock held for reading."""

    __slots__ = ()

    def _tdx_sept_split_shared(
        self, kvm: Kvm, gfn: int, level: int, old_mirror_spte: int, new_private_spt: int
    ) -> int:
        return self._tdx_sept_split(kvm, gfn, level, old_mirror_spte, new_private_spt)


class NoExternalPage(TdpMmu):
    """tdp_mmu_alloc_sp_for_split(void)."""

    __slots__ = ()

    def tdp_mmu_alloc_sp_for_split(self, mirror: bool) -> KvmMmuPage | None:
        return super().tdp_mmu_alloc_sp_for_split(False)


class WeakSplit(KvmMmu):
    """Only the weak kvm_split_cross_boundary_leafs() of kvm_main.c is there, for its callers of
    patches 13, 15 and 16: 0, and nothing is split. Patch 13 sets its bit over a leaf that stays."""

    __slots__ = ()

    def kvm_split_cross_boundary_leafs(self, kvm: Kvm, rng: KvmGfnRange, shared: bool) -> int:
        return 0


class SplitsAllOfTheRange(TdpMmu):
    """tdp_mmu_split_huge_pages_root() without `only_cross_boundary`: what lies in the range is
    split as well."""

    __slots__ = ()

    def iter_cross_boundary(self, it: TdpIter, start: int, end: int) -> bool:
        return True


DESIGNS = (
    ablation(
        6,
        "a fault replaces a mirror table by a 2 MB leaf",
        on_v3(mmu=Promotes),
        breaks=("no-bug", "locking", "precise-zap", "guest-data", "teardown"),
        scenarios=("promotion-after-return",),
    ),
    ablation(
        7,
        "the mirror splits, the S-EPT is told that the leaf is gone",
        on_v3(tdp_mmu=NoSplitHook),
        breaks=("no-bug", "precise-zap", "guest-data", "teardown"),
        scenarios=("convert-one-page",),
    ),
    ablation(
        8,
        "the mirror splits, the S-EPT does not",
        on_v3(tdx=HookNotImplemented),
        breaks=("mirror", *VM_DIES),
        scenarios=("convert-one-page",),
    ),
    ablation(
        8,
        "DEMOTE without BLOCK, TRACK and kick before it",
        on_v3(tdx=DemoteWithoutBlock),
        breaks=VM_DIES,
        scenarios=("convert-one-page",),
        piece="block",
    ),
    ablation(
        8,
        "DEMOTE that is BUSY is not tried again with the vCPUs kicked out",
        on_v3(tdx=DemoteWithoutSecondTry),
        breaks=VM_DIES,
        scenarios=("demote-against-accept", "busy-once"),
        piece="kick",
    ),
    ablation(
        9,
        "a fault that meets a larger mirror leaf bugs the VM",
        on_v3(tdp_mmu=FaultNeverMeetsLeaf),
        breaks=("no-bug", "cache"),
        scenarios=("finding-fault-meets-leaf",),
    ),
    ablation(
        9,
        "TDX splits under mmu_lock for reading, too",
        on_v3(tdx=SplitsUnderSharedLock),
        breaks=("locking",),
        scenarios=("finding-fault-meets-leaf",),
        piece="refusal",
    ),
    ablation(
        10,
        "the new mirror table has no S-EPT page",
        on_v3(tdp_mmu=NoExternalPage),
        breaks=("no-bug",),
        scenarios=("convert-one-page",),
    ),
    ablation(
        11,
        "nothing splits before a zap, which takes 2 MB leaves whole, nor for an accept",
        on_v3(mmu=WeakSplit),
        breaks=(*WHOLE_LEAF_GOES, "progress", "no-bug"),
        scenarios=("convert-straddling", "accept-level-a", "accept-level-prefault"),
    ),
    ablation(
        11,
        "leaves within the range are split, too, before they are zapped",
        on_v3(tdp_mmu=SplitsAllOfTheRange),
        breaks=(),
        scenarios=("convert-aligned-2m",),
        piece="boundary",
    ),
)
