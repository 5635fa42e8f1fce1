"""guest_memfd asks the architecture to prepare a conversion; what that takes is TDX's business.

Proposed by Sean Christopherson (KVM), 2026-01-28, against kvm_gmem_split_private(); RFC v5 43/45
and 44/45. Yan Zhao would call the hook gmem_split_private_mapping, and call it for holes and memory
failures, too (2026-02-11).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.kvm import PG_LEVEL_4K
from septum.designs.proposals.head_tail import MirrorsSplitTdpMmu
from septum.designs.registry import Design, on_v3
from septum.linux.kvm.guest_memfd import GuestMemfd
from septum.linux.kvm.tdx import KvmTdxUnit
from septum.linux.kvm.types import KVM_FILTER_PRIVATE

if TYPE_CHECKING:
    from septum.linux.kvm.types import GmemFile, GmemInode, Kvm


class GmemConvertTdx(KvmTdxUnit):
    """kvm_x86_ops.gmem_convert for TDX."""

    __slots__ = ()

    def tdx_gmem_convert(self, kvm: Kvm, start: int, end: int, to_private: bool) -> int:
        """Before [start, end) is converted: split what the zap would take too much of.

        0 or -ENOMEM. Source: RFC v5 44/45 as replied to on 2026-01-29; the mutex around a PAMT
        cache of its own is in the design rfc-v5.
        """
        if to_private:
            return 0
        tdp_mmu = self.host.tdp_mmu
        assert isinstance(tdp_mmu, MirrorsSplitTdpMmu)
        kvm.mmu_lock.write_lock()
        ret = tdp_mmu.split_head_and_tail(kvm, start, end, PG_LEVEL_4K)
        kvm.mmu_lock.write_unlock()
        return ret


class GmemConvertHook(GuestMemfd):
    """guest_memfd that calls kvm_arch_gmem_convert() for each file and binding, both ways.

    mmu_lock is taken for each binding, not over all bindings of a file. Assumed: a hole is split
    by the same hook, as long as a part of a huge page can be punched out.
    """

    __slots__ = ()

    def _kvm_gmem_convert_mappings(
        self, inode: GmemInode, start: int, end: int, to_private: bool
    ) -> int:
        if to_private:
            ret = self.kvm_gmem_convert_files(inode, start, end, to_private)
            if ret:
                return ret
        return super()._kvm_gmem_convert_mappings(inode, start, end, to_private)

    def kvm_gmem_convert_files(
        self, inode: GmemInode, start: int, end: int, to_private: bool
    ) -> int:
        """kvm_gmem_convert() of the message: each file of the inode, until one fails."""
        for f in list(inode.file_list):
            ret = self.kvm_gmem_convert_file(f, start, end, to_private)
            if ret:
                return ret
        return 0

    def kvm_gmem_convert_file(self, f: GmemFile, start: int, end: int, to_private: bool) -> int:
        """__kvm_gmem_convert() of the message."""
        tdx = self.host.tdx
        assert isinstance(tdx, GmemConvertTdx)
        for gfn_range in self._bound_ranges(f, start, end, KVM_FILTER_PRIVATE):
            ret = tdx.tdx_gmem_convert(f.kvm, gfn_range.start, gfn_range.end, to_private)
            if ret:
                return ret
        return 0

    def _kvm_gmem_split_private(self, f: GmemFile, start: int, end: int) -> int:
        return self.kvm_gmem_convert_file(f, start, end, False)


DESIGN = Design(
    "gmem-convert-hook",
    "Sean Christopherson (KVM), 2026-01-28, review of 16/24; RFC PATCH v5 43 and 44/45",
    "guest_memfd calls kvm_arch_gmem_convert(); TDX splits head and tail behind it",
    on_v3(gmem=GmemConvertHook, tdx=GmemConvertTdx, tdp_mmu=MirrorsSplitTdpMmu),
    scenarios=("finding-convert-enomem", "two-vms-one-inode"),
)
