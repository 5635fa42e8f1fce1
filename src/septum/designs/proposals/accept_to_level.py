"""The guest's accept level is honoured by splitting its root to that level.

Proposed by Sean Christopherson (KVM), 2026-01-16, and as code on 2026-01-20: the fault path has no
need of "cross boundary".
RFC v5 41/45 (2026-01-28) has it with the vCPU's own root, which is that of shared memory; its
author saw it the next day.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.kvm import PAGES_PER_HPAGE, gfn_round_for_level
from septum.designs.proposals.head_tail import MirrorsSplitTdpMmu
from septum.designs.registry import Design, on_v3
from septum.linux.kvm.tdx import KvmTdxUnit

if TYPE_CHECKING:
    from septum.linux.kvm.types import KvmMemorySlot, KvmVcpu


class AcceptToLevelTdx(KvmTdxUnit):
    """TDX that splits what is larger than the accept level, and hands the error to user space."""

    __slots__ = ()

    def _tdx_split_for_accept(
        self, vcpu: KvmVcpu, slot: KvmMemorySlot, gfn: int, level: int
    ) -> int:
        tdp_mmu = self.host.tdp_mmu
        assert isinstance(tdp_mmu, MirrorsSplitTdpMmu)
        start = gfn_round_for_level(gfn, level)
        return tdp_mmu.kvm_tdp_mmu_mirrors_split_huge_pages(
            vcpu.kvm, start, start + PAGES_PER_HPAGE[level], level
        )


class AcceptInVcpuRootTdx(KvmTdxUnit):
    """The same in vcpu->arch.mmu->root.hpa, as in RFC v5 41/45: the root of shared memory."""

    __slots__ = ()

    def _tdx_split_for_accept(
        self, vcpu: KvmVcpu, slot: KvmMemorySlot, gfn: int, level: int
    ) -> int:
        root = vcpu.mmu_root
        if root is None:
            self.warn_on_once("no valid root", "tdx_handle_mismatched_accept")
            return 0
        start = gfn_round_for_level(gfn, level)
        return self.host.tdp_mmu.tdp_mmu_split_huge_pages_root(
            vcpu.kvm, root, start, start + PAGES_PER_HPAGE[level], level, False, False
        )


DESIGN = Design(
    "accept-to-level",
    "Sean Christopherson (KVM), 2026-01-16 and 20, review of 11/24; reply to RFC v5 41/45",
    "an ACCEPT splits the mirror root to the accept level; -ENOMEM goes to user space",
    on_v3(tdx=AcceptToLevelTdx, tdp_mmu=MirrorsSplitTdpMmu),
    scenarios=("accept-level-prefault", "finding-accept-enomem", "accept-parallel-4k"),
)

VCPU_ROOT = Design(
    "accept-in-vcpu-root",
    "Sean Christopherson (KVM), RFC PATCH v5 41/45, 2026-01-28, 20260129011517",
    "an ACCEPT splits the vCPU's own root to the accept level: the wrong root",
    on_v3(tdx=AcceptInVcpuRootTdx),
    breaks=("progress", "no-bug"),
    scenarios=("accept-level-prefault",),
)
