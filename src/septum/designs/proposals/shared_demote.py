"""A split under mmu_lock for reading: with today's TDX module, and with one that does not block.

Patch 09 of v3 refuses the first. Its log says why: all vCPUs cannot be kept out under the shared
lock, so DEMOTE may be BUSY; then the leaf, which is BLOCKED, has to be unblocked; and UNBLOCK may
be BUSY, too. (A search finds a nearer one: TRACK is BUSY as a vCPU enters, and UNBLOCK wants that
tracking to be done.) It keeps the door open for a module with NON-BLOCKING-RESIZE, whose DEMOTE
needs neither BLOCK nor TRACK (patches 09 and 13, 2026-01-06).

That the fault splits, to the level of the vCPU's ACCEPT, is RFC v1's form. That of patch 13 keeps
the bit for all vCPUs: shared_accept.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from septum.abi.errno import EBUSY, EIO
from septum.abi.kvm import KVM_REQ_OUTSIDE_GUEST_MODE
from septum.abi.spte import spte_to_pfn
from septum.abi.status import STATUS_MASK, TDX_TLB_TRACKING_NOT_DONE
from septum.designs.proposals.range_unblock import UnblockTdxArch
from septum.designs.registry import Design, on_v3
from septum.linux.kvm.tdp_mmu import TdpMmu
from septum.linux.kvm.tdx import KvmTdxUnit
from septum.linux.kvm.tdx_base import tdx_operand_busy
from septum.module import Module

if TYPE_CHECKING:
    from septum.linux.kvm.tdp_iter import TdpIter
    from septum.linux.kvm.types import Kvm, KvmMmuPage, KvmVcpu, TdxPrealloc


class SharedSplitTdpMmu(TdpMmu):
    """A TDP MMU that says of a split in a fault whether an ACCEPT has caused it."""

    __slots__ = ()

    def tdp_mmu_split_huge_page(self, kvm: Kvm, it: TdpIter, sp: KvmMmuPage, shared: bool) -> int:
        main = self.host.main
        vcpu = main.kvm_get_running_vcpu()
        if not shared or vcpu is None or not self.host.tdx.tdx_guest_accept_level(vcpu):
            return super().tdp_mmu_split_huge_page(kvm, it, sp, shared)
        cause = main.set_cause("accept")
        r = super().tdp_mmu_split_huge_page(kvm, it, sp, shared)
        main.set_cause(cause)
        return r


class SharedDemoteTdx(KvmTdxUnit):
    """TDX that can make a DEMOTE with mmu_lock held for reading."""

    __slots__ = ()

    def tdx_sept_demote_shared(
        self,
        kvm: Kvm,
        gfn: int,
        level: int,
        old_mirror_spte: int,
        new_private_spt: int,
        prealloc: TdxPrealloc,
    ) -> int:
        """DEMOTE once, with PAMT pages out of `prealloc`. 0, or -EBUSY or -EIO with nothing split.
        Only BUSY and TLB tracking that is not done are not the end of the VM."""
        x86 = self.host.x86_tdx
        ret = x86.tdx_pamt_get(new_private_spt, prealloc)
        if ret:
            return ret
        guest_pfn = spte_to_pfn(old_mirror_spte)
        folio = self.host.mm.page_folio(guest_pfn)
        err, entry, level_state = x86.tdh_mem_page_demote(
            kvm.tdx,
            gfn << 12,
            level - 1,
            folio,
            guest_pfn - folio.pfn,
            new_private_spt,
            prealloc,
        )
        if not err:
            return 0
        x86.tdx_pamt_put(new_private_spt)
        if tdx_operand_busy(err) or err & STATUS_MASK == TDX_TLB_TRACKING_NOT_DONE:
            return -EBUSY
        self.tdx_bug_on(err, "TDH_MEM_PAGE_DEMOTE", kvm, entry, level_state)
        return -EIO


class SharedSplitTdx(SharedDemoteTdx):
    """TDX whose fault path splits: the fault of an ACCEPT may map no larger than its level, and
    meets the 2 MB leaf above that.

    As in RFC v1 of the series, the level is that of the vCPU's last exit, and nobody else is told:
    what is split stays split, as there is no promotion. MODEL: the level counts for whatever that
    vCPU faults in until it exits for something else, so that it may map 4 KB where 2 MB would do.
    """

    __slots__ = ()

    def tdx_honor_guest_accept_level(self, vcpu: KvmVcpu, gfn: int) -> int:
        return 0

    def gmem_max_mapping_level(self, kvm: Kvm, pfn: int, is_private: bool) -> int:
        level = super().gmem_max_mapping_level(kvm, pfn, is_private)
        vcpu = self.host.main.kvm_get_running_vcpu()
        wanted = self.tdx_guest_accept_level(vcpu) if vcpu is not None and is_private else 0
        return min(level, wanted) if wanted else level

    def tdx_sept_demote_in_fault(
        self, kvm: Kvm, gfn: int, level: int, old_mirror_spte: int, new_private_spt: int
    ) -> int:
        """tdx_sept_demote_shared() with PAMT pages out of the running vCPU's cache."""
        vcpu = self.host.main.kvm_get_running_vcpu()
        if vcpu is None:
            self.host.main.kvm_bug_on(kvm, True, "split in a fault without a running vCPU")
            return -EIO
        return self.tdx_sept_demote_shared(
            kvm, gfn, level, old_mirror_spte, new_private_spt, vcpu.tdx.prealloc
        )


class SharedUnblockTdx(SharedSplitTdx):
    """BLOCK, TRACK, kick, DEMOTE under mmu_lock for reading; UNBLOCK where that failed.

    Assumed: each of the four is called once. vCPUs are kicked so that they leave the epoch, and
    may come back at once: nobody may set wait_for_sept_zap but a writer. An UNBLOCK that is BUSY
    leaves the leaf BLOCKED; KVM has no other way to say so than to let the fault be retried.
    """

    __slots__ = ()

    def _tdx_sept_split_shared(
        self, kvm: Kvm, gfn: int, level: int, old_mirror_spte: int, new_private_spt: int
    ) -> int:
        x86 = self.host.x86_tdx
        assert isinstance(x86, UnblockTdxArch)
        gpa = gfn << 12
        ret = self.tdx_sept_block_shared(kvm, gpa, level)
        if ret:
            return ret
        err, _, _ = x86.tdh_mem_track(kvm.tdx)
        ret = -EBUSY
        if not err:
            self.host.main.kvm_make_all_cpus_request(kvm, KVM_REQ_OUTSIDE_GUEST_MODE)
            ret = self.tdx_sept_demote_in_fault(kvm, gfn, level, old_mirror_spte, new_private_spt)
        if ret == -EBUSY:
            err, _, _ = x86.tdh_mem_range_unblock(kvm.tdx, gpa, level - 1)
            kvm.stat.add("unblock.failed" if err else "unblock.done")
        return ret

    def tdx_sept_block_shared(self, kvm: Kvm, gpa: int, level: int) -> int:
        """RANGE.BLOCK once. 0, -EBUSY, or -EIO and the VM is bugged: also for a leaf that is
        blocked already, as everywhere in v3."""
        err, entry, level_state = self.host.x86_tdx.tdh_mem_range_block(kvm.tdx, gpa, level - 1)
        if tdx_operand_busy(err):
            return -EBUSY
        if self.tdx_bug_on(err, "TDH_MEM_RANGE_BLOCK", kvm, entry, level_state):
            return -EIO
        return 0


class SharedNonBlockingTdx(SharedSplitTdx):
    """DEMOTE and nothing else: BUSY leaves the leaf as it was, and the fault is retried."""

    __slots__ = ()

    def _tdx_sept_split_shared(
        self, kvm: Kvm, gfn: int, level: int, old_mirror_spte: int, new_private_spt: int
    ) -> int:
        return self.tdx_sept_demote_in_fault(kvm, gfn, level, old_mirror_spte, new_private_spt)

    def _block_and_track(self, kvm: Kvm, gpa: int, level: int) -> int:
        """Not needed for a split under mmu_lock for writing, either."""
        return 0


class NonBlockingResizeModule(Module):
    """A TDX module with NON-BLOCKING-RESIZE.

    MODEL: no such module is public. DEMOTE takes a leaf that is neither blocked nor tracked; its
    512 entries map the same frames, so that what TLBs hold of the leaf stays right until one of
    them is blocked and tracked. How software sees the feature is not modelled.
    """

    __slots__ = ()
    demote_blocking: ClassVar[bool] = False


UNBLOCK = Design(
    "shared-demote-unblock",
    "refused by PATCH v3 09/24, 2026-01-06, Yan Zhao (author)",
    "a fault splits under mmu_lock for reading: BLOCK, TRACK, DEMOTE, and UNBLOCK when BUSY",
    on_v3(tdx=SharedUnblockTdx, tdp_mmu=SharedSplitTdpMmu, x86_tdx=UnblockTdxArch),
    breaks=("no-bug", "mapping-in-folio", "teardown"),
    scenarios=("accept-demote-busy", "accept-parallel-4k", "finding-fault-meets-leaf"),
)

NON_BLOCKING = Design(
    "shared-demote-non-blocking",
    "foreseen by PATCH v3 09 and 13/24, 2026-01-06, Yan Zhao (author); a TDX module to come",
    "a fault splits under mmu_lock for reading by DEMOTE alone (NON-BLOCKING-RESIZE)",
    on_v3(tdx=SharedNonBlockingTdx, tdp_mmu=SharedSplitTdpMmu),
    module=lambda: NonBlockingResizeModule,
    scenarios=("accept-demote-busy", "accept-level-prefault", "finding-fault-meets-leaf"),
)
