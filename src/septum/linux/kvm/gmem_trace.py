"""Events of guest_memfd and memslots for a trace, for which the kernel has no tracepoints.

Each event holds the new state of a range of GFNs, so that a rendering need not compute it from
what was done. Nothing here emits anything unless the run is traced.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.linux.kvm.events import (
    KvmGmemFolioEvent,
    KvmMemoryAttributesEvent,
    KvmMemslotEvent,
)
from septum.linux.mm.state import PMD_ORDER, PUD_ORDER
from septum.linux.ranges import range_extent, range_store
from septum.linux.unit import Unit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from septum.linux.kvm.types import GmemInode, Kvm, KvmMemorySlot, SplitFolio
    from septum.linux.mm.folio import Folio

NO_FOLIO = -1

FolioRun = tuple[int, int, int, int, bool]
"""(first index, number of pages, first PFN, order, part of a folio that was split)."""


class GmemTrace(Unit):
    """Folios, attributes and slots as events."""

    __slots__ = ()

    # Look-up, also for the classes built on this one

    def _peek_folio(self, inode: GmemInode, index: int) -> Folio | None:
        """As `filemap_get_folio`, without a reference, of folios that have an object."""
        folios = inode.folios
        folio = folios.get(index)
        if folio is not None:
            return folio
        folio = folios.get(index >> PMD_ORDER << PMD_ORDER)
        if folio is not None and folio.order == PMD_ORDER:
            return folio
        folio = folios.get(index >> PUD_ORDER << PUD_ORDER)
        if folio is not None and folio.order == PUD_ORDER:
            return folio
        return None

    def _split_at(self, inode: GmemInode, index: int) -> SplitFolio | None:
        """The split huge folio that `index` was part of."""
        for order in (PMD_ORDER, PUD_ORDER):
            split = inode.split_folios.get(index >> order << order)
            if split is not None and split.order == order:
                return split
        return None

    def folio_runs(self, inode: GmemInode, start: int, end: int) -> Iterator[FolioRun]:
        """What is in the page cache at the indexes [start, end), in order and without a gap."""
        index = start
        while index < end:
            folio = self._peek_folio(inode, index)
            split = self._split_at(inode, index)
            if folio is not None and folio.order:
                last = min(end, (index & -folio.nr_pages) + folio.nr_pages)
                offset = index & (folio.nr_pages - 1)
                yield index, last - index, folio.pfn + offset, folio.order, False
            elif split is not None and index not in split.gone:
                last = min(end, split.index + split.nr_pages)
                if split.gone:
                    last = min((i for i in split.gone if i > index), default=last)
                    last = min(last, end)
                yield index, last - index, split.pfn + index - split.index, 0, True
            else:
                last = index + 1
                if folio is None:
                    yield index, 1, 0, NO_FOLIO, False
                else:
                    yield index, 1, folio.pfn, 0, False
            index = last

    # Events

    def trace_folios(self, inode: GmemInode, start: int, nr_pages: int) -> None:
        """Emit the folios at [start, start + nr_pages), which have changed, for every VM that has
        them bound."""
        for f in inode.file_list:
            for first, last, slot in f.bindings:
                low, high = max(first, start), min(last, start + nr_pages)
                if low < high:
                    self._trace_slot_folios(f.kvm, slot, inode, low, high)

    def _trace_slot_folios(
        self, kvm: Kvm, slot: KvmMemorySlot, inode: GmemInode, start: int, end: int
    ) -> None:
        task = self.sim.current
        for index, nr, pfn, order, split in _joined(self.folio_runs(inode, start, end)):
            gfn = slot.base_gfn + index - slot.gmem_pgoff
            self.sim.emit(
                KvmGmemFolioEvent(
                    task.time_ns, task.name, task.cpu, kvm.id, gfn, nr, pfn, order, split
                )
            )

    def trace_no_folios(self, kvm: Kvm, slot: KvmMemorySlot) -> None:
        """The slot has no guest_memfd any more."""
        task = self.sim.current
        self.sim.emit(
            KvmGmemFolioEvent(
                task.time_ns,
                task.name,
                task.cpu,
                kvm.id,
                slot.base_gfn,
                slot.npages,
                0,
                NO_FOLIO,
            )
        )
        self.trace_attributes(kvm, kvm.mem_attr_array, slot.base_gfn, slot.end_gfn)

    def mas_store(self, inode: GmemInode, start: int, end: int, attrs: int) -> None:
        """mas_store_prealloc() into the attributes of the inode."""
        range_store(inode.attributes, start, end, attrs)
        if self.sim.tracing:
            self.trace_inode_attributes(inode, start, end)

    def trace_inode_attributes(self, inode: GmemInode, start: int, end: int) -> None:
        """The attributes that guest_memfd holds changed at the indexes [start, end)."""
        for f in inode.file_list:
            for first, last, slot in f.bindings:
                low, high = max(first, start), min(last, end)
                if low < high:
                    offset = slot.base_gfn - slot.gmem_pgoff
                    self.trace_attributes(f.kvm, inode.attributes, low, high, offset)

    def trace_attributes(
        self, kvm: Kvm, ranges: list[tuple[int, int, int]], start: int, end: int, offset: int = 0
    ) -> None:
        """Emit `ranges` within [start, end); index + `offset` is the GFN."""
        task = self.sim.current
        index = start
        while index < end:
            _, last, value = range_extent(ranges, index)
            last = min(last, end)
            self.sim.emit(
                KvmMemoryAttributesEvent(
                    task.time_ns,
                    task.name,
                    task.cpu,
                    kvm.id,
                    index + offset,
                    last - index,
                    value,
                )
            )
            index = last

    def trace_slot(self, kvm: Kvm, slot: KvmMemorySlot, *, deleted: bool = False) -> None:
        """A slot was created, and the attributes and folios it has; or it was deleted."""
        task = self.sim.current
        self.sim.emit(
            KvmMemslotEvent(
                task.time_ns,
                task.name,
                task.cpu,
                kvm.id,
                slot.id,
                slot.base_gfn,
                slot.npages,
                deleted,
            )
        )
        if deleted:
            return
        f = slot.gmem_file
        start, end = slot.gmem_pgoff, slot.gmem_pgoff + slot.npages
        if f is None or self.host.params.vm_memory_attributes:
            self.trace_attributes(kvm, kvm.mem_attr_array, slot.base_gfn, slot.end_gfn)
        else:
            offset = slot.base_gfn - slot.gmem_pgoff
            self.trace_attributes(kvm, f.inode.attributes, start, end, offset)
        if f is not None:
            self._trace_slot_folios(kvm, slot, f.inode, start, end)


def _joined(runs: Iterator[FolioRun]) -> Iterator[FolioRun]:
    """The runs, with neighbours that continue each other as one."""
    whole: FolioRun | None = None
    for run in runs:
        index, nr, pfn, order, split = run
        if whole is not None:
            first, length, first_pfn, order_before, split_before = whole
            goes_on = pfn == first_pfn + length or order == NO_FOLIO
            if (order, split) == (order_before, split_before) and goes_on:
                whole = (first, length + nr, first_pfn, order, split)
                continue
            yield whole
        whole = (index, nr, pfn, order, split)
    if whole is not None:
        yield whole
