"""KVM_TDX_INIT_MEM_REGION and the ioctl multiplexer KVM_MEMORY_ENCRYPT_OP.

Source: vmx/tdx.c as of 6.19-rc, on the guest_memfd population rework v2 that v3 stands on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.errno import EINTR, EINVAL, EIO, EOPNOTSUPP
from septum.abi.types import PAGE_SHIFT, PAGE_SIZE
from septum.linux.kvm.tdx_base import is_hkid_assigned
from septum.linux.kvm.tdx_defs import (
    KVM_TDX_CAPABILITIES,
    KVM_TDX_FINALIZE_VM,
    KVM_TDX_INIT_MEM_REGION,
    KVM_TDX_INIT_VCPU,
    KVM_TDX_INIT_VM,
    KVM_TDX_MEASURE_MEMORY_REGION,
    TD_STATE_RUNNABLE,
    VCPU_TD_STATE_INITIALIZED,
    KvmTdxCmd,
    KvmTdxInitMemRegion,
)
from septum.linux.kvm.tdx_split import TdxSplit
from septum.linux.x86.state import TDX_EXTENDMR_CHUNKSIZE

if TYPE_CHECKING:
    from septum.abi.types import Pfn
    from septum.linux.kvm.types import Kvm, KvmVcpu


class TdxMem(TdxSplit):
    """The initial image and the ioctls."""

    __slots__ = ()

    def vt_is_tdx_private_gpa(self, kvm: Kvm, gpa: int) -> bool:
        """vt_is_tdx_private_gpa(): the shared bit is clear."""
        return not gpa >> PAGE_SHIFT & kvm.arch.gfn_direct_bits

    def tdx_gmem_post_populate(
        self, kvm: Kvm, gfn: int, pfn: int, src_page: Pfn | None, vcpu: KvmVcpu, flags: int
    ) -> int:
        """Map one page of the image, which adds it to the TD, and measure it if asked to.

        0, -EIO, -EOPNOTSUPP without a source, or what the map returned.
        """
        main = self.host.main
        kvm_tdx = kvm.tdx
        if main.kvm_bug_on(kvm, kvm_tdx.page_add_src is not None, "two PAGE.ADD at once"):
            return -EIO
        if src_page is None:
            return -EOPNOTSUPP
        kvm_tdx.page_add_src = src_page
        ret = self.host.mmu.kvm_tdp_mmu_map_private_pfn(vcpu, gfn, pfn)
        kvm_tdx.page_add_src = None
        if ret or not flags & KVM_TDX_MEASURE_MEMORY_REGION:
            return ret
        gpa = gfn << PAGE_SHIFT
        for offset in range(0, PAGE_SIZE, TDX_EXTENDMR_CHUNKSIZE):
            err, entry, level_state = self.host.x86_tdx.tdh_mr_extend(kvm_tdx, gpa + offset)
            if self.tdx_bug_on(err, "TDH_MR_EXTEND", kvm, entry, level_state):
                return -EIO
        return 0

    def tdx_vcpu_init_mem_region(self, vcpu: KvmVcpu, cmd: KvmTdxCmd) -> int:
        """KVM_TDX_INIT_MEM_REGION: add pages one by one; the region is moved along, so that user
        space can go on after -EINTR or -EAGAIN."""
        kvm = vcpu.kvm
        region = cmd.data
        if vcpu.tdx.state != VCPU_TD_STATE_INITIALIZED or kvm.tdx.state == TD_STATE_RUNNABLE:
            return -EINVAL
        if cmd.flags & ~KVM_TDX_MEASURE_MEMORY_REGION:
            return -EINVAL
        if not isinstance(region, KvmTdxInitMemRegion):
            return -EINVAL
        end = region.gpa + (region.nr_pages << PAGE_SHIFT)
        if (
            region.source_addr % PAGE_SIZE
            or region.gpa % PAGE_SIZE
            or not region.nr_pages
            or end >= 1 << 64
            or not self.vt_is_tdx_private_gpa(kvm, region.gpa)
            or not self.vt_is_tdx_private_gpa(kvm, end - 1)
        ):
            return -EINVAL
        while region.nr_pages:
            if vcpu.signal_pending:
                return -EINTR
            ret = self.host.gmem.kvm_gmem_populate(
                kvm, region.gpa >> PAGE_SHIFT, region.source_addr, 1, vcpu, cmd.flags
            )
            if ret < 0:
                return ret
            if ret != 1:
                return -EIO
            region.source_addr += PAGE_SIZE
            region.gpa += PAGE_SIZE
            region.nr_pages -= 1
            self.sim.point("cond_resched")
        return 0

    def tdx_vcpu_extend_mem_region(self, vcpu: KvmVcpu, gpa: int, nr_pages: int) -> int:
        """Measure pages that were added before: what the out-of-tree KVM of Ubuntu 24.04 does in a
        second pass over each section. 0, -EINVAL or -EIO.

        MODEL: not an ioctl of this tree; a VMM that measures in two passes calls it.
        """
        kvm = vcpu.kvm
        if not is_hkid_assigned(kvm.tdx) or kvm.tdx.state == TD_STATE_RUNNABLE:
            return -EINVAL
        for offset in range(0, nr_pages << PAGE_SHIFT, TDX_EXTENDMR_CHUNKSIZE):
            err, entry, level_state = self.host.x86_tdx.tdh_mr_extend(kvm.tdx, gpa + offset)
            if self.tdx_bug_on(err, "TDH_MR_EXTEND", kvm, entry, level_state):
                return -EIO
        return 0

    # KVM_MEMORY_ENCRYPT_OP

    def tdx_vm_ioctl(self, kvm: Kvm, cmd: KvmTdxCmd) -> int:
        """On a VM fd: KVM_TDX_CAPABILITIES, INIT_VM, FINALIZE_VM."""
        if cmd.hw_error:
            return -EINVAL
        if cmd.id == KVM_TDX_CAPABILITIES:
            return 0
        ret = self.tdx_acquire_vm_state_locks(kvm)
        if ret:
            return ret
        if cmd.id == KVM_TDX_INIT_VM:
            ret = self.tdx_td_init(kvm, cmd)
        elif cmd.id == KVM_TDX_FINALIZE_VM:
            ret = self.tdx_td_finalize(kvm, cmd)
        else:
            ret = -EINVAL
        self.tdx_release_vm_state_locks(kvm)
        return ret

    def tdx_vcpu_unlocked_ioctl(self, vcpu: KvmVcpu, cmd: KvmTdxCmd) -> int:
        """On a vCPU fd: KVM_TDX_INIT_VCPU, INIT_MEM_REGION."""
        if cmd.hw_error:
            return -EINVAL
        kvm = vcpu.kvm
        ret = self.tdx_acquire_vm_state_locks(kvm)
        if ret:
            return ret
        if not is_hkid_assigned(kvm.tdx) or kvm.tdx.state == TD_STATE_RUNNABLE:
            ret = -EINVAL
        else:
            self.host.main.vcpu_load(vcpu)
            if cmd.id == KVM_TDX_INIT_MEM_REGION:
                ret = self.tdx_vcpu_init_mem_region(vcpu, cmd)
            elif cmd.id == KVM_TDX_INIT_VCPU:
                ret = self.tdx_vcpu_init(vcpu, cmd)
            else:
                ret = -EINVAL
            self.host.main.vcpu_put(vcpu)
        self.tdx_release_vm_state_locks(kvm)
        return ret
