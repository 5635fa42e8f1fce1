"""The guests' memory at every step, folded from the event stream.

Five layers for each VM: what the Secure EPT has, what KVM's mirror of it has, whether a page is
private, the folio that backs it, and the PAMT's entry of its frame. Events tell what is so after
they happened, so that nothing of the TDX module or of KVM is computed here a second time; but the
PAMT is followed by the registers of SEAMCALLs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi import leaves
from septum.abi.kvm import KVM_MEMORY_ATTRIBUTE_PRIVATE, LEVEL_NAMES
from septum.abi.sept import HPA_MASK, is_leaf, state_name
from septum.abi.spte import is_last_spte, is_shadow_present_pte, spte_to_pfn
from septum.linux.kvm import events as kvm
from septum.module.events import PamtPairEvent, SeamcallEvent, SeptLeavesEvent, TdcallEvent
from septum.report.html.layers import Layer, Values, joined
from septum.words import TDX_LEVELS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from septum.report.html.layers import Part
    from septum.sim.events import Event

SEPT, MIRROR, ATTRIBUTES, FOLIO, PAMT = range(5)
LAYER_NAMES = ("S-EPT", "mirror", "private or shared", "folio", "PAMT")
FOLIO_NAMES = {0: "4K folio", 9: "2M folio", 18: "1G folio"}
NDA = "NDA"
PAGES = tuple(1 << 9 * level for level in range(5))
"""Pages below one entry, by the module's levels."""

Change = tuple[int, int, int, int, int, int]
"""(VM, layer, first GFN, number of pages, value before, value after)."""


class Vm:
    """The layers of one VM, and its slots as (first GFN, number of pages)."""

    __slots__ = ("id", "layers", "slots")

    def __init__(self, vm: int) -> None:
        self.id = vm
        self.layers = [Layer() for _ in LAYER_NAMES]
        self.slots: dict[tuple[int, int], None] = {}


class Frames:
    """Of page frames: the PAMT's word for each, and which pages of which VM they back."""

    __slots__ = ("backed", "pairs", "words")

    def __init__(self) -> None:
        self.words = Layer()  # by PFN; values are numbers of `Values`
        self.pairs: set[int] = set()  # PFN >> 9 of frames with a pair of PAMT pages
        self.backed: dict[int, list[tuple[int, int, int, int]]] = {}
        """PFN >> 9 -> (first PFN, number of frames, VM, first GFN), each within the 2 MB."""


class MemoryFold:
    """`apply` events in order; each returns what it changed."""

    __slots__ = ("_apply", "_frames", "_tds", "values", "vms")

    def __init__(self) -> None:
        self.values = Values()
        self.vms: dict[int, Vm] = {}
        self._frames = Frames()
        self._tds: dict[int, int] = {}  # PFN of the TDR -> VM
        self._apply: dict[type[Event], Callable[..., Iterable[Change]]] = {
            SeamcallEvent: self._seamcall,
            TdcallEvent: self._tdcall,
            SeptLeavesEvent: self._sept_leaves,
            PamtPairEvent: self._pamt_pair,
            kvm.KvmTdEvent: self._td,
            kvm.KvmMemslotEvent: self._memslot,
            kvm.KvmMemoryAttributesEvent: self._attributes,
            kvm.KvmGmemFolioEvent: self._folio,
            kvm.KvmMirrorLeavesEvent: self._mirror_leaves,
            kvm.KvmTdpMmuSpteChanged: self._spte_changed,
        }

    def apply(self, event: Event) -> list[Change]:
        """What `event` changed in the guests' memory."""
        apply = self._apply.get(type(event))
        return list(apply(event)) if apply is not None else []

    def vm(self, number: int) -> Vm:
        """The VM, which may be new."""
        found = self.vms.get(number)
        if found is None:
            found = self.vms[number] = Vm(number)
        return found

    def _set(self, vm: int, layer: int, gfn: int, nr_pages: int, value: int) -> Iterable[Change]:
        return _changes(vm, layer, self.vm(vm).layers[layer].set(gfn, nr_pages, value))

    # VMs and slots

    def _td(self, event: kvm.KvmTdEvent) -> Iterable[Change]:
        self._tds[event.tdr] = event.vm
        self.vm(event.vm)
        return ()

    def _memslot(self, event: kvm.KvmMemslotEvent) -> Iterable[Change]:
        vm = self.vm(event.vm)
        if not event.deleted:
            vm.slots[event.base_gfn, event.npages] = None
            return
        yield from self._set(vm.id, ATTRIBUTES, event.base_gfn, event.npages, 0)
        yield from self._back(vm.id, event.base_gfn, event.npages, 0)

    def _attributes(self, event: kvm.KvmMemoryAttributesEvent) -> Iterable[Change]:
        private = event.attributes & KVM_MEMORY_ATTRIBUTE_PRIVATE
        value = self.values.of("private" if private else "shared")
        return self._set(event.vm, ATTRIBUTES, event.gfn, event.npages, value)

    # guest_memfd

    def _folio(self, event: kvm.KvmGmemFolioEvent) -> Iterable[Change]:
        if event.order < 0:
            value = 0
        else:
            words = FOLIO_NAMES.get(event.order, f"folio of order {event.order}")
            words = "4K of a split folio" if event.split else words
            value = self.values.of(words, event.pfn - event.gfn)
        return self._back(event.vm, event.gfn, event.npages, value)

    def _back(self, vm: int, gfn: int, nr_pages: int, value: int) -> Iterable[Change]:
        """Pages of a VM have other folios behind them, so other PAMT entries."""
        parts = self.vm(vm).layers[FOLIO].set(gfn, nr_pages, value)
        pamt: list[Part] = []
        for first, nr, old, new in parts:
            old_pfn, new_pfn = self.values.pfn(old, first), self.values.pfn(new, first)
            if old_pfn is not None:
                self._unback(vm, old_pfn, nr)
            if new_pfn is None:
                pamt += self.vm(vm).layers[PAMT].set(first, nr, 0)
                continue
            for pfn, count in _by_2m(new_pfn, nr):
                there = first + pfn - new_pfn
                self._frames.backed.setdefault(pfn >> 9, []).append((pfn, count, vm, there))
                pamt += self._pamt_of(vm, there, pfn, count)
        yield from _changes(vm, FOLIO, parts)
        yield from _changes(vm, PAMT, joined(pamt))

    def _unback(self, vm: int, first_pfn: int, nr: int) -> None:
        """Frames that back nothing of a VM any more."""
        end = first_pfn + nr
        for block, _ in _by_2m(first_pfn, nr):
            kept: list[tuple[int, int, int, int]] = []
            for pfn, count, owner, gfn in self._frames.backed.pop(block >> 9, []):
                if owner != vm:
                    kept.append((pfn, count, owner, gfn))
                    continue
                if pfn < first_pfn:
                    kept.append((pfn, min(count, first_pfn - pfn), vm, gfn))
                if pfn + count > end:
                    skip = max(0, end - pfn)
                    kept.append((pfn + skip, count - skip, vm, gfn + skip))
            if kept:
                self._frames.backed[block >> 9] = kept

    # PAMT

    def _pamt_of(self, vm: int, gfn: int, pfn: int, nr: int) -> list[Part]:
        """Pages take over the PAMT's words for their frames, which lie in one 2 MB."""
        layer = self.vm(vm).layers[PAMT]
        pair = pfn >> 9 in self._frames.pairs
        parts: list[Part] = []
        for first, count, word in self._frames.words.runs(pfn, nr):
            parts += layer.set(gfn + first - pfn, count, self._pamt_value(word, pair))
        return parts

    def _pamt_value(self, word: int, pair: bool) -> int:
        words = self.values.words(word) or NDA
        return self.values.of(f"{words}, pair" if pair else words)

    def _set_frames(self, pfn: int, nr: int, words: str) -> Iterable[Change]:
        """The PAMT has these words for [pfn, pfn + nr) now."""
        self._frames.words.set(pfn, nr, self.values.of(words) if words != NDA else 0)
        return self._show_frames(pfn, nr)

    def _show_frames(self, first_pfn: int, nr: int) -> Iterable[Change]:
        for block, block_nr in _by_2m(first_pfn, nr):
            for pfn, count, vm, gfn in self._frames.backed.get(block >> 9, ()):
                low, high = max(pfn, block), min(pfn + count, block + block_nr)
                if low < high:
                    there = gfn + low - pfn
                    yield from _changes(vm, PAMT, self._pamt_of(vm, there, low, high - low))

    def _set_pair(self, hpa: int, there: bool) -> Iterable[Change]:
        frame = hpa >> 21
        if there:
            self._frames.pairs.add(frame)
        else:
            self._frames.pairs.discard(frame)
        return self._show_frames(frame << 9, 512)

    def _pamt_pair(self, event: PamtPairEvent) -> Iterable[Change]:
        return self._set_pair(event.hpa, True)

    # S-EPT

    def _sept_leaves(self, event: SeptLeavesEvent) -> Iterable[Change]:
        vm = self._tds.get(event.td)
        if vm is None:
            return
        nr_pages = event.nr_leaves * PAGES[event.level]
        value, pfn = self._sept_value(event.entry, event.gpa >> 12, event.level)
        yield from self._set(vm, SEPT, event.gpa >> 12, nr_pages, value)
        yield from self._set_frames(pfn, nr_pages, f"REG {TDX_LEVELS[event.level]}")

    def _sept_value(self, entry: int, gfn: int, level: int) -> tuple[int, int]:
        """(value, PFN) of a leaf entry."""
        pfn = (entry & HPA_MASK) >> 12 & -PAGES[level]
        return self.values.of(f"{state_name(entry)} {TDX_LEVELS[level]}", pfn - gfn), pfn

    def _entry(self, vm: int, rcx: int, entry: int, child: int = -1) -> Iterable[Change]:
        """The entry at the GPA and level of `rcx` is `entry` now; `child` is the first one of the
        table that a DEMOTE made of it."""
        level = rcx & 7
        gfn = (rcx & HPA_MASK) >> 12
        if child >= 0:
            value, _ = self._sept_value(child, gfn, level - 1)
        elif is_leaf(entry):
            value, _ = self._sept_value(entry, gfn, level)
        elif state_name(entry) in ("FREE", "REMOVED"):
            value = 0
        else:
            return ()
        return self._set(vm, SEPT, gfn, PAGES[level], value)

    def _tdcall(self, event: TdcallEvent) -> Iterable[Change]:
        vm = self._tds.get(event.td)
        if event.sept < 0 or vm is None:
            return ()
        return self._entry(vm, event.rcx, event.sept)

    def _seamcall(self, event: SeamcallEvent) -> Iterable[Change]:
        leaf = event.leaf
        if event.sept >= 0:
            vm = self._tds.get((event.rdx & HPA_MASK) >> 12)
            if vm is not None:
                yield from self._entry(vm, event.rcx, event.sept, event.sept_child)
                if event.sept_child >= 0:
                    yield from self._demoted(vm, event)
        if event.status:
            return
        if leaf == leaves.TDH_MNG_VPFLUSHDONE:
            vm = self._tds.get(event.rcx >> 12)
            if vm is not None:
                yield from _changes(vm, SEPT, self.vm(vm).layers[SEPT].clear())
        yield from self._pamt_after(event)

    def _demoted(self, vm: int, event: SeamcallEvent) -> Iterable[Change]:
        level = event.rcx & 7
        gfn = (event.rcx & HPA_MASK) >> 12
        pfn = self.values.pfn(self.vm(vm).layers[SEPT].get(gfn), gfn)
        if pfn is None:
            return
        if event.r12 and level == 1:
            yield from self._set_pair(pfn << 12, True)
        yield from self._set_frames(pfn, PAGES[level], f"REG {TDX_LEVELS[level - 1]}")

    def _pamt_after(self, event: SeamcallEvent) -> Iterable[Change]:
        """What a SEAMCALL that succeeded did to the PAMT entries of pages of a TD."""
        leaf = event.leaf
        level = event.rcx & 7
        if leaf in (leaves.TDH_MEM_PAGE_AUG, leaves.TDH_MEM_PAGE_ADD):
            words = f"REG {TDX_LEVELS[level]}"
            return self._set_frames(_pfn(event.r8), PAGES[level], words)
        if leaf == leaves.TDH_MEM_PAGE_REMOVE:
            return self._set_frames(_pfn(event.out_rcx), PAGES[level], NDA)
        if leaf == leaves.TDH_PHYMEM_PAGE_RECLAIM:
            return self._set_frames(_pfn(event.rcx), PAGES[event.out_r8 & 7], NDA)
        if leaf == leaves.TDH_PHYMEM_PAMT_ADD:
            return self._set_pair(event.rcx & HPA_MASK, True)
        if leaf == leaves.TDH_PHYMEM_PAMT_REMOVE:
            return self._set_pair(event.rcx & HPA_MASK, False)
        return ()

    # Mirror

    def _mirror_leaves(self, event: kvm.KvmMirrorLeavesEvent) -> Iterable[Change]:
        nr_pages = event.nr_leaves * PAGES[event.level - 1]
        value = self._mirror_value(event.spte, event.gfn, event.level)
        return self._set(event.vm, MIRROR, event.gfn, nr_pages, value)

    def _mirror_value(self, spte: int, gfn: int, level: int) -> int:
        return self.values.of(f"leaf {LEVEL_NAMES[level].upper()}", spte_to_pfn(spte) - gfn)

    def _spte_changed(self, event: kvm.KvmTdpMmuSpteChanged) -> Iterable[Change]:
        if not event.mirror:
            return ()
        old, new, level, gfn = event.old_spte, event.new_spte, event.level, event.gfn
        value = 0
        if is_shadow_present_pte(new):
            if is_last_spte(new, level):
                value = self._mirror_value(new, gfn, level)
            elif is_shadow_present_pte(old) and is_last_spte(old, level):
                value = self._mirror_value(old, gfn, level - 1)
        return self._set(event.vm, MIRROR, gfn, PAGES[level - 1], value)


def _pfn(hpa: int) -> int:
    return (hpa & HPA_MASK) >> 12


def _by_2m(pfn: int, nr: int) -> Iterable[tuple[int, int]]:
    """[pfn, pfn + nr) cut where a 2 MB frame ends: (first, number)."""
    end = pfn + nr
    while pfn < end:
        upto = min(end, (pfn >> 9) + 1 << 9)
        yield pfn, upto - pfn
        pfn = upto


def _changes(vm: int, layer: int, parts: Iterable[Part]) -> Iterable[Change]:
    return ((vm, layer, gfn, nr, old, new) for gfn, nr, old, new in parts)
