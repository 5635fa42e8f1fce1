"""Private or shared: memory attributes that guest_memfd itself holds, and in-place conversion.

With the module parameter vm_memory_attributes=N the attributes of a range live in its inode, and
KVM_SET_MEMORY_ATTRIBUTES2 on the guest_memfd converts it. Source: virt/kvm/guest_memfd.c of the
tree that v3 is posted on, with patch 16; the FIXUPs of that tree are switches of `HostParams`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from septum.abi.errno import EACCES, EAGAIN, EHWPOISON, EINVAL, ENOMEM, ENOTTY
from septum.abi.kvm import GUEST_MEMFD_FLAG_MMAP, KVM_MEMORY_ATTRIBUTE_PRIVATE
from septum.linux.kvm.gmem_folio import ALL_ATTRIBUTES
from septum.linux.kvm.gmem_range import GmemRange
from septum.linux.ranges import range_get, range_has

if TYPE_CHECKING:
    from septum.linux.kvm.types import GmemFile, GmemInode, Kvm
    from septum.linux.mm.folio import Folio


class KvmMemoryAttributes2(msgspec.Struct):
    """struct kvm_memory_attributes2: bytes; `error_offset` is written on failure."""

    offset: int
    size: int
    attributes: int
    flags: int = 0
    error_offset: int = 0


class GmemAttrs(GmemRange):
    """Attributes and conversion."""

    __slots__ = ()

    def kvm_gmem_get_attributes(self, inode: GmemInode, index: int) -> int:
        """The attributes of one index."""
        return range_get(inode.attributes, index)

    def kvm_gmem_get_memory_attributes(self, kvm: Kvm, gfn: int) -> int:
        """The attributes of a GFN; 0 without a slot or with its file closed.

        No lock: who uses the answer must check for an invalidation under mmu_lock.
        """
        slot = self.host.main.gfn_to_memslot(kvm, gfn)
        f = self.kvm_gmem_get_file(slot) if slot is not None else None
        if slot is None or f is None:
            return 0
        index = gfn - slot.base_gfn + slot.gmem_pgoff
        return range_get(f.inode.attributes, index)

    def kvm_gmem_range_has_attributes(
        self, inode: GmemInode, start: int, nr_pages: int, attributes: int
    ) -> bool:
        """Whether the whole range has exactly these attributes."""
        return range_has(inode.attributes, start, start + nr_pages, ALL_ATTRIBUTES, attributes)

    # Conversion

    def kvm_gmem_restructure(
        self, inode: GmemInode, start: int, nr_pages: int, to_private: bool
    ) -> int:
        """Give the huge page around the range the folio size that its attributes allow.

        To shared: 4 KB. To private: huge again when all the rest of it is private, too.
        0 or -ENOMEM.
        """
        if inode.page_order == 0:
            return 0
        order = inode.page_order
        aligned_start = start >> order << order
        aligned_end = aligned_start + (1 << order)
        end = start + nr_pages
        to_order = 0
        if to_private:
            if not self.host.params.fixup_merge_after_to_private:
                return 0
            private = KVM_MEMORY_ATTRIBUTE_PRIVATE
            head = start - aligned_start
            tail = aligned_end - end
            if self.kvm_gmem_range_has_attributes(
                inode, aligned_start, head, private
            ) and self.kvm_gmem_range_has_attributes(inode, end, tail, private):
                to_order = order
        return self.gmem_hugetlb_restructure_folio(inode, aligned_start, to_order)

    def _kvm_gmem_compute_invalidate_range(
        self, inode: GmemInode, start: int, end: int
    ) -> tuple[int, int]:
        """kvm_gmem_compute_invalidate_start(), _end(): whole original folios."""
        nr_pages = 1 << inode.page_order
        return start & -nr_pages, -(-end // nr_pages) * nr_pages

    def _kvm_gmem_zaps_before_restructure(self) -> bool:
        """Whether the mappings are zapped before the folio is split: FIXUP 2."""
        return self.host.params.fixup_zap_before_split

    def _kvm_gmem_convert_mappings(
        self, inode: GmemInode, start: int, end: int, to_private: bool
    ) -> int:
        """Take the range out of the guests' page tables, between begin and end of the invalidation.

        To shared, huge leaves that cross the range are split first, which is the last step that
        may fail. 0, or what kvm_gmem_split_private() returned. Source: patch 16, in
        kvm_gmem_convert().
        """
        if not to_private:
            ret = self.kvm_gmem_split_private(inode, start, end)
            if ret:
                return ret
        self.kvm_gmem_zap(inode, start, end)
        return 0

    def kvm_gmem_convert(
        self, inode: GmemInode, start: int, nr_pages: int, attrs: int
    ) -> tuple[int, int]:
        """Convert a range within one huge page: (errno, index of the failure).

        SUSPECT: with the FIXUPs the attributes are stored after the end of the invalidation.
        A fault that takes its snapshot of the sequence number in between still sees the old
        attributes, waits for the invalidate_lock in kvm_gmem_get_pfn(), and maps what is then of
        the other kind. And the folio is split after the zap: when that fails, what the guest had
        is gone and the ioctl reports an error.

        SUSPECT: a conversion to private zaps shared and private mappings alike, without a split.
        Where a part of the range is private already, its content is lost; so is the rest of a huge
        private leaf that the range covers partly, which nobody asked to convert.

        Source: kvm_gmem_convert() with patch 16 and the FIXUPs.
        """
        to_private = attrs & KVM_MEMORY_ATTRIBUTE_PRIVATE != 0
        end = start + nr_pages
        mm = self.host.mm
        if mm.fails("gmem_attributes_maple"):
            return -ENOMEM, start
        if to_private:
            self.unmap_mapping_pages(inode, start, nr_pages)
            held = self.kvm_gmem_has_safe_refcount(inode, start, nr_pages)
            if held != -1:
                return -EAGAIN, held
        elif not self._kvm_gmem_zaps_before_restructure():
            # Without FIXUP 2 the folio is split while the guest still has it mapped as one.
            ret = self.kvm_gmem_restructure(inode, start, nr_pages, to_private)
            if ret:
                return ret, start

        inv_start, inv_end = self._kvm_gmem_compute_invalidate_range(inode, start, end)
        self.kvm_gmem_invalidate_begin(inode, inv_start, inv_end)
        ret = self._kvm_gmem_convert_mappings(inode, start, end, to_private)
        if ret:
            self.kvm_gmem_invalidate_end(inode, inv_start, inv_end)
            return ret, start
        ret = self._kvm_gmem_convert_commit(inode, start, nr_pages, attrs)
        return ret, start if ret else 0

    def _kvm_gmem_convert_commit(
        self, inode: GmemInode, start: int, nr_pages: int, attrs: int
    ) -> int:
        """What comes after the zap: end of the invalidation, folios, attributes, in the order that
        the FIXUPs have. 0 or -ENOMEM, when a folio could not be split.
        """
        end = start + nr_pages
        to_private = attrs & KVM_MEMORY_ATTRIBUTE_PRIVATE != 0
        self.kvm_gmem_invalidate_end(
            inode, *self._kvm_gmem_compute_invalidate_range(inode, start, end)
        )
        ret = self.kvm_gmem_restructure(inode, start, nr_pages, to_private)
        if ret:
            return ret
        self._kvm_gmem_store_attributes(inode, start, end, attrs)
        return 0

    def _kvm_gmem_store_attributes(
        self, inode: GmemInode, start: int, end: int, attrs: int
    ) -> None:
        """mas_store_prealloc(): it cannot fail."""
        self.sim.point("mas_store")
        self.mas_store(inode, start, end, attrs)

    def _kvm_gmem_batch_size(self, inode: GmemInode) -> int:
        """Pages that are converted at once: the original folio, or all of the file. Source: the
        loop of __kvm_gmem_set_attributes()."""
        return 1 << inode.page_order if inode.page_order else inode.i_size >> 12

    def _kvm_gmem_set_attributes(
        self, inode: GmemInode, start: int, nr_pages: int, attrs: int
    ) -> tuple[int, int]:
        """__kvm_gmem_set_attributes(): one original folio after the other."""
        end = start + nr_pages
        self.filemap_invalidate_lock(inode, start, end)
        ret = err_index = 0
        if not self.kvm_gmem_range_has_attributes(inode, start, nr_pages, attrs):
            batch_size = self._kvm_gmem_batch_size(inode)
            at = start
            while at < end:
                batch_end = min((at // batch_size + 1) * batch_size, end)
                ret, err_index = self.kvm_gmem_convert(inode, at, batch_end - at, attrs)
                if ret:
                    break
                at = batch_end
        self.filemap_invalidate_unlock(inode)
        return ret, err_index

    def kvm_gmem_set_attributes(self, f: GmemFile, attrs: KvmMemoryAttributes2) -> int:
        """KVM_SET_MEMORY_ATTRIBUTES2 on a guest_memfd: 0 or an error; `attrs.error_offset` then
        says where."""
        inode = f.inode
        if self.host.params.vm_memory_attributes:
            return -ENOTTY
        if attrs.flags or attrs.attributes & ~self.host.main.kvm_supported_mem_attributes(f.kvm):
            return -EINVAL
        if attrs.size <= 0 or attrs.offset < 0 or attrs.offset % 4096 or attrs.size % 4096:
            return -EINVAL
        if attrs.offset >= inode.i_size or attrs.offset + attrs.size > inode.i_size:
            return -EINVAL
        ret, err_index = self._kvm_gmem_set_attributes(
            inode, attrs.offset >> 12, attrs.size >> 12, attrs.attributes
        )
        if ret:
            attrs.error_offset = err_index << 12
        return ret

    # Host mappings

    def _kvm_gmem_shared_folio(self, inode: GmemInode, index: int) -> tuple[int, Folio | None]:
        """The folio of a shared index, with a reference: (errno, folio); -EACCES when private.

        The invalidate_lock keeps conversions out from the test to the look-up.
        """
        self.filemap_invalidate_lock_shared(inode, index, index + 1)
        if self.kvm_gmem_get_attributes(inode, index) & KVM_MEMORY_ATTRIBUTE_PRIVATE:
            ret, folio = -EACCES, None
        else:
            ret, folio = self.kvm_gmem_get_folio(inode, index)
        self.filemap_invalidate_unlock_shared(inode)
        return ret, folio

    def kvm_gmem_fault_user_mapping(self, inode: GmemInode, index: int) -> int:
        """A host access through mmap(): the PFN, or -EACCES and the like, which are SIGBUS.

        A page that has failed is -EHWPOISON; in the kernel its caller __do_fault() finds it out
        (VM_FAULT_HWPOISON).
        """
        if not inode.flags & GUEST_MEMFD_FLAG_MMAP or index << 12 >= inode.i_size:
            return -EINVAL
        ret, folio = self._kvm_gmem_shared_folio(inode, index)
        if folio is None:
            return ret
        if folio.order:
            self.warn_on_once("large folio in a shared range", "kvm_gmem_fault_user_mapping")
            self.folio_unlock(folio)
            self.host.mm.folio_put(folio)
            return -EINVAL
        self._clear_folio(folio)
        if index in inode.poisoned:
            self.folio_unlock(folio)
            self.host.mm.folio_put(folio)
            return -EHWPOISON
        if index in inode.user_mapped:
            self.host.mm.folio_put(folio)
        inode.user_mapped.add(index)
        self.folio_unlock(folio)
        return folio.pfn
