"""The promise `mapping-in-folio`."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from septum.abi.kvm import KVM_MEMORY_ATTRIBUTE_PRIVATE, PAGES_PER_HPAGE
from septum.checks.pieces import piece_at
from septum.checks.promise import Promise
from septum.checks.sept import END_GFN
from septum.checks.shared_leaves import CONSEQUENCE, LEAF, SharedLeaves
from septum.checks.text import level_text, pages_text

if TYPE_CHECKING:
    from septum.checks.checker import Checker
    from septum.checks.sept import LeafRun
    from septum.checks.view import VmView
    from septum.linux.kvm.types import GmemInode, KvmMemorySlot

Grounds = list[object]
"""What the verdict about a leaf rests on besides the leaf."""
FEW = 64
"""So many leaves, and folios, are compared with those that were judged last."""


class MappingInFolio(Promise):
    """A mapping never exceeds the memory that guest_memfd vouches for; the shared EPT maps what is
    shared, and there; nobody maps a page that has failed.

    On real hardware the guest owns memory of another user: the host's next write to it is a
    machine check or silently corrupts the guest, and the guest's writes corrupt the host.
    """

    __slots__ = ("_judged", "_shared")
    name = "mapping-in-folio"
    thorough = True
    consequences: ClassVar[dict[str, str]] = {
        LEAF: CONSEQUENCE,
        "user space maps": "On real hardware the next access is a machine check, not SIGBUS.",
    }

    def __init__(self, checker: Checker) -> None:
        super().__init__(checker)
        # By VM, the leaves that were judged last, and on which grounds. The same are not judged
        # again.
        self._judged: dict[str, tuple[Grounds, list[LeafRun]]] = {}
        self._shared = SharedLeaves(self.broken)

    def look(self, vm: VmView, first_gfn: int = 0, end_gfn: int = END_GFN) -> None:
        """Each S-EPT leaf lies in one slot, in memory that is private, in the frames that its
        guest_memfd has at that index, none of which has failed, and (unless the design rests on
        contiguity) in one folio. What the shared EPT maps is shared, and there.

        While somebody holds slots_lock, a slot or a file may be on its way out.
        """
        self._shared.look(vm, first_gfn, end_gfn)
        self._check_user_space(vm)
        slot: KvmMemorySlot | None = None
        runs = vm.runs(first_gfn, end_gfn)
        before = self._judged_before(vm, runs)
        if before == runs:
            return
        for run in runs:
            if run not in before:
                slot = self._look_at_run(vm, run, slot)

    def _look_at_run(
        self, vm: VmView, run: LeafRun, slot: KvmMemorySlot | None
    ) -> KvmMemorySlot | None:
        """Look at a run slot by slot. `slot` is a guess: the slot of the run before it. Returns the
        slot of its last leaf, None where there is none."""
        changing = vm.kvm.slots_lock.locked()
        gfn, nr, level, state, pfn = run
        end = gfn + nr
        while gfn < end:
            if slot is None or not slot.base_gfn <= gfn < slot.end_gfn:
                slot = vm.slot_at(gfn)
            if slot is None or slot.gmem_file is None:
                if not changing:
                    self._broken(vm, run, gfn, "slot", "no memslot with a guest_memfd is there")
                break
            stop = min(end, slot.end_gfn)
            across = (stop - gfn) % PAGES_PER_HPAGE[level]
            if across:
                why = f"the memslot ends at GFN {stop:#x}"
                self._broken(vm, run, stop - across, "slot end", why)
                break
            part = (gfn, stop - gfn, level, state, pfn)
            self._check_attributes(vm, slot, part)
            self._check_frames(vm, slot, slot.gmem_file.inode, part)
            pfn += stop - gfn
            gfn = stop
        return slot

    def _judged_before(self, vm: VmView, runs: list[LeafRun]) -> list[LeafRun]:
        """Leaves that were judged on the grounds that there are now; from now on `runs` are."""
        grounds = self._grounds(vm) if len(runs) <= FEW else None
        if grounds is None:
            self._judged.pop(vm.name, None)
            return []
        judged = self._judged.get(vm.name)
        if judged is not None and judged[0] == grounds:
            if judged[1] != runs:
                self._judged[vm.name] = (judged[0], runs)
            return judged[1]
        self._judged[vm.name] = (grounds, runs)
        return []

    def _grounds(self, vm: VmView) -> Grounds | None:
        """Slots, whether they are being changed, attributes, folios, and how many of these have
        failed; None when there are many folios, or some are split: only then may it matter
        whether folios are being changed."""
        kvm = vm.kvm
        failed = vm.world.host.mm.state.poisoned
        grounds: Grounds = [kvm.slots_lock.locked(), kvm.mem_attr_array[:], len(failed)]
        for slot in kvm.memslots.values():
            grounds += (slot.base_gfn, slot.npages, slot.gmem_pgoff, slot.gmem_file)
            if slot.gmem_file is not None:
                inode = slot.gmem_file.inode
                if inode.split_folios or len(inode.folios) > FEW:
                    return None
                if failed:  # when its invalidate_lock is free again
                    grounds.append(inode.is_locked())
                grounds.append(inode.attributes[:])
                for index, folio in inode.folios.items():
                    grounds += (index, folio.pfn, folio.order)
        return grounds

    def _broken(self, vm: VmView, run: LeafRun, gfn: int, kind: str, why: str) -> None:
        """The leaf of `run` that maps `gfn` is wrong: `why`. Of each `kind` of mistake in a VM the
        first is told."""
        first_gfn, _, level, _, first_pfn = run
        pages = PAGES_PER_HPAGE[level]
        into_run = (gfn - first_gfn) // pages * pages
        self.broken(
            (vm.name, kind),
            f"{vm.name}: the {level_text(level)} leaf at GFN {first_gfn + into_run:#x} maps PFN "
            f"{first_pfn + into_run:#x}, but {why}",
        )

    def _check_attributes(self, vm: VmView, slot: KvmMemorySlot, run: LeafRun) -> None:
        gfn, nr, _, _, _ = run
        end = gfn + nr
        while gfn < end:
            attributes, next_gfn = vm.attributes(slot, gfn)
            if not attributes & KVM_MEMORY_ATTRIBUTE_PRIVATE:
                shared = pages_text(gfn, min(end, next_gfn))
                self._broken(vm, run, gfn, "shared", f"pages under it are shared: {shared}")
                return
            gfn = next_gfn

    def _check_failed(self, vm: VmView, inode: GmemInode, run: LeafRun) -> None:
        """No page that has failed is mapped. Who reports the failure has the invalidate_lock."""
        failed = vm.world.host.mm.state.poisoned
        if not failed or inode.is_locked():
            return
        gfn, nr, _, _, pfn = run
        for bad in sorted(failed):
            if pfn <= bad < pfn + nr:
                self._broken(vm, run, gfn + bad - pfn, "failed", f"PFN {bad:#x} has failed")
                return

    def _check_user_space(self, vm: VmView) -> None:
        """User space maps no page that has failed, once it has been unmapped."""
        if not vm.world.host.mm.state.poisoned:
            return
        for slot in vm.kvm.memslots.values():
            inode = slot.gmem_file.inode if slot.gmem_file is not None else None
            if inode is None or inode.is_locked():
                continue
            for index in sorted(inode.user_mapped & inode.poisoned):
                self.broken(
                    (vm.name, "user space"),
                    f"user space maps page {index:#x} of {vm.name}'s guest_memfd, which has failed",
                )
                return

    def _check_frames(
        self, vm: VmView, slot: KvmMemorySlot, inode: GmemInode, run: LeafRun
    ) -> None:
        gfn, nr, level, _, pfn = run
        pages = PAGES_PER_HPAGE[level]
        # While a conversion or a truncation goes on, folios may be split under a larger mapping.
        changing = inode.is_changing()
        by_folio = not changing and not self.checker.mapping_may_exceed_folio
        self._check_failed(vm, inode, run)
        offset = slot.gmem_pgoff - slot.base_gfn
        end = gfn + nr
        at = gfn
        while at < end:
            piece = piece_at(inode, at + offset)
            expected = pfn + at - gfn
            if piece is None:
                why = f"no page of guest_memfd is at index {at + offset:#x}"
                self._broken(vm, run, at, "no page", why)
                return
            have, in_folio, left = piece
            if have != expected:
                why = (
                    f"PFN {have:#x} is what guest_memfd has at index {at + offset:#x}, where PFN "
                    f"{expected:#x} is mapped"
                )
                self._broken(vm, run, at, "page", why)
                return
            if by_folio and in_folio < pages:
                why = f"the folio at PFN {have:#x} has {in_folio} of its {pages} pages"
                self._broken(vm, run, at, "folio", why)
                return
            at += left
