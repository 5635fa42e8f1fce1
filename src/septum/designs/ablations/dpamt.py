"""Without Dynamic PAMT for huge pages: patches 17 to 23."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.errno import ENOMEM
from septum.abi.kvm import PG_LEVEL_2M
from septum.designs.ablations.patches import VM_DIES, ablation
from septum.designs.registry import on_v3
from septum.linux.kvm.tdp_mmu import TdpMmu
from septum.linux.kvm.tdx import KvmTdxUnit
from septum.linux.x86.tdx import TdxArch

if TYPE_CHECKING:
    from septum.linux.kvm.types import Kvm, KvmGfnRange, TdxPrealloc


class PairForEveryLevel(KvmTdxUnit):
    """tdx_pamt_get() and put() for each leaf, whatever its level."""

    __slots__ = ()

    def _needs_pamt_pair(self, level: int) -> bool:
        return True


class QuietPut(TdxArch):
    """pr_err() when PAMT.REMOVE fails: a line in the log, which no test looks at."""

    __slots__ = ()

    def _pamt_remove_failed(self, err: int) -> None:
        pass


class NobodyTopsUp(TdpMmu):
    """tdp_mmu_split_huge_pages_root() does not know of the per-VM cache: it stays empty."""

    __slots__ = ()

    def need_topup_external_split_cache(self, kvm: Kvm, level: int) -> bool:
        return False


class TopsUpOnce(TdpMmu):
    """The cache is topped up before the walk, for one split, and not looked at again."""

    __slots__ = ()

    def kvm_tdp_mmu_gfn_range_split_cross_boundary_leafs(
        self, kvm: Kvm, rng: KvmGfnRange, shared: bool
    ) -> int:
        self.rcu_read_lock()
        if self.topup_external_split_cache(kvm, PG_LEVEL_2M, shared):
            return -ENOMEM
        self.rcu_read_unlock()
        return super().kvm_tdp_mmu_gfn_range_split_cross_boundary_leafs(kvm, rng, shared)

    def need_topup_external_split_cache(self, kvm: Kvm, level: int) -> bool:
        return False


class NoSplitCache(KvmTdxUnit):
    """TDX has no per-VM cache, and leaves the ops of patch 19 NULL. What takes PAMT pages in a
    split is given no cache, and so asks the page allocator, as it does for control pages."""

    __slots__ = ()

    def need_topup_external_per_vm_split_cache(self, kvm: Kvm, level: int) -> bool:
        return False

    def _split_cache(self, kvm: Kvm) -> TdxPrealloc | None:
        return None


class NoPairForSept(KvmTdxUnit):
    """The new S-EPT page goes to DEMOTE as it is."""

    __slots__ = ()

    def _split_pamt_get(self, kvm: Kvm, new_private_spt: int) -> int:
        return 0

    def _split_pamt_put(self, new_private_spt: int) -> None:
        pass


class NoPairForGuest(TdxArch):
    """DEMOTE without R12 and R13, as patch 02 has it. Patch 23 has nothing to count then."""

    __slots__ = ()

    def _demote_takes_pair(self, level: int) -> bool:
        return False


class SplitIsNotCounted(TdxArch):
    """DEMOTE leaves the reference count of the guest's 2 MB at 0."""

    __slots__ = ()

    def _demoted(self, guest_base_pfn: int) -> None:
        pass


DESIGNS = (
    ablation(
        17,
        "a pair is installed below a 2 MB leaf, too",
        on_v3(tdx=PairForEveryLevel),
        breaks=("no-bug",),
        scenarios=("dpamt-convert",),
    ),
    ablation(
        18,
        "PAMT.REMOVE fails without a warning",
        on_v3(x86_tdx=QuietPut),
        breaks=(),
        scenarios=("dpamt-remove-error",),
    ),
    ablation(
        19,
        "nobody fills the per-VM cache for splits",
        on_v3(tdp_mmu=NobodyTopsUp),
        breaks=VM_DIES,
        scenarios=("dpamt-convert",),
    ),
    ablation(
        19,
        "the per-VM cache is filled once for a range, whatever is to be split in it",
        on_v3(tdp_mmu=TopsUpOnce),
        breaks=VM_DIES,
        scenarios=("dpamt-straddling",),
        piece="loop",
    ),
    ablation(
        20,
        "PAMT pages of a split are allocated where they are used, under mmu_lock",
        on_v3(tdx=NoSplitCache),
        breaks=("locking",),
        scenarios=("dpamt-convert",),
    ),
    ablation(
        21,
        "no pair for the 2 MB of the new S-EPT page",
        on_v3(tdx=NoPairForSept),
        breaks=(*VM_DIES, "pamt"),
        scenarios=("dpamt-fresh-sept-page", "dpamt-convert"),
    ),
    ablation(
        22,
        "no pair for the guest's 2 MB that DEMOTE splits",
        on_v3(x86_tdx=NoPairForGuest),
        breaks=(*VM_DIES, "cache"),
        scenarios=("dpamt-convert",),
    ),
    ablation(
        23,
        "the reference count of a split 2 MB stays 0",
        on_v3(x86_tdx=SplitIsNotCounted),
        breaks=("pamt", "teardown"),
        scenarios=("dpamt-convert",),
    ),
)
