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


DESIGNS = (
    ablation(
        12,
        "what the guest accepts at 4 KB is first mapped at 2 MB, and split at the second violation",
        on_v3(mmu=ForgetsAcceptLevel),
        breaks=(),
        scenarios=("accept-level-b", "accept-frame-by-4k"),
    ),
    ablation(
        13,
        "a 4 KB accept of what is mapped at 2 MB is never served",
        on_v3(tdx=IgnoresAcceptLevel),
        breaks=("progress",),
        scenarios=("accept-level-a", "accept-level-prefault"),
    ),
)
