"""virt/kvm/guest_memfd.c: memory of a guest that user space does not have mapped.

Create, bind, get_pfn and populate are here; `gmem_folio` has the page cache, `gmem_range` what
takes memory away, `gmem_attrs` conversion. Source: the tree that v3 is posted on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.errno import EFAULT, EHWPOISON, EINTR, EINVAL, EIO, ENOMEM
from septum.abi.kvm import (
    GUEST_MEMFD_FLAG_INIT_SHARED,
    GUEST_MEMFD_FLAG_MMAP,
    KVM_MEM_GUEST_MEMFD,
    KVM_MEMORY_ATTRIBUTE_PRIVATE,
    KVM_MEMSLOT_GMEM_ONLY,
)
from septum.abi.types import PAGE_SHIFT, PAGE_SIZE
from septum.linux.kvm.gmem_attrs import GmemAttrs
from septum.linux.kvm.gmem_folio import GUEST_MEMFD_FLAG_HUGETLB, GUEST_MEMFD_FLAG_THP
from septum.linux.kvm.types import GmemFile, GmemInode
from septum.linux.ranges import range_store
from septum.sim import RwSem

if TYPE_CHECKING:
    from septum.abi.types import Pfn
    from septum.linux.kvm.types import Kvm, KvmMemorySlot, KvmVcpu
    from septum.linux.mm.folio import Folio

SUPPORTED_FLAGS = (
    GUEST_MEMFD_FLAG_MMAP
    | GUEST_MEMFD_FLAG_INIT_SHARED
    | GUEST_MEMFD_FLAG_HUGETLB
    | GUEST_MEMFD_FLAG_THP
)


class GuestMemfd(GmemAttrs):
    """virt/kvm/guest_memfd.c."""

    __slots__ = ()

    # Create

    def kvm_gmem_create(
        self, kvm: Kvm, size: int, flags: int = 0, page_order: int = 0
    ) -> tuple[int, GmemFile | None]:
        """KVM_CREATE_GUEST_MEMFD: (errno, file). The file holds a reference to the VM.

        `page_order` 9 or 18 goes with GUEST_MEMFD_FLAG_HUGETLB, whose pages are reserved here.
        """
        if flags & ~SUPPORTED_FLAGS:
            return -EINVAL, None
        if page_order and not flags & GUEST_MEMFD_FLAG_HUGETLB:
            return -EINVAL, None
        if flags & GUEST_MEMFD_FLAG_HUGETLB:
            if flags & (GUEST_MEMFD_FLAG_INIT_SHARED | GUEST_MEMFD_FLAG_THP):
                return -EINVAL, None
            if not page_order or self.host.mm.hugetlb_order_to_hstate(page_order) is None:
                return -EINVAL, None
        if size <= 0 or size % (PAGE_SIZE << page_order):
            return -EINVAL, None
        subpool = None
        if flags & GUEST_MEMFD_FLAG_HUGETLB:
            nr = size >> (PAGE_SHIFT + page_order)
            subpool = self.host.mm.hugepage_new_subpool(page_order, nr)
            if subpool is None:
                return -ENOMEM, None
        number = len(kvm.gmem_files)
        lock = RwSem(self.sim, f"invalidate_lock vm{kvm.id}.{number}")
        inode = self.new_inode(size, flags, page_order, lock)
        inode.subpool = subpool
        if not flags & GUEST_MEMFD_FLAG_INIT_SHARED:
            range_store(inode.attributes, 0, size >> PAGE_SHIFT, KVM_MEMORY_ATTRIBUTE_PRIVATE)
        return 0, self.kvm_gmem_link(kvm, inode)

    def new_inode(
        self, i_size: int, flags: int, page_order: int, invalidate_lock: RwSem
    ) -> GmemInode:
        """kvm_gmem_inode_create()'s inode."""
        return GmemInode(i_size, flags, page_order, invalidate_lock)

    def kvm_gmem_link(self, kvm: Kvm, inode: GmemInode) -> GmemFile:
        """A file of `inode` for `kvm`: its view of the memory. One inode may serve several VMs."""
        f = GmemFile(kvm, inode)
        self.host.main.kvm_get_kvm(kvm)
        inode.file_list.append(f)
        kvm.gmem_files.append(f)
        return f

    def fput(self, f: GmemFile) -> None:
        """Drop a reference to the file; the last releases it."""
        f.f_count -= 1
        if not f.f_count:
            self.kvm_gmem_release(f)

    # Bind

    def fget(self, f: GmemFile) -> bool:
        """A reference to an open file, until `fput`; false when it is closed."""
        if not f.f_count:
            return False
        f.f_count += 1
        return True

    def kvm_gmem_bind(self, kvm: Kvm, slot: KvmMemorySlot, f: GmemFile, offset: int) -> int:
        """Give a new memslot its private memory. 0 or -EINVAL. The caller keeps the file open.

        SUSPECT: nobody checks whether xa_store_range() had memory for its nodes. If it had not, the
        slot points to a file that does not know of the slot: faults are -EIO, and the pointer
        outlives the file (see `kvm_gmem_unbind`).
        MODEL: then no part of the slot is bound; the kernel may have stored some of it.
        """
        size = slot.npages << PAGE_SHIFT
        if f.kvm is not kvm:
            return -EINVAL
        inode = f.inode
        if offset < 0 or offset % PAGE_SIZE or offset + size > inode.i_size:
            return -EINVAL
        start = offset >> PAGE_SHIFT
        end = start + slot.npages
        self.filemap_invalidate_lock(inode, start, end)
        if any(first < end and last > start for first, last, _ in f.bindings):
            self.filemap_invalidate_unlock(inode)
            return -EINVAL
        slot.gmem_file = f
        slot.gmem_pgoff = start
        slot.flags |= KVM_MEM_GUEST_MEMFD
        if inode.flags & GUEST_MEMFD_FLAG_MMAP:
            slot.flags |= KVM_MEMSLOT_GMEM_ONLY
        if not self.host.mm.fails("gmem_bindings"):
            f.bindings.append((start, end, slot))
        self.filemap_invalidate_unlock(inode)
        return 0

    def kvm_gmem_unbind(self, slot: KvmMemorySlot) -> None:
        """Remove the binding of a memslot that is deleted; nothing to do if the file went first.

        When the file is being closed the invalidate_lock is not taken: slots_lock keeps
        kvm_gmem_release() out.
        """
        f = slot.gmem_file
        if f is None:
            return
        if f.released:
            # kvm_gmem_release() forgot the file in the slots that are bound, and this one is not.
            self.sim.find(
                "no-bug",
                f"use after free: memslot {slot.id} still points to a guest_memfd that is gone",
                where="kvm_gmem_unbind",
            )
            slot.gmem_file = None
            return
        start = slot.gmem_pgoff
        active = self.kvm_gmem_get_file(slot) is not None
        if active:
            self.filemap_invalidate_lock(f.inode, start, start + slot.npages)
        f.bindings = [binding for binding in f.bindings if binding[2] is not slot]
        slot.gmem_file = None
        if active:
            self.filemap_invalidate_unlock(f.inode)

    # get_pfn

    def _kvm_gmem_get_pfn(
        self, f: GmemFile, slot: KvmMemorySlot, index: int
    ) -> tuple[int, int, Folio | None]:
        """__kvm_gmem_get_pfn(): (errno, pfn, locked folio with a reference)."""
        if slot.gmem_file is not f:
            if slot.gmem_file is not None:
                self.warn_on_once("file of the slot has changed", "__kvm_gmem_get_pfn")
            return -EFAULT, 0, None
        bound = f.slot_at(index)
        if bound is not slot:
            if bound is not None:
                self.warn_on_once("index is bound to another slot", "__kvm_gmem_get_pfn")
            return -EIO, 0, None
        inode = f.inode
        ret, folio = self.kvm_gmem_get_folio(inode, index)
        if folio is None:
            return ret, 0, None
        if inode.poisoned and index in inode.poisoned:
            self.folio_unlock(folio)
            self.host.mm.folio_put(folio)
            return -EHWPOISON, 0, None
        return 0, self.folio_file_pfn(folio, index), folio

    def kvm_gmem_get_pfn(
        self, kvm: Kvm, slot: KvmMemorySlot, gfn: int
    ) -> tuple[int, int, Folio | None, int]:
        """The private page of a GFN: (errno, pfn, folio with a reference, max_order).

        SUSPECT: of a new huge folio only the first 4 KB are cleared, and the whole folio is marked
        up to date. A TD clears a page when it accepts it, but a page that it never accepted goes to
        user space, when it is converted, with what the last owner left in it.
        """
        f = self.kvm_gmem_get_file(slot)
        if f is None:
            return -EFAULT, 0, None, 0
        index = gfn - slot.base_gfn + slot.gmem_pgoff
        self.filemap_invalidate_lock_shared(f.inode, index, index + 1)
        ret, pfn, folio = self._kvm_gmem_get_pfn(f, slot, index)
        order = 0
        if folio is not None:
            order = self._kvm_gmem_max_order(f.inode, folio, index)
            self._clear_folio(folio)
            self.folio_unlock(folio)
        self.filemap_invalidate_unlock_shared(f.inode)
        return ret, pfn, folio, order

    def _kvm_gmem_max_order(self, inode: GmemInode, folio: Folio, index: int) -> int:
        """How much around `index` one mapping may cover: *max_order of __kvm_gmem_get_pfn()."""
        return folio.order

    # populate

    def kvm_gmem_populate(
        self, kvm: Kvm, start_gfn: int, src: int, npages: int, vcpu: KvmVcpu, flags: int
    ) -> int:
        """Add pages with content to the TD's image: the number of pages done, or an error.

        The callback is TDX's (`tdx_gmem_post_populate` with `vcpu` and `flags`). The source page
        is looked up before the invalidate_lock is taken; `src` 0 is no source.
        """
        self.lockdep_assert(kvm.slots_lock.held(), "slots_lock not held", "kvm_gmem_populate")
        slot = self.host.main.gfn_to_memslot(kvm, start_gfn)
        if slot is None or not slot.flags & KVM_MEM_GUEST_MEMFD:
            return -EINVAL
        f = self.kvm_gmem_get_file(slot)
        if f is None:
            return -EFAULT
        npages = min(slot.npages - (start_gfn - slot.base_gfn), npages)
        done = 0
        ret = 0
        while done < npages:
            if vcpu.signal_pending:
                ret = -EINTR
                break
            src_page = None
            if src:
                src_page = self.host.mm.get_user_page(src + (done << PAGE_SHIFT))
                if src_page is None:
                    ret = -ENOMEM
                    break
            gfn = start_gfn + done
            ret = self._populate_page(kvm, slot, f, gfn, src_page, vcpu, flags)
            if ret:
                break
            done += 1
        return ret if ret and not done else done

    def _populate_page(
        self,
        kvm: Kvm,
        slot: KvmMemorySlot,
        f: GmemFile,
        gfn: int,
        src_page: Pfn | None,
        vcpu: KvmVcpu,
        flags: int,
    ) -> int:
        """__kvm_gmem_populate()."""
        index = gfn - slot.base_gfn + slot.gmem_pgoff
        inode = f.inode
        self.filemap_invalidate_lock(inode, index, index + 1)
        ret, pfn, folio = self._kvm_gmem_get_pfn(f, slot, index)
        if folio is not None:
            self.folio_unlock(folio)
            if not self.kvm_gmem_range_is_private(inode, index, kvm, gfn):
                ret = -EINVAL
            else:
                ret = self.host.tdx.tdx_gmem_post_populate(kvm, gfn, pfn, src_page, vcpu, flags)
                if not ret:
                    folio.uptodate = True
            self.host.mm.folio_put(folio)
        self.filemap_invalidate_unlock(inode)
        return ret

    def kvm_gmem_range_is_private(self, inode: GmemInode, index: int, kvm: Kvm, gfn: int) -> bool:
        """Whether one page is private, by whoever holds the attributes."""
        private = KVM_MEMORY_ATTRIBUTE_PRIVATE
        if self.host.params.vm_memory_attributes:
            return self.host.main.kvm_get_vm_memory_attributes(kvm, gfn) & private != 0
        return self.kvm_gmem_get_attributes(inode, index) & private != 0
