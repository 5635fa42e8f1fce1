"""Splitting a 2 MB leaf of the Secure EPT, and the per-VM cache of pages for it.

Source: patches 08, 09, 20, 21, 22, 23.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.errno import EIO, ENOMEM, EOPNOTSUPP
from septum.abi.kvm import PG_LEVEL_2M
from septum.abi.spte import spte_to_pfn
from septum.linux.kvm.tdx_defs import TD_STATE_RUNNABLE
from septum.linux.kvm.tdx_sept import TdxSept

if TYPE_CHECKING:
    from septum.abi.types import Pfn
    from septum.linux.kvm.types import Kvm, TdxPrealloc
    from septum.linux.x86.tdx import SeamcallRet


class TdxSplit(TdxSept):
    """Demotion."""

    __slots__ = ()

    # The per-VM cache: patch 20

    def tdx_min_split_cache_sz(self, kvm: Kvm, level: int) -> int:
        """Pages that one split may take: a PAMT pair for the new S-EPT page and one for the guest
        page. 0 without Dynamic PAMT."""
        self.host.main.kvm_bug_on(kvm, level != PG_LEVEL_2M, f"split cache for level {level}")
        return self.host.x86_tdx.tdx_dpamt_entry_pages() * 2

    def topup_external_per_vm_split_cache(self, kvm: Kvm, level: int) -> int:
        """kvm_x86_ops.topup_external_per_vm_split_cache: 0 or -ENOMEM. May sleep."""
        prealloc = kvm.tdx.prealloc_split_cache
        cnt = self.tdx_min_split_cache_sz(kvm, level)
        while prealloc.cnt < cnt:
            page = self.host.mm.alloc_page("tdx_split_cache")
            if page is None:
                return -ENOMEM
            self._put_into_split_cache(kvm, page)
        return 0

    def _put_into_split_cache(self, kvm: Kvm, page: Pfn) -> None:
        """Under its lock, as others may be taking pages out of it."""
        with kvm.tdx.prealloc_split_cache_lock:
            self.host.x86_tdx.add_tdx_prealloc_page(kvm.tdx.prealloc_split_cache, page)

    def need_topup_external_per_vm_split_cache(self, kvm: Kvm, level: int) -> bool:
        """kvm_x86_ops.need_topup_external_per_vm_split_cache. Exact under write mmu_lock only."""
        return kvm.tdx.prealloc_split_cache.cnt < self.tdx_min_split_cache_sz(kvm, level)

    def free_external_per_vm_split_cache(self, kvm: Kvm) -> None:
        """kvm_x86_ops.free_external_per_vm_split_cache: nobody else can be using it."""
        x86 = self.host.x86_tdx
        while (page := x86.get_tdx_prealloc_page(kvm.tdx.prealloc_split_cache)) is not None:
            self.host.mm.free_page(page)

    def _split_cache(self, kvm: Kvm) -> TdxPrealloc | None:
        """Where a split takes PAMT pages from: &kvm_tdx->prealloc_split_cache."""
        return kvm.tdx.prealloc_split_cache

    # The split

    def split_external_spte(
        self,
        kvm: Kvm,
        gfn: int,
        level: int,
        old_mirror_spte: int,
        new_external_spt: int,
        mmu_lock_shared: bool,
    ) -> int:
        """kvm_x86_ops.split_external_spte."""
        return self.tdx_sept_split_private_spte(
            kvm, gfn, level, old_mirror_spte, new_external_spt, mmu_lock_shared
        )

    def tdx_sept_split_private_spte(
        self,
        kvm: Kvm,
        gfn: int,
        level: int,
        old_mirror_spte: int,
        new_private_spt: int,
        mmu_lock_shared: bool,
    ) -> int:
        """Split a 2 MB leaf: BLOCK, TRACK and kick, DEMOTE. No UNBLOCK after success.

        0; -EOPNOTSUPP under mmu_lock for reading; -EIO, and the VM is bugged, for the rest: the
        leaf then stays BLOCKED. Source: patches 08, 09, 21, 22, 23.
        """
        main = self.host.main
        kvm_tdx = kvm.tdx
        if kvm_tdx.state != TD_STATE_RUNNABLE or level != PG_LEVEL_2M:
            main.kvm_bug_on(kvm, True, f"split at level {level} in state {kvm_tdx.state}")
            return -EIO
        split = self._tdx_sept_split_shared if mmu_lock_shared else self._tdx_sept_split
        return split(kvm, gfn, level, old_mirror_spte, new_private_spt)

    def _tdx_sept_split(
        self, kvm: Kvm, gfn: int, level: int, old_mirror_spte: int, new_private_spt: int
    ) -> int:
        """The split under mmu_lock for writing. Source: patches 08, 21, 22, 23."""
        main = self.host.main
        gpa = gfn << 12
        if self._block_and_track(kvm, gpa, level):
            return -EIO
        ret = self._split_pamt_get(kvm, new_private_spt)
        if main.kvm_bug_on(kvm, ret != 0, f"tdx_pamt_get of the new S-EPT page: {ret}"):
            return -EIO
        err, entry, level_state = self._tdx_sept_demote(
            kvm, gpa, level, spte_to_pfn(old_mirror_spte), new_private_spt
        )
        if self.tdx_bug_on(err, "TDH_MEM_PAGE_DEMOTE", kvm, entry, level_state):
            self._split_pamt_put(new_private_spt)
            return -EIO
        return 0

    def _tdx_sept_split_shared(
        self, kvm: Kvm, gfn: int, level: int, old_mirror_spte: int, new_private_spt: int
    ) -> int:
        """The split under mmu_lock for reading, which v3 refuses: -EOPNOTSUPP. Source: patch 09."""
        self.warn_on_once(
            f"Splitting of GFN {gfn:x} level {level} under shared lock occurs when KVM does"
            " not support it yet",
            "tdx_sept_split_private_spte",
        )
        return -EOPNOTSUPP

    def _tdx_sept_demote(
        self, kvm: Kvm, gpa: int, level: int, guest_pfn: int, new_private_spt: int
    ) -> SeamcallRet:
        """DEMOTE, twice if it is BUSY, with PAMT pages out of the per-VM cache: (status, ext_err1,
        ext_err2). The cache's lock is held through the second attempt and its kick, too.

        Source: patches 08, 22, 23.
        """
        kvm_tdx = kvm.tdx
        guest_folio = self.host.mm.page_folio(guest_pfn)
        with kvm_tdx.prealloc_split_cache_lock:
            return self.tdh_do_no_vcpus(
                self.host.x86_tdx.tdh_mem_page_demote,
                kvm,
                kvm_tdx,
                gpa,
                level - 1,
                guest_folio,
                guest_pfn - guest_folio.pfn,
                new_private_spt,
                self._split_cache(kvm),
            )

    def _block_and_track(self, kvm: Kvm, gpa: int, level: int) -> int:
        """What DEMOTE wants before it: BLOCK, TRACK and kick. 0 or -EIO. Source: patch 08."""
        kvm_tdx = kvm.tdx
        err, entry, level_state = self.tdh_do_no_vcpus(
            self.host.x86_tdx.tdh_mem_range_block, kvm, kvm_tdx, gpa, level - 1
        )
        if self.tdx_bug_on(err, "TDH_MEM_RANGE_BLOCK", kvm, entry, level_state):
            return -EIO
        self.tdx_track(kvm)
        return 0

    def _split_pamt_get(self, kvm: Kvm, new_private_spt: int) -> int:
        """A PAMT page pair for the 2 MB of the new S-EPT page, out of the per-VM cache. 0 or
        -ENOMEM. Source: patch 21."""
        with kvm.tdx.prealloc_split_cache_lock:
            return self.host.x86_tdx.tdx_pamt_get(new_private_spt, self._split_cache(kvm))

    def _split_pamt_put(self, new_private_spt: int) -> None:
        """Undo `_split_pamt_get` when DEMOTE failed. Source: patch 21."""
        self.host.x86_tdx.tdx_pamt_put(new_private_spt)
