"""The world as the checks see it: one place that knows where each room keeps what.

A `VmView` puts together what belongs to one VM: KVM's side, the module's side, the guest's record.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from septum.checks.sept import END_GFN, SeptReader, frame_mask, walk
from septum.linux.ranges import range_extent
from septum.module.state import TD_KEYS_CONFIGURED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from septum.checks.sept import LeafRun
    from septum.guest.memory import GuestMemory
    from septum.linux.host import Host
    from septum.linux.kvm.types import Kvm, KvmMemorySlot, KvmMmuPage
    from septum.machine import Machine, TablePage
    from septum.module.pamt import Pamt
    from septum.module.state import Kot, Td, Vcpu
    from septum.sim import Sim


class ModuleView(Protocol):
    """What the checks read of the module."""

    @property
    def pamt(self) -> Pamt: ...

    @property
    def tds(self) -> Mapping[int, Td]: ...

    @property
    def vcpus(self) -> Mapping[int, Vcpu]: ...

    @property
    def kot(self) -> Kot: ...

    @property
    def global_hkid(self) -> int: ...


class GuestView(Protocol):
    """What the checks read of a guest."""

    memory: GuestMemory


class WorldView(Protocol):
    """What the checks read of a world."""

    @property
    def sim(self) -> Sim: ...

    @property
    def machine(self) -> Machine: ...

    @property
    def module(self) -> ModuleView: ...

    @property
    def host(self) -> Host: ...


def _usable_sept(td: Td | None) -> tuple[TablePage, int] | None:
    """(root, TDX level of its entries) of the Secure EPT; None without a TD, or without a key that
    can be used: then the S-EPT means nothing."""
    if td is None or td.root is None or td.lifecycle > TD_KEYS_CONFIGURED:
        return None
    return td.root, td.root_level


class VmView:
    """One VM, from all sides."""

    __slots__ = (
        "_found",
        "_looking",
        "_looks_keyed",
        "_td",
        "_window",
        "hkid",
        "hpa_mask",
        "keyed",
        "kvm",
        "memory",
        "name",
        "own_td",
        "reader",
        "tdr_pfn",
        "world",
    )

    def __init__(self, world: WorldView, kvm: Kvm, memory: GuestMemory | None) -> None:
        self.world = world
        self.kvm = kvm
        self.name = f"vm{kvm.id}"
        self.memory = memory
        self.hpa_mask = frame_mask(world.machine.config)
        self.reader = SeptReader(world.machine.tables, self.hpa_mask)
        # During a look: the TD, whether it has a key, the window and the leaves in it.
        self._looking = False
        self._td: Td | None = None
        self._looks_keyed = False
        self._window = (0, 0)
        self._found: list[LeafRun] = []
        self.keyed = False  # whether it had a key when `changed` was asked last
        # Remembered when KVM has given them up: another VM may have the page and the key id then.
        self.tdr_pfn = -1
        self.own_td: Td | None = None
        self.hkid = -1
        self.refresh()

    def refresh(self) -> None:
        """The VM may have become a TD since the last look."""
        tdx = self.kvm.tdx
        if tdx.tdr_page is not None:
            self.tdr_pfn = tdx.tdr_page
            self.own_td = self.world.module.tds.get(self.tdr_pfn)
        if tdx.hkid >= 0:
            self.hkid = tdx.hkid

    @property
    def td(self) -> Td | None:
        """The module's side; None before MNG.CREATE and after the TDR was reclaimed."""
        if self._looking:
            return self._td
        return self._find_td()

    def _find_td(self) -> Td | None:
        found = self.world.module.tds.get(self.tdr_pfn)
        if found is self.own_td or self.kvm.tdx.tdr_page == self.tdr_pfn:
            return found
        return None

    def has_key(self) -> bool:
        """The TD exists, and its key can be used: the S-EPT means something."""
        if self._looking:
            return self._looks_keyed
        return _usable_sept(self.td) is not None

    def runs(self, first_gfn: int = 0, end_gfn: int = END_GFN) -> list[LeafRun]:
        """The leaves of the S-EPT that overlap [first_gfn, end_gfn); none without a key.

        The list of all leaves is the same object as long as it holds the same.
        """
        if self._looking and (first_gfn, end_gfn) == self._window:
            return self._found
        sept = _usable_sept(self.td)
        return self.reader.runs(*sept, first_gfn, end_gfn) if sept is not None else []

    def begin_look(self, first_gfn: int, end_gfn: int) -> None:
        """Nothing changes until `end_look`: what all promises ask for is read once."""
        self._looking = True
        self._window = (first_gfn, end_gfn)
        self._td = self._find_td()
        sept = _usable_sept(self._td)
        self._looks_keyed = sept is not None
        self._found = self.reader.runs(*sept, first_gfn, end_gfn) if sept is not None else []

    def end_look(self) -> None:
        """The world goes on."""
        self._looking = False

    def changed(self) -> list[tuple[int, int]]:
        """[first, end) GFNs of the S-EPT tables that changed since they were last looked at."""
        sept = _usable_sept(self.td)
        self.keyed = sept is not None
        return self.reader.changed(*sept) if sept is not None else []

    def walk(self, gfn: int) -> tuple[int, int]:
        """(KVM level, raw S-EPT entry) where the walk for `gfn` ends."""
        td = self.td
        assert td is not None and td.root is not None
        return walk(self.world.machine.tables, td.root, td.root_level, self.hpa_mask, gfn)

    def mirror_root(self) -> KvmMmuPage | None:
        """The root of the mirror page table, valid or not."""
        for root in self.kvm.arch.tdp_mmu_roots:
            if root.is_mirror:
                return root
        return None

    def slot_at(self, gfn: int) -> KvmMemorySlot | None:
        """The memslot that holds `gfn`."""
        for slot in self.kvm.memslots.values():
            if slot.base_gfn <= gfn < slot.base_gfn + slot.npages:
                return slot
        return None

    def attributes(self, slot: KvmMemorySlot, gfn: int) -> tuple[int, int]:
        """(attributes of `gfn`, first GFN after the run that has them)."""
        if self.world.host.params.vm_memory_attributes or slot.gmem_file is None:
            _, end, value = range_extent(self.kvm.mem_attr_array, gfn)
            return value, end
        offset = slot.base_gfn - slot.gmem_pgoff
        _, end, value = range_extent(slot.gmem_file.inode.attributes, gfn - offset)
        return value, end + offset
