"""The caller of a split names the huge pages at the head and the tail of its range.

Proposed by Sean Christopherson (KVM), 2026-01-16 and 01-20, against `only_cross_boundary` in the
walk of the TDP MMU; Kai Huang worked out the algorithm, 2026-01-19.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.errno import EOPNOTSUPP
from septum.abi.kvm import KVM_MIRROR_ROOTS, PAGES_PER_HPAGE, PG_LEVEL_4K, gfn_round_for_level
from septum.designs.registry import Design, on_v3
from septum.linux.kvm.mmu import KvmMmu
from septum.linux.kvm.tdp_mmu import TdpMmu

if TYPE_CHECKING:
    from septum.linux.kvm.types import Kvm, KvmGfnRange


def huge_pages_across(start: int, end: int, level: int) -> list[int]:
    """First GFNs of the huge pages of `level` that [start, end) covers in part: none, the one at
    the head, the one at the tail, or both. Source: Kai Huang, 2026-01-19 10:40."""
    head = gfn_round_for_level(start, level)
    tail = gfn_round_for_level(end, level)
    across = [head] if head != start else []
    if tail != end and tail not in across:
        across.append(tail)
    return across


class MirrorsSplitTdpMmu(TdpMmu):
    """The TDP MMU with an API to split huge pages of mirror roots, whole ranges of them.

    Source: Sean Christopherson, 2026-01-29, in reply to RFC v5 41/45.
    """

    __slots__ = ()

    def kvm_tdp_mmu_mirrors_split_huge_pages(
        self, kvm: Kvm, start: int, end: int, target_level: int
    ) -> int:
        """Split whatever is larger than `target_level` in [start, end). 0 or -ENOMEM."""
        return self._split_huge_pages_in_roots(
            kvm, KVM_MIRROR_ROOTS, start, end, target_level, False, False
        )

    def split_head_and_tail(self, kvm: Kvm, start: int, end: int, target_level: int) -> int:
        """Split the huge pages one level above `target_level` that the range covers in part.

        0 or -ENOMEM. Source: RFC v5 44/45 as replied to on 2026-01-29, tdx_sept_split_huge_pages().
        """
        pages = PAGES_PER_HPAGE[target_level + 1]
        for gfn in huge_pages_across(start, end, target_level + 1):
            r = self.kvm_tdp_mmu_mirrors_split_huge_pages(kvm, gfn, gfn + pages, target_level)
            if r:
                return r
        return 0


class HeadTailMmu(KvmMmu):
    """kvm_split_cross_boundary_leafs() without a walk over the whole range.

    Assumed: the callers of v3 stay; its error is an int all the way.
    """

    __slots__ = ()

    def kvm_split_cross_boundary_leafs(self, kvm: Kvm, rng: KvmGfnRange, shared: bool) -> int:
        if not rng.may_block:
            return -EOPNOTSUPP
        tdp_mmu = self.host.tdp_mmu
        assert isinstance(tdp_mmu, MirrorsSplitTdpMmu)
        return tdp_mmu.split_head_and_tail(kvm, rng.start, rng.end, PG_LEVEL_4K)


DESIGN = Design(
    "head-tail",
    "Sean Christopherson (KVM), 2026-01-16; Kai Huang (TDX), 2026-01-19, review of 11/24",
    "the caller computes the head and tail huge pages to split; no only_cross_boundary",
    on_v3(mmu=HeadTailMmu, tdp_mmu=MirrorsSplitTdpMmu),
    breaks=("progress", "no-bug"),
    scenarios=("convert-straddling", "finding-attributes-enomem", "finding-accept-enomem"),
)
