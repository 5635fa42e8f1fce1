"""A conversion unmaps the folio first, all of it: the rule of the primary MMU.

Named in the review as what core mm does before it splits, truncates or migrates a folio, and as
what TDX cannot afford (Yan Zhao, 2026-01-12 01:39).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.designs.registry import Design, on_v3
from septum.linux.kvm.guest_memfd import GuestMemfd

if TYPE_CHECKING:
    from septum.linux.kvm.types import GmemInode


class UnmapFirst(GuestMemfd):
    """guest_memfd whose conversion to shared is past its point of no return at once.

    No S-EPT split, so nothing that may fail before the zap: the zap takes whole leaves. Assumed:
    what is unmapped is the original folio, which is what is split afterwards; where guest_memfd
    splits no folio (order 0: THP and 4 KB pages), it is v3.
    """

    __slots__ = ()

    def _kvm_gmem_convert_mappings(
        self, inode: GmemInode, start: int, end: int, to_private: bool
    ) -> int:
        if to_private or not inode.page_order:
            return super()._kvm_gmem_convert_mappings(inode, start, end, to_private)
        start, end = self._kvm_gmem_compute_invalidate_range(inode, start, end)
        self.kvm_gmem_zap(inode, start, end)
        return 0


DESIGN = Design(
    "unmap-first",
    "rule of the primary MMU, named by Yan Zhao (author of v3), 2026-01-12, review of 00/24",
    "conversion unmaps the whole folio before it splits it; the S-EPT is never split",
    on_v3(gmem=UnmapFirst),
    breaks=("precise-zap", "guest-data", "accept-once"),
    scenarios=("convert-one-page", "finding-folio-split-enomem"),
)
