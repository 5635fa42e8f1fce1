"""A conversion zaps in one VM after the other, and the zap splits what it must not take whole.

What Sean Christopherson (KVM), 2026-01-28, would have liked instead of a hook before the zap, and
why he did not propose it: with more than one KVM instance on an inode -ENOMEM leaves a conversion
half done, and a zap that fails is a precedent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.designs.registry import Design, on_v3
from septum.linux.kvm.guest_memfd import GuestMemfd

if TYPE_CHECKING:
    from septum.linux.kvm.types import GmemInode


class SplitInZap(GuestMemfd):
    """guest_memfd whose kvm_gmem_zap() can fail on the way to shared.

    Assumed: it splits in all bindings of a file, then zaps them, under mmu_lock as v3 does; what is
    zapped in the VMs before the failing one stays so. Holes are as in v3.
    """

    __slots__ = ()

    def _kvm_gmem_convert_mappings(
        self, inode: GmemInode, start: int, end: int, to_private: bool
    ) -> int:
        if to_private:
            return super()._kvm_gmem_convert_mappings(inode, start, end, to_private)
        cause = self.host.main.set_cause("conversion")
        attr_filter = self.kvm_gmem_get_invalidate_filter(inode)
        ret = 0
        for f in list(inode.file_list):
            ret = self._kvm_gmem_split_private(f, start, end)
            if ret:
                break
            self._kvm_gmem_zap(f, start, end, attr_filter)
        self.host.main.set_cause(cause)
        return ret


DESIGN = Design(
    "split-in-zap",
    "Sean Christopherson (KVM), 2026-01-28, review of 16/24, as what cannot be",
    "conversion splits and zaps one VM after the other, so that a zap may fail",
    on_v3(gmem=SplitInZap),
    breaks=("all-or-nothing", "accept-once"),
    scenarios=("two-vms-1g-enomem", "two-vms-one-inode"),
)
