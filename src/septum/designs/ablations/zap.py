"""Without the split before a zap, and its errors: patches 14 to 16."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.errno import ENOMEM
from septum.designs.ablations.patches import WHOLE_LEAF_GOES, ablation
from septum.designs.registry import Design, on_v3
from septum.linux.kvm.guest_memfd import GuestMemfd
from septum.linux.kvm.main import KvmMain
from septum.linux.kvm.mmu import KvmMmu

if TYPE_CHECKING:
    from collections.abc import Callable

    from septum.linux.kvm.main_requests import SplitCause
    from septum.linux.kvm.types import GmemInode, Kvm, KvmGfnRange


class SplitReturnsErrno(KvmMmu):
    """F2 repaired: kvm_split_cross_boundary_leafs() of patch 11 with `int ret`."""

    __slots__ = ()

    def kvm_split_cross_boundary_leafs(self, kvm: Kvm, rng: KvmGfnRange, shared: bool) -> int:
        ret = super().kvm_split_cross_boundary_leafs(kvm, rng, shared)
        return -ENOMEM if ret == 1 else ret


class EndsFailedInvalidation(KvmMain):
    """F2 repaired: kvm_vm_set_mem_attributes() ends the invalidation when its first walk fails."""

    __slots__ = ()

    def _pre_set_failed(self, kvm: Kvm) -> None:
        kvm.mmu_lock.write_lock()
        self.host.mmu.kvm_mmu_invalidate_end(kvm)
        kvm.mmu_lock.write_unlock()


class BoolHandlers(KvmMain):
    """gfn_handler_t returns bool: an error of the split is `true`, which asks for a flush."""

    __slots__ = ()

    def _call_gfn_handler(
        self, handler: Callable[[Kvm, KvmGfnRange], int], kvm: Kvm, gfn_range: KvmGfnRange
    ) -> int:
        return int(bool(super()._call_gfn_handler(handler, kvm, gfn_range)))


class AttributesZapWhole(KvmMmu):
    """kvm_arch_pre_set_memory_attributes() only unmaps."""

    __slots__ = ()

    def _split_before_unmap(self, kvm: Kvm, rng: KvmGfnRange) -> int:
        return 0


class GmemZapsWhole(GuestMemfd):
    """kvm_gmem_punch_hole() and kvm_gmem_convert() only zap."""

    __slots__ = ()

    def kvm_gmem_split_private(
        self, inode: GmemInode, start: int, end: int, cause: SplitCause = "conversion"
    ) -> int:
        return 0


V3_F2_REPAIRED = Design(
    "v3-f2-repaired",
    "docs/findings.md, F2: what patches 14 and 15 do once patch 11 keeps its errors",
    "a split that fails is -ENOMEM all the way, and ends the invalidation that was begun",
    on_v3(mmu=SplitReturnsErrno, main=EndsFailedInvalidation),
    kind="base",
    scenarios=("attributes-enomem-repaired",),
)

DESIGNS = (
    V3_F2_REPAIRED,
    ablation(
        14,
        "F2 repaired, and handlers of GFN ranges that return bool: a failed split is success",
        on_v3(mmu=SplitReturnsErrno, main=BoolHandlers),
        breaks=("mapping-in-folio",),
        scenarios=("attributes-enomem-repaired",),
        base=V3_F2_REPAIRED.name,
    ),
    ablation(
        15,
        "KVM_SET_MEMORY_ATTRIBUTES zaps 2 MB leaves whole",
        on_v3(mmu=AttributesZapWhole),
        breaks=WHOLE_LEAF_GOES,
        scenarios=("convert-one-page-per-vm",),
    ),
    ablation(
        16,
        "conversion and hole punching on guest_memfd zap 2 MB leaves whole",
        on_v3(gmem=GmemZapsWhole),
        breaks=WHOLE_LEAF_GOES,
        scenarios=("convert-one-page", "private-mem-punch-all"),
    ),
)
