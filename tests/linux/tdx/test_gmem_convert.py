"""Conversion on the guest_memfd itself (vm_memory_attributes=N): arguments, order, hugetlb.

Source: virt/kvm/guest_memfd.c at the base of v3 with its FIXUPs, patch 16.
"""

from collections.abc import Callable
from typing import Any

import pytest

from septum.abi.errno import EAGAIN, EFAULT, EINVAL, ENOMEM, ENOTTY
from septum.linux.host import HostUnits, v3_units
from septum.linux.kvm.gmem_attrs import KvmMemoryAttributes2
from septum.linux.kvm.guest_memfd import GuestMemfd
from septum.linux.kvm.mmu import KvmMmu

Benches = Callable[..., Any]
PAGE = 4096
MB2 = 2 << 20
FREE_GPA = 32 << 20
FREE = FREE_GPA >> 12
INFO_SITE = "alloc:tdp_mmu_alloc_sp_for_split.spt"


def make(bench: Benches, backing: str = "hugetlb-2m", **options: Any) -> Any:
    return bench(backing, in_place=True, vm_memory_attributes=False, **options)


def units(**changed: Any) -> HostUnits:
    v3 = v3_units()
    return HostUnits(**{f: changed.get(f, getattr(v3, f)) for f in v3.__slots__})


def pool(b: Any) -> tuple[int, int]:
    """(free, reserved) huge pages of 2 MB."""
    p = b.host.mm.state.pools[9]
    return len(p.free), p.resv_huge_pages


# Arguments


@pytest.mark.parametrize(
    ("attrs", "ret"),
    [
        (KvmMemoryAttributes2(0, 0, 8), -EINVAL),
        (KvmMemoryAttributes2(1, PAGE, 8), -EINVAL),
        (KvmMemoryAttributes2(0, PAGE + 1, 8), -EINVAL),
        (KvmMemoryAttributes2(0, PAGE, 1), -EINVAL),
        (KvmMemoryAttributes2(0, PAGE, 8, flags=1), -EINVAL),
        (KvmMemoryAttributes2(64 << 20, PAGE, 8), -EINVAL),
        (KvmMemoryAttributes2(FREE_GPA, 64 << 20, 8), -EINVAL),
        (KvmMemoryAttributes2(FREE_GPA, PAGE, 8), 0),
    ],
)
def test_arguments(bench: Benches, attrs: KvmMemoryAttributes2, ret: int) -> None:
    b = make(bench, "4k")
    assert b.host.gmem.kvm_gmem_set_attributes(b.gmem, attrs) == ret


def test_only_one_of_the_two_ioctls_exists(bench: Benches) -> None:
    b = make(bench, "4k")
    assert b.host.main.kvm_vm_ioctl_set_memory_attributes(b.kvm, FREE_GPA, PAGE, 8) == -ENOTTY
    b = bench("4k")
    attrs = KvmMemoryAttributes2(FREE_GPA, PAGE, 8)
    assert b.host.gmem.kvm_gmem_set_attributes(b.gmem, attrs) == -ENOTTY


# To shared and back


def test_a_page_goes_to_shared_and_back(bench: Benches) -> None:
    """The leaf and the folio are split; with the last page private again both can be huge."""
    b = make(bench)
    free, reserved = pool(b)
    b.prefault(FREE_GPA)
    assert pool(b) == (free - 1, reserved - 1)
    inode = b.gmem.inode
    b.ok(b.set_attributes(FREE_GPA + PAGE, PAGE, private=False))
    assert FREE in inode.split_folios and FREE not in inode.folios
    assert b.walk(FREE_GPA) == (0, True) and b.walk(FREE_GPA + PAGE) == (0, False)
    assert not b.host.main.kvm_mem_is_private(b.kvm, FREE + 1)
    assert b.host.main.kvm_mem_is_private(b.kvm, FREE)

    b.ok(b.set_attributes(FREE_GPA + PAGE, PAGE, private=True))
    assert FREE not in inode.split_folios and inode.folios[FREE].order == 9
    assert inode.folios[FREE].hugetlb_vmemmap_optimized
    assert b.host.main.kvm_mem_is_private(b.kvm, FREE + 1)
    b.prefault(FREE_GPA + PAGE, PAGE)
    # The other 511 leaves are still small, so this one is.
    assert b.walk(FREE_GPA + PAGE) == (0, True)
    b.vmm.teardown()
    assert b.texts() == [] and pool(b) == (32, 0)
    b.assert_nothing_left()


def test_folio_stays_split_while_a_page_is_shared(bench: Benches) -> None:
    b = make(bench)
    b.prefault(FREE_GPA)
    b.ok(b.set_attributes(FREE_GPA, 2 * PAGE, private=False))
    b.ok(b.set_attributes(FREE_GPA, PAGE, private=True))
    assert FREE in b.gmem.inode.split_folios
    b.ok(b.set_attributes(FREE_GPA + PAGE, PAGE, private=True))
    assert FREE in b.gmem.inode.folios


def test_fresh_folio_over_shared_pages_is_split_at_once(bench: Benches) -> None:
    b = make(bench)
    b.ok(b.set_attributes(FREE_GPA, PAGE, private=False))
    b.prefault(FREE_GPA + PAGE, PAGE)
    assert FREE in b.gmem.inode.split_folios
    assert b.walk(FREE_GPA + PAGE) == (0, True)
    b.vmm.teardown()
    assert b.texts() == []
    b.assert_nothing_left()


def test_failed_split_of_a_fresh_folio_leaves_it_whole(bench: Benches) -> None:
    """As posted: the fault fails, but the next one finds the huge folio in the page cache."""
    b = make(bench)
    b.ok(b.set_attributes(FREE_GPA, PAGE, private=False))
    b.choices.wanted["alloc:hugetlb_vmemmap_restore"] = [1]
    vcpu = b.vmm.vcpus[0]
    fault = b.host.main.kvm_vcpu_ioctl_pre_fault_memory
    assert fault(vcpu, FREE_GPA + PAGE, PAGE)[0] in (-ENOMEM, -EFAULT)
    assert b.gmem.inode.folios[FREE].order == 9
    b.ok(fault(vcpu, FREE_GPA + PAGE, PAGE)[0])
    assert b.gmem.inode.folios[FREE].order == 9


def test_failed_folio_split_loses_what_the_guest_had(bench: Benches) -> None:
    """As posted with FIXUP 2: the zap is before the split that can fail."""
    b = make(bench)
    b.prefault(FREE_GPA)
    b.choices.wanted["alloc:hugetlb_vmemmap_restore"] = [1]
    ret, where = b.convert_gmem(FREE_GPA + PAGE, PAGE, private=False)
    assert (ret, where) == (-ENOMEM, FREE_GPA + PAGE)
    assert b.walk(FREE_GPA + PAGE) == (0, False)
    assert b.host.main.kvm_mem_is_private(b.kvm, FREE + 1)
    assert b.kvm.mmu_invalidate_in_progress == 0


def test_split_before_the_zap_without_fixup_2(bench: Benches) -> None:
    b = make(bench, fixup_zap_before_split=False)
    b.prefault(FREE_GPA)
    b.choices.wanted["alloc:hugetlb_vmemmap_restore"] = [1]
    assert b.convert_gmem(FREE_GPA + PAGE, PAGE, private=False)[0] == -ENOMEM
    assert b.walk(FREE_GPA) == (1, True)  # nothing has happened to the guest


def test_never_merged_without_fixup_3(bench: Benches) -> None:
    b = make(bench, fixup_merge_after_to_private=False)
    b.prefault(FREE_GPA)
    b.ok(b.set_attributes(FREE_GPA, PAGE, private=False))
    b.ok(b.set_attributes(FREE_GPA, PAGE, private=True))
    assert FREE in b.gmem.inode.split_folios
    b.vmm.teardown()
    assert b.texts() == []
    b.assert_nothing_left()


def test_failed_leaf_split_comes_back_as_one(bench: Benches) -> None:
    """As posted: the bool of kvm_split_cross_boundary_leafs() is the ioctl's result."""
    b = make(bench)
    b.prefault(FREE_GPA)
    b.choices.wanted[INFO_SITE] = [1]
    assert b.convert_gmem(FREE_GPA, PAGE, private=False) == (1, FREE_GPA)
    assert b.host.main.kvm_mem_is_private(b.kvm, FREE)
    assert b.kvm.mmu_invalidate_in_progress == 0
    b.vmm.teardown()
    assert b.texts() == []
    b.assert_nothing_left()


@pytest.mark.parametrize("backing", ["thp", "hugetlb-2m"])
def test_to_private_zaps_what_is_private_already(bench: Benches, backing: str) -> None:
    """As posted: the range [-1, +1) around a frame's start is half shared, half private. Making it
    private zaps the whole private leaf, of which one page was in the range."""
    b = make(bench, backing)
    b.ok(b.set_attributes(FREE_GPA - PAGE, PAGE, private=False))
    b.prefault(FREE_GPA)
    b.ok(b.set_attributes(FREE_GPA - PAGE, 2 * PAGE, private=True))
    assert b.walk(FREE_GPA + PAGE) == (1, False)
    assert b.kvm.stat.get("split.conversion") == 0
    # Memory attributes of the VM know better: only shared mappings go.
    b = bench(backing)
    b.ok(b.set_attributes(FREE_GPA - PAGE, PAGE, private=False))
    b.prefault(FREE_GPA)
    b.ok(b.set_attributes(FREE_GPA - PAGE, 2 * PAGE, private=True))
    assert b.walk(FREE_GPA + PAGE)[1]


def test_attributes_change_after_the_invalidation(bench: Benches) -> None:
    """As posted with the FIXUPs: between the two, a fault still sees the old attributes and no
    invalidation in progress."""
    seen: list[tuple[bool, int]] = []

    class Watch(KvmMmu):
        __slots__ = ()

        def kvm_mmu_invalidate_end(self, kvm: Any) -> None:
            super().kvm_mmu_invalidate_end(kvm)
            private = self.host.main.kvm_mem_is_private(kvm, FREE)
            seen.append((private, kvm.mmu_invalidate_in_progress))

    b = make(bench, units=units(mmu=Watch))
    b.prefault(FREE_GPA)
    seen.clear()
    b.ok(b.set_attributes(FREE_GPA, PAGE, private=False))
    assert seen == [(True, 0)]


# Who holds a page


def test_pinned_page_stays_shared(bench: Benches) -> None:
    b = make(bench)
    gmem, inode = b.host.gmem, b.gmem.inode
    b.ok(b.set_attributes(FREE_GPA, 4 * PAGE, private=False))
    assert gmem.kvm_gmem_fault_user_mapping(inode, FREE + 2) > 0
    folio = gmem.pin_user_page(inode, FREE + 2)
    assert b.convert_gmem(FREE_GPA, 4 * PAGE, private=True) == (-EAGAIN, FREE_GPA + 2 * PAGE)
    gmem.unpin_user_page(inode, FREE + 2, folio)
    b.ok(b.convert_gmem(FREE_GPA, 4 * PAGE, private=True)[0])
    assert inode.user_mapped == set()
    assert FREE in inode.folios  # merged again
    b.vmm.teardown()
    assert b.texts() == []
    b.assert_nothing_left()


class NoRefcount(GuestMemfd):
    """Broken: references are not looked at."""

    __slots__ = ()

    def kvm_gmem_has_safe_refcount(self, inode: Any, start: int, nr_pages: int) -> int:
        return -1


def test_reference_check_is_what_keeps_it_shared(bench: Benches) -> None:
    b = make(bench, units=units(gmem=NoRefcount))
    gmem, inode = b.host.gmem, b.gmem.inode
    b.ok(b.set_attributes(FREE_GPA, 2 * PAGE, private=False))
    assert gmem.kvm_gmem_fault_user_mapping(inode, FREE) > 0
    gmem.pin_user_page(inode, FREE)
    b.ok(b.convert_gmem(FREE_GPA, PAGE, private=True)[0])  # the pin still reads it
    assert b.host.main.kvm_mem_is_private(b.kvm, FREE)


def test_host_maps_shared_pages_only(bench: Benches) -> None:
    b = make(bench)
    inode = b.gmem.inode
    assert b.host.gmem.kvm_gmem_fault_user_mapping(inode, FREE) == -13
    b.ok(b.set_attributes(FREE_GPA, PAGE, private=False))
    assert b.host.gmem.kvm_gmem_fault_user_mapping(inode, FREE) > 0
    assert b.host.gmem.kvm_gmem_fault_user_mapping(inode, FREE + 1) == -13


def test_pinned_page_keeps_its_huge_page_from_going_back(bench: Benches) -> None:
    """The pool gets the huge page, and gives up the reservation, with the last small page."""
    b = make(bench)
    gmem, inode = b.host.gmem, b.gmem.inode
    b.ok(b.set_attributes(FREE_GPA, PAGE, private=False))
    gmem.kvm_gmem_fault_user_mapping(inode, FREE)
    folio = gmem.pin_user_page(inode, FREE)
    assert gmem.kvm_gmem_fallocate(b.gmem, 3, FREE_GPA, MB2) == -EAGAIN
    b.vmm.teardown()
    assert pool(b) == (31, 31)
    gmem.unpin_user_page(inode, FREE, folio)
    assert pool(b) == (32, 0)
    b.assert_nothing_left()


@pytest.mark.parametrize(("offset", "size"), [(FREE_GPA + PAGE, MB2), (FREE_GPA, PAGE)])
def test_hole_of_less_than_a_huge_page_is_refused(bench: Benches, offset: int, size: int) -> None:
    b = make(bench)
    assert b.host.gmem.kvm_gmem_fallocate(b.gmem, 3, offset, size) == -EINVAL


def test_batches_end_at_huge_pages(bench: Benches) -> None:
    """The first failure ends it; what was converted stays so and `error_offset` says where."""
    b = make(bench)
    b.choices.wanted["alloc:gmem_attributes_maple"] = [0, 1]
    ret, where = b.convert_gmem(FREE_GPA + PAGE, 2 * MB2, private=False)
    assert (ret, where) == (-ENOMEM, FREE_GPA + MB2)
    is_private = b.host.main.kvm_mem_is_private
    assert not is_private(b.kvm, FREE + 511) and is_private(b.kvm, FREE + 512)
