"""Without the guest's accept level: patches 12 and 13."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.designs.ablations.patches import ablation
from septum.designs.registry import on_v3
from septum.linux.kvm.mmu import KvmMmu
from septum.linux.kvm.tdx import KvmTdxUnit

if TYPE_CHECKING:
    from septum.linux.kvm.types import KvmMemorySlot, KvmVcpu


class ForgetsAcceptLevel(KvmMmu):
    """lpage_info has no bit for the guest's wish: patch 13 splits what is there, and the next
    fault does not know."""

    __slots__ = ()

    def hugepage_set_guest_inhibit(self, slot: KvmMemorySlot, gfn: int, level: int) -> None:
        pass


class IgnoresAcceptLevel(KvmTdxUnit):
    """tdx_handle_ept_violation() goes straight to the fault."""

    __slots__ = ()

    def tdx_honor_guest_accept_level(self, vcpu: KvmVcpu, gfn: int) -> int:
        return 0


class InhibitsFirst(KvmTdxUnit):
    """The guest's wish is written down before the split, which may drop mmu_lock to allocate:
    others then see the bit while the large leaf is still there."""

    __slots__ = ()

    def _tdx_split_for_accept(
        self, vcpu: KvmVcpu, slot: KvmMemorySlot, gfn: int, level: int
    ) -> int:
        self._tdx_inhibit_above(slot, gfn, level)
        return super()._tdx_split_for_accept(vcpu, slot, gfn, level)


class AlwaysLocks(KvmMmu):
    """The bit is not looked at before mmu_lock is taken for writing."""

    __slots__ = ()

    def hugepage_test_guest_inhibit(self, slot: KvmMemorySlot, gfn: int, level: int) -> bool:
        return False


DESIGNS = (
    ablation(
        12,
        "what the guest accepts at 4 KB is first mapped at 2 MB, and split at the second violation",
        on_v3(mmu=ForgetsAcceptLevel),
        breaks=(),
        scenarios=("accept-level-b", "accept-32-pages"),
    ),
    ablation(
        13,
        "a 4 KB accept of what is mapped at 2 MB is never served",
        on_v3(tdx=IgnoresAcceptLevel),
        breaks=("progress",),
        scenarios=("accept-level-a", "accept-level-prefault"),
    ),
    ablation(
        13,
        "the bit is set before the split instead of after it",
        on_v3(tdx=InhibitsFirst),
        breaks=("no-bug", "mirror", "progress"),
        scenarios=("accept-level-race",),
        piece="order",
    ),
    ablation(
        13,
        "mmu_lock is taken for writing for every accept, whether the bit is set or not",
        on_v3(mmu=AlwaysLocks),
        breaks=(),
        scenarios=("accept-32-pages",),
        piece="test",
    ),
)
