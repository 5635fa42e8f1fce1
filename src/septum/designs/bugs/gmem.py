"""guest_memfd: conversion, holes, host mappings, several VMs on one inode."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.errno import EACCES, EAGAIN
from septum.abi.kvm import KVM_MEMORY_ATTRIBUTE_PRIVATE
from septum.designs.bugs._seeded import seeded
from septum.linux.kvm.gmem_range import MF_DELAYED
from septum.linux.kvm.guest_memfd import GuestMemfd
from septum.linux.kvm.types import KVM_FILTER_PRIVATE

if TYPE_CHECKING:
    from septum.linux.kvm.main_requests import SplitCause
    from septum.linux.kvm.types import Folio, GmemInode


class OnlyFirstVm(GuestMemfd):
    """Of several VMs on one inode, the first has its leaves split."""

    __slots__ = ()

    def kvm_gmem_split_private(
        self, inode: GmemInode, start: int, end: int, cause: SplitCause = "conversion"
    ) -> int:
        previous = self.host.main.set_cause(cause)
        ret = self._kvm_gmem_split_private(inode.file_list[0], start, end)
        self.host.main.set_cause(previous)
        return ret


class HostFaultUnlocked(GuestMemfd):
    """A host fault tests the attributes before it takes the invalidate_lock."""

    __slots__ = ()

    def _kvm_gmem_shared_folio(self, inode: GmemInode, index: int) -> tuple[int, Folio | None]:
        if self.kvm_gmem_get_attributes(inode, index) & KVM_MEMORY_ATTRIBUTE_PRIVATE:
            return -EACCES, None
        inode.invalidate_lock.down_read()
        ret, folio = self.kvm_gmem_get_folio(inode, index)
        inode.invalidate_lock.up_read()
        return ret, folio


class PinsIgnored(GuestMemfd):
    """A page that somebody holds a reference to may become private."""

    __slots__ = ()

    def kvm_gmem_has_safe_refcount(self, inode: GmemInode, start: int, nr_pages: int) -> int:
        return -1


class SharedStaysMapped(GuestMemfd):
    """Conversions, holes and failures reach private mappings only."""

    __slots__ = ()

    def kvm_gmem_get_invalidate_filter(self, inode: GmemInode) -> int:
        return KVM_FILTER_PRIVATE


class FailedStaysMapped(GuestMemfd):
    """A page that has failed is found by no fault any more, and stays where it is mapped."""

    __slots__ = ()

    def kvm_gmem_zap(self, inode: GmemInode, start: int, end: int) -> None:
        if start not in inode.poisoned:
            super().kvm_gmem_zap(inode, start, end)


class FailedToUserSpace(GuestMemfd):
    """A host fault does not look whether the page has failed."""

    __slots__ = ()

    def kvm_gmem_fault_user_mapping(self, inode: GmemInode, index: int) -> int:
        ret, folio = self._kvm_gmem_shared_folio(inode, index)
        if folio is None:
            return ret
        self._clear_folio(folio)
        if index in inode.user_mapped:
            self.host.mm.folio_put(folio)
        inode.user_mapped.add(index)
        self.folio_unlock(folio)
        return folio.pfn


class AttributesBeforeSplit(GuestMemfd):
    """The attributes are stored before the split, so that no fault sees the old ones, and stay
    when the split fails."""

    __slots__ = ()

    def _kvm_gmem_convert_mappings(
        self, inode: GmemInode, start: int, end: int, to_private: bool
    ) -> int:
        attrs = KVM_MEMORY_ATTRIBUTE_PRIVATE if to_private else 0
        self.mas_store(inode, start, end, attrs)
        return super()._kvm_gmem_convert_mappings(inode, start, end, to_private)


class SplitErrorLost(GuestMemfd):
    """A conversion splits in one VM after the other and keeps the last result."""

    __slots__ = ()

    def kvm_gmem_split_private(
        self, inode: GmemInode, start: int, end: int, cause: SplitCause = "conversion"
    ) -> int:
        previous = self.host.main.set_cause(cause)
        ret = 0
        for f in list(inode.file_list):
            ret = self._kvm_gmem_split_private(f, start, end)
        self.host.main.set_cause(previous)
        return ret


class ErrorUnlocked(GuestMemfd):
    """A memory failure takes no invalidate_lock, as its folio is locked."""

    __slots__ = ()

    def kvm_gmem_error_folio(self, inode: GmemInode, index: int) -> int:
        folio = self._peek_folio(inode, index)
        if folio is not None:
            self._kvm_gmem_unmap_error(inode, index & -folio.nr_pages, folio)
        return MF_DELAYED


class ReferencesFirst(GuestMemfd):
    """A hole looks for references before user space's mappings, which have some, are gone."""

    __slots__ = ()

    def merge_truncate_range(
        self, inode: GmemInode, start: int, nr_pages: int, require_merge: bool
    ) -> int:
        if require_merge and self.kvm_gmem_has_safe_refcount(inode, start, nr_pages) != -1:
            return -EAGAIN
        return super().merge_truncate_range(inode, start, nr_pages, require_merge)


class ConversionGoesOn(GuestMemfd):
    """A conversion that fails in one huge page goes on with the next, and says how that went."""

    __slots__ = ()

    def _kvm_gmem_set_attributes(
        self, inode: GmemInode, start: int, nr_pages: int, attrs: int
    ) -> tuple[int, int]:
        ret, at = super()._kvm_gmem_set_attributes(inode, start, nr_pages, attrs)
        batch_size = self._kvm_gmem_batch_size(inode)
        rest = (at // batch_size + 1) * batch_size
        if not ret or rest >= start + nr_pages:
            return ret, at
        return self._kvm_gmem_set_attributes(inode, rest, start + nr_pages - rest, attrs)


DESIGNS = (
    seeded(
        "split-first-vm-only",
        "v3 patch 16, kvm_gmem_split_private()",
        "Of two VMs on one guest_memfd only the first has its leaves split",
        "two-vms-straddling",
        "precise-zap",
        "guest-data",
        "accept-once",
        gmem=OnlyFirstVm,
    ),
    seeded(
        "host-fault-unlocked",
        "guest_memfd.c kvm_gmem_fault_user_mapping()",
        "A host fault tests the attributes before it takes the invalidate_lock",
        "host-fault-against-convert",
        "private-unreachable",
        gmem=HostFaultUnlocked,
    ),
    seeded(
        "pins-ignored",
        "guest_memfd.c kvm_gmem_has_safe_refcount()",
        "A page that a driver holds may become private",
        "gmem-conversions-pinned",
        "no-bug",
        gmem=PinsIgnored,
    ),
    seeded(
        "failed-stays-mapped",
        "guest_memfd.c kvm_gmem_error_folio()",
        "A memory failure keeps later faults from the page, and leaves it mapped",
        "memory-failure-against-fault",
        "mapping-in-folio",
        gmem=FailedStaysMapped,
    ),
    seeded(
        "failed-to-user-space",
        "mm/memory.c __do_fault(), VM_FAULT_HWPOISON",
        "A host fault hands out a page that has failed",
        "memory-failure-shared-page",
        "mapping-in-folio",
        gmem=FailedToUserSpace,
    ),
    seeded(
        "shared-stays-mapped",
        "guest_memfd.c kvm_gmem_get_invalidate_filter()",
        "Conversions, holes and memory failures leave the shared EPT as it is",
        "gmem-init-shared",
        "mapping-in-folio",
        gmem=SharedStaysMapped,
    ),
    seeded(
        "attributes-before-split",
        "docs/findings.md F6, repaired at the wrong place",
        "Attributes are stored before the split, and stay when the split fails",
        "convert-enomem",
        "all-or-nothing",
        gmem=AttributesBeforeSplit,
    ),
    seeded(
        "split-error-lost",
        "v3 patch 16, kvm_gmem_split_private()",
        "Where several VMs have a file, only the last one's failed split stops a conversion",
        "two-vms-first-enomem",
        "guest-data",
        "accept-once",
        "precise-zap",
        gmem=SplitErrorLost,
    ),
    seeded(
        "error-unlocked",
        "docs/findings.md F23, repaired at the wrong place",
        "kvm_gmem_error_folio() does not take the invalidate_lock: slots come and go meanwhile",
        "memory-failure-against-slot",
        "progress",
        "no-bug",
        gmem=ErrorUnlocked,
    ),
    seeded(
        "references-first",
        "kvm_gmem_has_safe_refcount() for a hole, in the tree that v3 is posted on",
        "A hole is refused where user space has a shared page mapped",
        "punch-host-mapped",
        "expectation",
        gmem=ReferencesFirst,
    ),
    seeded(
        "conversion-goes-on",
        "guest_memfd.c __kvm_gmem_set_attributes()",
        "After a huge page that it cannot convert a conversion goes on with the next one",
        "convert-stops-at-pin",
        "expectation",
        gmem=ConversionGoesOn,
    ),
)
