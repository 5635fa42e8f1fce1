"""What is told apart by its contents: states that differ must not come to the same number."""

import importlib
import itertools
import pkgutil
from collections.abc import Iterable
from sys import getrefcount
from types import SimpleNamespace
from typing import Any

import pytest

import septum
from septum.explore.exhaustive.transitions import Transitions
from septum.explore.scenario import ScenarioSubject
from septum.explore.states import fingerprint, stand
from septum.explore.states.fingerprint import CONTENTS, Fingerprint
from septum.explore.states.stacks import _codes
from septum.explore.states.values import Contents
from septum.explore.subject import Options, Strategy
from septum.explore.tracking import own, special
from septum.explore.tracking.footprint import Footprints, X
from septum.explore.tracking.locations import MADE_NAME
from septum.explore.tracking.mix import all_small, of_int, spread
from septum.explore.tracking.own import NOBODYS, OwnState, _Tally
from septum.explore.tracking.private import PRIVATE
from septum.explore.tracking.steps import Steps
from septum.explore.tracking.track import Tracker
from septum.explore.workers.search import Job, Searcher
from septum.machine import MachineConfig
from septum.machine.mem import GARBAGE, PhysMem
from septum.module.state import Vcpu
from septum.sim import Sim
from septum.sim.state import slots_of

LOCATIONS = tuple(0x7F0000000000 + 0x1000 * nr + 8 for nr in range(12))


def swapped(make) -> int:  # type: ignore[no-untyped-def]
    """How many pairs of locations may swap two small contents, and `make` does not see it."""
    return sum(
        make({a: x, b: y}) == make({a: y, b: x})
        for a, b in itertools.combinations(LOCATIONS, 2)
        for x, y in itertools.combinations(range(1, 6), 2)
    )


def state_of(contents: dict[int, int]) -> int:
    state = Fingerprint(Footprints(), dict.fromkeys(LOCATIONS, True))
    for location, content in contents.items():
        state.set(CONTENTS, location, content)
    return state.value


def seen_of(contents: dict[int, int]) -> int:
    state = Fingerprint(Footprints(), dict.fromkeys(LOCATIONS, True))
    for location, content in contents.items():
        state.set(CONTENTS, location, content)
    observed, _ = state.observe(dict.fromkeys(contents, 0))
    return observed


def own_of(contents: dict[int, int]) -> int:
    held = _Tally()
    for location, content in contents.items():
        held.put(location, own._sign(location, content), watched=True, silent=False)
    return held.total


@pytest.mark.parametrize("make", [state_of, seen_of, own_of])
def test_contents_that_swap_places_are_another_state(make, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Sums of plain hashes stay the same for two pairs in five; of those that are spread, for none.
    (Locations are ids of objects: adding up must not rest on their being far from each other.)"""
    assert swapped(make) == 0
    for module in (fingerprint, stand):
        monkeypatch.setattr(module, "spread", lambda number: number)
    assert swapped(make) > 0


def test_integers_are_told_apart() -> None:
    """-EPERM and -ENOENT, an entry with bit 63 and one with bit 2, a page that is read with the
    wrong key and one that holds 3: to Python's hashes they are the same."""
    for a, b in ((-1, -2), (1 << 63, 4), (1 << 62 | 1, 3), (GARBAGE, 3)):
        assert hash(a) == hash(b)
        assert of_int(a) != of_int(b)
        contents = Contents(lambda oid: 0)
        assert contents.of_value(a) != contents.of_value(b)
        assert contents.of_value((a, 0)) != contents.of_value((b, 0))
    assert of_int(5) == 5
    assert all_small((0, 5, True)) and not all_small((0, -1)) and not all_small((0, "a"))


def test_how_memory_is_kept_does_not_count() -> None:
    """A frame that nobody wrote to is one, whether the block that it is in has a record or not. And
    512 frames that are alike are, in one number or in 512."""
    contents = Contents(lambda oid: 0)
    mem = PhysMem(Sim(), MachineConfig())
    before = contents.of_part(mem, 513)
    mem.write(512, 0, 7)
    assert contents.of_part(mem, 513) == before
    assert contents.of_part(mem, 512) != before
    mem.fill(512, 512, 0, 0)
    filled = contents.of_part(mem, ~1)
    mem.write(600, 0, 7)
    assert contents.of_part(mem, ~1) != filled
    mem.write(600, 0, 0)
    assert contents.of_part(mem, ~1) == filled


def test_all_of_memory_and_each_block() -> None:
    """Promises see all of it: they look at blocks without a word. Block 0 goes by the number -1,
    block 1 by -2, which is the hash of both."""
    searcher = Searcher(ScenarioSubject("convert-against-write", "v3", "end"), Options())
    try:
        searcher.prepare()
        tracker = searcher.tracker
        assert tracker is not None
        [mem] = [obj for obj in tracker.names.of_base.values() if isinstance(obj, PhysMem)]
        assert tracker.watched[id(mem) << 8]
        assert tracker.part_location(mem, -1) != tracker.part_location(mem, -2)
    finally:
        searcher.close()


def stale_in(tracker: Tracker, task: int) -> list[int]:
    """Locations of one task alone whose contents are noted otherwise than they are."""
    held = tracker.own
    noted = [held._world.get(task)]
    noted += [
        held._objects.get(name)
        for name in held._alone.get(task, ())
        if getrefcount(tracker.names.objects[name]) > NOBODYS
    ]
    return [
        location
        for contents in noted
        if contents is not None
        for location, number in contents.by_location.items()
        if (now := tracker.content_of(location)) is not None
        and number != spread(hash((location, now)))
    ]


def count_stale(monkeypatch) -> int:  # type: ignore[no-untyped-def]
    """In a small search: how often something is, after a step."""
    found: list[int] = []
    record = Transitions.record

    def look(self, state, task, alone, choices, ends):  # type: ignore[no-untyped-def]
        step = record(self, state, task, alone, choices, ends)
        if step.chain != step.raw:  # else nobody asked
            found.extend(stale_in(self._tracker, task))
        return step

    with monkeypatch.context() as patch:
        patch.setitem(_codes, look.__code__, False)  # no frame of the model
        patch.setattr(Transitions, "record", look)
        searcher = Searcher(ScenarioSubject("convert-against-write", "v3", "end"), Options())
        try:
            result = searcher.do(Job(1, Strategy.EXHAUSTIVE, preemptions=0))
        finally:
            searcher.close()
    assert result.complete and not result.note
    return len(found)


def test_what_a_task_alone_has_is_noted_as_it_is(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """A whole of which a part was written since (a translation in one space of a TLB) is looked at
    again, too."""
    assert count_stale(monkeypatch) == 0
    monkeypatch.setattr(OwnState, "_look_again", lambda self, task: {})
    assert count_stale(monkeypatch) > 0


def test_elements_that_were_there_when_the_world_was_built_are_parts() -> None:
    """Whoever writes all of a dict writes them, too."""
    searcher = Searcher(ScenarioSubject("convert-against-write", "v3", "end"), Options())
    try:
        searcher.prepare()
        tracker = searcher.tracker
        assert tracker is not None
        loose = [
            location
            for (whole, _), location in tracker._parts.items()
            if whole in tracker.names.base and location not in tracker.footprints.whole_of
        ]
        assert tracker._parts and not loose
    finally:
        searcher.close()


def test_what_was_touched_goes_by_the_name_that_it_had_then() -> None:
    """Steps that were made again are told of later. Another object may be where the one that they
    touched was, or have its number: neither was touched by them."""
    noted: list[set[int]] = []
    names = {100: MADE_NAME | 1, 200: MADE_NAME | 2}
    tracker: Any = SimpleNamespace(
        names=SimpleNamespace(
            name_of=lambda oid: names.get(oid, 0), is_gone=lambda oid: False, objects={}
        ),
        footprints=Footprints(),
        own=SimpleNamespace(
            note=lambda accesses: noted.append({a >> 10 for a in accesses}), noted=[]
        ),
    )
    steps = Steps(tracker)
    steps.log += [100 << 10 | X, 200 << 10 | X]
    steps.passes(1)
    names[100] = MADE_NAME | 3  # another object at the same address
    steps.fresh.append(MADE_NAME | 2)  # and one that has the number of another
    steps.passes(1)
    steps._catch_up()
    assert set().union(*noted) == {MADE_NAME | 1}


def test_to_tell_a_content_is_no_access(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever tells what a step left looks at it as it is: that would else be told of the next
    step. In a world in which VMs are built, with locks and SRCUs of their own."""
    content_of = Tracker.content_of
    told = 0

    def look(self: Tracker, location: int) -> int | None:
        nonlocal told
        told += 1
        before = len(self.log)
        content = content_of(self, location)
        assert len(self.log) == before, hex(location)
        return content

    monkeypatch.setitem(_codes, look.__code__, False)  # no frame of the model
    monkeypatch.setattr(Tracker, "content_of", look)
    searcher = Searcher(ScenarioSubject("build-closed", "v3", "end"), Options())
    try:
        result = searcher.do(Job(1, Strategy.EXHAUSTIVE))
    finally:
        searcher.close()
    assert result.complete and not result.note and told > 1000


def test_that_something_lasts_counts_and_not_since_when() -> None:
    """Virtual time is no state, nor is a time that was kept."""
    vcpu = Vcpu(0x1000, None)  # type: ignore[arg-type]  # of no TD
    at = [name for name, _ in slots_of(Vcpu)].index("hp_busy_since_ns")
    told = []
    for since in (-1, 0, 5_000):
        vcpu.hp_busy_since_ns = since
        told.append(Contents(lambda oid: 0).of_slot(vcpu, at))
    assert told[0] != told[1] == told[2]


@pytest.mark.parametrize(
    ("table", "named"),
    [
        (special.STATISTICS, True),
        (special.COUNTING_WORDS, True),
        (special.HUSHABLE, True),
        (special.AS_ONE, False),
        (special.KEYED, False),
        (PRIVATE, False),
    ],
)
def test_what_is_told_of_by_name_exists(table: Iterable[object], named: bool) -> None:
    """A class or a slot that has another name now would silently count otherwise."""
    classes: dict[str, list[type]] = {}
    for module in pkgutil.walk_packages(septum.__path__, "septum."):
        if module.name == "septum.__main__":
            continue
        for kind in vars(importlib.import_module(module.name)).values():
            if isinstance(kind, type):
                classes.setdefault(kind.__name__, []).append(kind)
    missing = []
    for entry in table:
        name, slot = entry if isinstance(entry, tuple) else (entry, "")
        if not any(not slot or hasattr(kind, slot) for kind in classes.get(name, ())):
            missing.append(entry)
    assert not missing
