"""KVM_SET_MEMORY_ATTRIBUTES splits in all slots of its range before it unmaps anything in one.

What the log of patch 15 (2026-01-06, Yan Zhao) would do against the downside that it tells: a split
that fails finds the slots before it unmapped, with their attributes unchanged. As posted no error
comes so far (docs/findings.md, F2), so that it is made on v3 with F2 repaired.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.kvm import KVM_MEMORY_ATTRIBUTE_PRIVATE
from septum.designs.ablations.zap import (
    V3_F2_REPAIRED,
    EndsFailedInvalidation,
    SplitReturnsErrno,
)
from septum.designs.registry import Design, on_v3
from septum.linux.kvm.types import KVM_FILTER_PRIVATE, KVM_FILTER_SHARED

if TYPE_CHECKING:
    from septum.linux.kvm.types import Kvm, KvmGfnRange


class TwoPassMmu(SplitReturnsErrno):
    """kvm_arch_pre_set_memory_attributes() that prepares and splits, and another that unmaps."""

    __slots__ = ()

    def _unmap_old_attributes(self, kvm: Kvm, rng: KvmGfnRange) -> int:
        return 0

    def pre_set_range_unmap(self, kvm: Kvm, rng: KvmGfnRange) -> int:
        """The second pass: 1 when a flush is wanted, 0."""
        to_private = rng.attributes & KVM_MEMORY_ATTRIBUTE_PRIVATE
        rng.attr_filter = KVM_FILTER_SHARED if to_private else KVM_FILTER_PRIVATE
        return self.kvm_unmap_gfn_range(kvm, rng)


class TwoPassMain(EndsFailedInvalidation):
    """kvm_vm_set_mem_attributes() with two walks. mmu_lock is dropped between them; the
    invalidation that the first has begun keeps faults out."""

    __slots__ = ()

    def _pre_set_range(self, kvm: Kvm, start: int, end: int, attributes: int) -> int:
        ret = super()._pre_set_range(kvm, start, end, attributes)
        if ret:
            return ret
        mmu = self.host.mmu
        assert isinstance(mmu, TwoPassMmu)
        return self.kvm_handle_gfn_range(
            kvm, start, end, attributes, mmu.pre_set_range_unmap, self._already_begun, True
        )

    def _already_begun(self, kvm: Kvm) -> None:
        """on_lock of the second walk: nothing."""


DESIGN = Design(
    "attributes-two-passes",
    "PATCH v3 15/24, its log, 2026-01-06, Yan Zhao (author)",
    "F2 repaired, and KVM_SET_MEMORY_ATTRIBUTES splits in every slot before it unmaps in any",
    on_v3(mmu=TwoPassMmu, main=TwoPassMain),
    base=V3_F2_REPAIRED.name,
    scenarios=("attributes-slots-enomem", "attributes-enomem-repaired", "odd-two-slots"),
)
