"""The page allocator: accounting to the last page, joining, named failures, folios."""

from collections.abc import Callable
from typing import Any

import pytest

from septum.linux.host import Host
from septum.linux.mm.state import free_regions
from septum.machine import Machine, MachineConfig, Tdmr
from septum.sim import Schedule, Sim

GB = 1 << 30
MB = 1 << 20


class FailNamed(Schedule):
    """Lets the choice points of `names` come out as 1."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def pick(self, n: int, forced: bool) -> int:
        return 0

    def choose(self, name: str, n: int) -> int:
        return int(name in self.names)

    def spec(self) -> tuple[str, int]:
        return ("fail", 0)


def make_host(schedule: Schedule | None = None, reserved: tuple[tuple[int, int], ...] = ()) -> Host:
    tdmr = Tdmr(4 * GB, 2 * GB, reserved, GB, GB + 64 * MB, GB + 512 * MB)
    return Host(Machine(Sim(schedule), MachineConfig(tdmrs=(tdmr,))))


def test_regions_leave_reserved_areas_out() -> None:
    host = make_host(reserved=((0, MB), (GB, 4096)))
    assert free_regions(host.machine.config) == [
        ((4 * GB + MB) >> 12, (5 * GB) >> 12),
        ((5 * GB + 4096) >> 12, (6 * GB) >> 12),
    ]
    assert host.mm.nr_free_pages == (2 * GB - MB - 4096) >> 12


def test_everything_can_be_taken_and_comes_back_whole() -> None:
    mm = make_host().mm
    assert len(mm.state.free_1g) == 2
    pages = []
    while (pfn := mm.alloc_page("test")) is not None:
        pages.append(pfn)
        if len(pages) == 1000:
            break
    huge = []
    while (folio := mm.alloc_folio(9, "test")) is not None:
        huge.append(folio)
    assert len({f.pfn for f in huge}) == len(huge) == 1024 - 2
    assert mm.nr_free_pages == 1024 - 1000
    assert sum(n for _, n, _ in mm.outstanding()) == 2 * GB // 4096 - 24
    for pfn in pages:
        mm.free_page(pfn)
    for folio in huge:
        mm.folio_put(folio)
    mm.state.pcp.drain_all()
    assert sorted(mm.state.free_1g) == [4 * GB >> 12, 5 * GB >> 12]
    assert mm.nr_free_pages == mm.state.nr_total_pages and not list(mm.outstanding())


def test_gigabyte_folios() -> None:
    mm = make_host().mm
    folio = mm.alloc_folio(18, "test")
    assert folio is not None and folio.nr_pages == 1 << 18
    assert mm.page_folio(folio.pfn + 12345) is folio
    mm.folio_put(folio)
    assert mm.nr_free_pages == mm.state.nr_total_pages


@pytest.mark.parametrize("free_twice", ["page", "folio", "part"])
def test_double_free_is_found(free_twice: str) -> None:
    host = make_host()
    mm = host.mm
    if free_twice == "page":
        pfn = mm.alloc_page("test")
        assert pfn is not None
        mm.free_page(pfn)
        mm.free_page(pfn)
    else:
        folio = mm.alloc_folio(9, "test")
        assert folio is not None
        if free_twice == "folio":
            mm.free_folio(folio)
            mm.free_folio(folio)
        else:
            folio.refcount = 513
            assert mm.split_folio(folio, "test")
            mm.free_page(folio.pfn + 1)
            mm.free_page(folio.pfn + 1)
    assert ["bad page state" in f.text for f in host.sim.findings] == [True]


def test_a_reference_too_many_given_back_is_found() -> None:
    host = make_host()
    folio = host.mm.alloc_folio(9, "test")
    assert folio is not None
    host.mm.folio_put(folio)
    host.mm.folio_put(folio)
    assert folio.refcount == 0
    assert ["bad page state" in f.text for f in host.sim.findings] == [True]


def test_who_has_a_page_is_known() -> None:
    mm = make_host().mm
    page = mm.alloc_page("test")
    small, huge, split, giga = (mm.alloc_folio(order, "test") for order in (0, 9, 9, 18))
    assert page is not None and small and huge and split and giga
    split.refcount = 513
    assert mm.split_folio(split, "test")
    mm.free_page(split.pfn + 3)
    for pfn in (page, small.pfn, huge.pfn + 511, split.pfn + 2, giga.pfn + 1000):
        assert mm.is_allocated(pfn)
    mm.free_page(page)
    for folio in (small, huge, giga):
        mm.folio_put(folio)
    for pfn in (page, small.pfn, huge.pfn + 511, split.pfn + 3, giga.pfn + 1000):
        assert not mm.is_allocated(pfn)


def test_leak_is_listed_with_its_site() -> None:
    mm = make_host().mm
    pfn = mm.alloc_page("tdx_vcpu_create")
    assert list(mm.outstanding()) == [(pfn, 1, "tdx_vcpu_create")]


def test_failures_are_by_site() -> None:
    mm = make_host(FailNamed("alloc:bad")).mm
    assert mm.alloc_page("bad") is None and mm.alloc_folio(9, "bad") is None
    assert mm.alloc_page("good") is not None


def test_split_folio_needs_to_be_alone() -> None:
    mm = make_host(FailNamed("alloc:short")).mm
    folio = mm.alloc_folio(9, "test")
    assert folio is not None
    folio.refcount = 514  # page cache, the caller's, and one more
    assert not mm.split_folio(folio, "test")
    folio.refcount = 513
    assert not mm.split_folio(folio, "short")
    assert mm.split_folio(folio, "test")
    for pfn in range(folio.pfn, folio.pfn + 512):
        assert sum(n for _, n, _ in mm.outstanding()) == folio.pfn + 512 - pfn
        mm.free_page(pfn)
    assert mm.nr_free_pages == mm.state.nr_total_pages


def test_hugetlb_pool_is_bounded_and_reserved() -> None:
    mm = make_host().mm
    assert mm.set_nr_hugepages(18, 5) == 2
    assert mm.set_nr_hugepages(9, 1) == 0  # nothing is left
    assert mm.hugepage_new_subpool(18, 3) is None
    first = mm.hugepage_new_subpool(18, 2)
    assert first is not None and mm.hugepage_new_subpool(18, 1) is None
    folio = mm.hugetlb_alloc_folio(first, "test")
    assert folio is not None
    mm.hugepage_put_subpool(first)
    assert mm.hugepage_new_subpool(18, 1) is None  # the reservation outlives the inode
    mm.folio_put(folio)
    assert mm.hugepage_new_subpool(18, 2) is not None
    assert mm.nr_free_pages == mm.state.nr_total_pages


def test_user_memory_appears_on_touch_and_goes() -> None:
    host = make_host()
    mm = host.mm
    address = mm.mmap(8 * MB)
    assert mm.nr_free_pages == mm.state.nr_total_pages
    pfn = mm.get_user_page(address + 5000)
    assert pfn is not None and mm.get_user_page(address + 4096) == pfn
    mm.madvise_dontneed(address, 8 * MB)
    assert mm.nr_free_pages == mm.state.nr_total_pages


def churn(host: Host, order: Callable[[list[int]], Any]) -> None:
    pages = [host.mm.alloc_page("test") for _ in range(2000)]
    taken = [int(p) for p in pages if p is not None]
    assert len(set(taken)) == 2000
    for pfn in order(taken):
        host.mm.free_page(pfn)


@pytest.mark.parametrize("order", [list, reversed, lambda p: p[::2] + p[1::2]])
def test_order_of_frees_does_not_matter(order: Callable[[list[int]], Any]) -> None:
    host = make_host()
    for _ in range(3):
        churn(host, order)
    host.mm.state.pcp.drain_all()
    assert len(host.mm.state.free_1g) == 2


def test_pages_come_from_lists_of_the_cpu() -> None:
    """What one CPU takes and frees does not change which pages another one gets."""
    first, second = make_host(), make_host()
    for host in (first, second):
        host.mm.state.pcp.refill_all()
    first.sim.current.cpu = 1
    pages = [first.mm.alloc_page("test") for _ in range(8)]
    for pfn in pages[:4]:
        assert pfn is not None
        first.mm.free_page(pfn)
    first.sim.current.cpu = 2
    second.sim.current.cpu = 2
    assert [first.mm.alloc_page("test") for _ in range(8)] == [
        second.mm.alloc_page("test") for _ in range(8)
    ]


def test_two_faults_of_one_user_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second finds the first's page, and frees its own: none is lost."""
    mm = make_host().mm
    free = mm.nr_free_pages
    alloc = type(mm).alloc_page
    others: list[object] = []

    def alloc_page(self: Any, site: str, atomic: bool = False) -> object:
        pfn = alloc(self, site, atomic)
        monkeypatch.undo()
        others.append(self.get_user_page(0x7000))
        return pfn

    monkeypatch.setattr(type(mm), "alloc_page", alloc_page)
    assert mm.get_user_page(0x7000) == others[0]
    assert mm.nr_free_pages == free - 1
