"""The end of a VM, and vCPUs that move."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.designs.bugs._seeded import seeded
from septum.linux.kvm.gmem_range import MAX_INDEX
from septum.linux.kvm.guest_memfd import GuestMemfd
from septum.linux.kvm.main import KvmMain
from septum.linux.kvm.tdx import KvmTdxUnit
from septum.linux.kvm.tdx_base import is_hkid_assigned
from septum.linux.mm import Mm
from septum.linux.x86.tdx import TdxArch

if TYPE_CHECKING:
    from septum.abi.types import Pfn
    from septum.linux.kvm.types import GmemFile, Kvm, KvmVcpu
    from septum.linux.mm.folio import Folio, Subpool


class DeadVmKeepsPages(GuestMemfd):
    """The pages of a VM that is dead are not taken out of its S-EPT when the file is closed."""

    __slots__ = ()

    def _kvm_gmem_zap(self, f: GmemFile, start: int, end: int, attr_filter: int) -> None:
        if not f.kvm.vm_dead:
            super()._kvm_gmem_zap(f, start, end, attr_filter)


class ReleaseUnannounced(GuestMemfd):
    """A file is closed without an invalidation: a fault that has its page already maps it."""

    __slots__ = ()

    def _kvm_gmem_invalidate_begin(self, f: GmemFile, start: int, end: int) -> None:
        if end != MAX_INDEX:
            super()._kvm_gmem_invalidate_begin(f, start, end)

    def _kvm_gmem_invalidate_end(self, f: GmemFile, start: int, end: int) -> None:
        if end != MAX_INDEX:
            super()._kvm_gmem_invalidate_end(f, start, end)


class MovesUnflushed(KvmTdxUnit):
    """A vCPU is loaded on another CPU without TDH.VP.FLUSH on the one that it comes from."""

    __slots__ = ()

    def tdx_vcpu_load(self, vcpu: KvmVcpu, cpu: int) -> None:
        if vcpu.cpu != cpu:
            self.tdx_disassociate_vp(vcpu)
            self.state.associated_tdvcpus[cpu].append(vcpu)


class VmNeverGone(KvmMain):
    """A vCPU's file is closed and keeps its reference to the VM."""

    __slots__ = ()

    def kvm_vcpu_release(self, vcpu: KvmVcpu) -> None:
        """Nothing."""


class ReclaimErrorLost(KvmTdxUnit):
    """An S-EPT page is freed whether the module gave it back or not."""

    __slots__ = ()

    def free_external_spt(self, kvm: Kvm, gfn: int, level: int, external_spt: int) -> int:
        super().free_external_spt(kvm, gfn, level, external_spt)
        return 0


class NotFlushedBefore(TdxArch):
    """Pages go to the module with the lines that the host has dirtied."""

    __slots__ = ()

    def tdx_clflush_page(self, pfn: int) -> None:
        """Nothing."""


class ResetUnflushed(TdxArch):
    """Removed pages are reset, which is taken for enough: no TDH.PHYMEM.PAGE.WBINVD."""

    __slots__ = ()

    def tdh_phymem_page_wbinvd_hkid(
        self, hkid: int, folio: Folio, start_idx: int, npages: int
    ) -> int:
        return 0


class TdrNotReset(TdxArch):
    """tdx_quirk_reset_page(), which is for the TDR, does nothing."""

    __slots__ = ()

    def tdx_quirk_reset_page(self, pfn: int) -> None:
        """Nothing."""


class ReclaimBeforeKey(KvmTdxUnit):
    """A failed KVM_TDX_INIT_VM reclaims its pages while the key is still assigned: none is, and
    the next attempt forgets them."""

    __slots__ = ()

    def _td_init_teardown(self, kvm: Kvm, tdcs_pages: list[Pfn], added: int, ret: int) -> int:
        for page in tdcs_pages[added:]:
            self.host.x86_tdx.tdx_free_page(page)
        self.tdx_reclaim_td_control_pages(kvm)
        self.tdx_mmu_release_hkid(kvm)
        return ret


class ReservationStays(Mm):
    """A guest_memfd is closed, and the huge pages that it reserved stay reserved."""

    __slots__ = ()

    def hugepage_put_subpool(self, subpool: Subpool) -> None:
        """Nothing."""


class DeadVmRetries(KvmTdxUnit):
    """A fault is retried without a look whether the VM is dead."""

    __slots__ = ()

    def _vm_is_dead(self, vcpu: KvmVcpu) -> bool:
        return False


class ResetFirst(KvmTdxUnit):
    """Removed pages are reset, and the TD's dirty lines are written over that."""

    __slots__ = ()

    def _write_back_and_reset(self, kvm: Kvm, folio: Folio, start_idx: int, npages: int) -> int:
        self.host.x86_tdx.tdx_quirk_reset_folio(folio, start_idx, npages)
        return int(
            self.host.x86_tdx.tdh_phymem_page_wbinvd_hkid(kvm.tdx.hkid, folio, start_idx, npages)
        )


class NotResumed(KvmTdxUnit):
    """TDH.PHYMEM.CACHE.WB is called once, whatever interrupts it."""

    __slots__ = ()

    def smp_func_do_phymem_cache_wb(self) -> None:
        self.host.x86_tdx.tdh_phymem_cache_wb(False)


class KeyFreedAnyway(KvmTdxUnit):
    """The host takes a key id for free that the module did not give back."""

    __slots__ = ()

    def tdx_mmu_release_hkid(self, kvm: Kvm) -> None:
        super().tdx_mmu_release_hkid(kvm)
        if is_hkid_assigned(kvm.tdx):
            self.tdx_hkid_free(kvm.tdx)


DESIGNS = (
    seeded(
        "dead-vm-keeps-pages",
        "guest_memfd.c kvm_gmem_release()",
        "The pages of a VM that is dead stay in its S-EPT when its memory is closed",
        "dead-vm-closes",
        "mapping-in-folio",
        "no-bug",
        gmem=DeadVmKeepsPages,
    ),
    seeded(
        "release-unannounced",
        "guest_memfd.c kvm_gmem_release()",
        "The memory is closed without an invalidation: a fault under way maps it afterwards",
        "teardown-memory-closed-under-vcpu",
        "mapping-in-folio",
        gmem=ReleaseUnannounced,
    ),
    seeded(
        "vcpu-moves-unflushed",
        "tdx.c tdx_vcpu_load()",
        "A vCPU moves to another CPU without TDH.VP.FLUSH",
        "prefault-by-thread",
        "no-bug",
        tdx=MovesUnflushed,
    ),
    seeded(
        "tdr-not-reset",
        "tdx.c tdx_reclaim_td_control_pages()",
        "The TDR page goes back without MOVDIR64B on a processor with the partial-write erratum",
        "convert-aligned-2m-erratum",
        "teardown",
        x86_tdx=TdrNotReset,
    ),
    seeded(
        "reset-unflushed",
        "v3 patch 03, tdh_phymem_page_wbinvd_hkid()",
        "Pages go back with MOVDIR64B, and with the TD's dirty lines still in the cache",
        "convert-aligned-2m-erratum",
        "cache",
        x86_tdx=ResetUnflushed,
    ),
    seeded(
        "pages-not-flushed",
        "x86/virt/vmx/tdx/tdx.c tdx_clflush_page()",
        "Control pages are given to the TDX module while the cache has dirty lines of the host",
        "build-dirty-lines",
        "cache",
        x86_tdx=NotFlushedBefore,
    ),
    seeded(
        "reclaim-error-lost",
        "tdx.c tdx_sept_free_private_spt()",
        "An S-EPT page that the TDX module did not give back is freed, not leaked",
        "teardown-reclaim-fails",
        "cache",
        tdx=ReclaimErrorLost,
    ),
    seeded(
        "vm-never-gone",
        "kvm_main.c kvm_vcpu_release()",
        "A vCPU's file keeps its reference to the VM, which is never destroyed",
        "teardown-memory-first",
        "teardown",
        main=VmNeverGone,
    ),
    seeded(
        "reclaim-before-key",
        "tdx.c __tdx_td_init()",
        "KVM_TDX_INIT_VM fails and reclaims its pages before it gives the key back: they stay",
        "build-no-entropy",
        "teardown",
        tdx=ReclaimBeforeKey,
    ),
    seeded(
        "reservation-stays",
        "guest_memfd_hugetlb.c, mm/hugetlb.c hugepage_put_subpool()",
        "What a guest_memfd has reserved of the huge pages stays reserved when it is closed",
        "tdx-vm-huge-page",
        "teardown",
        mm=ReservationStays,
    ),
    seeded(
        "dead-vm-retries",
        "vmx/tdx.c tdx_handle_ept_violation()",
        "The retry loop of a private fault does not look for KVM_REQ_VM_DEAD",
        "dead-vm-faulting",
        "progress",
        tdx=DeadVmRetries,
    ),
    seeded(
        "reset-first",
        "tdx.c tdx_sept_remove_private_spte()",
        "Removed pages are reset with MOVDIR64B before the TD's dirty lines are written back",
        "convert-aligned-2m-erratum",
        "cache",
        "teardown",
        tdx=ResetFirst,
    ),
    seeded(
        "write-back-not-resumed",
        "tdx.c smp_func_do_phymem_cache_wb()",
        "TDH.PHYMEM.CACHE.WB is interrupted and not resumed: the key id stays with the module",
        "teardown-interrupted",
        "no-bug",
        tdx=NotResumed,
    ),
    seeded(
        "key-freed-anyway",
        "tdx.c tdx_mmu_release_hkid()",
        "A key id that could not be freed is given to the next VM",
        "teardown-key-then-build",
        "expectation",
        tdx=KeyFreedAnyway,
    ),
)
