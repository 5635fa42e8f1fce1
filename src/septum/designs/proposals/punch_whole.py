"""Holes in units of the huge pages that back the memory, and no split for them.

Agreed upon in the guest_memfd calls, told by Vishal Annapurve, 2026-01-20, for hugetlb and THP.
Whether the split should stay for holes all the same, asked Yan Zhao (author) on 2026-01-22: not at
this time, Sean Christopherson (KVM), 2026-01-29.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.errno import EINVAL
from septum.designs.registry import Design, on_v3
from septum.linux.kvm.gmem_folio import GUEST_MEMFD_FLAG_THP
from septum.linux.kvm.guest_memfd import GuestMemfd
from septum.linux.mm.state import PMD_ORDER

if TYPE_CHECKING:
    from septum.linux.kvm.types import GmemInode


class PunchWhole(GuestMemfd):
    """guest_memfd that punches whole huge pages.

    With hugetlb v3 refuses the rest with -EINVAL already. With THP the unit is 2 MB, whatever the
    folios are; a file of another size cannot lose its last part. Assumed: -EINVAL.
    """

    __slots__ = ()

    def kvm_gmem_punch_hole(self, inode: GmemInode, offset: int, length: int) -> int:
        page_size = 4096 << PMD_ORDER
        if inode.flags & GUEST_MEMFD_FLAG_THP and (offset % page_size or length % page_size):
            return -EINVAL
        return super().kvm_gmem_punch_hole(inode, offset, length)

    def _kvm_gmem_split_for_punch(self, inode: GmemInode, start: int, end: int) -> int:
        return 0


DESIGN = Design(
    "punch-whole",
    "Vishal Annapurve (guest_memfd), 2026-01-20, review of 11/24; Sean Christopherson, 2026-01-29",
    "PUNCH_HOLE takes whole huge pages only and splits nothing",
    on_v3(gmem=PunchWhole),
    scenarios=("finding-punch-enomem", "punch-against-accept", "private-again-per-vm"),
)
