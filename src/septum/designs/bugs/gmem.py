"""guest_memfd: conversion, holes, host mappings, several VMs on one inode."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.errno import EACCES
from septum.abi.kvm import KVM_MEMORY_ATTRIBUTE_PRIVATE
from septum.designs.bugs._seeded import seeded
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
)
