"""Dynamic PAMT in the kernel, and the one leaf that takes a page pair besides: DEMOTE.

Mirrors Dynamic PAMT v4 (2025-11-20), on which v3 stands, with patches 02, 18, 22 and 23 applied.
A 2 MB frame has a pair of PAMT pages while any of its 4 KB pages is in TDX use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.errno import ENOMEM
from septum.abi.leaves import (
    TDH_MEM_PAGE_DEMOTE,
    TDH_PHYMEM_PAMT_ADD,
    TDH_PHYMEM_PAMT_REMOVE,
)
from septum.abi.regs import Regs
from septum.abi.status import (
    STATUS_MASK,
    TDX_HPA_RANGE_NOT_FREE,
    TDX_OPERAND_INVALID,
    TDX_SUCCESS,
    TDX_SW_ERROR,
)
from septum.abi.types import PAGE_SIZE, Pfn
from septum.linux.x86.seamcall import TdxSeamcall
from septum.linux.x86.state import PTE_SHIFT, PTRS_PER_PMD, TDX_PS_2M

if TYPE_CHECKING:
    from septum.linux.kvm.types import KvmTdx, TdxPrealloc
    from septum.linux.mm.folio import Folio


class TdxPamt(TdxSeamcall):
    """The Dynamic PAMT half of arch/x86/virt/vmx/tdx/tdx.c."""

    __slots__ = ()

    def tdx_dpamt_entry_pages(self) -> int:
        """Pages that PAMT.ADD takes for one 2 MB frame (2), or 0 without Dynamic PAMT."""
        info = self.state.sysinfo
        if not info.tdx_supports_dynamic_pamt():
            return 0
        return info.pamt_4k_entry_size * 512 // PAGE_SIZE

    # Preallocated pages

    def get_tdx_prealloc_page(self, prealloc: TdxPrealloc) -> Pfn | None:
        """Take a page out of the cache; None when it is empty."""
        if not prealloc.page_list:
            return None
        self._change_list(prealloc)
        if not prealloc.page_list:
            return None  # another task has taken the last one
        prealloc.cnt -= 1
        return prealloc.page_list.pop()

    def add_tdx_prealloc_page(self, prealloc: TdxPrealloc, page: Pfn) -> None:
        """Put a page into the cache: list_add()."""
        self._change_list(prealloc)
        prealloc.page_list.append(page)
        prealloc.cnt += 1

    def _change_list(self, prealloc: TdxPrealloc) -> None:
        """list_add() and list_del() are several writes: who has no lock may meet another in the
        midst of them.

        MODEL: that is reported as a corruption but not carried out: the list stays whole.
        """
        if not prealloc.shared:
            return
        if prealloc.changing:
            self.sim.find(
                "no-bug",
                "corruption: two tasks change prealloc_split_cache.page_list at once",
                where="list_add",
            )
            return
        prealloc.changing = True
        self.sim.point("page_list")
        prealloc.changing = False

    def topup_tdx_prealloc_page(self, prealloc: TdxPrealloc, min_size: int) -> int:
        """Fill the cache up to `min_size` pages. 0 or -ENOMEM."""
        while prealloc.cnt < min_size:
            page = self.host.mm.alloc_page("tdx_prealloc")
            if page is None:
                return -ENOMEM
            self.add_tdx_prealloc_page(prealloc, page)
        return 0

    def alloc_dpamt_page(self, prealloc: TdxPrealloc | None) -> Pfn | None:
        """A page for the PAMT: from the cache if there is one, which is never refilled here."""
        if prealloc is not None:
            return self.get_tdx_prealloc_page(prealloc)
        return self.host.mm.alloc_page("tdx_pamt_page")

    def alloc_pamt_array(self, pages: list[Pfn], prealloc: TdxPrealloc | None) -> int:
        """Fill `pages` with the PAMT pages for one 2 MB frame. 0; or -ENOMEM, and the caller frees
        what is in `pages` by then."""
        for _ in range(self.tdx_dpamt_entry_pages()):
            page = self.alloc_dpamt_page(prealloc)
            if page is None:
                return -ENOMEM
            pages.append(page)
        return 0

    def free_pamt_array(self, pages: list[Pfn]) -> None:
        """Reset the pages and free them to the page allocator, even those out of a cache."""
        for page in pages:
            self.tdx_quirk_reset_paddr(page, 1)
            self.host.mm.free_page(page)

    # PAMT.ADD and PAMT.REMOVE

    def pages_counted_ahead(self) -> list[int]:
        """Pages that tdx_pamt_get() has counted and the module does not have yet: none in v3, which
        counts a page right before the SEAMCALL that gives it away."""
        return []

    def pamt_2mb_arg(self, page: int) -> int:
        """The operand that names the 2 MB frame of `page`."""
        return page >> PTE_SHIFT << PTE_SHIFT << 12 | TDX_PS_2M

    def tdh_phymem_pamt_add(self, page: int, pages: list[Pfn]) -> int:
        """TDH.PHYMEM.PAMT.ADD for the 2 MB frame of `page`.

        SUSPECT: nobody calls tdx_clflush_page() for the pair, as is done for control pages and
        S-EPT pages. (Before the static PAMT is used, the kernel writes back all caches.)
        """
        regs = Regs(rcx=self.pamt_2mb_arg(page), rdx=pages[0] << 12, r8=pages[1] << 12)
        return self.seamcall(TDH_PHYMEM_PAMT_ADD, regs)

    def tdh_phymem_pamt_remove(self, page: int, pages: list[Pfn]) -> int:
        """TDH.PHYMEM.PAMT.REMOVE; on success `pages` are the pages that come back."""
        regs = Regs(rcx=self.pamt_2mb_arg(page))
        err = self.seamcall(TDH_PHYMEM_PAMT_REMOVE, regs)
        if not err:
            pages.extend((Pfn(regs.rdx >> 12), Pfn(regs.r8 >> 12)))
        return err

    def tdx_pamt_refcount(self, page: int) -> int:
        """*tdx_find_pamt_refcount(page): 4 KB TDX pages in the 2 MB frame of `page`."""
        return self.state.pamt_refcounts.get(page >> PTE_SHIFT, 0)

    def tdx_pamt_get(self, page: int, prealloc: TdxPrealloc | None = None) -> int:
        """One more 4 KB TDX page in the 2 MB frame of `page`; installs the pair for the first.

        0, or -ENOMEM. Source: Dynamic PAMT v4 08/16.

        SUSPECT: a failure of PAMT.ADD itself returns 0, too (`ret` still holds what
        alloc_pamt_array() returned); the count stays 0 and the pair is freed. The caller's next
        SEAMCALL on the page then fails.
        """
        state = self.state
        if not state.sysinfo.tdx_supports_dynamic_pamt():
            return 0
        refcounts = state.pamt_refcounts
        frame = page >> PTE_SHIFT
        self.sim.point("atomic")
        if refcounts.get(frame, 0):
            refcounts[frame] += 1
            return 0
        pages: list[Pfn] = []
        ret = self.alloc_pamt_array(pages, prealloc)
        if ret:
            self.free_pamt_array(pages)
            return ret
        with state.pamt_lock:
            if self._pamt_get_lost_race(frame):
                refcounts[frame] += 1
            else:
                err = self.tdh_phymem_pamt_add(page, pages)
                if err == TDX_SUCCESS:
                    refcounts[frame] = 1
                    return ret
                if err & STATUS_MASK == TDX_HPA_RANGE_NOT_FREE:
                    # A tdx_pamt_put() took the count to 0 and has not removed the pair yet: it
                    # will see the count and leave it.
                    refcounts[frame] = 1
        self.free_pamt_array(pages)
        return ret

    def _pamt_get_lost_race(self, frame: int) -> bool:
        """Another tdx_pamt_get() has installed the pair meanwhile. pamt_lock is held."""
        return self.state.pamt_refcounts.get(frame, 0) != 0

    def _pamt_put_lost_race(self, frame: int) -> bool:
        """A tdx_pamt_get() wants the pair again. pamt_lock is held."""
        return self.state.pamt_refcounts.get(frame, 0) != 0

    def tdx_pamt_put(self, page: int) -> None:
        """One 4 KB TDX page less; takes the pair away with the last.

        Source: Dynamic PAMT v4 08/16, patch 18: when PAMT.REMOVE fails the count goes back to 1
        and the pair stays, with a loud warning.
        """
        state = self.state
        if not state.sysinfo.tdx_supports_dynamic_pamt():
            return
        refcounts = state.pamt_refcounts
        frame = page >> PTE_SHIFT
        self.sim.point("atomic")
        count = refcounts.get(frame, 0) - 1
        refcounts[frame] = count
        if count:
            if count < 0:
                self.sim.find("pamt", f"refcount of 2 MB frame {frame:#x} went to {count}")
            return
        pages: list[Pfn] = []
        with state.pamt_lock:
            if self._pamt_put_lost_race(frame):
                return
            err = self.tdh_phymem_pamt_remove(page, pages)
            if err != TDX_SUCCESS:
                refcounts[frame] = refcounts.get(frame, 0) + 1
                self._pamt_remove_failed(err)
                return
            del refcounts[frame]
        self.free_pamt_array(pages)

    def _pamt_remove_failed(self, err: int) -> None:
        """What tdx_pamt_put() says when the pair stays: a loud WARN. Source: patch 18."""
        self.warn_on_once(f"TDH_PHYMEM_PAMT_REMOVE failed: {err:#x}", "tdx_pamt_put")

    def tdx_alloc_page(self, site: str) -> Pfn | None:
        """tdx_alloc_page(): a page with its PAMT, for control structures; None when short."""
        page = self.host.mm.alloc_page(site)
        if page is None:
            return None
        if self.tdx_pamt_get(page, None):
            self.host.mm.free_page(page)
            return None
        return page

    def tdx_free_page(self, page: int | None) -> None:
        """tdx_free_page()."""
        if page is None:
            return
        self.tdx_pamt_put(page)
        self.host.mm.free_page(page)

    # DEMOTE

    def tdx_demote_usable(self) -> bool:
        """Whether DEMOTE may be called at all: it must not be interruptible. Source: patch 02."""
        return self.state.sysinfo.tdx_supports_demote_nointerrupt()

    def _seamcall_demote(self, regs: Regs) -> int:
        """The SEAMCALL of `tdh_mem_page_demote`: its status."""
        return self.seamcall(TDH_MEM_PAGE_DEMOTE, regs)

    def _pamt_array_unused(self, pages: list[Pfn], prealloc: TdxPrealloc | None) -> None:
        """DEMOTE has failed: the pair goes to the page allocator, not back into the cache.

        Source: patch 22.
        """
        self.free_pamt_array(pages)

    def tdh_mem_page_demote(
        self,
        td: KvmTdx,
        gpa: int,
        level: int,
        guest_folio: Folio,
        guest_start_idx: int,
        new_sept_page: int,
        prealloc: TdxPrealloc | None,
    ) -> tuple[int, int, int]:
        """TDH.MEM.PAGE.DEMOTE: (status, ext_err1, ext_err2).

        TDX_SW_ERROR without TDX_FEATURES0 bit 51, or when Dynamic PAMT finds no pair in
        `prealloc`; TDX_OPERAND_INVALID when the guest page is not one aligned 2 MB piece of its
        folio. Source: patches 02, 22, 23, in that order of checks.

        The C leaves *ext_err1/2 unwritten where no SEAMCALL was made; here they are 0.

        SUSPECT: after TDX_OPERAND_BUSY the pair is freed instead of going back into `prealloc`. So
        the second attempt in tdh_do_no_vcpus() needs another pair, which a cache topped up for one
        split may not have (then TDX_SW_ERROR). And when only one page is left, it is taken out of
        the cache and never freed.
        """
        dpamt = self._demote_takes_pair(level)
        assert td.tdr_page is not None
        regs = Regs(rcx=gpa | level, rdx=td.tdr_page << 12, r8=new_sept_page << 12)
        if not self.tdx_demote_usable():
            return TDX_SW_ERROR, 0, 0

        guest_memory_pamt_page: list[Pfn] = []
        guest_base_pfn = guest_folio.pfn + guest_start_idx
        if dpamt:
            npages = 1 << (level * PTE_SHIFT)
            held = self._folio_holds(guest_folio, guest_start_idx, npages)
            if not held or guest_base_pfn & (npages - 1):
                return TDX_OPERAND_INVALID, 0, 0
            if self.alloc_pamt_array(guest_memory_pamt_page, prealloc):
                return TDX_SW_ERROR, 0, 0
            regs.r12 = guest_memory_pamt_page[0] << 12
            regs.r13 = guest_memory_pamt_page[1] << 12

        self.tdx_clflush_page(new_sept_page)
        err = self._seamcall_demote(regs)

        if dpamt:
            if err:
                self._pamt_array_unused(guest_memory_pamt_page, prealloc)
            else:
                self._demoted(guest_base_pfn)
        return err, regs.rcx, regs.rdx

    def _demote_takes_pair(self, level: int) -> bool:
        """Whether DEMOTE takes a PAMT page pair for the guest's page. Source: patch 22."""
        return level == TDX_PS_2M and self.state.sysinfo.tdx_supports_dynamic_pamt()

    def _demoted(self, guest_base_pfn: int) -> None:
        """The guest's 2 MB are 512 TDX pages of 4 KB now:
        atomic_cmpxchg_release(refcount, 0, 512) with the WARN of patch 23."""
        refcounts = self.state.pamt_refcounts
        frame = guest_base_pfn >> PTE_SHIFT
        if refcounts.get(frame, 0):
            self.warn_on_once(
                f"PAMT refcount of 2 MB frame {frame:#x} is {refcounts[frame]}, not 0",
                "tdh_mem_page_demote",
            )
            return
        refcounts[frame] = PTRS_PER_PMD
