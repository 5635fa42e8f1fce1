"""User space's own memory: the VMM's buffers and the shared half of guest memory.

Addresses are virtual; a page appears when it is first touched. Mirrors mmap() of anonymous
memory, get_user_pages_fast() and madvise(MADV_DONTNEED) with its MMU notifier call.
"""

from __future__ import annotations

from septum.abi.types import PAGE_SHIFT, PAGE_SIZE, PMD_SIZE, Pfn
from septum.linux.mm.hugetlb import MmHugetlb


class MmUser(MmHugetlb):
    """One user address space; MODEL: all VMMs share it."""

    __slots__ = ()

    def mmap(self, size_bytes: int, align: int = PMD_SIZE) -> int:
        """Reserve an anonymous mapping; returns its address, a multiple of `align`."""
        state = self.state
        addr = -(-state.user_next // align) * align
        state.user_next = addr + size_bytes
        return addr

    def get_user_page(self, addr: int) -> Pfn | None:
        """get_user_pages_fast() of one page: its PFN, zeroed when new; None when short."""
        vpn = addr >> PAGE_SHIFT
        pfn = self.state.user_pages.get(vpn)
        if pfn is None:
            pfn = self.alloc_page("user_page")
            if pfn is None:
                return None
            self.machine.mem.write(pfn, 0, 0)
            found = self.state.user_pages.setdefault(vpn, pfn)
            if found != pfn:  # another thread's fault was first: pte_none() under its lock
                self.free_page(pfn)
                pfn = found
        return Pfn(pfn)

    def alloc_page(self, site: str, atomic: bool = False) -> Pfn | None:
        """See `Mm.alloc_page`."""
        raise NotImplementedError

    def free_page(self, pfn: int) -> None:
        """See `Mm.free_page`."""
        raise NotImplementedError

    def copy_to_user_memory(self, addr: int, data: bytes) -> bool:
        """Store `data` at a page-aligned user address; false when memory runs out."""
        for offset in range(0, len(data), PAGE_SIZE):
            pfn = self.get_user_page(addr + offset)
            if pfn is None:
                return False
            self.machine.mem.load_bytes(pfn, 0, data[offset : offset + PAGE_SIZE])
        return True

    def madvise_dontneed(self, addr: int, size_bytes: int) -> None:
        """Give the pages of [addr, addr + size_bytes) back, while KVM has unmapped them.

        mmap_lock is held for reading: others fault meanwhile. The pages go between start and end of
        the MMU notifier's invalidation. Source: mm/madvise.c madvise_dontneed_single_vma().
        """
        state = self.state
        first = addr >> PAGE_SHIFT
        end = (addr + size_bytes + PAGE_SIZE - 1) >> PAGE_SHIFT
        if end - first > len(state.user_pages):
            vpns = sorted(vpn for vpn in state.user_pages if first <= vpn < end)
        else:
            vpns = [vpn for vpn in range(first, end) if vpn in state.user_pages]
        if not vpns:
            return
        state.mmap_lock.down_read()
        kvms = self.host.main.mmu_notifier_invalidate_range_start(addr, addr + size_bytes)
        for vpn in vpns:
            # Another thread may have discarded the page while this one waited for KVM.
            page = state.user_pages.pop(vpn, None)
            if page is not None:
                self.free_page(page)
        self.host.main.mmu_notifier_invalidate_range_end(kvms, addr, addr + size_bytes)
        state.mmap_lock.up_read()
