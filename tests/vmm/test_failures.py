"""Every allocation of a TD's life fails once: whatever then happens, nothing is left behind."""

from collections.abc import Callable
from typing import Any

import pytest

from septum.guest.script import AcceptRange, Convert, Verify, Write
from septum.linux.host import HostUnits, v3_units
from septum.linux.mm import Mm
from septum.sim import Schedule

Runs = Callable[..., Any]
PAGE = 4096
MB = 1 << 20
GPA = 32 << 20
SCRIPT = [
    AcceptRange(GPA),
    Write(GPA, 512),
    Convert(GPA + 4 * PAGE, 4 * PAGE),
    Verify(GPA, 512),
    Convert(GPA + 4 * PAGE, 4 * PAGE, shared=False),
    AcceptRange(GPA + 4 * PAGE, 4 * PAGE),
]
WORLDS: list[dict[str, Any]] = [
    {"backing": "thp", "dynamic_pamt": True},
    {"backing": "4k"},
    {"backing": "hugetlb-2m", "dynamic_pamt": True, "vm_memory_attributes": False},
]
# Their failure has consequences, as the tree has it: see the tests of guest_memfd.
SUSPECT = {
    "alloc:gmem_split_folio",
    "alloc:gmem_bindings",
    "alloc:hugetlb_restructuring_register",
}


class FailNth(Schedule):
    """The `nth` allocation at `site` fails. Counts allocations by site."""

    __slots__ = ("nth", "seen", "site")

    def __init__(self, site: str = "", nth: int = 0) -> None:
        self.site = site
        self.nth = nth
        self.seen: dict[str, int] = {}

    def pick(self, n: int, forced: bool) -> int:
        return 0

    def choose(self, name: str, n: int) -> int:
        if not name.startswith("alloc:"):
            return 0
        count = self.seen[name] = self.seen.get(name, 0) + 1
        return int(name == self.site and count == self.nth)

    def spec(self) -> tuple[str, int]:
        return ("fail", self.nth)


@pytest.mark.parametrize("options", WORLDS, ids=lambda o: o["backing"])
def test_nothing_is_left_whatever_fails(run: Runs, options: dict[str, Any]) -> None:
    counting = FailNth()
    run([SCRIPT], schedule=counting, **options).go().assert_clean()
    assert len(counting.seen) >= 14
    for site, total in sorted(counting.seen.items()):
        for nth in sorted({1, total}):
            r = run([SCRIPT], schedule=FailNth(site, nth), **options).go()
            r.assert_nothing_left()
            if site not in SUSPECT:
                assert r.texts() == [], f"{site} failed the {nth}th time"


class Leaks(Mm):
    """Broken: a page of a vCPU is not freed."""

    __slots__ = ()

    def free_page(self, pfn: int) -> None:
        if self.state.site_of.get(pfn) != "tdcx":
            super().free_page(pfn)


def test_a_leak_is_seen(run: Runs) -> None:
    v3 = v3_units()
    fields = {f: getattr(v3, f) for f in v3.__slots__} | {"mm": Leaks}
    r = run([SCRIPT], units=HostUnits(**fields)).go()
    assert {site for _, _, site in r.world.host.mm.outstanding()} == {"tdcx"}
