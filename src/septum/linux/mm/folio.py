"""Folios and hugetlb subpools: what guest_memfd and KVM handle of mm, as plain state.

Source: include/linux/mm_types.h struct folio; include/linux/hugetlb.h struct hugepage_subpool.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from septum.abi.types import Pfn
    from septum.sim import Task


class Folio:
    """struct folio: `1 << order` contiguous pages from `pfn`."""

    __slots__ = (
        "hugetlb",
        "hugetlb_vmemmap_optimized",
        "lock_waiters",
        "locked",
        "order",
        "pfn",
        "refcount",
        "site",
        "splitting",
        "uptodate",
    )

    def __init__(self, pfn: Pfn, order: int) -> None:
        self.pfn = pfn
        self.order = order
        self.refcount = 1
        self.uptodate = False
        self.locked = False  # PG_locked
        self.lock_waiters: list[Task] = []  # who sleeps in folio_lock()
        self.splitting = False  # a task is in hugetlb_restructuring_split_folio() with it
        self.hugetlb_vmemmap_optimized = False
        self.hugetlb: Subpool | None = None  # the subpool a hugetlb folio goes back to
        self.site = ""  # call site of the allocation

    @property
    def nr_pages(self) -> int:
        """folio_nr_pages()."""
        return 1 << self.order


class Subpool:
    """struct hugepage_subpool: `rsv_hpages` of its `min_hpages` of `order` are still reserved."""

    __slots__ = ("count", "min_hpages", "order", "rsv_hpages")

    def __init__(self, order: int, min_hpages: int) -> None:
        self.order = order
        self.min_hpages = min_hpages
        self.rsv_hpages = min_hpages
        self.count = 1  # inodes that use it
