"""A guest's memory at one moment: what each page is, from the Secure EPT and the attributes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.kvm import KVM_MEMORY_ATTRIBUTE_PRIVATE
from septum.checks.sept import BLOCKED_STATE, PENDING_STATE
from septum.checks.view import VmView
from septum.report.result import Bank, PageKind, Region, Snapshot

if TYPE_CHECKING:
    from collections.abc import Iterator

    from septum.linux.kvm.types import Kvm
    from septum.vmm.layout import GuestLayout
    from septum.vmm.world import World

_KIND_OF_LEVEL = {1: PageKind.PRIVATE_4K, 2: PageKind.PRIVATE_2M, 3: PageKind.PRIVATE_1G}


class Snapshots:
    """The snapshots of one guest, in order of taking."""

    __slots__ = ("layout", "taken", "world")

    def __init__(self, world: World, layout: GuestLayout) -> None:
        self.world = world
        self.layout = layout
        self.taken: list[Snapshot] = []

    def banks(self) -> list[Bank]:
        """The guest's RAM, as the report draws it."""
        return [Bank(ram.name, ram.gpa, ram.size_bytes) for ram in self.layout.ram]

    def take(self, name: str, title: str, kvm: Kvm) -> Snapshot:
        """Look at `kvm` now."""
        snapshot = Snapshot(
            name=name,
            title=title,
            time_ns=self.world.sim.now_ns(),
            stats=total_stats(kvm),
            regions=list(self._regions(VmView(self.world, kvm, None))),
        )
        self.taken.append(snapshot)
        return snapshot

    def _regions(self, vm: VmView) -> Iterator[Region]:
        for ram in self.layout.ram:
            gfn, end = ram.gpa >> 12, ram.end >> 12
            while gfn < end:
                slot = vm.slot_at(gfn)
                if slot is None:
                    yield Region(gfn, end - gfn, PageKind.UNACCEPTED)
                    break
                attributes, until = vm.attributes(slot, gfn)
                until = min(until, end)
                if attributes & KVM_MEMORY_ATTRIBUTE_PRIVATE:
                    yield from _private(vm, gfn, until)
                else:
                    yield Region(gfn, until - gfn, PageKind.SHARED)
                gfn = until


def _private(vm: VmView, gfn: int, end: int) -> Iterator[Region]:
    """The private range [gfn, end) by what the Secure EPT has there."""
    for first, nr, level, state, _ in vm.runs(gfn, end):
        low, high = max(first, gfn), min(first + nr, end)
        if low > gfn:
            yield Region(gfn, low - gfn, PageKind.UNACCEPTED)
        if state & BLOCKED_STATE:
            kind = PageKind.BLOCKED
        elif state & PENDING_STATE:
            kind = PageKind.PENDING
        else:
            kind = _KIND_OF_LEVEL[level]
        yield Region(low, high - low, kind)
        gfn = high
    if gfn < end:
        yield Region(gfn, end - gfn, PageKind.UNACCEPTED)


def total_stats(kvm: Kvm) -> dict[str, int]:
    """The VM's counters and the sums of its vCPUs', and how often mmu_lock was taken."""
    total = dict(kvm.stat.values)
    for vcpu in kvm.vcpus:
        for name, value in vcpu.stat.values.items():
            total[name] = total.get(name, 0) + value
    total["mmu_lock_write"] = kvm.mmu_lock.nr_write_locks
    total["mmu_lock_read"] = kvm.mmu_lock.nr_read_locks
    return dict(sorted(total.items()))
