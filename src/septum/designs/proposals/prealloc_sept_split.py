"""A split of the S-EPT has all its memory before mmu_lock is taken, and keeps the lock throughout.

Asked for by Yan Zhao (author of v3), 2026-01-19 01:28 and 12:32, on top of a head and a tail that
the caller names: so many pages as a range can take are known ahead, and a function of its own, in
the place of tdp_mmu_split_huge_pages_root(), need neither drop mmu_lock nor have a spinlock for the
per-VM cache. Sean Christopherson (KVM), 2026-01-20: a cache is not worth it where mmu_lock may be
dropped at will, and is necessary for Dynamic PAMT only; 2026-01-29: "Belatedly, yes" to the
function.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.errno import ENOMEM
from septum.abi.kvm import KVM_MEMORY_ATTRIBUTE_PRIVATE, PAGES_PER_HPAGE, PG_LEVEL_2M
from septum.abi.kvm import gfn_round_for_level as gfn_round
from septum.designs.proposals.head_tail import HeadTailMmu, MirrorsSplitTdpMmu, huge_pages_across
from septum.designs.registry import Design, on_v3
from septum.linux.kvm.guest_memfd import GuestMemfd
from septum.linux.kvm.main import KvmMain
from septum.linux.kvm.tdx import KvmTdxUnit
from septum.linux.kvm.types import KVM_FILTER_PRIVATE, TdxPrealloc

if TYPE_CHECKING:
    from septum.linux.host import Host
    from septum.linux.kvm.types import GmemFile, Kvm, KvmMemorySlot, KvmMmuPage, KvmVcpu


class SplitMemory:
    """What splits take: page tables with their S-EPT pages, and pages for Dynamic PAMT."""

    __slots__ = ("pamt", "sps")

    def __init__(self) -> None:
        self.sps: list[KvmMmuPage] = []
        self.pamt = TdxPrealloc()


class PreallocSplitTdpMmu(MirrorsSplitTdpMmu):
    """A TDP MMU that splits mirror roots with the memory that the task has brought.

    `at_hand` is that memory, by task index. MODEL: the functions have no argument for it; and
    `tdp_mmu_split_huge_pages_root()` stays, with nothing to allocate and one huge page to look at.
    """

    __slots__ = ("at_hand",)

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.at_hand: dict[int, SplitMemory] = {}

    def split_memory_get(self, kvm: Kvm, splits: int) -> int:
        """Allocate for `splits` splits of 2 MB, with no lock that spins: 0, or -ENOMEM with nothing
        kept."""
        memory = self.at_hand[self.sim.current.index] = SplitMemory()
        pages = splits * self.host.tdx.tdx_min_split_cache_sz(kvm, PG_LEVEL_2M)
        while len(memory.sps) < splits:
            sp = self.tdp_mmu_alloc_sp_for_split(True)
            if sp is None:
                self.split_memory_put()
                return -ENOMEM
            memory.sps.append(sp)
        while memory.pamt.cnt < pages:
            page = self.host.mm.alloc_page("tdx_split_cache")
            if page is None:
                self.split_memory_put()
                return -ENOMEM
            memory.pamt.page_list.append(page)
            memory.pamt.cnt += 1
        return 0

    def split_memory_put(self) -> None:
        """Free what was not used."""
        memory = self.at_hand.pop(self.sim.current.index)
        for sp in memory.sps:
            self.tdp_mmu_free_sp(sp)
        for page in memory.pamt.page_list:
            self.host.mm.free_page(page)

    def split_memory(self) -> SplitMemory:
        """What the current task has brought."""
        return self.at_hand[self.sim.current.index]

    def _alloc_sp_without_mmu_lock(
        self, kvm: Kvm, root: KvmMmuPage, shared: bool
    ) -> KvmMmuPage | None:
        if not root.is_mirror:
            return super()._alloc_sp_without_mmu_lock(kvm, root, shared)
        return self.split_memory().sps.pop()

    def need_topup_external_split_cache(self, kvm: Kvm, level: int) -> bool:
        return False


class PreallocSplitTdx(KvmTdxUnit):
    """TDX whose split takes PAMT pages from the task's memory; an ACCEPT brings some, too.

    MODEL: v3's spinlock is taken besides, and never contended.
    """

    __slots__ = ()

    def _split_cache(self, kvm: Kvm) -> TdxPrealloc:
        return _tdp_mmu(self.host).split_memory().pamt

    def _tdx_split_and_inhibit(
        self, vcpu: KvmVcpu, slot: KvmMemorySlot, gfn: int, level: int
    ) -> int:
        tdp_mmu = _tdp_mmu(self.host)
        start = gfn_round(gfn, level)
        across = huge_pages_across(start, start + PAGES_PER_HPAGE[level], PG_LEVEL_2M)
        ret = tdp_mmu.split_memory_get(vcpu.kvm, len(across))
        if not ret:
            ret = super()._tdx_split_and_inhibit(vcpu, slot, gfn, level)
            tdp_mmu.split_memory_put()
        return ret


class PreallocSplitGuestMemfd(GuestMemfd):
    """guest_memfd that has the memory for a VM's splits before it takes the VM's mmu_lock."""

    __slots__ = ()

    def _kvm_gmem_split_private(self, f: GmemFile, start: int, end: int) -> int:
        tdp_mmu = _tdp_mmu(self.host)
        splits = sum(
            len(huge_pages_across(rng.start, rng.end, PG_LEVEL_2M))
            for rng in self._bound_ranges(f, start, end, KVM_FILTER_PRIVATE)
        )
        ret = tdp_mmu.split_memory_get(f.kvm, splits)
        if not ret:
            ret = super()._kvm_gmem_split_private(f, start, end)
            tdp_mmu.split_memory_put()
        return ret


class PreallocSplitMain(KvmMain):
    """KVM_SET_MEMORY_ATTRIBUTES that has the memory for all slots before it begins with one.

    Assumed: the mails speak of the API that all three callers of a split share, so that this one is
    meant, too, as long as there are huge pages with per-VM attributes.
    """

    __slots__ = ()

    def _pre_set_range(self, kvm: Kvm, start: int, end: int, attributes: int) -> int:
        if not kvm.arch.has_private_mem or attributes & KVM_MEMORY_ATTRIBUTE_PRIVATE:
            return super()._pre_set_range(kvm, start, end, attributes)
        splits = 0
        slot = self._memslot_from(kvm, start, end)
        while slot is not None:
            first, last = max(start, slot.base_gfn), min(end, slot.end_gfn)
            splits += len(huge_pages_across(first, last, PG_LEVEL_2M))
            slot = self._memslot_from(kvm, slot.end_gfn, end)
        tdp_mmu = _tdp_mmu(self.host)
        ret = tdp_mmu.split_memory_get(kvm, splits)
        if not ret:
            ret = super()._pre_set_range(kvm, start, end, attributes)
            tdp_mmu.split_memory_put()
        return ret


def _tdp_mmu(host: Host) -> PreallocSplitTdpMmu:
    tdp_mmu = host.tdp_mmu
    assert isinstance(tdp_mmu, PreallocSplitTdpMmu)
    return tdp_mmu


DESIGN = Design(
    "prealloc-sept-split",
    "Yan Zhao (author of v3), 2026-01-19, and Sean Christopherson (KVM), 2026-01-20 and 29, review"
    " of 11/24",
    "a split has all its memory before mmu_lock is taken, and does not drop the lock",
    on_v3(
        mmu=HeadTailMmu,
        tdp_mmu=PreallocSplitTdpMmu,
        tdx=PreallocSplitTdx,
        gmem=PreallocSplitGuestMemfd,
        main=PreallocSplitMain,
    ),
    scenarios=("finding-attributes-enomem", "finding-convert-enomem", "dpamt-straddling"),
)
