"""The page cache of a guest_memfd inode: look-up, allocation, splitting and merging of folios.

Backing is by 4 KB pages, by hugetlb pages of 2 MB or 1 GB (the tree that v3 is posted on), or by
2 MB folios as a THP-capable guest_memfd would have them.

MODEL: a folio is locked where guest_memfd adds it to the page cache, looks it up to hand it out, or
removes it, and by memory_failure(). What else locks folios in the kernel, as migration does, is not
there.

Source: virt/kvm/guest_memfd.c, guest_memfd_hugetlb.c, mm/hugetlb_restructuring.c of
wip-gmem-conversions-hugetlb-restructuring-12-08-25.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from septum.abi.errno import EEXIST, ENOMEM
from septum.abi.kvm import KVM_MEMORY_ATTRIBUTE_PRIVATE
from septum.abi.types import Pfn
from septum.linux.kvm.gmem_lock import GmemLock
from septum.linux.kvm.types import SplitFolio
from septum.linux.mm.folio import Folio
from septum.linux.mm.state import PMD_ORDER
from septum.linux.ranges import range_has

if TYPE_CHECKING:
    from collections.abc import Iterator

    from septum.linux.kvm.types import GmemInode

GUEST_MEMFD_FLAG_HUGETLB = 1 << 2
# MODEL: not a flag of any posted tree: 2 MB folios from the page allocator where they fit.
GUEST_MEMFD_FLAG_THP = 1 << 3

ALL_ATTRIBUTES = (1 << 64) - 1


class GmemFolios(GmemLock):
    """Folios by index. `split_orders` are the orders that a huge folio may be split to."""

    __slots__ = ()
    split_orders: ClassVar[tuple[int, ...]] = (0,)

    # Look-up

    def filemap_get_folio(self, inode: GmemInode, index: int) -> Folio | None:
        """The folio that covers `index`, with a reference taken; None when there is none."""
        folio = self._peek_folio(inode, index)
        if folio is None:
            split = self._split_at(inode, index)
            if split is not None:
                if index in split.gone:
                    return None
                folio = self._make_small_folio(inode, split, index)
        if folio is not None:
            folio.refcount += 1
        return folio

    def filemap_lock_folio(self, inode: GmemInode, index: int) -> Folio | None:
        """As `filemap_get_folio`, and locked; waits until nobody else has it locked.

        A task that sleeps here holds a reference; only folio_unlock() wakes it.
        """
        folio = self.filemap_get_folio(inode, index)
        if folio is not None:
            self.folio_lock(folio)
        return folio

    def folio_lock(self, folio: Folio) -> None:
        """folio_lock(): sleeps until nobody else has the folio locked, then locks it."""
        while folio.locked:
            self.sim.block(folio.lock_waiters, f"folio lock of pfn {folio.pfn:#x}")
        folio.locked = True

    def folio_unlock(self, folio: Folio) -> None:
        """folio_unlock(), which wakes those that sleep in folio_lock()."""
        if folio.locked:
            folio.locked = False
            self.sim.wake(folio.lock_waiters)
            self.sim.released(folio)

    def _make_small_folio(self, inode: GmemInode, split: SplitFolio, index: int) -> Folio:
        """Give one page of a split huge folio an object of its own."""
        folio = Folio(Pfn(split.pfn + index - split.index), 0)
        folio.uptodate = split.uptodate
        folio.hugetlb = split.hugetlb
        folio.site = split.site
        inode.folios[index] = folio
        self.host.mm.state.small_folios[folio.pfn] = folio
        return folio

    def folio_file_pfn(self, folio: Folio, index: int) -> int:
        """folio_file_pfn(): the PFN for this index."""
        return folio.pfn + (index & (folio.nr_pages - 1))

    def _folios_in_range(
        self, inode: GmemInode, start: int, end: int
    ) -> Iterator[tuple[int, Folio]]:
        """(index, folio) of every folio with an object that overlaps [start, end), in order.

        Pages of split folios that have none are not listed: they have no references but the page
        cache's, by construction.
        """
        folios = inode.folios
        if end - start < len(folios):
            seen: list[int] = []
            index = start
            while index < end:
                folio = self._peek_folio(inode, index)
                if folio is None:
                    index += 1
                    continue
                first = index & -folio.nr_pages
                seen.append(first)
                index = first + folio.nr_pages
        else:
            seen = sorted(i for i, f in folios.items() if i < end and i + f.nr_pages > start)
        for first in seen:
            yield first, folios[first]

    # Allocation

    def _thp_order(self, inode: GmemInode, index: int) -> int:
        """The order to allocate at `index` with THP-like backing: 2 MB where nothing is there."""
        base = index >> PMD_ORDER << PMD_ORDER
        if base + (1 << PMD_ORDER) > inode.i_size >> 12 or base in inode.split_folios:
            return 0
        return 0 if self._has_small_folios(inode, index) else PMD_ORDER

    def _alloc_folio(self, inode: GmemInode, index: int) -> Folio | None:
        mm = self.host.mm
        if inode.flags & GUEST_MEMFD_FLAG_HUGETLB:
            assert inode.subpool is not None
            return mm.hugetlb_alloc_folio(inode.subpool, "gmem_hugetlb_folio")
        if inode.flags & GUEST_MEMFD_FLAG_THP:
            order = self._thp_order(inode, index)
            if order:
                folio = mm.alloc_folio(order, "gmem_folio_2m")
                if folio is not None:
                    return folio
        return mm.alloc_folio(0, "gmem_folio")

    def kvm_gmem_get_folio(self, inode: GmemInode, index: int) -> tuple[int, Folio | None]:
        """The folio at `index`, allocated when there is none, with a reference: (errno, folio).

        It is locked until the caller's folio_unlock().

        MODEL: `__kvm_gmem_get_folio()` looks the folio up a second time before it allocates one;
        here a task that was faster is noticed when the folio is added.
        """
        folio = self.filemap_lock_folio(inode, index)
        if folio is not None:
            return 0, folio
        while True:
            folio = self._alloc_folio(inode, index)
            if folio is None:
                return -ENOMEM, None
            ret = self.filemap_add_folio(inode, folio, index)
            if not ret:
                self.sim.point("folio_locked", folio)
                break
            # SUSPECT: the restructuring metadata of a hugetlb folio stays behind.
            self.host.mm.folio_put(folio)
            if ret != -EEXIST:
                return ret, None
            # SUSPECT: a folio that another task has added is treated as a fresh one, too.
            folio = self.filemap_lock_folio(inode, index)
            if folio is not None:
                break
        return self._maybe_split_fresh_folio(inode, folio, index)

    def filemap_add_folio(self, inode: GmemInode, folio: Folio, index: int) -> int:
        """mem_cgroup_charge() and __filemap_add_folio(), locked: 0, -ENOMEM, or -EEXIST when
        somebody was faster."""
        if self.host.mm.fails("gmem_filemap_add"):
            return -ENOMEM
        if self._is_taken(inode, folio, index):
            return -EEXIST
        folio.locked = True
        inode.folios[index & -folio.nr_pages] = folio
        folio.refcount += folio.nr_pages
        if self.sim.tracing:
            self.trace_folios(inode, index & -folio.nr_pages, folio.nr_pages)
        return 0

    def _maybe_split_fresh_folio(
        self, inode: GmemInode, folio: Folio, index: int
    ) -> tuple[int, Folio | None]:
        """__maybe_split_fresh_folio(): split a huge folio whose range is not wholly private.
        (errno, folio); the folio given may be one that another task has added and split by now.

        SUSPECT: when the split fails, the huge folio stays in the page cache, where the next
        look-up finds it whole. And __folio_clear_locked() wakes nobody: a task that waits for the
        lock then sleeps for ever, with the reference that the split waits for.
        """
        if inode.page_order == 0:
            return 0, folio
        base = index & -folio.nr_pages
        if range_has(
            inode.attributes,
            base,
            base + (1 << inode.page_order),
            ALL_ATTRIBUTES,
            KVM_MEMORY_ATTRIBUTE_PRIVATE,
        ):
            return 0, folio
        folio.locked = False
        # It is in the page cache already: a look-up from here on finds the huge folio.
        self.sim.point("folio_clear_locked", folio)
        self.host.mm.folio_put(folio)
        ret = self._restructure_fresh_folio(inode, base)
        if ret:
            return ret, None
        small = self.filemap_get_folio(inode, index)
        assert small is not None
        small.locked = True
        return 0, small

    def _restructure_fresh_folio(self, inode: GmemInode, index: int) -> int:
        """Give a folio over a range that is not all private the size that its attributes allow."""
        return self.gmem_hugetlb_restructure_folio(inode, index, 0)

    def _is_taken(self, inode: GmemInode, folio: Folio, index: int) -> bool:
        """Whether the page cache has a page where `folio` would be, at `index` or around it."""
        if self._peek_folio(inode, index) is not None:
            return True
        split = self._split_at(inode, index)
        if split is not None:
            return index not in split.gone
        # Of hugetlb's pages all 2 MB come and go at once.
        return folio.order != inode.page_order and self._has_small_folios(inode, index)

    def _has_small_folios(self, inode: GmemInode, index: int) -> bool:
        """Whether the page cache has 4 KB pages in the 2 MB around `index`."""
        base = index >> PMD_ORDER << PMD_ORDER
        return any(i in inode.folios for i in range(base, base + (1 << PMD_ORDER)))

    def _clear_folio(self, folio: Folio) -> None:
        """clear_highpage() of a locked folio's first page, where it was not done before, and
        folio_mark_uptodate()."""
        if not folio.uptodate:
            self.sim.point("clear_highpage", folio)
            self.machine.mem.write(folio.pfn, 0, 0)
            folio.uptodate = True

    # Restructuring

    def gmem_hugetlb_restructure_folio(self, inode: GmemInode, index: int, to_order: int) -> int:
        """Make the folio at `index` one of `to_order`. 0, or -ENOMEM from a split."""
        folio = self.filemap_get_folio(inode, index)
        if folio is None:
            return 0
        folio.refcount -= 1  # only the page cache's references are left
        if folio.order > to_order:
            return self.hugetlb_restructuring_split_folio(inode, index & -folio.nr_pages, to_order)
        if folio.order < to_order:
            return self.hugetlb_restructuring_merge_folio(inode, index, to_order)
        return 0

    def _freeze_folio(self, folio: Folio) -> None:
        """Wait until nobody but the page cache refers to the folio."""
        self.sim.point("folio_ref_freeze", folio)
        nr_pages = folio.nr_pages
        if folio.refcount == nr_pages:
            return
        self.warn_on_once(
            f"Spinning on folio={folio.pfn:#x} refcount={folio.refcount}",
            "hugetlb_restructuring_freeze_folio",
        )
        self.host.mm.state.wq.spin_until(lambda: folio.refcount == nr_pages)

    def _check_frozen(self, folio: Folio) -> None:
        """Nobody may refer to a folio that is made another one."""
        if folio.refcount != folio.nr_pages:
            self.sim.find(
                "no-bug",
                f"corruption: the folio at PFN {folio.pfn:#x} becomes another one, with"
                f" {folio.refcount} references where the page cache has {folio.nr_pages}",
                where="hugetlb_restructuring_freeze_folio",
            )

    def hugetlb_restructuring_split_folio(self, inode: GmemInode, index: int, to_order: int) -> int:
        """Split a huge folio in place, to 4 KB at once. 0 or -ENOMEM: nothing has changed then.

        SUSPECT (a TODO in the tree, too): for a hwpoisoned folio there is a warning, but no way
        out: memory_failure() keeps a reference, so that the freeze below waits for ever.
        """
        mm = self.host.mm
        if to_order not in self.split_orders:
            self.warn_on("only order 0 is supported", "hugetlb_restructuring_split_folio")
        folio = inode.folios[index]
        if folio.splitting:
            return self._split_twice(folio)
        if index in inode.poisoned:
            self.warn_on("a poisoned folio is split", "hugetlb_restructuring_split_folio")
        if not self._split_entries_alloc(folio):
            return -ENOMEM
        folio.splitting = True
        self._freeze_folio(folio)
        ret = mm.hugetlb_vmemmap_restore_folio(folio)
        folio.splitting = False
        if ret:
            return ret
        self._check_frozen(folio)
        nr_pages = folio.nr_pages
        self._split_in_place(inode, index, folio, to_order)
        if self.sim.tracing:
            self.trace_folios(inode, index, nr_pages)
        return 0

    def _split_in_place(self, inode: GmemInode, index: int, folio: Folio, to_order: int) -> None:
        """The last step of a split, which cannot fail."""
        del inode.folios[index]
        inode.split_folios[index] = SplitFolio(index, folio)
        self.host.mm.restructure_forget_huge(folio)
        folio.order = 0  # TDX may still have it from page_folio(), without a reference

    def _split_entries_alloc(self, folio: Folio) -> bool:
        """xas_split_alloc() in split_entries(): the page cache's nodes for the small folios; false
        without memory."""
        return not self.host.mm.fails("gmem_split_entries")

    def _split_twice(self, folio: Folio) -> int:
        """Another task is splitting the folio already and waits in _freeze_folio(): nothing keeps
        a second task out, whose split would work on page cache entries that are small by then, and
        on the vmemmap of a folio that is no hugetlb folio any more. Returns 0.

        MODEL: that is reported as a corruption but not carried out: the second waits for the first.
        """
        self.sim.find(
            "no-bug",
            f"corruption: the folio at PFN {folio.pfn:#x} is split by two tasks at once",
            where="hugetlb_restructuring_split_folio",
        )
        self.host.mm.state.wq.spin_until(lambda: not folio.splitting)
        return 0

    def hugetlb_restructuring_merge_folio(self, inode: GmemInode, index: int, to_order: int) -> int:
        """Make one huge folio again of small ones. It cannot fail."""
        split = inode.split_folios[index]
        assert split.order == to_order and split.hugetlb is not None
        uptodate = self._take_small_folios(inode, split)
        folio = self.host.mm.restructure_make_huge(split.pfn, split.hugetlb, split.site)
        self._add_merged_folio(inode, index, folio, uptodate)
        return 0

    def _take_small_folios(self, inode: GmemInode, split: SplitFolio) -> bool:
        """Take the small folios that are to be one out of the page cache, once nobody else refers
        to any; whether the first is up to date, which all of them are then."""
        index = split.index
        assert not split.gone
        smalls = list(self._folios_in_range(inode, index, index + split.nr_pages))
        for _, small in smalls:
            self._freeze_folio(small)
        uptodate = split.uptodate
        for at, small in smalls:
            self._check_frozen(small)
            if at == index:
                uptodate = small.uptodate
            del inode.folios[at]
            self.host.mm.state.small_folios.pop(small.pfn, None)
        del inode.split_folios[index]
        return uptodate

    def _add_merged_folio(self, inode: GmemInode, index: int, folio: Folio, uptodate: bool) -> None:
        folio.refcount = folio.nr_pages
        folio.uptodate = uptodate
        inode.folios[index] = folio
        if self.sim.tracing:
            self.trace_folios(inode, index, folio.nr_pages)

    # Removal

    def unmap_mapping_pages(self, inode: GmemInode, start: int, nr_pages: int) -> None:
        """Unmap [start, start + nr_pages) from host page tables.

        MODEL: KVM's MMU notifier, which hears of it where the slot's user address is a mapping of
        the file, is not called. Guests lose shared pages with the zap instead, not when a pinned
        page stops a conversion before it; they would fault them in again.
        """
        mapped = inode.user_mapped
        if not mapped:
            return
        for index in sorted(i for i in mapped if start <= i < start + nr_pages):
            mapped.discard(index)
            folio = self._peek_folio(inode, index)
            if folio is not None:
                self.host.mm.folio_put(folio)

    def kvm_gmem_truncate_folio(self, inode: GmemInode, index: int, folio: Folio) -> None:
        """Remove the folio that begins at `index`, once nobody has it locked. Source:
        kvm_gmem_truncate_folio()."""
        self.folio_lock(folio)
        self.unmap_mapping_pages(inode, index, folio.nr_pages)
        self.filemap_remove_folio(inode, index, folio)
        self.folio_unlock(folio)

    def filemap_remove_folio(self, inode: GmemInode, index: int, folio: Folio) -> None:
        """Take the folio that begins at `index` out of the page cache and drop its references."""
        del inode.folios[index]
        pages = range(index, index + folio.nr_pages)
        inode.user_mapped.difference_update(pages)
        inode.poisoned.difference_update(pages)
        folio.uptodate = False
        if self.sim.tracing:
            self.trace_folios(inode, index, folio.nr_pages)
        if folio.hugetlb is not None and folio.order == folio.hugetlb.order:
            self.host.mm.hugetlb_restructuring_metadata_restore(folio.pfn)
        folio.refcount -= folio.nr_pages - 1
        self.host.mm.folio_put(folio)

    def _truncate_split_folio(
        self, inode: GmemInode, split: SplitFolio, start: int, end: int
    ) -> None:
        """Remove the pages [start, end) of a split folio."""
        mm = self.host.mm
        first = max(start, split.index)
        last = min(end, split.index + split.nr_pages)
        plain = 0
        for index in range(first, last):
            if index in split.gone:
                continue
            split.gone.add(index)
            inode.poisoned.discard(index)
            folio = inode.folios.get(index)
            if folio is not None:
                self.kvm_gmem_truncate_folio(inode, index, folio)
            elif split.hugetlb is None:
                mm.free_page(split.pfn + index - split.index)
            else:
                plain += 1
        if len(split.gone) == split.nr_pages:
            del inode.split_folios[split.index]
        if self.sim.tracing:
            self.trace_folios(inode, first, last - first)
        if plain:
            mm.restructure_put_small(split.pfn, plain)
