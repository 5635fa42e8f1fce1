"""A memory failure unmaps the folio that failed, and not what is mapped around it.

What follows from mappings that may be larger than their folios, and what Yan Zhao (author of v3)
held against them, 2026-01-07: kvm_gmem_error_folio() has to split, too. On 2026-01-14 and 19 it was
to come with the next version. Vishal Annapurve (guest_memfd), 2026-01-09 and 13: a later
improvement, and where the split fails all of it may go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.designs.proposals.pfn_wrappers import PfnGuestMemfd, PfnTdxArch
from septum.designs.registry import Design, on_v3

if TYPE_CHECKING:
    from septum.linux.kvm.types import GmemInode


class SplitForMemoryFailure(PfnGuestMemfd):
    """guest_memfd that splits what crosses the failed folio before it zaps the folio.

    Assumed: a split that fails is no reason to leave the page mapped (so Vishal Annapurve; Yan Zhao
    would fail, but memory_failure() has nothing to do about it). The folio is not split.
    """

    __slots__ = ()

    def _kvm_gmem_split_for_error(self, inode: GmemInode, start: int, end: int) -> None:
        self.kvm_gmem_split_private(inode, start, end, "memory_failure")


DESIGN = Design(
    "split-for-memory-failure",
    "Yan Zhao (author of v3) and Vishal Annapurve (guest_memfd), 2026-01-07 to 19, review of 00/24",
    "with wrappers by PFN: a memory failure splits the mapping around the folio that failed",
    on_v3(gmem=SplitForMemoryFailure, x86_tdx=PfnTdxArch),
    scenarios=("memory-failure-under-leaf", "folio-1g-memory-failure"),
)
