"""Memory slots. Source: virt/kvm/kvm_main.c kvm_set_memory_region() and below it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from septum.abi.errno import EBADF, EEXIST, EINVAL, ENOMEM
from septum.abi.kvm import (
    KVM_MEM_GUEST_MEMFD,
    KVM_MEM_LOG_DIRTY_PAGES,
    KVM_MEM_READONLY,
    KVM_MEMSLOT_GMEM_ONLY,
    KVM_PFN_ERR_FAULT,
)
from septum.abi.types import PAGE_SHIFT, PAGE_SIZE, Gfn
from septum.linux.kvm.events import KvmUnmapHvaRange
from septum.linux.kvm.main_requests import MainRequests
from septum.linux.kvm.types import KVM_FILTER_SHARED, GmemFile, KvmGfnRange, KvmMemorySlot

if TYPE_CHECKING:
    from septum.linux.kvm.types import Kvm
    from septum.linux.mm.folio import Folio

KVM_USER_MEM_SLOTS = 32764
KVM_MEM_MAX_NR_PAGES = (1 << 31) - 1


class KvmUserspaceMemoryRegion2(msgspec.Struct):
    """struct kvm_userspace_memory_region2; `guest_memfd` is the file, not a number.

    `delayed_fput` is none of its fields: the file that the ioctl has looked up, and gives back as
    task work, when it holds no lock any more.
    """

    slot: int
    flags: int
    guest_phys_addr: int
    memory_size: int
    userspace_addr: int = 0
    guest_memfd: object = None
    guest_memfd_offset: int = 0
    delayed_fput: GmemFile | None = None


class MainSlots(MainRequests):
    """Memory slots and the host mapping of shared memory."""

    __slots__ = ()

    def gfn_to_memslot(self, kvm: Kvm, gfn: int) -> KvmMemorySlot | None:
        """The slot that holds `gfn`. The GFN has no shared bit."""
        for slot in kvm.memslots.values():
            if slot.base_gfn <= gfn < slot.base_gfn + slot.npages:
                return slot
        return None

    def check_memory_region_flags(self, kvm: Kvm, mem: KvmUserspaceMemoryRegion2) -> int:
        """0 or -EINVAL."""
        valid = KVM_MEM_LOG_DIRTY_PAGES
        if kvm.arch.has_private_mem:
            valid |= KVM_MEM_GUEST_MEMFD
        if mem.flags & KVM_MEM_GUEST_MEMFD:
            valid &= ~KVM_MEM_LOG_DIRTY_PAGES
        elif not kvm.arch.has_protected_state:
            valid |= KVM_MEM_READONLY
        return -EINVAL if mem.flags & ~valid else 0

    def kvm_set_memory_region(self, kvm: Kvm, mem: KvmUserspaceMemoryRegion2) -> int:
        """Create or delete a slot: 0 or an error. slots_lock is held.

        A slot with a guest_memfd cannot be changed. MODEL: others cannot be moved either, and of
        their flags nothing that matters here can change.
        """
        self.lockdep_assert(kvm.slots_lock.held(), "slots_lock not held", "kvm_set_memory_region")
        ret = self.check_memory_region_flags(kvm, mem)
        if ret:
            return ret
        if mem.memory_size % PAGE_SIZE or mem.guest_phys_addr % PAGE_SIZE:
            return -EINVAL
        if mem.userspace_addr % PAGE_SIZE or not 0 <= mem.slot < KVM_USER_MEM_SLOTS:
            return -EINVAL
        if mem.flags & KVM_MEM_GUEST_MEMFD and mem.guest_memfd_offset % PAGE_SIZE:
            return -EINVAL
        if mem.guest_phys_addr + mem.memory_size >= 1 << 52:
            return -EINVAL
        npages = mem.memory_size >> PAGE_SHIFT
        if npages > KVM_MEM_MAX_NR_PAGES:
            return -EINVAL
        old = kvm.memslots.get(mem.slot)
        if not npages:
            return self._delete_slot(kvm, old)
        base_gfn = mem.guest_phys_addr >> PAGE_SHIFT
        if old is not None:
            # Private slots are immutable, and a slot cannot become one.
            if (mem.flags | old.flags) & KVM_MEM_GUEST_MEMFD:
                return -EINVAL
            same = (base_gfn, npages, mem.userspace_addr)
            return 0 if (old.base_gfn, old.npages, old.userspace_addr) == same else -EINVAL
        for slot in kvm.memslots.values():
            if slot.base_gfn < base_gfn + npages and base_gfn < slot.end_gfn:
                return -EEXIST
        return self._create_slot(kvm, mem, base_gfn, npages)

    def _create_slot(
        self, kvm: Kvm, mem: KvmUserspaceMemoryRegion2, base_gfn: int, npages: int
    ) -> int:
        if self.host.mm.fails("kvm_memory_slot"):
            return -ENOMEM
        slot = KvmMemorySlot(mem.slot, Gfn(base_gfn), npages, mem.flags, mem.userspace_addr)
        if mem.flags & KVM_MEM_GUEST_MEMFD:
            f = mem.guest_memfd
            if not isinstance(f, GmemFile):
                return -EINVAL
            if not self.host.gmem.fget(f):
                return -EBADF
            mem.delayed_fput = f
            ret = self.host.gmem.kvm_gmem_bind(kvm, slot, f, mem.guest_memfd_offset)
            if ret:
                return ret
        kvm.slots_arch_lock.lock()
        if (slot.end_gfn - 1) & kvm.arch.gfn_direct_bits:  # kvm_is_gfn_alias()
            ret = -EINVAL
        else:
            ret = self.host.mmu.kvm_alloc_memslot_metadata(kvm, slot)
        if not ret:
            self._wait_for_mmu_notifiers(kvm)
            kvm.memslots[slot.id] = slot
        kvm.slots_arch_lock.unlock()
        if ret:
            self.host.gmem.kvm_gmem_unbind(slot)
            return ret
        if self.sim.tracing:
            self.host.gmem.trace_slot(kvm, slot)
        self.kvm_swap_active_memslots(kvm)
        return 0

    def _wait_for_mmu_notifiers(self, kvm: Kvm) -> None:
        """Before the slots change: an invalidation that has begun must find the same ones at its
        end. Source: kvm_main.c kvm_swap_active_memslots(), mn_active_invalidate_count."""
        kvm.mn_memslots_update.wait_event(lambda: not kvm.mn_active_invalidate_count)

    def kvm_swap_active_memslots(self, kvm: Kvm) -> None:
        """The slots have changed: wait until every reader of the old ones has finished.

        Source: kvm_main.c kvm_swap_active_memslots, synchronize_srcu_expedited().
        """
        kvm.srcu.synchronize()

    def _delete_slot(self, kvm: Kvm, slot: KvmMemorySlot | None) -> int:
        """kvm_invalidate_memslot(), then kvm_delete_memslot()."""
        if slot is None or not slot.npages:
            return -EINVAL
        kvm.slots_arch_lock.lock()
        self._wait_for_mmu_notifiers(kvm)
        invalid = kvm.memslots[slot.id] = slot.invalidated()
        kvm.slots_arch_lock.unlock()
        self.kvm_swap_active_memslots(kvm)
        self.host.mmu.kvm_arch_flush_shadow_memslot(kvm, slot)
        kvm.slots_arch_lock.lock()
        self._wait_for_mmu_notifiers(kvm)
        del kvm.memslots[slot.id]
        if self.sim.tracing:
            self.host.gmem.trace_slot(kvm, slot, deleted=True)
        kvm.slots_arch_lock.unlock()
        self.kvm_swap_active_memslots(kvm)
        self.kvm_free_memslot(slot)
        invalid.freed = True
        return 0

    def kvm_free_memslot(self, slot: KvmMemorySlot) -> None:
        """kvm_free_memslot()."""
        if slot.flags & KVM_MEM_GUEST_MEMFD:
            self.host.gmem.kvm_gmem_unbind(slot)
        slot.lpage_info = [{}, {}]
        slot.freed = True

    # Shared memory

    def kvm_faultin_pfn(
        self, kvm: Kvm, slot: KvmMemorySlot, gfn: int
    ) -> tuple[int, bool, Folio | None]:
        """__kvm_faultin_pfn(): the host page behind a shared GFN: (pfn, writable, folio).

        KVM_PFN_ERR_FAULT when memory runs out. MODEL: no reference is taken: the VMM does not give
        the page back without unmapping it from KVM.
        """
        hva = slot.userspace_addr + ((gfn - slot.base_gfn) << PAGE_SHIFT)
        pfn = self.host.mm.get_user_page(hva)
        if pfn is None:
            return KVM_PFN_ERR_FAULT, False, None
        return pfn, True, None

    def mmu_notifier_invalidate_range_start(self, start: int, end: int) -> list[Kvm]:
        """kvm_mmu_notifier_invalidate_range_start() in every VM, for the addresses [start, end),
        which host user space is about to give up; the VMs. Private mappings are never touched.
        Until `mmu_notifier_invalidate_range_end` no fault maps what is there, and no VM's slots
        change."""
        kvms = list(self.host.kvms.values())
        for kvm in kvms:
            if self.sim.tracing:
                task = self.sim.current
                at = (task.time_ns, task.name, task.cpu)
                self.sim.emit(KvmUnmapHvaRange(*at, start, end))
            kvm.mn_active_invalidate_count += 1
            self._mn_start(kvm, start, end)
        self.sim.point("mmu_notifier")
        return kvms

    def mmu_notifier_invalidate_range_end(self, kvms: list[Kvm], start: int, end: int) -> None:
        """kvm_mmu_notifier_invalidate_range_end() in the VMs that the start was in, but for those
        that are gone, whose notifiers are not registered any more."""
        for kvm in kvms:
            if self.host.kvms.get(kvm.id) is not kvm:
                continue
            if self._mn_ranges(kvm, start, end):
                kvm.mmu_lock.write_lock()
                self.host.mmu.kvm_mmu_invalidate_end(kvm)
                kvm.mmu_lock.write_unlock()
            kvm.mn_active_invalidate_count -= 1
            if not kvm.mn_active_invalidate_count:
                kvm.mn_memslots_update.wake_up_all()

    def _mn_ranges(self, kvm: Kvm, start: int, end: int) -> list[KvmGfnRange]:
        """kvm_handle_hva_range(): what a VM's slots have shared in [start, end) of addresses."""
        ranges: list[KvmGfnRange] = []
        for slot in kvm.memslots.values():
            if not slot.userspace_addr or slot.flags & KVM_MEMSLOT_GMEM_ONLY:
                continue
            low = max(start, slot.userspace_addr)
            high = min(end, slot.userspace_addr + (slot.npages << PAGE_SHIFT))
            if low < high:
                first = slot.base_gfn + ((low - slot.userspace_addr) >> PAGE_SHIFT)
                last = slot.base_gfn + ((high - slot.userspace_addr + PAGE_SIZE - 1) >> PAGE_SHIFT)
                ranges.append(KvmGfnRange(slot, first, last, KVM_FILTER_SHARED, True))
        return ranges

    def _mn_start(self, kvm: Kvm, start: int, end: int) -> None:
        """Where the VM has a slot there the invalidation begins, and it is unmapped."""
        ranges = self._mn_ranges(kvm, start, end)
        if not ranges:
            return
        mmu = self.host.mmu
        kvm.mmu_lock.write_lock()
        mmu.kvm_mmu_invalidate_begin(kvm)
        flush = 0
        for gfn_range in ranges:
            ret = mmu.kvm_mmu_unmap_gfn_range(kvm, gfn_range)
            if ret < 0:
                self.warn_on_once("handler failed", "kvm_handle_hva_range")
            flush |= ret
        if flush:
            self.kvm_flush_remote_tlbs(kvm)
        kvm.mmu_lock.write_unlock()
