"""The promise `mapping-in-folio`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.kvm import KVM_MEMORY_ATTRIBUTE_PRIVATE, PAGES_PER_HPAGE
from septum.checks.promise import Promise
from septum.checks.sept import END_GFN
from septum.checks.text import level_text

if TYPE_CHECKING:
    from septum.checks.sept import LeafRun
    from septum.checks.view import VmView
    from septum.linux.kvm.types import GmemInode, KvmMemorySlot

Piece = tuple[int, int, int]
"""(first PFN, pages of the folio that holds an index, pages left in it from the index on)."""
Vouched = tuple[int, int, int]
"""(end GFN, PFN - GFN, pages of each folio): up to there all is as a leaf that maps it should have
it, unless the leaf is larger than the folio."""
_NOTHING: Vouched = (0, 0, 0)


class MappingInFolio(Promise):
    """A mapping never exceeds the memory that guest_memfd vouches for.

    On real hardware the guest owns memory of another user: the host's next write to it is a
    machine check or silently corrupts the guest, and the guest's writes corrupt the host.
    """

    __slots__ = ()
    name = "mapping-in-folio"
    thorough = True

    def look(self, vm: VmView, first_gfn: int = 0, end_gfn: int = END_GFN) -> None:
        """Each S-EPT leaf lies in one slot, in memory that is private, in the frames that its
        guest_memfd has at that index, and (unless the design rests on contiguity) in one folio.

        While somebody holds slots_lock, a slot or a file may be on its way out.
        """
        changing = vm.kvm.slots_lock.locked()
        vouched = _NOTHING
        for run in vm.runs(first_gfn, end_gfn):
            gfn, nr, level, _, pfn = run
            end, offset, in_folio = vouched
            # Runs ascend: what the last one led to often holds this one, too.
            if gfn + nr > end or pfn - gfn != offset or PAGES_PER_HPAGE[level] > in_folio:
                vouched = self._look_at(vm, run, changing)

    def _look_at(self, vm: VmView, run: LeafRun, changing: bool) -> Vouched:
        """One run; what is known of the memory behind its last leaves."""
        slot: KvmMemorySlot | None = None
        rest = run
        while True:
            if slot is None or not slot.base_gfn <= rest[0] < slot.base_gfn + slot.npages:
                slot = vm.slot_at(rest[0])
            if slot is None or slot.gmem_file is None:
                if not changing:
                    self._broken(vm, rest, rest[0], "no memslot with a guest_memfd is there")
                return _NOTHING
            slot_end = slot.base_gfn + slot.npages
            whole = rest[1]
            if rest[0] + whole > slot_end:
                pages = PAGES_PER_HPAGE[run[2]]
                whole = (slot_end - rest[0]) // pages * pages
                if whole < slot_end - rest[0]:
                    self._broken(
                        vm, rest, rest[0] + whole, f"the memslot ends at GFN {slot_end:#x}"
                    )
                    return _NOTHING
            part = rest if whole == rest[1] else (*rest[:1], whole, *rest[2:])
            private_to = self._check_attributes(vm, slot, part)
            end, offset, in_folio = self._check_frames(vm, slot, slot.gmem_file.inode, part)
            if whole == rest[1]:
                return min(end, private_to, slot_end), offset, in_folio
            rest = (rest[0] + whole, rest[1] - whole, *rest[2:4], rest[4] + whole)

    def _broken(self, vm: VmView, run: LeafRun, gfn: int, why: str) -> None:
        """`gfn` is where the run of leaves `run` is wrong. The first of each kind is told."""
        pages = PAGES_PER_HPAGE[run[2]]
        leaf = run[0] + (gfn - run[0]) // pages * pages
        self.broken(
            (vm.name, why[:4]),
            f"{vm.name}: the {level_text(run[2])} leaf at GFN {leaf:#x} maps PFN "
            f"{run[4] + leaf - run[0]:#x}, but {why}",
        )

    def _check_attributes(self, vm: VmView, slot: KvmMemorySlot, run: LeafRun) -> int:
        """The GFN up to which, from the run's first on, all is private; 0 when it is not."""
        gfn = run[0]
        end = gfn + run[1]
        while gfn < end:
            attributes, next_gfn = vm.attributes(slot, gfn)
            if not attributes & KVM_MEMORY_ATTRIBUTE_PRIVATE:
                self._broken(
                    vm, run, gfn, f"of it GFNs [{gfn:#x}, {min(end, next_gfn):#x}) are shared"
                )
                return 0
            gfn = next_gfn
        return gfn

    def _check_frames(
        self, vm: VmView, slot: KvmMemorySlot, inode: GmemInode, run: LeafRun
    ) -> Vouched:
        gfn, nr, level, _, pfn = run
        pages = PAGES_PER_HPAGE[level]
        # While a conversion or a truncation goes on, folios may be split under a larger mapping.
        changing = inode.invalidate_lock.writer is not None
        by_folio = not changing and not self.checker.mapping_may_exceed_folio
        offset = slot.gmem_pgoff - slot.base_gfn
        end = gfn + nr
        at = gfn
        in_folio = 0
        while at < end:
            piece = piece_at(inode, at + offset)
            expected = pfn + at - gfn
            if piece is None:
                self._broken(vm, run, at, f"no page of guest_memfd is at index {at + offset:#x}")
                return _NOTHING
            have, in_folio, left = piece
            if have != expected:
                self._broken(
                    vm,
                    run,
                    at,
                    f"PFN {have:#x} is what guest_memfd has at index {at + offset:#x}, where PFN "
                    f"{expected:#x} is mapped",
                )
                return _NOTHING
            if by_folio and in_folio < pages:
                self._broken(
                    vm, run, at, f"the folio at PFN {have:#x} has {in_folio} of its {pages} pages"
                )
                return _NOTHING
            at += left
        return at, pfn - gfn, in_folio


def piece_at(inode: GmemInode, index: int) -> Piece | None:
    """What the page cache has at `index`.

    Small folios that are alike are one piece, of single pages. None: nothing is there.
    """
    folios = inode.folios
    for order in (0, 9, 18):
        folio = folios.get(index >> order << order)
        if folio is not None and folio.order == order:
            nr_pages = folio.nr_pages
            within = index & (nr_pages - 1)
            return folio.pfn + within, nr_pages, nr_pages - within
    for order in (9, 18):
        split = inode.split_folios.get(index >> order << order)
        if split is not None and split.order == order:
            if index in split.gone:
                return None
            within = index - split.index
            left = split.nr_pages - within
            if split.gone or any(key in folios for key in _single(inode, index, left)):
                left = 1
            return split.pfn + within, 1, left
    return None


def _single(inode: GmemInode, index: int, nr: int) -> range | list[int]:
    """The indexes of small folios in [index, index + nr) that have a record of their own."""
    if len(inode.folios) < nr:
        return [key for key in inode.folios if index <= key < index + nr]
    return range(index, index + nr)
