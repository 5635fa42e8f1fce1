"""A page of guest_memfd fails: what memory_failure() keeps, and what never comes back.

Source: mm/memory-failure.c, and kvm_gmem_error_folio() at the base of v3.
"""

from collections.abc import Callable
from typing import Any

import pytest

from septum.abi.errno import EAGAIN, EHWPOISON
from septum.linux.kvm.gmem_range import MF_DELAYED, MF_IGNORED

Benches = Callable[..., Any]
PAGE = 4096
MB = 1 << 20
MB2 = 2 << 20
FREE_GPA = 32 << 20
FREE = FREE_GPA >> 12


def test_poison_unmaps_the_whole_folio(bench: Benches) -> None:
    b = bench()
    b.prefault(FREE_GPA)
    made = b.seamcalls(lambda: b.host.gmem.memory_failure(b.gmem.inode, FREE + 5))
    assert made["TDH.MEM.PAGE.REMOVE"] == 1
    assert b.walk(FREE_GPA) == (1, False)
    assert b.get_pfn(FREE)[0] == -EHWPOISON
    assert b.get_pfn(FREE + 512)[0] == 0
    assert b.host.gmem.memory_failure(b.gmem.inode, FREE + 4096) == MF_IGNORED


@pytest.mark.parametrize(("backing", "pages"), [("4k", 1), ("thp", 512), ("hugetlb-2m", 512)])
def test_memory_failure_keeps_a_reference(bench: Benches, backing: str, pages: int) -> None:
    """One beyond the page cache's. Of a folio that has failed before nothing is done."""
    b = bench(backing)
    b.prefault(FREE_GPA)
    inode = b.gmem.inode
    for result in (MF_DELAYED, MF_IGNORED):
        assert b.host.gmem.memory_failure(inode, FREE) == result
        assert inode.folios[FREE].refcount == pages + 1
    assert b.host.mm.state.poisoned == {inode.folios[FREE].pfn}


def test_small_page_that_failed_is_never_given_out_again(bench: Benches) -> None:
    """A hole takes it out of the page cache, and what is allocated there is good."""
    b = bench("4k")
    bad = b.get_pfn(FREE)[1]
    b.host.gmem.memory_failure(b.gmem.inode, FREE)
    b.ok(b.punch(FREE_GPA, PAGE))
    ret, pfn, _ = b.get_pfn(FREE)
    assert ret == 0 and pfn != bad
    b.vmm.teardown()
    assert b.texts() == []
    assert [pfn for pfn, _, site in b.leftovers() if site == "gmem_folio"] == [bad]


def test_page_that_leaves_the_file_meanwhile_is_never_given_out_again(bench: Benches) -> None:
    """A hole gets the folio's lock before memory_failure() does: nobody is told, and the frame is
    kept all the same."""
    b = bench("4k")
    bad = b.get_pfn(FREE)[1]
    gmem, inode = b.host.gmem, b.gmem.inode
    folio = inode.folios[FREE]
    gmem.folio_lock(folio)
    results: list[int] = []
    b.sim.spawn("mce", lambda: results.append(gmem.memory_failure(inode, FREE)))

    def hole() -> None:
        gmem.filemap_remove_folio(inode, FREE, folio)
        gmem.folio_unlock(folio)

    b.sim.spawn("hole", hole)
    b.sim.run()
    assert results == [MF_IGNORED]
    assert b.host.mm.state.poisoned == {bad} and folio.refcount == 1
    assert b.get_pfn(FREE)[1] != bad
    b.vmm.teardown()
    assert b.texts() == []


def test_huge_page_that_failed_stays_in_the_file_and_never_comes_to_its_pool(
    bench: Benches,
) -> None:
    """The hole's check of references finds that of memory_failure(), for good."""
    b = bench("hugetlb-2m")
    b.prefault(FREE_GPA)
    b.host.gmem.memory_failure(b.gmem.inode, FREE + 5)
    for _ in range(2):
        assert b.punch(FREE_GPA, MB2) == -EAGAIN
        assert b.get_pfn(FREE)[0] == -EHWPOISON
    pool = b.host.mm.state.pools[9]
    b.vmm.teardown()
    assert b.texts() == []
    # Of what the file reserved nothing is given up, either: the subpool waits for its page.
    assert pool.free_huge_pages == pool.max_huge_pages - 1
    assert pool.resv_huge_pages == (64 * MB >> 21) - 1


def test_conversion_of_a_failed_page_to_private_is_refused_for_good(bench: Benches) -> None:
    b = bench("hugetlb-2m", in_place=True, vm_memory_attributes=False)
    b.ok(b.set_attributes(FREE_GPA, 4 * PAGE, private=False))
    assert b.host.gmem.kvm_gmem_fault_user_mapping(b.gmem.inode, FREE + 2) > 0
    b.host.gmem.memory_failure(b.gmem.inode, FREE + 2)
    for _ in range(2):
        assert b.convert_gmem(FREE_GPA, 4 * PAGE, private=True) == (-EAGAIN, FREE_GPA + 2 * PAGE)
    b.ok(b.convert_gmem(FREE_GPA, 2 * PAGE, private=True)[0])


def test_split_of_a_failed_folio_spins_for_good(bench: Benches) -> None:
    """A WARN as it begins (a TODO), another as it waits, and the invalidate_lock stays taken."""
    b = bench("hugetlb-2m", in_place=True, vm_memory_attributes=False)
    b.prefault(FREE_GPA)
    b.host.gmem.memory_failure(b.gmem.inode, FREE + 5)
    done: list[object] = []
    b.sim.spawn("convert", lambda: done.append(b.set_attributes(FREE_GPA, PAGE, private=False)))
    b.sim.run()
    assert done == []
    assert [text.split("=")[0] for text in b.texts()] == [
        "WARN: a poisoned folio is split",
        "WARN: Spinning on folio",
        "no task can go on: convert waits for folio references",
    ]
    assert b.gmem.inode.invalidate_lock.writer is not None


def test_memory_failure_takes_the_page_from_user_space(bench: Benches) -> None:
    """hwpoison_user_mappings(), and VM_FAULT_HWPOISON from then on; neighbours stay."""
    b = bench("hugetlb-2m", in_place=True, vm_memory_attributes=False)
    gmem, inode = b.host.gmem, b.gmem.inode
    b.ok(b.set_attributes(FREE_GPA, 2 * PAGE, private=False))
    assert all(gmem.kvm_gmem_fault_user_mapping(inode, FREE + i) > 0 for i in (0, 1))
    gmem.memory_failure(inode, FREE)
    assert inode.user_mapped == {FREE + 1}
    assert gmem.kvm_gmem_fault_user_mapping(inode, FREE) == -EHWPOISON
    assert gmem.kvm_gmem_fault_user_mapping(inode, FREE + 1) > 0
    # The page cache's, and memory_failure()'s: none of user space's.
    assert inode.folios[FREE].refcount == 2
