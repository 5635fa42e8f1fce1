"""The promise `private-unreachable`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.kvm import GUEST_MEMFD_FLAG_MMAP, KVM_MEMORY_ATTRIBUTE_PRIVATE
from septum.checks.promise import Promise
from septum.checks.sept import END_GFN
from septum.checks.text import level_text

if TYPE_CHECKING:
    from septum.checks.sept import LeafRun
    from septum.checks.view import VmView
    from septum.linux.kvm.types import GmemInode, KvmMemorySlot


class PrivateUnreachable(Promise):
    """No frame is in a Secure EPT and faultable by host user space at once.

    On real hardware a store by user space to such a frame breaks the integrity of the TD's memory:
    the TD takes a machine check and dies, and on some parts the host with it.
    """

    __slots__ = ()
    name = "private-unreachable"
    thorough = True

    def look(self, vm: VmView, first_gfn: int = 0, end_gfn: int = END_GFN) -> None:
        """Of each S-EPT leaf, no index of its guest_memfd is in host page tables, pinned by a
        driver, or shared in a file that user space can map.

        With attributes that the VM holds, the private half of a file that can be mapped is
        reachable whatever they say.
        """
        # No generator: each look comes here, and hardly any goes on.
        for any_slot in vm.kvm.memslots.values():
            if _reachable(any_slot):
                break
        else:
            return
        for run in vm.runs(first_gfn, end_gfn):
            slot = vm.slot_at(run[0])
            if slot is not None and slot.gmem_file is not None and _reachable(slot):
                self._check(vm, slot, slot.gmem_file.inode, run)

    def _check(self, vm: VmView, slot: KvmMemorySlot, inode: GmemInode, run: LeafRun) -> None:
        gfn, nr, _, _, _ = run
        end = gfn + nr
        offset = slot.gmem_pgoff - slot.base_gfn
        indexes = range(gfn + offset, end + offset)
        for what, used in (("mapped by", inode.user_mapped), ("pinned for", inode.pins)):
            hit = min((index for index in used if index in indexes), default=None)
            if hit is not None:
                self._broken(vm, run, hit - offset, f"is {what} host user space")
        while inode.flags & GUEST_MEMFD_FLAG_MMAP and gfn < end:
            attributes, next_gfn = vm.attributes(slot, gfn)
            if not attributes & KVM_MEMORY_ATTRIBUTE_PRIVATE:
                self._broken(vm, run, gfn, "is shared, so that host user space can fault it in")
                return
            gfn = next_gfn

    def _broken(self, vm: VmView, run: LeafRun, gfn: int, why: str) -> None:
        first_gfn, _, level, _, first_pfn = run
        self.broken(
            (vm.name, why),
            f"{vm.name}: GFN {gfn:#x} (PFN {first_pfn + gfn - first_gfn:#x}) is in the S-EPT as "
            f"{level_text(level)} memory and {why}",
        )


def _reachable(slot: KvmMemorySlot) -> bool:
    """Whether user space may have anything of the memory in this slot."""
    if slot.gmem_file is None:
        return False
    inode = slot.gmem_file.inode
    return bool(inode.user_mapped or inode.pins or inode.flags & GUEST_MEMFD_FLAG_MMAP)
