"""The two judges on what a run makes: locks and objects, and the names that they go by."""

from collections.abc import Callable
from pathlib import Path

import pytest

from septum.explore.exhaustive.learn import Recording
from septum.explore.exhaustive.transitions import chain_of
from septum.explore.scenario import ScenarioSubject
from septum.explore.states.stacks import Stacks, _codes, _Stack
from septum.explore.states.stand import Stand
from septum.explore.states.values import Contents
from septum.explore.subject import Options, Strategy
from septum.explore.toybox import (
    CUT_OFF,
    HANDED_ON,
    HELD,
    LISTS,
    MADE_OTHERWISE,
    NEW_GUARDS,
    NEW_LOCKS,
    NEW_QUEUE,
    USED_AGAIN,
)
from septum.explore.toys import Toy, ToyState
from septum.explore.tracking import own, special
from septum.explore.tracking.footprint import S
from septum.explore.tracking.making import Making
from septum.explore.tracking.names import Names
from septum.explore.tracking.own import OwnState
from septum.explore.tracking.steps import Steps
from septum.explore.workers.search import Job, Searcher
from septum.linux.kvm.types import Kvm
from septum.linux.srcu import Srcu
from septum.sim import Mutex, WaitQueue

pytestmark = pytest.mark.usefixtures("few_runs")

Compare = Callable[[Toy, int | None], tuple[int, int] | None]
OptionsFor = Callable[[Toy, int | None], Options]
NrMisplaced = Callable[[Toy, int], int]
Patch = Callable[[pytest.MonkeyPatch], None]
Notices = Callable[[Toy, Patch, int | None], None]


@pytest.fixture
def nr_misplaced(options_for: OptionsFor, monkeypatch: pytest.MonkeyPatch) -> NrMisplaced:
    """Counts in a search of a toy within so many preemptions: how often a task does not stand, or
    have, what steps say that were made again without a look at what they do; and whether the search
    saw so itself, and gave up."""

    def count(toy: Toy, preemptions: int) -> int:
        found = 0
        meet = Stacks.meet

        def met(self: Stacks) -> bool:
            nonlocal found
            same = meet(self)
            schedule = self._sim.schedule
            assert isinstance(schedule, Recording)
            tracker, transitions = schedule._tracker, schedule._transitions
            for task in self._sim.tasks:
                known = schedule.state.chain(task.index)
                if task.done or known in transitions._observed:
                    continue
                frames, own = self.frames(task), tracker.own.look(task.index)
                assert frames is not None and own is not None
                found += known != chain_of(task.index, Stand(frames, own, in_guest=False))
            return same

        with monkeypatch.context() as patch:
            patch.setitem(_codes, met.__code__, False)  # no frame of the model
            patch.setattr(Stacks, "meet", met)
            searcher = Searcher(toy, options_for(toy, preemptions))
            try:
                result = searcher.do(
                    Job(1, Strategy.EXHAUSTIVE, preemptions=preemptions, failures=1)
                )
            finally:
                searcher.close()
        return found + bool(result.note)

    return count


def forgets_who_has_it(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Contents, "of_lock", lambda self, lock: 0)


def takes_new_locks_for_one(patch: pytest.MonkeyPatch) -> None:
    def named_lock(self: Steps, lock: object) -> frozenset[int]:
        oid = id(lock)
        return frozenset((oid if oid in self._tracker.names.base else 0,))

    patch.setattr(Steps, "_named_lock", named_lock)


def waits_unheard(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(special, "waits", lambda told: S)


@pytest.mark.parametrize(
    "toy,breaks",
    [
        (NEW_LOCKS, forgets_who_has_it),
        (NEW_GUARDS, takes_new_locks_for_one),
        (NEW_QUEUE, waits_unheard),
    ],
)
def test_what_is_not_told_of_locks_that_a_run_makes_is_noticed(
    notices: Notices, toy: Toy, breaks: Patch
) -> None:
    """Who has one and who waits is told as of other locks; but they guard nothing."""
    notices(toy, breaks, 2)


class Everything(set[int]):
    """All numbers but those that were taken away."""

    def __init__(self) -> None:
        self.others: set[object] = set()

    def __contains__(self, number: object) -> bool:
        return number not in self.others

    def discard(self, number: object) -> None:
        self.others.add(number)


@pytest.mark.parametrize("kind", [Mutex, WaitQueue])
def test_a_new_lock_is_not_taken_for_what_was_where_it_is(
    options_for: OptionsFor, kind: type[Mutex | WaitQueue]
) -> None:
    """Of what is gone nobody asks. A lock that is made where such a thing was is told of."""
    searcher = Searcher(NEW_LOCKS, options_for(NEW_LOCKS, 1))
    try:
        searcher.prepare()
        assert searcher.tracker is not None
        searcher.tracker.names._gone = Everything()
        lock = kind(searcher.tracker.sim, "new")
        assert not searcher.tracker.names.is_gone(id(lock.waiters))
    finally:
        searcher.close()


@pytest.mark.parametrize("kind", [Mutex, WaitQueue])
def test_a_new_lock_and_its_waiters_are_one(
    options_for: OptionsFor, kind: type[Mutex | WaitQueue]
) -> None:
    """They go by one name, whose content is who has it and who waits; promises may look at locks.
    Nobody puts it back when the run is over, or keeps it alive until then."""
    searcher = Searcher(NEW_LOCKS, options_for(NEW_LOCKS, 1))
    try:
        searcher.prepare()
        tracker = searcher.tracker
        assert tracker is not None
        lock = kind(tracker.sim, "new")
        name = tracker.names.name_of(id(lock))
        assert name and name == tracker.names.name_of(id(lock.waiters))
        assert tracker.watched[name << 8] == (kind is Mutex)
        free = tracker.content_of(name << 8)
        lock.waiters.append(tracker.sim.current)
        assert free is not None and tracker.content_of(name << 8) not in (free, None)
        assert not list(tracker.contents.of_parts(lock))
        tracker.touch(lock)
        assert id(lock) not in tracker.touched
        tracker.names.unname(name)
        assert all(tracker.names.is_gone(id(part)) for part in (lock, lock.waiters))
        assert not tracker.names.name_of(id(lock.waiters))
    finally:
        searcher.close()


def hands_nothing_on(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(OwnState, "_named", lambda self, task, content: [])


def looks_no_further(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Contents, "of_parts", lambda self, obj: iter(()))


def keeps_frames(patch: pytest.MonkeyPatch) -> None:
    def leave(self: _Stack) -> None:
        frames, places = self.frames.copy(), self.places.copy()
        original(self)
        self.frames, self.places = frames, places

    original = _Stack.leave
    patch.setattr(_Stack, "leave", leave)


@pytest.mark.parametrize(
    "toy,breaks",
    [
        (HANDED_ON, hands_nothing_on),
        (CUT_OFF, looks_no_further),
        (USED_AGAIN, keeps_frames),
    ],
)
def test_a_name_follows_from_what_its_maker_did(
    nr_misplaced: NrMisplaced, monkeypatch: pytest.MonkeyPatch, toy: Toy, breaks: Patch
) -> None:
    """What a task made goes by the same name however others handle what they could get at, and
    whether or not its steps are looked at. That it does not is noticed."""
    for preemptions in (0, 1, 2):
        assert nr_misplaced(toy, preemptions) == 0
    with monkeypatch.context() as patch:
        breaks(patch)
        assert nr_misplaced(toy, 1) > 0


@pytest.mark.parametrize("toy,preemptions", [(HANDED_ON, 1), (HELD, 2)])
def test_two_objects_by_one_name_are_noticed(
    compare: Compare, monkeypatch: pytest.MonkeyPatch, toy: Toy, preemptions: int
) -> None:
    """A search that gives the numbers of dead objects again, whoever had them, comes to other
    ends."""
    hands_nothing_on(monkeypatch)
    with pytest.raises(AssertionError):
        compare(toy, preemptions)


@pytest.mark.parametrize("preemptions", (0, 1))
def test_what_an_object_was_made_with_counts_when_it_may_be_otherwise(
    compare: Compare, monkeypatch: pytest.MonkeyPatch, preemptions: int
) -> None:
    """Nobody writes to it later, so that reads of it are looked at only then. A search that never
    does misses ends."""
    compare(MADE_OTHERWISE, preemptions)
    monkeypatch.setattr(Making, "look", lambda *_: None)
    with pytest.raises(AssertionError):
        compare(MADE_OTHERWISE, preemptions)


@pytest.mark.parametrize("toy", LISTS, ids=lambda toy: toy.name)
@pytest.mark.parametrize("most", (0, 1))
def test_numbers_that_are_not_given_again(
    compare: Compare,
    nr_misplaced: NrMisplaced,
    monkeypatch: pytest.MonkeyPatch,
    toy: Toy,
    most: int,
) -> None:
    """Where no more than so many numbers of a class are given again, the same is found."""
    monkeypatch.setattr(own, "REUSED_MAX", most)
    assert nr_misplaced(toy, 2) == 0
    compare(toy, 2)


# Who takes a node out stands where it stood, whichever it took: the word of what is left does not.
TAKEN_OUT = Toy("taken-out", [(("pair", 3), ("pair", 4)), (("pop",),), (("pop",),)])


def test_contents_that_cannot_be_told(
    compare: Compare, nr_misplaced: NrMisplaced, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who wrote them, and what he saw, stands for them; and all that he has may be in them."""
    of_slot = Contents.of_slot

    def blind(self: Contents, obj: object, k: int) -> int | None:
        return None if isinstance(obj, ToyState) else of_slot(self, obj, k)

    monkeypatch.setattr(Contents, "of_slot", blind)
    for toy in (TAKEN_OUT, *LISTS):
        assert nr_misplaced(toy, 2) == 0
        compare(toy, 2)
    hands_nothing_on(monkeypatch)
    assert nr_misplaced(HANDED_ON, 2) > 0


REMEMBERED = """
summary = "A TD whose build fails, and another that is destroyed: promises remember both."
source = "KVM_TDX_INIT_VM, tdx_vm_destroy()"

[vm.a]
memory = "16K"
backing = "4k"

[vm.b]
later = true
memory = "16K"
backing = "4k"

[host]
one = ["build vm in b => any"]
two = ["destroy vm in a"]

[failures]
allow = ["alloc:tdcx"]
"""


def test_what_promises_remember_may_go_in_a_step_of_another_task(tmp_path: Path) -> None:
    """A TD goes by its TDR page, whoever makes it: that of one that was remembered until then is
    not taken to be free by what its maker did."""
    path = tmp_path / "remembered.toml"
    path.write_text(REMEMBERED, encoding="utf-8")
    searcher = Searcher(ScenarioSubject(str(path), "v3", "end"), Options(keep_going=True))
    try:
        result = searcher.do(Job(1, Strategy.EXHAUSTIVE, preemptions=0, failures=1))
    finally:
        searcher.close()
    assert result.complete and not result.note


def test_what_is_told_as_one_has_no_part_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The readers of an SRCU that a run makes are no list that its maker alone has: others come and
    go, and the maker would be said to stand elsewhere for that, for ever anew."""
    given = []
    give = Names.give

    def note(names: Names, obj: object, kind: object) -> None:
        given.append(getattr(kind, "__objclass__", None))
        give(names, obj, kind)

    monkeypatch.setattr(Names, "give", note)
    searcher = Searcher(ScenarioSubject("build-closed", "v3", "end"), Options(preemptions=0))
    try:
        assert searcher.do(Job(1, Strategy.EXHAUSTIVE)).complete
    finally:
        searcher.close()
    assert Kvm in given and Srcu not in given
