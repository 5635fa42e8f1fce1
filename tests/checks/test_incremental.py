"""Checks that look again only at what was written since find what they find from nothing.

What was written is known by `TablePage.written` and `PhysMem.nr_changes`. The same schedules are
judged by a checker that believes them, and by one for which everything was written again whenever
it asks, and which remembers nothing of what a table holds: both must look at the same moments and
find the same.
"""

from __future__ import annotations

from itertools import count

import pytest

from septum.abi.kvm import KVM_MEMORY_ATTRIBUTE_PRIVATE
from septum.abi.sept import BLOCKED, FREE_ENTRY, HP, LOCK
from septum.abi.spte import FROZEN_SPTE
from septum.checks import agree, cache, history, mirror, sept
from septum.checks.mapping_in_folio import MappingInFolio
from septum.explore import Options, Strategy
from septum.explore.runs.sampling import Pct, RandomWalk
from septum.explore.scenario import ScenarioSubject
from septum.explore.workers.search import Job, Searcher
from septum.linux.kvm.types import Folio
from septum.linux.ranges import range_store
from septum.machine import PhysMem, TablePage
from septum.machine.tables import Writes

RUNS = 6
FIRST = {"bug-module-entry-unflushed": 8}
"""Numbers of the runs: what is broken rarely is among them, too."""
REMEMBERED = (
    (sept, "parts_of"),
    (sept, "_is_unlike"),
    (mirror, "_count"),
    (agree, "compare"),
    (history, "states_of_few"),
    (cache, "_first_of_host"),
)
CASES = (
    ("write-against-convert", "bug-module-entry-unflushed", "tlb"),
    ("reference-per-vm", "v3-without-08", "mapping-in-folio"),
    ("reference-per-vm", "bug-not-frozen", "mirror"),
    ("reference-per-vm", "bug-no-track", "no-bug"),
    ("convert-one-page", "bug-module-demote-pending", "accept-once"),
    ("convert-one-page", "v3-without-11", "precise-zap"),
    ("dpamt-fault-against-fault", "bug-pamt-aug-failure", "pamt"),
    ("dpamt-slot-against-fault", "v3", ""),
)
"""Scenario, design, and what some of the runs break when every step is looked at."""


class GoesOn(ScenarioSubject):
    """A scenario whose runs go on after what they find."""

    __slots__ = ()

    def expects(self, finding):
        return True


def judged(scenario: str, design: str, mode: str) -> list[object]:
    """What a few random runs come to."""
    searcher = Searcher(GoesOn(scenario, design, mode), Options(preemptions=None, failures=1))
    searcher.runner.verify_every = 1  # each begins in the world as it was built
    ends: list[object] = []
    first = FIRST.get(design, 0)
    for number in range(first, first + RUNS):
        make = Pct if number % 2 else RandomWalk
        run = searcher.runner.run(make(searcher.options, number, searcher.length))
        checker = searcher.runner.built.world.checker
        findings = list(searcher.runner.built.sim.findings)
        looks = (checker.nr_looks, checker.nr_full_looks)
        ends.append((run.answers, findings, looks, sorted(checker.results.items())))
    searcher.close()
    return ends


@pytest.fixture
def from_nothing(monkeypatch):
    """Nothing is known to be as it was, and nothing is remembered."""

    def begin() -> None:
        now = count(1)
        never = property(lambda _: next(now), lambda _, __: None)
        monkeypatch.setattr(TablePage, "written", never)
        monkeypatch.setattr(Writes, "nr", never)
        monkeypatch.setattr(PhysMem, "nr_changes", never)
        for module, name in REMEMBERED:
            monkeypatch.setattr(module, name, getattr(module, name).__wrapped__)
        monkeypatch.setattr(MappingInFolio, "_judged_before", lambda *_: [])

    return begin


@pytest.mark.parametrize("mode", ["every-step", "quiet"])
@pytest.mark.parametrize(("scenario", "design", "promise"), CASES)
def test_the_same_is_found_from_nothing(scenario, design, promise, mode, from_nothing):
    believing = judged(scenario, design, mode)
    found = {finding.promise for _, findings, _, _ in believing for finding in findings}
    assert not promise or promise in found or mode == "quiet"
    from_nothing()
    assert believing == judged(scenario, design, mode)


def writes_unseen(page: TablePage, index: int, value: int) -> None:
    """A write that forgets to count itself."""
    written, nr = page.written, page.writes.nr
    page.set_entry(index, value)
    page.written, page.writes.nr = written, nr


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("side", ["mirror", "sept"])
@pytest.mark.parametrize("mode", ["quiet", "every-step"])
def test_an_entry_that_is_written(tiny, mode, side, counted):
    world = tiny()
    for gfn in range(4):
        world.map(gfn, 1)
    checker = world.checker(["mirror", "precise-zap"])
    checker.mode = mode
    look = checker.look_now if mode == "quiet" else checker._step
    checker.look_now("before")
    look("nothing was written")
    assert world.texts() == []
    table, spt, index = world.tables_for(2, 1)
    page, value = (spt, FROZEN_SPTE) if side == "mirror" else (table, FREE_ENTRY)
    write = TablePage.set_entry if counted else writes_unseen
    write(page, index, value)
    look("after")
    assert bool(world.texts()) == counted


@pytest.mark.parametrize("counted", [True, False])
def test_a_table_that_is_filled(tiny, counted, monkeypatch):
    world = tiny()
    world.map(0, 2)
    world.split(0)
    checker = world.checker(["mirror"])
    checker.look_now("before")
    table, _, _ = world.tables_for(2, 1)
    if not counted:
        monkeypatch.setattr(TablePage, "touch", lambda page: None)
    table.fill(FREE_ENTRY)
    checker.look_now("after")
    assert bool(world.texts()) == counted


@pytest.mark.parametrize("counted", [True, False])
def test_a_table_that_is_freed(tiny, counted, monkeypatch):
    world = tiny()
    world.map(0, 1)
    checker = world.checker(["precise-zap"])
    checker.look_now("before")
    table, _, _ = world.tables_for(0, 1)
    if not counted:
        monkeypatch.setattr(TablePage, "touch", lambda page: None)
    world.machine.free_table(table.pfn)
    checker.look_now("after")
    assert bool(world.texts()) == counted


@pytest.mark.parametrize("counted", [True, False])
def test_a_page_that_is_another_table_now(tiny, counted, monkeypatch):
    world = tiny()
    world.map(0, 1)
    checker = world.checker(["precise-zap"])
    checker.look_now("before")
    table, _, _ = world.tables_for(0, 1)
    if not counted:
        monkeypatch.setattr(TablePage, "touch", lambda page: None)
    world.machine.alloc_table(table.pfn, FREE_ENTRY)
    checker.look_now("after")
    assert bool(world.texts()) == counted


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("promise", ["guest-data", "cache"])
def test_a_frame_that_is_written(tiny, promise, counted):
    world = tiny()
    world.map(0, 2)
    world.memory.write(0, 512, 0)
    checker = world.checker([promise])
    checker.look_now("before")
    mem = world.machine.mem
    nr_changes = mem.nr_changes
    mem.write(world.pfn_of(7), 0, 0)  # by the host
    if not counted:
        mem.nr_changes = nr_changes
    checker.look_now("after")
    assert bool(world.texts()) == counted


@pytest.mark.parametrize("flush", ["page", "pages", "all"])
def test_a_flush_is_a_change(tiny, flush):
    mem = tiny().machine.mem
    mem.fill(0, 512, 0, 0)
    before = mem.nr_changes
    {"page": lambda: mem.wbinvd_page(3), "pages": lambda: mem.clflush(0, 512), "all": mem.wbinvd}[
        flush
    ]()
    assert (mem.nr_changes > before) and mem.dirty_of(3) == -1


@pytest.mark.parametrize("what", ["the table's record", "its S-EPT page", "its table", "the S-EPT"])
def test_what_leads_from_table_to_table(tiny, what):
    """KVM's records of its tables are no tables: they are looked at each time."""
    world = tiny()
    world.map(0, 1)
    checker = world.checker(["mirror"])
    checker.look_now("before")
    assert world.texts() == []
    _, spt, _ = world.tables_for(0, 1)
    sp = world.host.page_private[spt.pfn]
    if what == "the table's record":
        del world.host.page_private[spt.pfn]
    elif what == "its S-EPT page":
        sp.external_spt = None
    elif what == "its table":
        sp.spt = TablePage(spt.pfn, FREE_ENTRY)
    else:
        del world.machine.tables[sp.external_spt]
    checker.look_now("after")
    assert world.texts()


def changed_ground(world, what: str) -> None:
    """Something that the verdict about a leaf at GFN 512 rests on, and that is no page table."""
    folio = world.inode.folios[512]
    if what == "attributes of the VM":
        range_store(world.kvm.mem_attr_array, 600, 601, 0)
    elif what == "attributes of the file":
        range_store(world.inode.attributes, 600, 601, 0)
    elif what == "the folio's page":
        folio.pfn += 512
    elif what == "the folio's size":
        folio.order = 0
    elif what == "the folio":
        del world.inode.folios[512]
    elif what == "the slot's end":
        world.slot.npages = 700
    elif what == "the slot's offset":
        world.slot.gmem_pgoff = 512
    elif what == "the slot's file":
        world.slot.gmem_file = None
    else:
        world.kvm.memslots.clear()


GROUNDS = (
    *(
        "attributes of the VM",
        "attributes of the file",
        "the folio's page",
        "the folio's size",
        "the folio",
    ),
    *("the slot's end", "the slot's offset", "the slot's file", "the slot"),
)


@pytest.mark.parametrize("what", GROUNDS)
def test_what_a_leaf_rests_on_is_looked_at_each_time(tiny, what, monkeypatch):
    """Leaves that were judged are judged again when anything else has changed."""
    for believed in (False, True):
        world = tiny()
        world.map(512, 2)
        world.host.params.vm_memory_attributes = "VM" in what
        range_store(world.kvm.mem_attr_array, 0, 4096, KVM_MEMORY_ATTRIBUTE_PRIVATE)
        checker = world.checker(["mapping-in-folio"])
        checker.look_now("before")
        assert world.texts() == []
        if believed:
            monkeypatch.setattr(MappingInFolio, "_grounds", lambda *_: [])
            checker.look_now("before")
        changed_ground(world, what)
        checker.look_now("after")
        assert bool(world.texts()) != believed


@pytest.mark.parametrize("what", ["the slot", "the folio's size"])
def test_what_may_be_while_it_changes_may_not_stay(tiny, what):
    """The end of a change is a change, though leaves, slots and folios are as they were."""
    world = tiny()
    world.map(512, 2)
    lock = world.kvm.slots_lock if what == "the slot" else world.inode.invalidate_lock
    if what == "the slot":
        lock.lock()
        changed_ground(world, what)
    else:
        lock.down_write()
        folio = world.inode.folios.pop(512)
        world.inode.folios |= {512 + i: Folio(folio.pfn + i, 0) for i in range(512)}
    checker = world.checker(["mapping-in-folio"])
    checker.look_now("in the change")
    assert world.texts() == []
    if what == "the slot":
        lock.unlock()
    else:
        lock.up_write()
    checker.look_now("after")
    assert world.texts()


@pytest.mark.parametrize("mode", ["quiet", "every-step"])
@pytest.mark.parametrize("scenario", ["fault-against-fault", "dpamt-fault-against-fault"])
def test_a_look_leaves_no_trace_in_a_search(scenario, mode):
    """An exhaustive search watches what the model does with each object, also with those that are
    made in a run. What promises read of them is no use of them: the search ends."""
    options = Options(Strategy.EXHAUSTIVE, preemptions=0, keep_going=True)
    searcher = Searcher(ScenarioSubject(scenario, "v3", mode), options)
    try:
        result = searcher.do(Job(1, Strategy.EXHAUSTIVE, preemptions=0))
    finally:
        searcher.close()
    assert result.complete
    assert result.states > 50


@pytest.mark.parametrize(("change", "looked"), [(LOCK, False), (HP, False), (BLOCKED, True)])
def test_the_lock_of_an_entry_is_no_change(tiny, change, looked):
    """A step that only takes or drops the lock of an S-EPT entry is passed by; one that changes
    more of it is not, whether the table was held as a template or not."""
    for written_before in (False, True):
        world = tiny()
        world.map(0, 2)
        world.split(0)
        checker = world.checker()
        checker.mode = "every-step"
        table, _, index = world.tables_for(2, 1)
        if written_before:
            table.set_entry(index, table.entry(index) | HP)
            table.set_entry(index, table.entry(index) & ~HP)
        checker.look_now("before")
        for _ in range(2):
            nr = checker.nr_looks + checker.nr_full_looks
            table.set_entry(index, table.entry(index) ^ change)
            checker._step("after")
            assert checker.nr_looks + checker.nr_full_looks == nr + looked


@pytest.mark.parametrize("held_as", ["template", "array"])
def test_a_lock_is_no_write(tiny, held_as):
    """`set_lock` writes the entry and no other, and who looks on is not told."""
    table = tiny().machine.alloc_table(0x900, FREE_ENTRY)
    if held_as == "array":
        table.set_entry(0, FREE_ENTRY | HP)
    before = (table.written, table.writes.nr, list(table.values()))
    table.set_lock(7, FREE_ENTRY | LOCK)
    assert (table.written, table.writes.nr) == before[:2]
    assert table.entry(7) == FREE_ENTRY | LOCK
    table.set_lock(7, FREE_ENTRY)
    assert list(table.values()) == before[2]
