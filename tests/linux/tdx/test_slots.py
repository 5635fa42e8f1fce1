"""Memory slots: what can be created, and that deleting one unmaps it."""

from collections.abc import Callable
from typing import Any

import pytest

from septum.abi.errno import EBADF, EEXIST, EINVAL, ENOMEM
from septum.abi.kvm import KVM_MEM_GUEST_MEMFD, KVM_MEM_LOG_DIRTY_PAGES, KVM_MEMSLOT_INVALID
from septum.linux.host import HostUnits, v3_units
from septum.linux.kvm.events import KvmUnmapHvaRange
from septum.linux.kvm.main import KvmUserspaceMemoryRegion2 as Region
from septum.linux.kvm.mmu import KvmMmu

Benches = Callable[..., Any]
PAGE = 4096
MB = 1 << 20
GB = 1 << 30
FREE_GPA = 32 << 20
HVA = 1 << 41


def set_region(b: Any, region: Region) -> int:
    return int(b.host.main.kvm_vm_ioctl_set_memory_region(b.kvm, region))


@pytest.mark.parametrize(
    ("region", "ret"),
    [
        (Region(9, 0, 8 * GB, MB, HVA), 0),
        (Region(9, 0, 8 * GB + 1, MB, HVA), -EINVAL),
        (Region(9, 0, 8 * GB, MB + 1, HVA), -EINVAL),
        (Region(9, 0, 8 * GB, MB, HVA + 1), -EINVAL),
        (Region(-1, 0, 8 * GB, MB, HVA), -EINVAL),
        (Region(1 << 15, 0, 8 * GB, MB, HVA), -EINVAL),
        (Region(9, 0, FREE_GPA, MB, HVA), -EEXIST),
        (Region(9, 0, 1 << 52, MB, HVA), -EINVAL),
        (Region(9, KVM_MEM_GUEST_MEMFD, 8 * GB, MB, HVA, None), -EINVAL),
        (Region(9, KVM_MEM_GUEST_MEMFD | KVM_MEM_LOG_DIRTY_PAGES, 8 * GB, MB, HVA), -EINVAL),
        (Region(9, 0, 8 * GB, 0, HVA), -EINVAL),
    ],
)
def test_what_can_be_created(bench: Benches, region: Region, ret: int) -> None:
    b = bench("4k")
    before = dict(b.kvm.memslots)
    assert set_region(b, region) == ret
    assert (b.kvm.memslots == before) == (ret != 0)


def test_no_slot_reaches_into_the_half_of_shared_memory(bench: Benches) -> None:
    """kvm_arch_prepare_memory_region(): its GFNs would be those of private memory, once more."""
    b = bench("4k")
    direct = b.kvm.arch.gfn_direct_bits << 12
    assert set_region(b, Region(9, 0, direct - MB, MB, HVA)) == 0
    assert set_region(b, Region(10, 0, direct + 8 * GB, MB, HVA)) == -EINVAL
    assert 9 in b.kvm.memslots and 10 not in b.kvm.memslots


class NoMetadata(KvmMmu):
    """lpage_info cannot be allocated."""

    __slots__ = ()

    def kvm_alloc_memslot_metadata(self, kvm: Any, slot: Any) -> int:
        return -ENOMEM if slot.id == 9 else super().kvm_alloc_memslot_metadata(kvm, slot)


@pytest.mark.parametrize("where", ["slot", "metadata"])
def test_no_memory_leaves_nothing_bound(bench: Benches, where: str) -> None:
    v3 = v3_units()
    fields = {f: getattr(v3, f) for f in v3.__slots__}
    if where == "metadata":
        fields["mmu"] = NoMetadata
    b = bench("4k", units=HostUnits(**fields))
    _, f = b.host.gmem.kvm_gmem_create(b.kvm, MB)
    if where == "slot":
        b.choices.wanted["alloc:kvm_memory_slot"] = [1]
    assert set_region(b, Region(9, KVM_MEM_GUEST_MEMFD, 8 * GB, MB, HVA, f)) == -ENOMEM
    assert f.bindings == [] and 9 not in b.kvm.memslots
    b.host.gmem.fput(f)
    b.vmm.teardown()
    b.assert_nothing_left()


class ClosedMeanwhile(KvmMmu):
    """User space closes the slot's memory while the slot is made."""

    __slots__ = ()

    def kvm_alloc_memslot_metadata(self, kvm: Any, slot: Any) -> int:
        if slot.id == 9:
            self.host.gmem.fput(slot.gmem_file)
            assert not slot.gmem_file.released
        return super().kvm_alloc_memslot_metadata(kvm, slot)


def test_a_file_that_a_slot_is_made_of_is_closed_when_the_ioctl_is_over(bench: Benches) -> None:
    """The ioctl has a reference of its own, so that the slot is forgotten like any other."""
    v3 = v3_units()
    fields = {f: getattr(v3, f) for f in v3.__slots__} | {"mmu": ClosedMeanwhile}
    b = bench("4k", units=HostUnits(**fields))
    _, f = b.host.gmem.kvm_gmem_create(b.kvm, MB)
    region = Region(9, KVM_MEM_GUEST_MEMFD, 8 * GB, MB, HVA, f)
    assert set_region(b, region) == 0
    assert f.released and b.kvm.memslots[9].gmem_file is None
    assert set_region(b, Region(10, KVM_MEM_GUEST_MEMFD, 9 * GB, MB, HVA, f)) == -EBADF
    b.vmm.teardown()
    b.assert_nothing_left()


@pytest.mark.parametrize("backing", ["4k", "thp"])
def test_deleting_a_slot_removes_its_private_memory(bench: Benches, backing: str) -> None:
    b = bench(backing)
    b.prefault(FREE_GPA)
    slot = b.host.main.gfn_to_memslot(b.kvm, FREE_GPA >> 12)
    made = b.seamcalls(lambda: b.ok(set_region(b, Region(slot.id, 0, 0, 0))))
    assert made["TDH.MEM.PAGE.REMOVE"] >= 1
    assert not b.walk(FREE_GPA)[1]
    assert slot.gmem_file is None and slot.id not in b.kvm.memslots
    assert b.texts() == []
    b.vmm.teardown()
    b.assert_nothing_left()


def test_who_has_looked_a_slot_up_does_not_see_that_it_is_deleted(
    bench: Benches, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kvm_invalidate_memslot() puts a copy in its place: a fault under way maps, and is waited for
    before anything is zapped; later ones find the copy."""
    b = bench("4k")
    slot = b.host.main.gfn_to_memslot(b.kvm, FREE_GPA >> 12)
    main = type(b.host.main)
    wait = main.kvm_swap_active_memslots
    found = []

    def swap(self: Any, kvm: Any) -> None:
        found.append(kvm.memslots.get(slot.id))
        assert not (slot.flags & KVM_MEMSLOT_INVALID or slot.freed)
        wait(self, kvm)

    monkeypatch.setattr(main, "kvm_swap_active_memslots", swap)
    assert set_region(b, Region(slot.id, 0, 0, 0)) == 0
    invalid, gone = found
    assert invalid.flags & KVM_MEMSLOT_INVALID and gone is None
    assert invalid.freed and slot.freed


def test_slot_with_guest_memfd_cannot_be_changed(bench: Benches) -> None:
    b = bench("4k")
    slot = b.host.main.gfn_to_memslot(b.kvm, FREE_GPA >> 12)
    size = slot.npages << 12
    same = Region(slot.id, slot.flags, slot.base_gfn << 12, size, slot.userspace_addr, b.gmem)
    assert set_region(b, same) == -EINVAL


def test_a_vm_that_is_destroyed_while_memory_is_given_back_is_not_warned_of(
    bench: Benches,
) -> None:
    """Its notifier is not registered any more: no end comes to what has begun."""
    b = bench("4k")
    main = b.host.main
    hva = b.vmm.blocks["pc.ram"].hva
    kvms = main.mmu_notifier_invalidate_range_start(hva, hva + MB)
    assert b.kvm.mmu_invalidate_in_progress == b.kvm.mn_active_invalidate_count == 1
    b.vmm.teardown()
    main.mmu_notifier_invalidate_range_end(kvms, hva, hva + MB)
    assert b.texts() == []
    b.assert_nothing_left()


def test_each_vm_hears_of_memory_that_is_given_back(bench: Benches) -> None:
    """The tracepoint kvm_unmap_hva_range tells of each notifier, with and without slots there."""
    b = bench("4k")
    assert b.host.main.kvm_create_vm()[0] == 0
    told: list[Any] = []
    b.sim.set_sink(told.append)
    kvms = b.host.main.mmu_notifier_invalidate_range_start(HVA, HVA + MB)
    b.host.main.mmu_notifier_invalidate_range_end(kvms, HVA, HVA + MB)
    b.sim.set_sink(None)
    ranges = [(e.start, e.end) for e in told if isinstance(e, KvmUnmapHvaRange)]
    assert ranges == [(HVA, HVA + MB)] * 2
