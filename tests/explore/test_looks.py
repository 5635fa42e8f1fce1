"""What a search shows to promises: all that there is to see on its way, by few runs.

One look judges all states that differ in nothing that a promise reads. The judge makes a real run
for every look.
"""

import time
from functools import cache

import pytest

from septum.checks.checker import Checker
from septum.explore.exhaustive.learn import Recording
from septum.explore.exhaustive.transitions import Transitions
from septum.explore.scenario import ScenarioSubject
from septum.explore.states.fingerprint import CHAINS, CONTENTS, SHOWN, Fingerprint
from septum.explore.subject import Options, Strategy
from septum.explore.tracking.footprint import Footprints
from septum.explore.tracking.locations import RESULTS
from septum.explore.tracking.steps import Steps
from septum.explore.workers.search import Job, Searcher
from septum.module.state import Td, VeInfo
from septum.sim import RwLock
from septum.sim.state import slots_of

pytestmark = pytest.mark.usefixtures("few_runs")

SCENARIO = "convert-against-accept-4k"
"""Where there is something that no run sees that is not made to look."""
FOLLOWED = "accept-4k-against-2m"
"""Where promises look in steps that are only followed, too."""
SECONDS = 120


def what_is_seen(checker: Checker) -> tuple[object, ...]:
    """What a promise might read: of vCPUs alone, of what tasks share, and of tables."""
    kvm = next(iter(checker.world.host.kvms.values()))
    td = next(iter(checker.world.module.tds.values()))
    return (
        checker.world.sim.current.name,
        tuple(vcpu.tdx.exit_reason for vcpu in kvm.vcpus),
        tuple(vcpu.tdx.exit_gpa for vcpu in kvm.vcpus),
        kvm.mmu_invalidate_in_progress,
        tuple(kvm.mem_attr_array),
        tuple(vcpu.mode for vcpu in kvm.vcpus),
        tuple(folio.refcount for folio in checker.world.host.mm.state.folios.values()),
        (td.td_epoch, tuple(td.refcount), td.chldcnt, td.epoch_lock.word),
        tuple((hpa, hash(tuple(t.values()))) for hpa, t in checker.world.module.tables.items()),
    )


def searched(see):  # type: ignore[no-untyped-def]
    """(what a search found that calls `see` in every look, how many runs it made)."""
    original = Checker._look
    # Nothing that random runs see beforehand counts, as they know no bound.
    on = []

    def looks(self, *args, **named):  # type: ignore[no-untyped-def]
        original(self, *args, **named)
        if on:
            see(self)

    patch = pytest.MonkeyPatch()
    patch.setattr(Checker, "_look", looks)
    searcher = Searcher(ScenarioSubject(SCENARIO, "v3", "quiet"), Options(keep_going=True))
    try:
        searcher.prepare()
        on.append(True)
        before = searcher.runner.nr_runs
        until = time.monotonic() + SECONDS
        result = searcher.do(Job(1, Strategy.EXHAUSTIVE, preemptions=1, until=until))
        assert searcher.transitions is not None
        # No known step came out otherwise.
        assert searcher.transitions.forgets == searcher.runner.subject.forgets
    finally:
        searcher.close()
        patch.undo()
    assert result.complete and not result.note
    return {f.finding.text for f in result.found}, searcher.runner.nr_runs - before


def all_seen() -> tuple[set[tuple[object, ...]], int]:
    """All that the looks of a search see, and how many runs it makes."""
    seen: set[tuple[object, ...]] = set()
    _, runs = searched(lambda checker: seen.add(what_is_seen(checker)))
    return seen, runs


@cache
def all_shown() -> tuple[set[tuple[object, ...]], int]:
    """The same, with nothing broken."""
    return all_seen()


class NeverLooked(dict):  # type: ignore[type-arg]
    """The looks of a search that forgets them at once."""

    def __contains__(self, look) -> bool:  # type: ignore[no-untyped-def]
        return False


class AlwaysLooked(dict):  # type: ignore[type-arg]
    """The looks of a search that makes no run to look."""

    def __contains__(self, look) -> bool:  # type: ignore[no-untyped-def]
        return True

    def __missing__(self, look) -> None:  # type: ignore[no-untyped-def]
        return None


def all_seen_with(kind) -> set[tuple[object, ...]]:  # type: ignore[no-untyped-def]
    """What looks see where a search remembers them so."""
    make = Transitions.__init__

    def remembers(self, *args, **named):  # type: ignore[no-untyped-def]
        make(self, *args, **named)
        self.looks = kind()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Transitions, "__init__", remembers)
        return all_seen()[0]


@pytest.fixture(scope="module")
def missed() -> set[tuple[object, ...]]:
    """What promises miss where no run is made to look."""
    return all_shown()[0] - all_seen_with(AlwaysLooked)


def test_promises_see_all_that_they_see_when_each_look_is_a_run() -> None:
    at_every_look = all_seen_with(NeverLooked)
    assert len(at_every_look) > 20
    assert at_every_look == all_shown()[0]


def test_runs_that_look_are_needed(missed) -> None:
    """Where no run is made to look, promises miss some."""
    assert missed


def test_what_promises_can_see_is_what_they_read() -> None:
    """Of a state: contents that looks read, whatever else there is."""
    state = Fingerprint(Footprints(), {5: True, 6: False})
    mark = state.mark()
    before = state.value, state.shown
    state.set(CONTENTS, 6, 1)
    state.set(CHAINS, 5, 1)
    state.set(CONTENTS, RESULTS | 5, 1)
    assert state.value != before[0]
    assert state.shown == before[1]
    state.set(CONTENTS, 5, 1)
    assert state.shown != before[1]
    seen = state.shown, state.value
    state.set(SHOWN, 1, 1)
    assert state.shown != seen[0]
    assert state.value == seen[1]
    state.rewind(mark)
    assert (state.value, state.shown) == before


def test_looks_tell_what_promises_read() -> None:
    searcher = Searcher(ScenarioSubject(SCENARIO, "v3", "quiet"), Options())
    try:
        searcher.prepare()
        tracker = searcher.tracker
        assert tracker is not None

        def location(kind: type, slot: str) -> int:
            obj = next(p.obj for p in searcher.runner.snapshot.parts if type(p.obj) is kind)
            return id(obj) << 8 | [name for name, _ in slots_of(kind)].index(slot)

        assert tracker.watched[location(Td, "td_epoch")]
        assert not tracker.watched[location(VeInfo, "gla")]
        locks = [lock for lock in tracker.lock_of.values() if isinstance(lock, RwLock)]
        assert locks and all(tracker.watched[id(lock.waiters) << 8] for lock in locks)
    finally:
        searcher.close()


def test_a_promise_that_breaks_in_one_state_alone_is_found(missed) -> None:
    """The step in which it breaks is known from other states, in which it holds: only a run that is
    made to look finds it."""
    wanted = min(missed, key=repr)

    def see(checker):  # type: ignore[no-untyped-def]
        if what_is_seen(checker) == wanted:
            checker.world.sim.find("mirror", "seen", where="test")

    assert searched(see)[0] == {"seen"}


def test_runs_are_not_made_to_look_where_nothing_looks(monkeypatch) -> None:
    """A step is one in which promises look when they do, and not when they did before in the same
    run."""
    runs = all_shown()[1]
    take = Steps.take

    def sticks(self, task):  # type: ignore[no-untyped-def]
        looked = self.looked
        taken = take(self, task)
        self.looked = looked
        return taken

    monkeypatch.setattr(Steps, "take", sticks)
    assert runs < all_seen()[1]


def test_looks_in_steps_that_are_followed_are_listened_to(monkeypatch) -> None:
    """What promises read there counts as read, too: so it is logged, though the step is known."""
    heard: list[bool] = []  # of every look of a run
    judged: list[bool] = []  # of those in steps that were only followed
    follows = Recording._note_known

    def tells(self, task, known):  # type: ignore[no-untyped-def]
        if self._at in self._looks_ahead:
            judged.append(heard[-1])
        follows(self, task, known)

    original = Checker._look

    def looks(self, *args, **named):  # type: ignore[no-untyped-def]
        if patches:
            heard.append(not patches[0].hushed)
        original(self, *args, **named)

    monkeypatch.setattr(Recording, "_note_known", tells)
    monkeypatch.setattr(Checker, "_look", looks)
    patches = []
    searcher = Searcher(ScenarioSubject(FOLLOWED, "v3", "quiet"), Options(keep_going=True))
    try:
        searcher.prepare()
        assert searcher.tracker is not None
        patches.append(searcher.tracker.patches)
        result = searcher.do(Job(1, Strategy.EXHAUSTIVE, preemptions=1))
        assert result.complete and not result.note
    finally:
        searcher.close()
    assert len(judged) > 20
    assert all(judged)
    assert not all(heard)
