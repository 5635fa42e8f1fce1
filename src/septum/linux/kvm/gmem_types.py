"""guest_memfd's structures, under the kernel's names, as plain state.

Source: virt/kvm/guest_memfd.c at the base of the v3 series.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from septum.linux.kvm.types import Kvm, KvmMemorySlot
    from septum.linux.mm.folio import Folio, Subpool
    from septum.sim import RwSem


class GmemInode:
    """The inode of a guest_memfd: folios by index, flags, memory attributes when it holds them."""

    __slots__ = (
        "attributes",
        "file_list",
        "flags",
        "folios",
        "i_size",
        "invalidate_lock",
        "page_order",
        "pins",
        "poisoned",
        "split_folios",
        "subpool",
        "user_mapped",
    )

    def __init__(self, i_size: int, flags: int, page_order: int, invalidate_lock: RwSem) -> None:
        self.i_size = i_size  # bytes
        self.flags = flags
        self.page_order = page_order  # order of the backing folios: 0, 9 or 18
        self.invalidate_lock = invalidate_lock  # inode->i_mapping->invalidate_lock
        # index of a folio's first page -> struct folio
        self.folios: dict[int, Folio] = {}
        self.file_list: list[GmemFile] = []
        # vm_memory_attributes=N: [start, end, attributes) index ranges, as in Kvm.mem_attr_array.
        self.attributes: list[tuple[int, int, int]] = []
        self.poisoned: set[int] = set()
        # First index -> huge folio that is split to 4 KB in place.
        self.split_folios: dict[int, SplitFolio] = {}
        self.subpool: Subpool | None = None  # inode->i_private of a hugetlb guest_memfd
        self.user_mapped: set[int] = set()  # indexes faulted into host page tables
        self.pins: dict[int, int] = {}  # index -> references by GUP (IOMMU, io_uring)

    def is_changing(self) -> bool:
        """Whether somebody has the invalidate_lock alone."""
        return self.invalidate_lock.writer is not None

    def is_locked(self) -> bool:
        """Whether somebody has the invalidate_lock at all."""
        return bool(self.invalidate_lock.holders())


class GmemFile:
    """One (inode, VM) pair: struct gmem_file."""

    __slots__ = ("bindings", "f_count", "inode", "kvm", "released")

    def __init__(self, kvm: Kvm, inode: GmemInode) -> None:
        self.kvm = kvm
        self.inode = inode
        # (start index, end index, slot) of every bound memslot
        self.bindings: list[tuple[int, int, KvmMemorySlot]] = []
        self.released = False
        self.f_count = 1  # references to the struct file; at 0 it is released

    def slot_at(self, index: int) -> KvmMemorySlot | None:
        """The memslot that is bound to an index: xa_load() of the bindings."""
        for first, last, slot in self.bindings:
            if first <= index < last:
                return slot
        return None


class SplitFolio:
    """A huge folio of the page cache that was split to order 0 in place.

    The small folios are alike (one reference, `uptodate` as the huge one was), so that only those
    that differ have a `Folio` in `GmemInode.folios`; `gone` are the indexes that were removed.
    """

    __slots__ = ("gone", "hugetlb", "index", "nr_pages", "order", "pfn", "site", "uptodate")

    def __init__(self, index: int, folio: Folio) -> None:
        self.index = index  # page cache index of the first page
        self.pfn = folio.pfn
        self.order = folio.order
        self.nr_pages = 1 << folio.order
        self.uptodate = folio.uptodate
        self.hugetlb = folio.hugetlb
        self.site = folio.site
        self.gone: set[int] = set()
