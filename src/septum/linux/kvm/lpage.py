"""lpage_info: where a memory slot may not be mapped by huge pages, and why.

Per slot, level 2M and 1G, and huge page: bit 31 the attributes inside are mixed, bit 30 the guest
accepted something smaller (patch 12), below a count of other reasons. Nonzero forbids.

Source: arch/x86/kvm/mmu/mmu.c, arch/x86/kvm/x86.c; patch 12 and the FIXUP of v3 for uaddr.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.kvm import (
    HPAGE_GFN_SHIFT,
    KVM_LPAGE_GUEST_INHIBIT_FLAG,
    KVM_LPAGE_MIXED_FLAG,
    KVM_MAX_HUGEPAGE_LEVEL,
    KVM_MEM_GUEST_MEMFD,
    PAGES_PER_HPAGE,
    PG_LEVEL_2M,
    gfn_round_for_level,
)
from septum.linux.kvm.invalidate import MmuInvalidate
from septum.linux.ranges import range_extent

if TYPE_CHECKING:
    from septum.linux.kvm.types import Kvm, KvmMemorySlot

LPAGE_LEVELS = range(PG_LEVEL_2M, KVM_MAX_HUGEPAGE_LEVEL + 1)
_FLAGS = KVM_LPAGE_MIXED_FLAG | KVM_LPAGE_GUEST_INHIBIT_FLAG
U64_MAX = (1 << 64) - 1


def gfn_to_index(gfn: int, base_gfn: int, level: int) -> int:
    """gfn_to_index(): which huge page of `level` of the slot contains `gfn`."""
    shift = HPAGE_GFN_SHIFT[level]
    return (gfn >> shift) - (base_gfn >> shift)


def lpage_info_slot(gfn: int, slot: KvmMemorySlot, level: int) -> int:
    """lpage_info_slot()->disallow_lpage."""
    shift = HPAGE_GFN_SHIFT[level]
    return slot.lpage_info[level - 2].get((gfn >> shift) - (slot.base_gfn >> shift), 0)


def set_lpage_info_slot(gfn: int, slot: KvmMemorySlot, level: int, value: int) -> None:
    """Write lpage_info_slot()->disallow_lpage."""
    idx = gfn_to_index(gfn, slot.base_gfn, level)
    info = slot.lpage_info[level - 2]
    if value:
        info[idx] = value
    else:
        info.pop(idx, None)


class MmuLpage(MmuInvalidate):
    """lpage_info."""

    __slots__ = ()

    # Memory slots

    def kvm_alloc_memslot_metadata(self, kvm: Kvm, slot: KvmMemorySlot) -> int:
        """Set up lpage_info of a new slot: huge pages that reach over its edges, and all of them
        when guest and user address are not alike within a huge page. 0 or -ENOMEM.

        Source: x86.c kvm_alloc_memslot_metadata; the FIXUP of v3 leaves out the last condition for
        slots with a guest_memfd, as private mappings have no use for the user address.
        """
        slot.lpage_info = [{}, {}]
        base = slot.base_gfn
        ugfn = slot.userspace_addr >> 12
        ignore_ugfn = bool(
            self.host.params.fixup_ignore_ugfn_alignment and slot.flags & KVM_MEM_GUEST_MEMFD
        )
        for level in LPAGE_LEVELS:
            mask = PAGES_PER_HPAGE[level] - 1
            lpages = gfn_to_index(base + slot.npages - 1, base, level) + 1
            info = slot.lpage_info[level - 2]
            if base & mask:
                info[0] = 1
            if (base + slot.npages) & mask:
                info[lpages - 1] = 1
            if (base ^ ugfn) & mask and not ignore_ugfn:
                for idx in range(lpages):
                    info[idx] = 1
        self.kvm_mmu_init_memslot_memory_attributes(kvm, slot)
        return 0

    def update_gfn_disallow_lpage_count(self, slot: KvmMemorySlot, gfn: int, count: int) -> None:
        """Add to the count at every huge level. Source: mmu.c, with patch 12's check."""
        for level in LPAGE_LEVELS:
            old = lpage_info_slot(gfn, slot, level)
            new = (old + count) & 0xFFFFFFFF
            set_lpage_info_slot(gfn, slot, level, new)
            if (old ^ new) & _FLAGS:
                self.warn_on_once("the count reached a flag", "update_gfn_disallow_lpage_count")

    def kvm_mmu_gfn_disallow_lpage(self, slot: KvmMemorySlot, gfn: int) -> None:
        """One more reason against huge pages at `gfn`. Source: mmu.c."""
        self.update_gfn_disallow_lpage_count(slot, gfn, 1)

    def kvm_mmu_gfn_allow_lpage(self, slot: KvmMemorySlot, gfn: int) -> None:
        """One reason less. Source: mmu.c."""
        self.update_gfn_disallow_lpage_count(slot, gfn, -1)

    # The guest's accept level

    def hugepage_test_guest_inhibit(self, slot: KvmMemorySlot, gfn: int, level: int) -> bool:
        """Whether the guest accepted something smaller than `level` here. Needs no lock, as the
        flag is never cleared. Source: patch 12."""
        return bool(lpage_info_slot(gfn, slot, level) & KVM_LPAGE_GUEST_INHIBIT_FLAG)

    def hugepage_set_guest_inhibit(self, slot: KvmMemorySlot, gfn: int, level: int) -> None:
        """No more mappings of `level` here, for as long as the slot lives. Source: patch 12."""
        value = lpage_info_slot(gfn, slot, level) | KVM_LPAGE_GUEST_INHIBIT_FLAG
        set_lpage_info_slot(gfn, slot, level, value)

    # Mixed attributes

    def hugepage_test_mixed(self, slot: KvmMemorySlot, gfn: int, level: int) -> bool:
        """hugepage_test_mixed()."""
        return bool(lpage_info_slot(gfn, slot, level) & KVM_LPAGE_MIXED_FLAG)

    def hugepage_clear_mixed(self, slot: KvmMemorySlot, gfn: int, level: int) -> None:
        """hugepage_clear_mixed()."""
        value = lpage_info_slot(gfn, slot, level)
        if value & KVM_LPAGE_MIXED_FLAG:
            set_lpage_info_slot(gfn, slot, level, value & ~KVM_LPAGE_MIXED_FLAG)

    def hugepage_set_mixed(self, slot: KvmMemorySlot, gfn: int, level: int) -> None:
        """hugepage_set_mixed()."""
        value = lpage_info_slot(gfn, slot, level) | KVM_LPAGE_MIXED_FLAG
        set_lpage_info_slot(gfn, slot, level, value)

    def hugepage_has_attrs(
        self, kvm: Kvm, slot: KvmMemorySlot, gfn: int, level: int, attrs: int
    ) -> bool:
        """Whether the whole huge page has `attrs`. 1G relies on what was settled for 2M.

        Source: mmu.c hugepage_has_attrs.
        """
        end = gfn + PAGES_PER_HPAGE[level]
        if level == PG_LEVEL_2M:
            return self.host.main.kvm_range_has_vm_memory_attributes(kvm, gfn, end, U64_MAX, attrs)
        # No 2M page in it is MIXED, and the first GFN of each has the attributes.
        step = PAGES_PER_HPAGE[level - 1]
        first = (gfn >> 9) - (slot.base_gfn >> 9)
        info = slot.lpage_info[level - 3]
        last = first + (end - gfn) // step
        if any(first <= i < last and flags & KVM_LPAGE_MIXED_FLAG for i, flags in info.items()):
            return False
        child = gfn
        while child < end:
            _, run_end, value = range_extent(kvm.mem_attr_array, child)
            if value != attrs:
                return False
            child = -(-run_end // step) * step
        return True

    def _settle_mixed(
        self, kvm: Kvm, slot: KvmMemorySlot, gfn: int, level: int, attrs: int
    ) -> None:
        """Set or clear MIXED of one huge page by looking at all of it."""
        if self.hugepage_has_attrs(kvm, slot, gfn, level, attrs):
            self.hugepage_clear_mixed(slot, gfn, level)
        else:
            self.hugepage_set_mixed(slot, gfn, level)

    def kvm_mmu_init_memslot_memory_attributes(self, kvm: Kvm, slot: KvmMemorySlot) -> None:
        """MIXED of a new slot, whose attributes may be set already. Source: mmu.c."""
        if not kvm.arch.has_private_mem or not kvm.mem_attr_array:
            return
        for level in LPAGE_LEVELS:
            nr_pages = PAGES_PER_HPAGE[level]
            end = gfn_round_for_level(slot.base_gfn + slot.npages, level)
            start = gfn_round_for_level(slot.base_gfn, level)
            if start < slot.base_gfn:
                start += nr_pages
            for gfn in range(start, end, nr_pages):
                attrs = self.host.main.kvm_get_vm_memory_attributes(kvm, gfn)
                self._settle_mixed(kvm, slot, gfn, level, attrs)
