"""What each page of a VM is now, as regions: Secure EPT (ground truth) and memory attributes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.kvm import KVM_MEMORY_ATTRIBUTE_PRIVATE, PG_LEVEL_1G, PG_LEVEL_2M
from septum.abi.sept import BLOCKED, PENDING
from septum.report.result import PageKind, Region

if TYPE_CHECKING:
    from collections.abc import Iterator

    from septum.checks.view import VmView
    from septum.linux.kvm.types import KvmMemorySlot


def leaf_kind(level: int, state: int) -> PageKind:
    """The kind of pages under an S-EPT leaf of KVM level `level` with these state bits."""
    if state & BLOCKED:
        return PageKind.BLOCKED
    if state & PENDING:
        return PageKind.PENDING
    if level == PG_LEVEL_1G:
        return PageKind.PRIVATE_1G
    return PageKind.PRIVATE_2M if level == PG_LEVEL_2M else PageKind.PRIVATE_4K


def vm_regions(vm: VmView) -> list[Region]:
    """The regions of all memslots, in order. Private pages that are not in the S-EPT have none.

    Where attributes say shared the page is SHARED, whatever the S-EPT holds.
    """
    regions: list[Region] = []
    for slot in sorted(vm.kvm.memslots.values(), key=lambda slot: slot.base_gfn):
        for region in _slot_regions(vm, slot):
            last = regions[-1] if regions else None
            if (
                last is not None
                and last.kind == region.kind
                and last.start_gfn + last.nr_pages == region.start_gfn
            ):
                nr_pages = last.nr_pages + region.nr_pages
                regions[-1] = Region(last.start_gfn, nr_pages, last.kind)
            else:
                regions.append(region)
    return regions


def _slot_regions(vm: VmView, slot: KvmMemorySlot) -> Iterator[Region]:
    gfn: int = slot.base_gfn
    end: int = slot.base_gfn + slot.npages
    while gfn < end:
        attributes, upto = vm.attributes(slot, gfn)
        upto = min(upto, end)
        if attributes & KVM_MEMORY_ATTRIBUTE_PRIVATE:
            for start, nr_pages, level, state, _ in vm.runs(gfn, upto):
                first = max(start, gfn)
                last = min(start + nr_pages, upto)
                yield Region(first, last - first, leaf_kind(level, state))
        else:
            yield Region(gfn, upto - gfn, PageKind.SHARED)
        gfn = upto
