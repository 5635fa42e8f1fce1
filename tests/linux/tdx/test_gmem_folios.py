"""guest_memfd: creating and binding, which folios it gives, and what takes them away.

Source: virt/kvm/guest_memfd.c at the base of v3, patch 16.
"""

from collections.abc import Callable
from typing import Any

import pytest

from septum.abi.errno import EEXIST, EFAULT, EINVAL, EIO, ENOMEM, EOPNOTSUPP
from septum.abi.kvm import (
    GUEST_MEMFD_FLAG_INIT_SHARED,
    KVM_MEM_GUEST_MEMFD,
    PG_LEVEL_2M,
    PG_LEVEL_4K,
)
from septum.linux.host import HostUnits, v3_units
from septum.linux.kvm.gmem_folio import GUEST_MEMFD_FLAG_HUGETLB, GUEST_MEMFD_FLAG_THP
from septum.linux.kvm.gmem_range import (
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
)
from septum.linux.kvm.guest_memfd import GuestMemfd
from septum.linux.kvm.main import KvmUserspaceMemoryRegion2

Benches = Callable[..., Any]
PAGE = 4096
MB = 1 << 20
MB2 = 2 << 20
GB = 1 << 30
FREE_GPA = 32 << 20
FREE = FREE_GPA >> 12
PUNCH = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE


# Create and bind


@pytest.mark.parametrize(
    ("size", "flags", "order", "ret"),
    [
        (MB2, 0, 0, 0),
        (MB2, GUEST_MEMFD_FLAG_INIT_SHARED, 0, 0),
        (0, 0, 0, -EINVAL),
        (PAGE + 1, 0, 0, -EINVAL),
        (MB2, 1 << 40, 0, -EINVAL),
        (MB2, 0, 9, -EINVAL),
        (MB2, GUEST_MEMFD_FLAG_HUGETLB, 0, -EINVAL),
        (MB2, GUEST_MEMFD_FLAG_HUGETLB, 18, -EINVAL),
        (MB2, GUEST_MEMFD_FLAG_HUGETLB | GUEST_MEMFD_FLAG_THP, 9, -EINVAL),
        (MB2, GUEST_MEMFD_FLAG_HUGETLB | GUEST_MEMFD_FLAG_INIT_SHARED, 9, -EINVAL),
        (MB2 + PAGE, GUEST_MEMFD_FLAG_HUGETLB, 9, -EINVAL),
        (MB2, GUEST_MEMFD_FLAG_HUGETLB, 9, 0),
        (64 * MB, GUEST_MEMFD_FLAG_HUGETLB, 9, -ENOMEM),
    ],
)
def test_create(bench: Benches, size: int, flags: int, order: int, ret: int) -> None:
    b = bench("4k", build=False, pool_2m=2)
    b.ok(b.vmm.create_vm())
    got, f = b.host.gmem.kvm_gmem_create(b.kvm, size, flags, order)
    assert got == ret and (f is not None) == (ret == 0)


@pytest.mark.parametrize(("offset", "size"), [(PAGE // 2, PAGE), (0, 4 * MB), (MB2, PAGE)])
def test_bind_outside_the_file_is_refused(bench: Benches, offset: int, size: int) -> None:
    b = bench("4k", build=False)
    b.ok(b.vmm.create_vm())
    _, f = b.host.gmem.kvm_gmem_create(b.kvm, MB2)
    mem = KvmUserspaceMemoryRegion2(0, KVM_MEM_GUEST_MEMFD, 0, size, 1 << 40, f, offset)
    assert b.host.main.kvm_vm_ioctl_set_memory_region(b.kvm, mem) == -EINVAL
    assert f.bindings == []


def test_a_page_is_bound_once(bench: Benches) -> None:
    b = bench("4k", build=False)
    b.ok(b.vmm.create_vm())
    _, f = b.host.gmem.kvm_gmem_create(b.kvm, MB2)
    region = b.host.main.kvm_vm_ioctl_set_memory_region

    def bind(slot: int, gpa: int) -> int:
        flags = KVM_MEM_GUEST_MEMFD
        return int(
            region(b.kvm, KvmUserspaceMemoryRegion2(slot, flags, gpa, MB, 1 << 40, f, MB // 2))
        )

    assert bind(0, 0) == 0
    assert bind(1, 8 * MB) == -EINVAL
    assert len(f.bindings) == 1


def test_the_file_keeps_the_vm_and_the_memory_goes_with_the_file(bench: Benches) -> None:
    b = bench("4k", build=False)
    b.ok(b.vmm.create_vm())
    kvm = b.kvm
    _, f = b.host.gmem.kvm_gmem_create(kvm, MB2)
    b.ok(b.host.gmem.kvm_gmem_fallocate(f, FALLOC_FL_KEEP_SIZE, 0, MB2))
    b.host.main.kvm_vm_release(kvm)
    assert kvm.id in b.host.kvms
    assert sum(n for _, n, site in b.leftovers() if site == "gmem_folio") == 512
    b.host.gmem.fput(f)
    b.vmm.kvm = None
    b.assert_nothing_left()


# Folios


@pytest.mark.parametrize(
    ("backing", "order", "level"),
    [
        ("4k", 0, PG_LEVEL_4K),
        ("thp", 9, PG_LEVEL_2M),
        ("hugetlb-2m", 9, PG_LEVEL_2M),
        ("hugetlb-1g", 18, PG_LEVEL_2M),
    ],
)
def test_order_and_mapping_level_of_each_backing(
    bench: Benches, backing: str, order: int, level: int
) -> None:
    """TDX maps 2 MB at most, also out of a 1 GB page."""
    b = bench(backing, memory=GB if order == 18 else 64 * MB)
    ret, pfn, got = b.get_pfn(FREE + 7)
    assert (ret, got) == (0, order)
    assert pfn & ((1 << order) - 1) == (FREE + 7) & ((1 << order) - 1)
    b.prefault(FREE_GPA, MB2)
    assert b.walk(FREE_GPA) == (level - 1, True)
    b.vmm.teardown()
    assert b.texts() == []
    b.assert_nothing_left()


def test_thp_falls_back_to_small_pages(bench: Benches) -> None:
    """No 2 MB folio to be had, or a small page is there already: 4 KB."""
    b = bench()
    b.choices.wanted["alloc:gmem_folio_2m"] = [1]
    assert b.get_pfn(FREE + 3)[2] == 0
    assert b.get_pfn(FREE + 4)[2] == 0
    assert b.get_pfn(FREE + 512)[2] == 9


def test_a_huge_folio_does_not_go_where_a_small_one_is(bench: Benches) -> None:
    """__filemap_add_folio(): whatever is in the range of the folio is in its way."""
    b = bench()
    b.choices.wanted["alloc:gmem_folio_2m"] = [1]
    assert b.get_pfn(FREE)[2] == 0
    folio = b.host.mm.alloc_folio(9, "gmem_folio_2m")
    add = b.host.gmem.filemap_add_folio
    assert add(b.gmem.inode, folio, FREE + 5) == -EEXIST
    assert add(b.gmem.inode, folio, FREE + 517) == 0


def test_no_memory_for_a_page(bench: Benches) -> None:
    b = bench("4k")
    b.choices.wanted["alloc:gmem_folio"] = [1]
    assert b.get_pfn(FREE)[0] == -ENOMEM
    assert b.get_pfn(FREE)[0] == 0


def test_two_vms_share_an_inode(bench: Benches) -> None:
    """A hole is invalidated in every VM that has the page bound."""
    b = bench("4k", build=False)
    b.ok(b.vmm.create_vm())
    first = b.kvm
    _, f = b.host.gmem.kvm_gmem_create(first, MB2)
    _, second = b.host.main.kvm_create_vm()
    g = b.host.gmem.kvm_gmem_link(second, f.inode)
    for kvm, file in ((first, f), (second, g)):
        mem = KvmUserspaceMemoryRegion2(0, KVM_MEM_GUEST_MEMFD, 0, MB2, 1 << 40, file, 0)
        b.ok(b.host.main.kvm_vm_ioctl_set_memory_region(kvm, mem))
    seq = [kvm.mmu_invalidate_seq for kvm in (first, second)]
    b.ok(b.host.gmem.kvm_gmem_fallocate(f, PUNCH, 0, PAGE))
    assert [k.mmu_invalidate_seq for k in (first, second)] == [s + 1 for s in seq]
    assert not first.mmu_invalidate_in_progress and not second.mmu_invalidate_in_progress


# fallocate


@pytest.mark.parametrize(
    ("mode", "offset", "size", "ret"),
    [
        (0, 0, PAGE, -EOPNOTSUPP),
        (PUNCH | 1 << 4, 0, PAGE, -EOPNOTSUPP),
        (PUNCH, 1, PAGE, -EINVAL),
        (PUNCH, 0, PAGE + 1, -EINVAL),
        (FALLOC_FL_KEEP_SIZE, 63 * MB, MB2, -EINVAL),
    ],
)
def test_fallocate_arguments(bench: Benches, mode: int, offset: int, size: int, ret: int) -> None:
    b = bench("4k")
    assert b.host.gmem.kvm_gmem_fallocate(b.gmem, mode, offset, size) == ret


def test_allocate_ahead(bench: Benches) -> None:
    b = bench("4k")
    before = len(b.gmem.inode.folios)
    ret = b.host.gmem.kvm_gmem_fallocate(b.gmem, FALLOC_FL_KEEP_SIZE, FREE_GPA, MB2)
    assert ret == 0 and len(b.gmem.inode.folios) == before + 512
    b.choices.wanted["alloc:gmem_folio"] = [0, 1]
    ret = b.host.gmem.kvm_gmem_fallocate(b.gmem, FALLOC_FL_KEEP_SIZE, FREE_GPA + MB2, MB2)
    assert ret == -ENOMEM and len(b.gmem.inode.folios) == before + 513


def test_hole_in_a_huge_folio_splits_it(bench: Benches) -> None:
    """Patch 16: the leaf is split first, so that only what the hole covers is zapped."""
    b = bench()
    b.prefault(FREE_GPA)
    free = b.host.mm.nr_free_pages
    b.ok(b.punch(FREE_GPA + 3 * PAGE, 2 * PAGE))
    assert b.walk(FREE_GPA + 3 * PAGE) == (0, False)
    assert b.walk(FREE_GPA + 5 * PAGE) == (0, True)
    assert b.kvm.stat.get("split.punch_hole") == 1
    # Two pages came back; the page table and its S-EPT page went out.
    assert b.host.mm.nr_free_pages == free
    b.ok(b.punch(FREE_GPA, MB2))
    assert FREE not in b.gmem.inode.folios
    b.vmm.teardown()
    assert b.texts() == []
    b.assert_nothing_left()


@pytest.mark.parametrize("backing", ["thp", "hugetlb-2m", "hugetlb-1g"])
def test_a_split_folio_is_small_for_who_found_it_before(bench: Benches, backing: str) -> None:
    """page_folio() takes no reference: what a TDX wrapper looks at becomes one page under it."""
    in_place = backing != "thp"
    b = bench(backing, in_place=in_place, vm_memory_attributes=not in_place)
    b.prefault(FREE_GPA)
    folio = b.host.mm.page_folio(b.get_pfn(FREE)[1])
    assert folio.nr_pages >= 512
    if in_place:
        b.ok(b.set_attributes(FREE_GPA, PAGE, private=False))
    else:
        b.ok(b.punch(FREE_GPA, PAGE))
    assert folio.nr_pages == 1


def test_hole_takes_the_whole_folio_when_it_cannot_be_split(bench: Benches) -> None:
    """As posted: the rest of a folio that does not split is truncated, too, although the guest
    still has it mapped."""
    b = bench()
    b.prefault(FREE_GPA)
    b.choices.wanted["alloc:gmem_split_folio"] = [1]
    b.ok(b.punch(FREE_GPA, PAGE))
    assert FREE not in b.gmem.inode.folios
    assert b.walk(FREE_GPA + PAGE) == (0, True)


def test_failed_leaf_split_stops_a_hole_with_one(bench: Benches) -> None:
    """As posted: -ENOMEM is kept in a bool, and fallocate() returns 1."""
    b = bench()
    b.prefault(FREE_GPA)
    b.choices.wanted["alloc:tdp_mmu_alloc_sp_for_split.sp"] = [1]
    b.choices.wanted["alloc:tdp_mmu_alloc_sp_for_split.spt"] = [1]
    assert b.punch(FREE_GPA, PAGE) == 1
    assert b.walk(FREE_GPA) == (1, True)
    assert b.kvm.mmu_invalidate_in_progress == 0
    b.vmm.teardown()
    b.assert_nothing_left()


class ZapNothing(GuestMemfd):
    """Broken: a hole does not unmap."""

    def kvm_gmem_zap(self, inode: Any, start: int, end: int) -> None:
        return


@pytest.mark.parametrize(("unit", "mapped"), [(GuestMemfd, False), (ZapNothing, True)])
def test_hole_unmaps(bench: Benches, unit: type[GuestMemfd], mapped: bool) -> None:
    units = v3_units()
    fields = {f: getattr(units, f) for f in units.__slots__} | {"gmem": unit}
    b = bench("4k", units=HostUnits(**fields))
    b.prefault(FREE_GPA, PAGE)
    b.ok(b.punch(FREE_GPA, PAGE))
    assert b.walk(FREE_GPA) == (0, mapped)


def test_dead_vm_does_not_stop_a_hole(bench: Benches) -> None:
    b = bench("4k")
    b.prefault(FREE_GPA, PAGE)
    b.host.main.kvm_vm_dead(b.kvm)
    assert b.set_attributes(FREE_GPA, PAGE, private=False) == -EIO
    b.ok(b.punch(FREE_GPA, PAGE))


# A file that is being closed


def test_file_without_references_gives_no_page(bench: Benches) -> None:
    """get_file_active(): between the last fput() and kvm_gmem_release(), faults get -EFAULT."""
    b = bench("4k")
    b.gmem.f_count = 0
    assert b.get_pfn(FREE)[0] == -EFAULT
    assert b.host.gmem.kvm_gmem_get_memory_attributes(b.kvm, FREE) == 0
    b.gmem.f_count = 1
    assert b.get_pfn(FREE)[0] == 0


def test_unbound_index_warns_only_when_another_slot_has_it(bench: Benches) -> None:
    b = bench("4k")
    slot = b.host.main.gfn_to_memslot(b.kvm, FREE)
    f = b.gmem
    kept = f.bindings
    get = b.host.gmem._kvm_gmem_get_pfn
    f.bindings = []
    assert get(f, slot, FREE)[0] == -EIO and b.texts() == []
    f.bindings = [(first, last, object()) for first, last, _ in kept]
    assert get(f, slot, FREE)[0] == -EIO and "another slot" in b.texts()[0]
    f.bindings = kept


def make_unbound_slot(b: Any) -> Any:
    """Slot 9 at 8 GB, of whose guest_memfd, which is returned, no binding could be noted."""
    _, f = b.host.gmem.kvm_gmem_create(b.kvm, MB)
    b.choices.wanted["alloc:gmem_bindings"] = [1]
    region = KvmUserspaceMemoryRegion2(9, KVM_MEM_GUEST_MEMFD, 8 * GB, MB, 1 << 41, f)
    b.ok(b.host.main.kvm_vm_ioctl_set_memory_region(b.kvm, region))
    return f


def test_no_memory_for_a_binding(bench: Benches) -> None:
    """As posted: the slot is made, and its pointer to the file outlives the file."""
    b = bench("4k")
    main = b.host.main
    f = make_unbound_slot(b)
    assert b.get_pfn(8 * GB >> 12)[0] == -EIO
    b.host.gmem.fput(f)
    assert b.texts() == []
    b.ok(main.kvm_vm_ioctl_set_memory_region(b.kvm, KvmUserspaceMemoryRegion2(9, 0, 8 * GB, 0)))
    assert "use after free" in b.texts()[0]


def test_prefaulting_a_slot_that_is_not_bound_is_warned_of(bench: Benches) -> None:
    """KVM_PRE_FAULT_MEMORY has a WARN for a fault that comes to -EIO, which it takes for
    impossible."""
    b = bench("4k")
    make_unbound_slot(b)
    b.ok(b.set_attributes(8 * GB, PAGE, private=True))
    got = b.host.main.kvm_vcpu_ioctl_pre_fault_memory(b.kvm.vcpus[0], 8 * GB, 4096)
    assert got == (-EIO, 8 * GB, 4096)
    assert b.texts() == ["WARN: a fault came to -5"]


def test_huge_page_freed_last_is_taken_first(bench: Benches) -> None:
    """enqueue_hugetlb_folio() and dequeue work at the head of the free list."""
    b = bench("hugetlb-2m")
    first = b.get_pfn(FREE)[1]
    second = b.get_pfn(FREE + 512)[1]
    b.ok(b.punch(FREE_GPA, MB2))
    b.ok(b.punch(FREE_GPA + MB2, MB2))
    assert b.get_pfn(FREE)[1] == second
    assert b.get_pfn(FREE + 512)[1] == first


# The folio lock, and the metadata of a huge page


def test_lock_waiter_goes_on_with_unlock(bench: Benches) -> None:
    """A folio that is being added is locked; folio_unlock() wakes who waits for it."""
    b = bench("4k")
    gmem = b.host.gmem
    _, folio = gmem.kvm_gmem_get_folio(b.gmem.inode, FREE)
    assert folio.locked
    got: list[Any] = []
    b.sim.spawn("waiter", lambda: got.append(gmem.filemap_lock_folio(b.gmem.inode, FREE)))
    b.sim.spawn("owner", lambda: gmem.folio_unlock(folio))
    b.sim.run()
    assert got == [folio] and folio.refcount == 3 and b.texts() == []


def test_a_refused_page_cache_entry_leaves_metadata(bench: Benches) -> None:
    """As posted: what does not get into the page cache goes back without its metadata."""
    b = bench("hugetlb-2m")
    known = b.host.mm.state.restructuring_metadata
    before = set(known)
    b.choices.wanted["alloc:gmem_filemap_add"] = [1]
    assert b.get_pfn(FREE)[0] == -ENOMEM
    assert len(known - before) == 1 and b.texts() == []
    assert b.get_pfn(FREE)[0] == 0
    assert b.texts() == ["WARN: Unexpected duplicate metadata registered"]


def test_a_register_without_memory_warns_of_a_duplicate(bench: Benches) -> None:
    """As posted: an error of the xarray is taken for what was there before."""
    b = bench("hugetlb-2m")
    known = b.host.mm.state.restructuring_metadata
    before = set(known)
    b.choices.wanted["alloc:hugetlb_restructuring_register"] = [1]
    assert b.get_pfn(FREE)[0] == -ENOMEM and known == before
    assert b.texts() == ["WARN: Unexpected duplicate metadata registered"]


def test_metadata_goes_with_the_folio(bench: Benches) -> None:
    b = bench("hugetlb-2m", in_place=True, vm_memory_attributes=False)
    known = b.host.mm.state.restructuring_metadata
    before = set(known)
    b.choices.wanted["alloc:hugetlb_restructuring_metadata"] = [1]
    assert b.get_pfn(FREE)[0] == -ENOMEM and known == before
    assert b.get_pfn(FREE)[0] == 0 and len(known) == len(before) + 1
    b.ok(b.convert_gmem(FREE_GPA, PAGE, private=False)[0])
    b.ok(b.punch(FREE_GPA, MB2))
    assert known == before
    b.vmm.teardown()
    assert not known and b.texts() == []
    b.assert_nothing_left()
