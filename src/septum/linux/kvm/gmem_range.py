"""Taking memory of a guest_memfd away from guests: invalidation, split, zap, hole, release.

Source: virt/kvm/guest_memfd.c of the tree that v3 is posted on, with patch 16.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from septum.abi.errno import EAGAIN, EINTR, EINVAL, EOPNOTSUPP
from septum.linux.kvm.gmem_folio import (
    GUEST_MEMFD_FLAG_HUGETLB,
    GUEST_MEMFD_FLAG_THP,
    GmemFolios,
)
from septum.linux.kvm.types import KVM_FILTER_PRIVATE, KVM_FILTER_SHARED, KvmGfnRange, SplitFolio

if TYPE_CHECKING:
    from septum.linux.kvm.main_requests import SplitCause
    from septum.linux.kvm.types import GmemFile, GmemInode, Kvm, KvmMemorySlot
    from septum.linux.mm.folio import Folio

FALLOC_FL_KEEP_SIZE = 1 << 0
FALLOC_FL_PUNCH_HOLE = 1 << 1
MF_IGNORED = 0
MF_DELAYED = 2
MAX_INDEX = 1 << 52  # -1ul as an index


class GmemRange(GmemFolios):
    """Operations on index ranges of an inode, in every VM that has it bound.

    `mapping_may_exceed_folio`: set by designs in which a mapping may be larger than a folio, as
    long as the memory that guest_memfd has there is contiguous.
    """

    __slots__ = ()
    mapping_may_exceed_folio: ClassVar[bool] = False

    def kvm_gmem_get_invalidate_filter(self, inode: GmemInode) -> int:
        """Which mappings an invalidation concerns: both private and shared ones, as the tree does
        not yet tell which of them there can be."""
        return KVM_FILTER_SHARED | KVM_FILTER_PRIVATE

    def kvm_gmem_get_file(self, slot: KvmMemorySlot) -> GmemFile | None:
        """get_file_active(&slot->gmem.file): None once the last reference to the file is gone,
        though kvm_gmem_release() may not have run yet.

        MODEL: no reference is taken: kvm_gmem_release() waits for the invalidate_lock anyway.
        """
        f = slot.gmem_file
        return f if f is not None and f.f_count else None

    def _bound_ranges(
        self, f: GmemFile, start: int, end: int, attr_filter: int
    ) -> tuple[KvmGfnRange, ...]:
        """xa_for_each_range(&f->bindings, ...): the part of each bound slot, as GFNs. The caller
        has the mapping's invalidate_lock, so that none comes or goes."""
        return tuple(
            [
                KvmGfnRange(
                    slot,
                    slot.base_gfn + max(slot.gmem_pgoff, start) - slot.gmem_pgoff,
                    slot.base_gfn + min(slot.gmem_pgoff + slot.npages, end) - slot.gmem_pgoff,
                    attr_filter,
                    True,
                )
                for first, last, slot in f.bindings
                if first < end and last > start
            ]
        )

    # Invalidation

    def _kvm_gmem_invalidate_begin(self, f: GmemFile, start: int, end: int) -> None:
        """__kvm_gmem_invalidate_begin()."""
        mmu = self.host.mmu
        kvm = f.kvm
        found_memslot = False
        ranges = self._bound_ranges(f, start, end, 0)
        for gfn_range in ranges:
            if not found_memslot:
                found_memslot = True
                kvm.mmu_lock.write_lock()
                mmu.kvm_mmu_invalidate_begin(kvm)
            mmu.kvm_mmu_invalidate_range_add(kvm, gfn_range.start, gfn_range.end)
        if found_memslot:
            kvm.mmu_lock.write_unlock()

    def kvm_gmem_invalidate_begin(self, inode: GmemInode, start: int, end: int) -> None:
        """From here on no fault in [start, end) installs anything, in any VM."""
        files = tuple(inode.file_list)
        for f in files:
            self._kvm_gmem_invalidate_begin(f, start, end)

    def _kvm_gmem_invalidate_end(self, f: GmemFile, start: int, end: int) -> None:
        """__kvm_gmem_invalidate_end()."""
        kvm = f.kvm
        if any(first < end and last > start for first, last, _ in f.bindings):
            kvm.mmu_lock.write_lock()
            self.host.mmu.kvm_mmu_invalidate_end(kvm)
            kvm.mmu_lock.write_unlock()

    def kvm_gmem_invalidate_end(self, inode: GmemInode, start: int, end: int) -> None:
        """End what kvm_gmem_invalidate_begin() began, in every VM: faults may map again."""
        files = tuple(inode.file_list)
        for f in files:
            self._kvm_gmem_invalidate_end(f, start, end)

    # Split and zap

    def _kvm_gmem_split_range(self, kvm: Kvm, gfn_range: KvmGfnRange) -> int:
        """Split in the part of one slot; mmu_lock is held for writing. Returns what
        kvm_split_cross_boundary_leafs() does."""
        return self.host.mmu.kvm_split_cross_boundary_leafs(kvm, gfn_range, False)

    def _kvm_gmem_split_private(self, f: GmemFile, start: int, end: int) -> int:
        """__kvm_gmem_split_private(): so that a zap of the range is precise, in one VM.

        0, or what kvm_split_cross_boundary_leafs() returned. Source: patch 16.
        """
        kvm = f.kvm
        locked = False
        ret = 0
        ranges = self._bound_ranges(f, start, end, KVM_FILTER_PRIVATE)
        for gfn_range in ranges:
            if not locked:
                kvm.mmu_lock.write_lock()
                locked = True
            ret = self._kvm_gmem_split_range(kvm, gfn_range)
            if ret:
                break
        if locked:
            kvm.mmu_lock.write_unlock()
        return ret

    def kvm_gmem_split_private(
        self, inode: GmemInode, start: int, end: int, cause: SplitCause = "conversion"
    ) -> int:
        """The same in every VM; stops at the first failure, which leaves earlier VMs split."""
        previous = self.host.main.set_cause(cause)
        ret = 0
        files = tuple(inode.file_list)
        for f in files:
            ret = self._kvm_gmem_split_private(f, start, end)
            if ret:
                break
        self.host.main.set_cause(previous)
        return ret

    def _kvm_gmem_zap(self, f: GmemFile, start: int, end: int, attr_filter: int) -> None:
        """__kvm_gmem_zap()."""
        kvm = f.kvm
        flush = False
        locked = False
        ranges = self._bound_ranges(f, start, end, attr_filter)
        for gfn_range in ranges:
            if not locked:
                kvm.mmu_lock.write_lock()
                locked = True
            flush |= bool(self.host.mmu.kvm_unmap_gfn_range(kvm, gfn_range))
        if flush:
            self.host.main.kvm_flush_remote_tlbs(kvm)
        if locked:
            kvm.mmu_lock.write_unlock()

    def kvm_gmem_zap(self, inode: GmemInode, start: int, end: int) -> None:
        """Unmap [start, end) from every guest: for private memory the point of no return."""
        attr_filter = self.kvm_gmem_get_invalidate_filter(inode)
        files = tuple(inode.file_list)
        for f in files:
            self._kvm_gmem_zap(f, start, end, attr_filter)

    # References

    def kvm_gmem_has_safe_refcount(self, inode: GmemInode, start: int, nr_pages: int) -> int:
        """-1 when nobody but the page cache refers to any folio in the range, else the index of
        the first folio that somebody else (a GUP pin) holds."""
        for index, folio in self._folios_in_range(inode, start, start + nr_pages):
            # The kernel's own look-up holds one more while it compares.
            if folio.refcount + 1 != folio.nr_pages + 1:
                return index
        return -1

    # Truncation

    def _kvm_gmem_truncate_range(self, inode: GmemInode, start: int, nr_pages: int) -> None:
        """Unmap the range from user space, then remove every folio that overlaps it, whole."""
        self.unmap_mapping_pages(inode, start, nr_pages)
        end = start + nr_pages
        for split in self._splits_in_range(inode, start, end):
            self._truncate_split_folio(inode, split, start, end)
        for index, folio in list(self._folios_in_range(inode, start, end)):
            self.kvm_gmem_truncate_folio(inode, index, folio)
            self.sim.point("cond_resched")

    def _splits_in_range(self, inode: GmemInode, start: int, end: int) -> list[SplitFolio]:
        return [
            split
            for index, split in sorted(inode.split_folios.items())
            if index < end and index + split.nr_pages > start
        ]

    def truncate_inode_pages_range(self, inode: GmemInode, start: int, end: int) -> None:
        """truncate_inode_pages_range() over large folios of the page allocator.

        A folio that the range covers partly is split.

        SUSPECT: when the split fails, the whole folio goes, as truncate_inode_partial_folio() does
        with a clean folio. Source: mm/truncate.c.
        """
        mm = self.host.mm
        for index, folio in list(self._folios_in_range(inode, start, end)):
            if not folio.order or (start <= index and index + folio.nr_pages <= end):
                continue
            folio.refcount += 1  # the look-up's
            was_split = mm.split_folio(folio, "gmem_split_folio")
            folio.refcount -= 1
            if was_split:
                del inode.folios[index]
                split = inode.split_folios[index] = SplitFolio(index, folio)
                folio.order = 0
                if self.sim.tracing:
                    self.trace_folios(inode, index, split.nr_pages)
        self._kvm_gmem_truncate_range(inode, start, end - start)

    def _merge_folios_in_range(self, inode: GmemInode, start: int, nr_pages: int) -> int:
        """Have whole original folios again: 0, or the first error."""
        for index in range(start, start + nr_pages, 1 << inode.page_order):
            ret = self.gmem_hugetlb_restructure_folio(inode, index, inode.page_order)
            if ret:
                return ret
        return 0

    def merge_truncate_range(
        self, inode: GmemInode, start: int, nr_pages: int, require_merge: bool
    ) -> int:
        """Remove a range of whole original folios, merged first, so that hugetlb gets them back.

        0; -EAGAIN when somebody holds a page, only if `require_merge`.
        """
        if inode.flags & GUEST_MEMFD_FLAG_THP:
            self.truncate_inode_pages_range(inode, start, start + nr_pages)
            return 0
        if not inode.flags & GUEST_MEMFD_FLAG_HUGETLB:
            self._kvm_gmem_truncate_range(inode, start, nr_pages)
            return 0
        self.unmap_mapping_pages(inode, start, nr_pages)
        if self.kvm_gmem_has_safe_refcount(inode, start, nr_pages) == -1:
            ret = self._merge_folios_in_range(inode, start, nr_pages)
            if ret and require_merge:
                return ret
        elif require_merge:
            return -EAGAIN
        self._kvm_gmem_truncate_range(inode, start, nr_pages)
        return 0

    # File operations

    def _kvm_gmem_split_for_punch(self, inode: GmemInode, start: int, end: int) -> int:
        """Split the huge leaves that cross the hole, so that the zap takes no more than it. Source:
        patch 16."""
        return self.kvm_gmem_split_private(inode, start, end, "punch_hole")

    def kvm_gmem_punch_hole(self, inode: GmemInode, offset: int, length: int) -> int:
        """fallocate(PUNCH_HOLE): 0, or an error. Source: patch 16.

        SUSPECT: a failed split returns 1 (see kvm_split_cross_boundary_leafs()), which fallocate()
        hands to user space as it is.
        """
        start = offset >> 12
        end = (offset + length) >> 12
        self.filemap_invalidate_lock(inode, start, end)
        self.kvm_gmem_invalidate_begin(inode, start, end)
        ret = self._kvm_gmem_split_for_punch(inode, start, end)
        if ret:
            self._kvm_gmem_punch_failed(inode, start, end)
            return ret
        self.kvm_gmem_zap(inode, start, end)
        ret = self.merge_truncate_range(inode, start, length >> 12, True)
        self.kvm_gmem_invalidate_end(inode, start, end)
        self.filemap_invalidate_unlock(inode)
        return ret

    def _kvm_gmem_punch_failed(self, inode: GmemInode, start: int, end: int) -> None:
        """The way out of kvm_gmem_punch_hole() when the split failed: end the invalidation."""
        self.kvm_gmem_invalidate_end(inode, start, end)
        self.filemap_invalidate_unlock(inode)

    def kvm_gmem_allocate(self, inode: GmemInode, offset: int, length: int) -> int:
        """fallocate(): have every folio of the range now. 0, -EINVAL, -EINTR or -ENOMEM."""
        if offset + length > inode.i_size:
            return -EINVAL
        index = offset >> 12
        end = (offset + length) >> 12
        self.filemap_invalidate_lock_shared(inode, index, end)
        ret = 0
        while index < end:
            if self.host.main.current_signal_pending():
                ret = -EINTR
                break
            ret, folio = self.kvm_gmem_get_folio(inode, index)
            if folio is None:
                break
            index = (index & -folio.nr_pages) + folio.nr_pages
            self.folio_unlock(folio)
            self.host.mm.folio_put(folio)
            self.sim.point("cond_resched")
        self.filemap_invalidate_unlock_shared(inode)
        return ret

    def kvm_gmem_fallocate(self, f: GmemFile, mode: int, offset: int, length: int) -> int:
        """fallocate() on a guest_memfd. A dead VM does not stop it: it is no VM ioctl."""
        inode = f.inode
        if not mode & FALLOC_FL_KEEP_SIZE:
            return -EOPNOTSUPP
        if mode & ~(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE):
            return -EOPNOTSUPP
        page_size = 4096 << inode.page_order
        if offset % page_size or length % page_size:
            return -EINVAL
        if mode & FALLOC_FL_PUNCH_HOLE:
            return self.kvm_gmem_punch_hole(inode, offset, length)
        return self.kvm_gmem_allocate(inode, offset, length)

    def memory_failure(self, inode: GmemInode, index: int) -> int:
        """memory_failure() of the page at `index`. Returns the result that it logs: MF_DELAYED; or
        MF_IGNORED when there is no page, it leaves the file meanwhile, or its folio has failed.

        The folio stays in the page cache, and the reference to it is kept for ever. So whatever
        refuses folios with extra references (conversion to private, a hole) returns -EAGAIN from
        then on; whatever waits for them to go (split, merge) waits for ever, with the
        invalidate_lock held; and the frame is never freed.

        SUSPECT: kvm_gmem_error_folio() waits for the invalidate_lock with the folio locked.
        Everywhere else the invalidate_lock comes first: who removes the folio has that, and waits
        for the folio's.

        Source: mm/memory-failure.c, memory_failure(), try_memory_failure_hugetlb(),
        hwpoison_user_mappings(), me_huge_page() and me_pagecache_clean().
        """
        # MODEL: a memory failure always comes so far; in the tree that v3 is posted on none does.
        # Of a hugetlb folio in use memory_failure() takes a reference only when it is marked
        # migratable, which hugetlbfs does at the first fault of user space, and guest_memfd
        # nowhere: -EBUSY, MF_IGNORED, and the page is not even marked. Of other folios it takes
        # those on an LRU list, and that tree's go into the page cache without: MF_IGNORED, with
        # the flag set, so that the next fault is -EHWPOISON, but what is mapped stays. This was
        # read in that tree's guest_memfd.c and guest_memfd_hugetlb.c, in mainline's
        # mm/memory-failure.c, and in hugetlb_alloc_folio() as posted for guest_memfd.

        # MODEL: a 2 MB folio of the page allocator is not split first.
        result = MF_IGNORED
        folio = self.filemap_get_folio(inode, index)
        if folio is None:
            return result
        self.folio_lock(folio)
        if self._peek_folio(inode, index) is not folio:
            # It was truncated before it was locked. The reference stays: nobody is given the frame.
            self.host.mm.get_hwpoison_page(folio)
        elif index not in inode.poisoned:
            self.unmap_mapping_pages(inode, index & -folio.nr_pages, folio.nr_pages)
            result = self.kvm_gmem_error_folio(inode, index)
        self.folio_unlock(folio)
        self.host.mm.folio_put(folio)
        return result

    def kvm_gmem_error_folio(self, inode: GmemInode, index: int) -> int:
        """The locked folio at `index` has failed: the whole folio is unmapped from every guest.

        Returns MF_DELAYED. A later access gets -EHWPOISON, until the folio is truncated.

        MODEL: it is marked here, under the invalidate_lock, which its caller does before.
        """
        self.filemap_invalidate_lock_shared(inode, index, index + 1)
        folio = self._peek_folio(inode, index)
        if folio is not None:  # None: a host that truncates it without its lock
            self._kvm_gmem_unmap_error(inode, index & -folio.nr_pages, folio)
        self.filemap_invalidate_unlock_shared(inode)
        return MF_DELAYED

    def _kvm_gmem_unmap_error(self, inode: GmemInode, start: int, folio: Folio) -> None:
        """The part of kvm_gmem_error_folio() that has the invalidate_lock."""
        end = start + folio.nr_pages
        self.host.mm.get_hwpoison_page(folio)
        inode.poisoned.update(range(start, end))
        self.kvm_gmem_invalidate_begin(inode, start, end)
        self._kvm_gmem_split_for_error(inode, start, end)
        self.kvm_gmem_zap(inode, start, end)
        self.kvm_gmem_invalidate_end(inode, start, end)

    def _kvm_gmem_split_for_error(self, inode: GmemInode, start: int, end: int) -> None:
        """Split the huge leaves that cross a failed folio: v3 does nothing here.

        SUSPECT: patch 16 assumes that a mapping is never larger than its folio. Of a 1 GB folio
        that was split to 4 KB, 2 MB may still be mapped as one, and all of it is zapped."""

    def kvm_gmem_release(self, f: GmemFile) -> None:
        """The last reference to the file is gone: every private page of the VM that came from it
        is removed, while the key id is still assigned; then the file lets go of the VM."""
        kvm = f.kvm
        inode = f.inode
        # Nobody may unbind a memslot meanwhile.
        kvm.slots_lock.lock()
        self.filemap_invalidate_lock(inode, 0, MAX_INDEX)
        for _, _, slot in f.bindings:
            slot.gmem_file = None
            if self.sim.tracing:
                self.trace_no_folios(kvm, slot)
        self._kvm_gmem_invalidate_begin(f, 0, MAX_INDEX)
        self._kvm_gmem_zap(f, 0, MAX_INDEX, self.kvm_gmem_get_invalidate_filter(inode))
        self._kvm_gmem_invalidate_end(f, 0, MAX_INDEX)
        inode.file_list.remove(f)
        self.filemap_invalidate_unlock(inode)
        kvm.slots_lock.unlock()
        f.bindings = []
        f.released = True
        kvm.gmem_files.remove(f)
        self.host.main.kvm_put_kvm(kvm)
        if not inode.file_list:
            self.kvm_gmem_evict_inode(inode)

    def kvm_gmem_evict_inode(self, inode: GmemInode) -> None:
        """The inode goes with its last file: all its memory is free again."""
        self.unmap_mapping_pages(inode, 0, inode.i_size >> 12)
        self.merge_truncate_range(inode, 0, inode.i_size >> 12, False)
        if inode.subpool is not None:
            self.host.mm.hugepage_put_subpool(inode.subpool)

    # Pins

    def pin_user_page(self, inode: GmemInode, index: int) -> Folio | None:
        """GUP by a driver of a page that user space has mapped (shared memory): one reference
        more until `unpin_user_page`. None when it is not there."""
        folio = self.filemap_get_folio(inode, index)
        if folio is not None:
            inode.pins[index] = inode.pins.get(index, 0) + 1
        return folio

    def unpin_user_page(self, inode: GmemInode, index: int, folio: Folio) -> None:
        """Drop a reference of `pin_user_page`."""
        inode.pins[index] -= 1
        if not inode.pins[index]:
            del inode.pins[index]
        self.host.mm.folio_put(folio)
