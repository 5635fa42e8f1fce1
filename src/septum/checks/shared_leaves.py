"""The part of `mapping-in-folio` about the shared EPT: what it maps is shared, and there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.kvm import KVM_MEMORY_ATTRIBUTE_PRIVATE, KVM_MEMSLOT_GMEM_ONLY, PAGES_PER_HPAGE
from septum.abi.types import PAGE_SHIFT
from septum.checks.pieces import piece_at
from septum.checks.sept import clip
from septum.checks.shared_ept import SharedEpt
from septum.checks.text import level_text, pages_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from septum.checks.sept import LeafRun
    from septum.checks.view import VmView
    from septum.linux.kvm.types import KvmMemorySlot

LEAF = r"vm\d+: the \w+ leaf of the shared EPT"
"""How a finding's text begins."""
CONSEQUENCE = (
    "On real hardware the guest still reaches the page as shared memory: where it is private by"
    " now, the next write breaks the integrity of the TD's memory, a machine check; where it was"
    " freed, the guest corrupts what the host keeps there."
)

Wrong = tuple[int, str, str]
"""(GFN, kind of mistake, words)."""


class SharedLeaves:
    """Looks at the shared EPTs of the VMs, and tells `broken` (cause, text) what is wrong."""

    __slots__ = ("_broken", "_epts")

    def __init__(self, broken: Callable[[object, str], None]) -> None:
        self._broken = broken
        self._epts: dict[str, SharedEpt] = {}  # by VM

    def look(self, vm: VmView, first_gfn: int, end_gfn: int) -> None:
        """Each leaf in [first_gfn, end_gfn) lies in a slot, in memory that is shared, and maps the
        frames that the slot's guest_memfd, or user space, has there.

        KVM zaps it before any of that changes.
        """
        ept = self._epts.get(vm.name)
        if ept is None:
            ept = self._epts[vm.name] = SharedEpt(vm)
        for run in ept.runs():
            inside = clip(run, first_gfn, end_gfn)
            if inside[1] > 0:
                self._look_at_run(vm, inside)

    def _look_at_run(self, vm: VmView, run: LeafRun) -> None:
        """Of each kind of mistake in a VM the first is told."""
        gfn, nr, level, _, pfn = run
        wrong = why_not_shared(vm, gfn, nr, pfn)
        if wrong is None:
            return
        at, kind, why = wrong
        pages = PAGES_PER_HPAGE[level]
        into_run = (at - gfn) // pages * pages
        self._broken(
            (vm.name, "shared EPT", kind),
            f"{vm.name}: the {level_text(level)} leaf of the shared EPT at GFN "
            f"{gfn + into_run:#x} maps PFN {pfn + into_run:#x}, but {why}",
        )


def why_not_shared(vm: VmView, first_gfn: int, nr: int, first_pfn: int) -> Wrong | None:
    """Why the guest may not have `nr` frames from `first_pfn` as shared memory at `first_gfn`; None
    if it may.

    While somebody holds slots_lock, a slot or a file may be on its way out; so is a file that was
    closed, and has no attributes any more.
    """
    gfn, end = first_gfn, first_gfn + nr
    while gfn < end:
        slot = vm.slot_at(gfn)
        if slot is None or _has_lost_its_file(slot):
            if vm.kvm.slots_lock.locked():
                return None
            what = "memslot" if slot is None else "guest_memfd"
            return gfn, "slot", f"no {what} is there"
        if slot.gmem_file is not None and not slot.gmem_file.f_count:
            gfn = slot.end_gfn
            continue
        attributes, stop = vm.attributes(slot, gfn)
        stop = min(end, stop, slot.end_gfn)
        if attributes & KVM_MEMORY_ATTRIBUTE_PRIVATE:
            return gfn, "private", f"pages under it are private: {pages_text(gfn, stop)}"
        for at in range(gfn, stop):
            kind, why = _why_not(vm, slot, at, first_pfn + at - first_gfn)
            if why:
                return at, kind, why
        gfn = stop
    return None


def _has_lost_its_file(slot: KvmMemorySlot) -> bool:
    """Its memory is that of a file, which is released."""
    return slot.flags & KVM_MEMSLOT_GMEM_ONLY != 0 and slot.gmem_file is None


def _why_not(vm: VmView, slot: KvmMemorySlot, gfn: int, pfn: int) -> tuple[str, str]:
    """Why `pfn` is not to be mapped at `gfn`: (kind of mistake, words); no words if it is."""
    if not slot.flags & KVM_MEMSLOT_GMEM_ONLY:
        page = (slot.userspace_addr >> PAGE_SHIFT) + gfn - slot.base_gfn
        have = vm.world.host.mm.state.user_pages.get(page)
        owner, where = "user space", f"address {page << PAGE_SHIFT:#x}"
    else:
        assert slot.gmem_file is not None
        inode = slot.gmem_file.inode
        index = gfn - slot.base_gfn + slot.gmem_pgoff
        piece = piece_at(inode, index)
        have = piece[0] if piece is not None else None
        # Who reports a failure has the invalidate_lock.
        if have == pfn and pfn in vm.world.host.mm.state.poisoned and not inode.is_locked():
            return "failed", f"PFN {pfn:#x} has failed"
        owner, where = "guest_memfd", f"index {index:#x}"
    if have is None:
        return "no page", f"no page of {owner} is at {where}"
    return "page", "" if have == pfn else f"PFN {have:#x} is what {owner} has at {where}"
