"""What an ACCEPT asks for under mmu_lock for reading: the split, and the guest-inhibit bit.

Foreseen by patch 13 of v3 (2026-01-06): once the TDX module has NON-BLOCKING-RESIZE, "both (1) and
(2) are possible to be done under shared mmu_lock". Patch 19 has the order of its cache for that,
part b of its log. The functions are v3's, with `shared` in the place of the write lock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.errno import EAGAIN, EBUSY
from septum.abi.kvm import PAGES_PER_HPAGE, gfn_round_for_level
from septum.abi.spte import FROZEN_SPTE
from septum.designs.proposals.restartable import WATCHDOG_REPEATS
from septum.designs.proposals.shared_demote import NonBlockingResizeModule, SharedDemoteTdx
from septum.designs.registry import Design, on_v3
from septum.linux.kvm.tdp_mmu import TdpMmu
from septum.linux.kvm.types import KVM_FILTER_PRIVATE, KvmGfnRange
from septum.sim import RunStopped

if TYPE_CHECKING:
    from septum.linux.kvm.tdp_iter import TdpIter
    from septum.linux.kvm.types import Kvm, KvmMemorySlot, KvmMmuPage, KvmVcpu


class SharedAcceptTdx(SharedDemoteTdx):
    """tdx_honor_guest_accept_level() with read_lock(&kvm->mmu_lock), and DEMOTE alone.

    Assumed: PAMT pages are those of the per-VM cache, as in the log of patch 19; that they are the
    vCPU's one day (Yan Zhao, 2026-01-22) changes who tops them up.
    """

    __slots__ = ()

    def _tdx_split_for_accept(
        self, vcpu: KvmVcpu, slot: KvmMemorySlot, gfn: int, level: int
    ) -> int:
        first = gfn_round_for_level(gfn, level)
        gfn_range = KvmGfnRange(
            slot, first, first + PAGES_PER_HPAGE[level], KVM_FILTER_PRIVATE, True
        )
        return self.host.mmu.kvm_split_cross_boundary_leafs(vcpu.kvm, gfn_range, True)

    def _tdx_split_and_inhibit(
        self, vcpu: KvmVcpu, slot: KvmMemorySlot, gfn: int, level: int
    ) -> int:
        kvm = vcpu.kvm
        main = self.host.main
        kvm.mmu_lock.read_lock()
        cause = main.set_cause("accept")
        ret = self._tdx_split_for_accept(vcpu, slot, gfn, level)
        main.set_cause(cause)
        if not ret:
            self._tdx_inhibit_above(slot, gfn, level)
        kvm.mmu_lock.read_unlock()
        return ret

    def _tdx_sept_split_shared(
        self, kvm: Kvm, gfn: int, level: int, old_mirror_spte: int, new_private_spt: int
    ) -> int:
        # Others may have taken what need_topup() has seen: step 3 of part b, (**).
        with kvm.tdx.prealloc_split_cache_lock:
            if self.need_topup_external_per_vm_split_cache(kvm, level):
                return -EAGAIN
            return self.tdx_sept_demote_shared(
                kvm, gfn, level, old_mirror_spte, new_private_spt, kvm.tdx.prealloc_split_cache
            )

    def _block_and_track(self, kvm: Kvm, gpa: int, level: int) -> int:
        """Not needed for a split under mmu_lock for writing, either."""
        return 0


class StaleTdpMmu(TdpMmu):
    """v3's, whose set_external_spte_present() gets `old_spte` by value: a split that comes second
    tries again with the leaf that it has read, and the walk does not yield twice at one place.

    MODEL: once a table is there the leaf does not come back under mmu_lock for reading. The
    watchdog for soft lockups barks after so many attempts, and ends the run.
    """

    __slots__ = ()

    def tdp_mmu_split_huge_page(self, kvm: Kvm, it: TdpIter, sp: KvmMmuPage, shared: bool) -> int:
        for _ in range(WATCHDOG_REPEATS):
            r = super().tdp_mmu_split_huge_page(kvm, it, sp, shared)
            found = it.table.entry(it.index)
            if r != -EBUSY or found == it.old_spte or it.next_last_level_gfn != it.yielded_gfn:
                return r
            self.sim.retry("cpu_relax")
            if found == FROZEN_SPTE:
                return r
        self.sim.find(
            "progress",
            f"soft lockup: gfn {it.gfn:#x} was found changed {WATCHDOG_REPEATS} times in a row, "
            "with mmu_lock held for reading",
            where="tdp_mmu_split_huge_pages_root",
        )
        raise RunStopped(self.sim.findings[-1])


class RereadTdpMmu(TdpMmu):
    """set_external_spte_present() that tells its caller what is in an entry that has changed, as
    try_cmpxchg64() on `iter->old_spte` itself would.

    An entry that is frozen is passed by, so that the inhibit bit may be set before the leaf is
    split; the fault that comes next meets the frozen entry, or the leaf, and tries again.
    """

    __slots__ = ()

    def _freeze_spte(self, it: TdpIter, old_spte: int, new_spte: int) -> bool:
        frozen = super()._freeze_spte(it, old_spte, new_spte)
        if not frozen:
            it.old_spte = it.table.entry(it.index)
        return frozen


DESIGN = Design(
    "accept-shared-non-blocking",
    "foreseen by PATCH v3 13 and 19/24, 2026-01-06, Yan Zhao (author); a TDX module to come",
    "an ACCEPT splits and sets the inhibit bit under mmu_lock for reading (NON-BLOCKING-RESIZE)",
    on_v3(tdx=SharedAcceptTdx, tdp_mmu=StaleTdpMmu),
    module=lambda: NonBlockingResizeModule,
    breaks=("progress",),
    scenarios=("accept-parallel-4k", "accept-level-race", "accept-level-prefault"),
)

REREAD = Design(
    "accept-shared-non-blocking-reread",
    "the same; after v3, 02eaaffdd865 has the entry read again; PATCH v3 13 and 19/24, 2026-01-06",
    "the same; a split that finds its entry changed looks at what is there now",
    on_v3(tdx=SharedAcceptTdx, tdp_mmu=RereadTdpMmu),
    module=lambda: NonBlockingResizeModule,
    scenarios=("accept-parallel-4k", "accept-level-race", "dpamt-accept-parallel"),
)
