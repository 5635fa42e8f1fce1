"""KVM_SET_MEMORY_ATTRIBUTES: per-VM attributes of GFN ranges.

Source: virt/kvm/kvm_main.c with patches 14 and 15.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.errno import EINVAL, ENOMEM, ENOTTY
from septum.abi.kvm import KVM_MEMORY_ATTRIBUTE_PRIVATE
from septum.abi.types import PAGE_SHIFT, PAGE_SIZE
from septum.linux.kvm.main_slots import MainSlots
from septum.linux.kvm.types import KvmGfnRange
from septum.linux.ranges import range_get, range_has, range_store

if TYPE_CHECKING:
    from collections.abc import Callable

    from septum.linux.kvm.types import Kvm, KvmMemorySlot

ALL_ATTRIBUTES = (1 << 64) - 1


class MainAttrs(MainSlots):
    """Attributes."""

    __slots__ = ()

    def kvm_supported_mem_attributes(self, kvm: Kvm) -> int:
        """kvm_supported_mem_attributes()."""
        return KVM_MEMORY_ATTRIBUTE_PRIVATE if kvm.arch.has_private_mem else 0

    def kvm_get_vm_memory_attributes(self, kvm: Kvm, gfn: int) -> int:
        """What the VM's own attributes say of `gfn`."""
        return range_get(kvm.mem_attr_array, gfn)

    def kvm_range_has_vm_memory_attributes(
        self, kvm: Kvm, start: int, end: int, mask: int, attrs: int
    ) -> bool:
        """Whether all of [start, end) has `attrs` in the bits of `mask`."""
        return range_has(kvm.mem_attr_array, start, end, mask, attrs)

    def kvm_mem_is_private(self, kvm: Kvm, gfn: int) -> bool:
        """Whether `gfn` is private, by whoever holds the attributes."""
        if self.host.params.vm_memory_attributes:
            attrs = range_get(kvm.mem_attr_array, gfn)
        else:
            attrs = self.host.gmem.kvm_gmem_get_memory_attributes(kvm, gfn)
        return attrs & KVM_MEMORY_ATTRIBUTE_PRIVATE != 0

    def kvm_handle_gfn_range(
        self,
        kvm: Kvm,
        start: int,
        end: int,
        attributes: int,
        handler: Callable[[Kvm, KvmGfnRange], int],
        on_lock: Callable[[Kvm], None],
        flush_on_ret: bool,
    ) -> int:
        """Call `handler` for the part of each slot in [start, end), under mmu_lock for writing.

        `on_lock` runs once, when there is a slot. A handler returns < 0 for an error, which ends
        the walk, 1 when a TLB flush is wanted, 0. Returns the error or 0. Source: patches 14, 15.
        """
        found_memslot = False
        flush = False
        ret = 0
        slot = self._memslot_from(kvm, start, end)
        while slot is not None:
            gfn_range = KvmGfnRange(
                slot, max(start, slot.base_gfn), min(end, slot.end_gfn), 0, True, attributes
            )
            if not found_memslot:
                found_memslot = True
                kvm.mmu_lock.write_lock()
                on_lock(kvm)
            ret = self._call_gfn_handler(handler, kvm, gfn_range)
            if ret < 0:
                break
            if ret:
                flush = True
            slot = self._memslot_from(kvm, slot.end_gfn, end)
        if flush_on_ret and flush:
            self.kvm_flush_remote_tlbs(kvm)
        if found_memslot:
            kvm.mmu_lock.write_unlock()
        return ret if ret < 0 else 0

    def _memslot_from(self, kvm: Kvm, start: int, end: int) -> KvmMemorySlot | None:
        """The first memslot with a GFN in [start, end); None when there is none.

        Source: kvm_host.h kvm_for_each_memslot_in_gfn_range.
        """
        found = None
        for slot in kvm.memslots.values():
            base = slot.base_gfn
            if (
                base < end
                and start < base + slot.npages
                and (found is None or base < found.base_gfn)
            ):
                found = slot
        return found

    def _call_gfn_handler(
        self, handler: Callable[[Kvm, KvmGfnRange], int], kvm: Kvm, gfn_range: KvmGfnRange
    ) -> int:
        """What a gfn_handler_t returns, which is an int. Source: patch 14."""
        return handler(kvm, gfn_range)

    def kvm_pre_set_memory_attributes(self, kvm: Kvm, gfn_range: KvmGfnRange) -> int:
        """Add the range to the invalidation, whatever is mapped there; then split and unmap it.

        Returns what kvm_arch_pre_set_memory_attributes() does."""
        self.host.mmu.kvm_mmu_invalidate_range_add(kvm, gfn_range.start, gfn_range.end)
        return self.host.mmu.kvm_arch_pre_set_memory_attributes(kvm, gfn_range)

    def kvm_vm_set_mem_attributes(self, kvm: Kvm, start: int, end: int, attributes: int) -> int:
        """Unmap [start, end), store the attributes, and let faults map it again. 0 or -ENOMEM.

        SUSPECT: when the first walk fails (patch 15), the invalidation that it began is
        never ended, so that every fault in the range is retried for ever; and slots before the
        failing one are already zapped. As posted the first walk cannot fail with -ENOMEM, since
        kvm_split_cross_boundary_leafs() turns it into 1, which reads as "flush": then the leaf
        that could not be split stays mapped while the attributes change.
        """
        mmu = self.host.mmu
        kvm.slots_lock.lock()
        if range_has(kvm.mem_attr_array, start, end, ALL_ATTRIBUTES, attributes):
            kvm.slots_lock.unlock()
            return 0
        if self.host.mm.fails("mem_attr_array"):
            kvm.slots_lock.unlock()
            return -ENOMEM
        cause = self.set_cause("conversion")
        ret = self._pre_set_range(kvm, start, end, attributes)
        self.set_cause(cause)
        if not ret:
            # MODEL: stored at once, where the kernel stores page by page; faults are held off.
            range_store(kvm.mem_attr_array, start, end, attributes)
            if self.sim.tracing:
                self.host.gmem.trace_attributes(kvm, kvm.mem_attr_array, start, end)
            self.sim.point("cond_resched")
            ret = self.kvm_handle_gfn_range(
                kvm,
                start,
                end,
                attributes,
                mmu.kvm_arch_post_set_memory_attributes,
                mmu.kvm_mmu_invalidate_end,
                False,
            )
            self.kvm_bug_on(kvm, ret != 0, "post handler of memory attributes failed")
        else:
            self._pre_set_failed(kvm)
        kvm.slots_lock.unlock()
        return ret

    def _pre_set_range(self, kvm: Kvm, start: int, end: int, attributes: int) -> int:
        """The first walk: invalidate, split and unmap, one slot after the other. 0 or an error, by
        which time earlier slots are unmapped, as the log of patch 15 says. Source: patch 15."""
        return self.kvm_handle_gfn_range(
            kvm,
            start,
            end,
            attributes,
            self.kvm_pre_set_memory_attributes,
            self.host.mmu.kvm_mmu_invalidate_begin,
            True,
        )

    def _pre_set_failed(self, kvm: Kvm) -> None:
        """The way out of kvm_vm_set_mem_attributes() when its first walk failed: v3 does nothing
        here, not even end the invalidation."""

    def kvm_vm_ioctl_set_mem_attributes(
        self, kvm: Kvm, address: int, size: int, attributes: int, flags: int = 0
    ) -> int:
        """KVM_SET_MEMORY_ATTRIBUTES: 0, -EIO, -ENOTTY, -EINVAL or -ENOMEM."""
        if not self.host.params.vm_memory_attributes:
            return -ENOTTY
        if flags or attributes & ~self.kvm_supported_mem_attributes(kvm):
            return -EINVAL
        if size <= 0 or address < 0 or address + size >= 1 << 64:
            return -EINVAL
        if address % PAGE_SIZE or size % PAGE_SIZE:
            return -EINVAL
        return self.kvm_vm_set_mem_attributes(
            kvm, address >> PAGE_SHIFT, (address + size) >> PAGE_SHIFT, attributes
        )
