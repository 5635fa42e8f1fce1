"""What promises see in the middle of a run decides who may come first: both judges find the same
where promises look before the end, at what tasks do for a moment."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from judging import Searched, searched

from septum.explore.tracking.watched import Watched

if TYPE_CHECKING:
    from septum.checks.modes import Mode

pytestmark = pytest.mark.usefixtures("few_runs")

MINE = '''"""Two mistakes that nobody but a promise sees."""

from septum.linux.kvm.main import KvmMain
from septum.linux.ranges import range_store


class Flicker(KvmMain):
    """For a moment the attributes of the next page are wrong."""

    __slots__ = ()

    def kvm_vm_set_mem_attributes(self, kvm, start, end, attributes):
        if not attributes:
            kvm.slots_lock.lock()
            range_store(kvm.mem_attr_array, end, end + 1, 0)
            self.sim.point("cond_resched")
            range_store(kvm.mem_attr_array, end, end + 1, 8)
            kvm.slots_lock.unlock()
        return super().kvm_vm_set_mem_attributes(kvm, start, end, attributes)


class ZapFirst(KvmMain):
    """The range is unmapped before it is known whether the attributes can be stored."""

    __slots__ = ()

    def kvm_vm_set_mem_attributes(self, kvm, start, end, attributes):
        mmu = self.host.mmu
        kvm.slots_lock.lock()
        pre = self.kvm_pre_set_memory_attributes
        begin = mmu.kvm_mmu_invalidate_begin
        self.kvm_handle_gfn_range(kvm, start, end, attributes, pre, begin, True)
        kvm.mmu_lock.write_lock()
        mmu.kvm_mmu_invalidate_end(kvm)
        kvm.mmu_lock.write_unlock()
        kvm.slots_lock.unlock()
        return super().kvm_vm_set_mem_attributes(kvm, start, end, attributes)
'''
MEETS = """
summary = "One thread converts a page of the frame that another asks memory for."
setup = ["vcpu0: accept 2M frame 0"]
[vm]
ve = true
[kernel]
attributes = "vm"
[host]
convert = ["set-attributes page 1 to shared"]
other = ["allocate frame 0"]
"""
FAILS = """
summary = "A page is faulted in just before an operation begins that then fails."
setup = ["host: allocate frame 0 in a", "host: allocate frame 0 in b", "a.vcpu0: accept 4K page 0"]
[vm.a]
ve = true
[vm.b]
ve = true
[kernel]
attributes = "vm"
[host]
a = ["signal x", "allocate frame 0 in b", "set-attributes page 1 to shared in a => any"]
b = ["wait x", "prefault page 1 in a => any"]
[failures]
allow = ["alloc:mem_attr_array"]
"""
CASES: dict[str, tuple[str, str, "Mode"]] = {
    "quiet": (MEETS, "Flicker", "quiet"),
    "every-step": (MEETS, "Flicker", "every-step"),
    "end": (FAILS, "ZapFirst", "end"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scenarios and the designs, in files."""
    path = tmp_path_factory.mktemp("views")
    (path / "mine.py").write_text(MINE, encoding="utf-8")
    for case, (text, *_) in CASES.items():
        (path / f"{case}.toml").write_text(text, encoding="utf-8")
    return path


def said(folder: Path, case: str, limit: int = 0) -> Searched | None:
    """What the fast search says within one preemption and one failure; with a `limit` the plain
    one."""
    text, design, check = CASES[case]
    name, design = str(folder / f"{case}.toml"), f"{folder}/mine.py:{design}"
    failures = int("[failures]" in text)
    return searched(name, 1, failures, limit=limit, design=design, check=check)


@cache
def said_plainly(folder: Path, case: str) -> Searched | None:
    """What the plain search says, to which looks are nothing in any case."""
    return said(folder, case, limit=5000)


@pytest.mark.parametrize("case", CASES)
def test_both_judges_see_what_is_there_for_a_moment(case: str, folder: Path) -> None:
    """Whoever looks depends on whoever changes what is seen; and so does an operation that fails,
    as what it lost is what there was when it began."""
    fast, plain = said(folder, case), said_plainly(folder, case)
    assert fast and plain and fast.states
    assert fast.told == plain.told
    (found,) = {promise for promise, _ in plain.told.found}
    assert found == ("all-or-nothing" if case == "end" else "mapping-in-folio")


@pytest.mark.parametrize("case", CASES)
def test_a_search_to_which_looks_are_nothing_misses_it(
    case: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Watched, "count_views", lambda self: None)
    fast, plain = said(folder, case), said_plainly(folder, case)
    assert fast and plain
    assert not fast.told.found and plain.told.found


@pytest.mark.parametrize(
    ("name", "design", "check"),
    [
        ("convert-against-fault", "v3", "every-step"),
        ("accept-against-convert", "v3", "quiet"),
        ("convert-against-fault", "bug-edges-not-covered", "quiet"),
        ("convert-against-fault", "bug-edges-not-covered", "every-step"),
        ("fault-against-fault", "bug-not-frozen", "quiet"),
        ("fault-against-fault", "bug-not-frozen", "every-step"),
    ],
)
def test_the_judges_agree_where_promises_look(name: str, design: str, check: "Mode") -> None:
    plain = searched(name, 1, limit=20_000, design=design, check=check)
    fast = searched(name, 1, design=design, check=check)
    assert fast and plain
    assert fast.told == plain.told
    assert bool(plain.told.found) == (design != "v3")
