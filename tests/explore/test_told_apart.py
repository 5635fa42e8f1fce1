"""What is told to other workers, and what tells states apart: small things, each by itself."""

from types import SimpleNamespace
from typing import Any

import pytest

from septum.abi.regs import Regs
from septum.explore import explore
from septum.explore.exhaustive import tails
from septum.explore.exhaustive.graph import _nr_failures
from septum.explore.exhaustive.known import Choice, Step
from septum.explore.exhaustive.real import RealRuns, Restart
from septum.explore.exhaustive.transitions import Transitions, Unfaithful
from septum.explore.states.fingerprint import CHAINS, CONTENTS, WHOLES, Change, Fingerprint, Seen
from septum.explore.states.stand import sign_of
from septum.explore.states.values import Contents
from septum.explore.subject import Options, Strategy
from septum.explore.toybox import GRACE_PERIOD, LOST_UPDATE
from septum.explore.toys import Toy
from septum.explore.tracking import special
from septum.explore.tracking.footprint import IX, Footprints, S, X
from septum.explore.tracking.locations import EVERYWHERE, PART_LOCATION, made_names
from septum.explore.tracking.own import OwnState, _Tally
from septum.explore.tracking.places import Places
from septum.explore.verdict import Outcome
from septum.explore.workers.exchange import make_files
from septum.explore.workers.search import Job, Searcher
from septum.sim.state import slots_of


def test_who_begins_anew_parts_company() -> None:
    """What it missed nobody knows: no other takes its steps over, nor it theirs."""
    tags = set()
    for index in (0, 1):
        searcher = Searcher(LOST_UPDATE, Options())
        try:
            searcher.prepare()
            searcher.exchange_by(make_files(2), index)
            transitions = searcher.transitions
            assert transitions is not None and transitions.exchange is not None
            tags.add(transitions.exchange.tag)
            searcher._begin_anew(transitions)
            tags.add(transitions.exchange.tag)
        finally:
            searcher.close()
    assert len(tags) >= 3


@pytest.mark.parametrize("strategy", [Strategy.PLAIN, Strategy.EXHAUSTIVE])
def test_where_runs_are_cut_a_search_is_not_complete(strategy: Strategy) -> None:
    long = Toy("long", [(("point",), ("write", 0, 1)) * 12, (("write", 0, 2), ("read", 0))])
    for most, through in ((20, False), (2000, True)):
        searcher = Searcher(long, Options(max_points=most, failures=0))
        try:
            result = searcher.do(Job(1, strategy, preemptions=0))
        finally:
            searcher.close()
        assert result.complete == through and bool(result.note) != through


def test_registers_go_by_all_that_they_hold() -> None:
    """Whether they are small numbers or not."""
    told = set()
    values = (0, 1, 2, -1, 1 << 63)
    for value in values:
        regs = Regs()
        regs.rcx = value
        told.add(Contents(lambda oid: 0).of_value(regs))
    assert len(told) == len(values)


def test_what_cannot_be_told_goes_by_the_step_that_left_it() -> None:
    """Of a whole, and of a part."""
    whole, part = 256, PART_LOCATION | 1
    tracker: Any = SimpleNamespace(is_as_built=lambda location, content: content == 5)
    told = set()
    for contents in ({whole: None}, {whole: None, part: None}, {whole: 5, part: 5}, {part: None}):
        for event in (98, 99):
            footprints = Footprints()
            footprints.add_part(whole, part)
            state = Fingerprint(footprints, dict.fromkeys((whole, part), True))
            state.write(dict.fromkeys(contents, X), event, contents, tracker)
            told.add(state.value)
            assert state.is_sound()
    assert len(told) == 7


def test_what_is_handed_on_is_of_the_world_with_all_that_stands_for_it() -> None:
    world, handed = _Tally(), _Tally()
    world.put(256, sign_of(256, 1), watched=True, silent=False)
    handed.put(512, sign_of(512, 2), watched=False, silent=True)
    handed.put(513, 0, watched=True, silent=False)
    both = _Tally()
    both.put(256, sign_of(256, 1), watched=True, silent=False)
    both.put(512, sign_of(512, 2), watched=False, silent=True)
    both.put(513, 0, watched=True, silent=False)
    world.add(handed)
    for name in _Tally.__slots__:
        assert getattr(world, name) == getattr(both, name), name


def test_whoever_has_a_lock_or_waits_for_it_is_told() -> None:
    tasks = [SimpleNamespace(index=index) for index in (1, 2)]
    free: dict[str, Any] = {"readers": [], "writer": None, "waiters": [], "nr_writers_waiting": 0}
    locks: list[dict[str, Any]] = [free, {**free, "nr_writers_waiting": 1}]
    for task in tasks:
        locks += [{**free, "writer": task}, {**free, "readers": [task]}]
        locks += [{**free, "waiters": [task]}]
    locks += [{**free, "readers": tasks}, {"owner": None, "waiters": tasks}]
    told = [Contents(lambda oid: 0).of_lock(SimpleNamespace(**lock)) for lock in locks]
    assert len(set(told)) == len(locks)


def test_what_a_step_writes_to_is_all_of_it_with_what_that_is_in() -> None:
    """So whoever looks at any of it is woken."""
    change = Change(
        ((CONTENTS, 1, 5), (CONTENTS, 11, 6), (CHAINS, 3, 7)),
        ((WHOLES, 21, 8), (CONTENTS, 2, 9)),
        (4,),
    )
    assert change.locations({11: 10, 21: 20, 20: 19}) == {1, 2, 4, 10, 11, 19, 20, 21}


def test_steps_made_as_one_rest_on_what_each_of_them_saw() -> None:
    """Of what one of them wrote, on what was there before."""
    state = Fingerprint(Footprints(), dict.fromkeys((1, 2, 3), True))
    state.set(CONTENTS, 1, 5)
    state.set(CONTENTS, 2, 6)
    first, second = [Step(Seen(frozenset(), frozenset(), ()), 1, ()) for _ in range(2)]
    first.seen, first.wrote = state.seen({1: 5, 3: 0}), frozenset((2,))
    second.seen = state.seen({2: 9, 1: 5})
    assert tails._seen([first, second], state) == state.seen({1: 5, 2: 6, 3: 0})


def test_when_all_is_forgotten_nothing_stands_for_anything() -> None:
    """Fingerprints of before do not compare with those that come."""
    tracker: Any = SimpleNamespace(footprints=Footprints())
    transitions = Transitions(tracker, forgets=True, keeps=False)
    for forget in (transitions.clear, lambda: transitions.drop({EVERYWHERE})):
        transitions.ends.add(7, False, None)
        transitions.looks[7, 8] = None
        transitions.tails[(1, False, False, False), 5] = []
        transitions._steps[1, 2, False] = []
        forget()
        assert not (transitions.ends or transitions.looks or transitions.tails)
        assert not (transitions._steps or transitions.visited)


def test_what_was_left_by_steps_that_were_followed_is_there() -> None:
    tracker: Any = SimpleNamespace(
        footprints=Footprints(),
        contents=SimpleNamespace(held=set()),
        names=SimpleNamespace(objects={}),
    )
    own = OwnState(tracker)
    own.follow([(1, 256, 7, False, False), (1, 512, 8, True, False)])
    own.follow([(1, 256, 9, False, False)])
    left = own.look(1)
    assert left is not None and left.contents == {256: 9, 512: 8}
    assert (left.total, left.shown) == (17, 8)


def test_shared_holders_of_a_plain_lock_meet_who_fails() -> None:
    tracker: Any = SimpleNamespace(log=[])
    told = {}
    lock = SimpleNamespace()
    for _, name, wrap in special._plain_locks(tracker):
        for result in (True, False, None):
            tracker.log[:] = [5]
            assert wrap(lambda lock, result=result: result)(lock) is result
            assert tracker.log[0] == 5 and tracker.log[1] >> 10 == id(lock)
            told[name, result is not False] = tracker.log[1] & 1023
    assert told == {
        ("try_sh", True): IX,
        ("try_sh", False): X,
        ("try_ex", True): X,
        ("try_ex", False): S,
        ("unlock_sh", True): IX,
        ("unlock_sh", False): IX,
        ("unlock_ex", True): X,
        ("unlock_ex", False): X,
    }


WIPED = Toy(
    "wiped",
    [
        (("fail", 0, 2), ("wipe", 1, 7), ("wbinvd",), ("append", 1)),
        (("append", 2), ("load", 1), ("append", 3), ("load", 2), ("append", 4)),
    ],
)


@pytest.mark.parametrize("preemptions", [1, 2])
def test_a_block_that_was_written_stays_so_when_all_is_flushed(compare, preemptions: int) -> None:  # type: ignore[no-untyped-def]
    """What is told of it as a whole is told of nothing in it."""
    assert compare(WIPED, preemptions) is not None


class Made:
    """What a run makes; runs are known to write to one of its slots after that."""

    __slots__ = ("kept", "put")


def test_slots_that_nobody_writes_to_are_looked_at_without_a_word() -> None:
    """Until somebody does."""
    name = made_names(1, 7) + 1
    members = {(Made, slot): member for slot, member in slots_of(Made)}
    tracker: Any = SimpleNamespace(
        members=members,
        logged={(Made, "put")},
        names=SimpleNamespace(objects={name: Made()}),
    )
    places = Places(tracker)
    at = {slot: name << 8 | k for k, (slot, _) in enumerate(slots_of(Made))}
    assert places.is_silent(at["kept"]) and not places.is_silent(at["put"])
    tracker.logged.add((Made, "kept"))
    places.forget()
    assert not places.is_silent(at["kept"])


class Expecting(Toy):
    """Something must break that does not."""

    __slots__ = ()

    must_break = ("toy",)

    def unbroken(self, broke: object) -> list[str]:
        return ["toy"]


def test_what_did_not_break_is_told_of_a_search_that_is_through_alone() -> None:
    subject = Expecting("expecting", GRACE_PERIOD.programs)
    told = {}
    for schedules in (1, None):
        options = Options(strategy=Strategy.EXHAUSTIVE, preemptions=1, schedules=schedules)
        verdict = explore(subject, options)
        told[verdict.complete] = verdict.outcome, verdict.unbroken
    assert told == {False: (Outcome.UNDETERMINED, []), True: (Outcome.BROKEN, ["toy"])}


def test_what_could_have_failed_and_did_not_is_no_failure() -> None:
    choices = [Choice(failure, 3, value) for failure in (True, False) for value in (0, 1, 2)]
    assert [_nr_failures((choice,)) for choice in choices] == [0, 1, 1, 0, 0, 0]
    assert _nr_failures(tuple(choices)) == 2 and _nr_failures(()) == 0


@pytest.mark.parametrize("shared", [False, True])
def test_what_comes_out_otherwise_is_passed_over_only_where_more_is_shared(shared: bool) -> None:
    """Then all begins again; else something is not seen that matters."""
    tracker: Any = SimpleNamespace(footprints=Footprints(), watched={})
    transitions = Transitions(tracker, forgets=True, keeps=False)

    def run(steering: object) -> Any:
        tracker.footprints.news |= {7} if shared else set()
        raise Unfaithful("it came out otherwise")

    runs = RealRuns(tracker, transitions, run, lambda run: True)
    state = Fingerprint(tracker.footprints, {})
    with pytest.raises(Restart if shared else Unfaithful):
        runs.real([], [], state, None)
