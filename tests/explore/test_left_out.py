"""What a search would leave out if something small in it were otherwise: each by itself."""

from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from septum.explore.exhaustive import tails
from septum.explore.exhaustive.judged import JudgedEnds
from septum.explore.exhaustive.known import Step
from septum.explore.exhaustive.plain import PlainSteering
from septum.explore.exhaustive.tails import Tail
from septum.explore.exhaustive.transitions import Transitions
from septum.explore.runs.run import Runner
from septum.explore.runs.sampling import Length, Pct, RandomWalk
from septum.explore.states.fingerprint import Change, Seen
from septum.explore.states.stand import sign_of
from septum.explore.states.values import Contents
from septum.explore.subject import Options, Strategy
from septum.explore.toybox import FAILING, GRACE_PERIOD, LOST_UPDATE, PRODUCER_CONSUMER, RARE
from septum.explore.toys import Program, Toy
from septum.explore.tracking.footprint import (
    IS,
    IX,
    Footprints,
    S,
    X,
    add_to,
    depend,
    join,
    join_into,
)
from septum.explore.tracking.locations import EVERYWHERE, PART_LOCATION, made_names
from septum.explore.tracking.own import REUSED_MAX, UNKNOWN, OwnState
from septum.explore.tracking.slots import logging_slot
from septum.explore.tracking.steps import Steps
from septum.explore.tracking.tracked import PLAIN
from septum.explore.tracking.watched import Watched
from septum.explore.workers.exchange import make_files
from septum.explore.workers.search import Job, JobResult, Searcher
from septum.explore.workers.split import split
from septum.sim import Finding

CHOOSING = Toy(
    "choosing",
    [(("choose", 0, 3), ("fail", 1, 2), ("point",), ("point",)), (("write", 0, 1), ("fail", 2, 1))],
)

WAKING = Toy(
    "waking",
    [
        *[(("wait", 1, 1), ("point",), ("wait", 1, 2), ("point",), ("wait", 1, 3), ("point",))] * 2,
        (("point",), ("wake", 1)) * 3,
    ],
)


@pytest.mark.parametrize("toy", [CHOOSING, LOST_UPDATE, GRACE_PERIOD], ids=lambda toy: toy.name)
@pytest.mark.parametrize(("preemptions", "failures"), [(0, 0), (0, 1), (1, 0), (2, 2)])
def test_what_is_cut_to_the_end_is_every_schedule(
    toy: Toy, preemptions: int, failures: int
) -> None:
    """Subtrees that are cut as far as that goes are single schedules: those of the plain judge."""
    options = Options(preemptions=preemptions, failures=failures)
    schedules: list[list[int]] = []
    steering = PlainSteering(options)
    runner = Runner(toy, options)
    runner.verify_every = 1
    while True:
        schedules.append(list(runner.run(steering).answers))
        if not steering.advance():
            break
    assert split(runner, options, preemptions, 100_000) == sorted(schedules)


def states_of(ends: Iterable[int]) -> set[int]:
    """Where runs end, whether anything had failed or not: one that ends well need not be judged
    again where something had."""
    return {end if end >= 0 else ~end for end in ends}


@pytest.mark.parametrize("toy", [CHOOSING, PRODUCER_CONSUMER], ids=lambda toy: toy.name)
def test_subtrees_that_begin_after_somebody_ran_alone(toy: Toy) -> None:
    """Answers say nothing of who ran when no other was ready; a search comes to where they lead all
    the same, and all of these reach what the search of the whole reaches."""
    options = Options(preemptions=1, failures=1)
    searcher = Searcher(toy, options)
    try:
        assert searcher.do(Job(0, Strategy.EXHAUSTIVE, preemptions=1, failures=1)).complete
        transitions = searcher.transitions
        assert transitions is not None
        whole, reached = states_of(transitions.ends), set[int]()
        for prefix in split(Runner(toy, options), options, 1, 12):
            transitions.clear()
            job = Job(1, Strategy.EXHAUSTIVE, preemptions=1, failures=1, prefix=prefix)
            result = searcher.do(job)
            assert result.complete and not result.note, result.note
            reached |= states_of(transitions.ends)
        assert reached == whole
    finally:
        searcher.close()


ROUND: Program = (
    *(("point",), ("cut",), ("poke", 5), ("heed", 2)),
    *(("unless", 1, 1, -4), ("write", 0, 7)),
)
"""As long as a cell is not 1, by steps each of which stands elsewhere."""

GOING_ROUND = Toy(
    "going-round",
    [
        ROUND,
        (("append", 1), ("push", 1), ("append", 2), ("push", 2), ("write", 1, 1), ("write", 0, 3)),
        (("append", 3), ("append", 4)),
    ],
)


@pytest.mark.parametrize("preemptions", [1, 2])
def test_who_goes_round_by_steps_made_as_one(
    monkeypatch: pytest.MonkeyPatch, preemptions: int
) -> None:
    """Is put aside, and woken by whatever any of them looks at."""
    taken = 0
    fits = Tail.fits

    def counts(self: Tail, *args: Any) -> bool:
        nonlocal taken
        found = fits(self, *args)
        taken += found
        assert taken < 1000  # for ever
        return found

    def ends() -> int:
        searcher = Searcher(GOING_ROUND, Options(keep_going=True))
        try:
            result = searcher.do(Job(1, Strategy.EXHAUSTIVE, preemptions=preemptions))
            assert result.complete and not result.found and searcher.transitions is not None
            return len(searcher.transitions.ends)
        finally:
            searcher.close()

    monkeypatch.setattr(Tail, "fits", counts)
    by_tails = ends()
    assert taken > 10
    monkeypatch.setattr(tails, "TAIL_MIN", 1000)
    assert ends() == by_tails > 10


@pytest.mark.parametrize("make", [Pct, RandomWalk])
@pytest.mark.parametrize("bound", [0, 1, 2])
def test_what_is_drawn_is_within_the_bounds(make: type[Pct | RandomWalk], bound: int) -> None:
    """And comes to all of them. (Who is woken may preempt, whatever the change points are.)"""
    for toy, most in ((RARE, (bound, 0)), (WAKING, (bound, 0)), (FAILING, (None, min(bound, 1)))):
        options = Options(preemptions=most[0], failures=bound)
        runner = Runner(toy, options)
        runner.verify_every = 1
        runs = [runner.run(make(options, number, Length(12, 2))) for number in range(120)]
        if most[0] is not None:
            assert max(run.preemptions for run in runs) == most[0]
        assert max(run.failures for run in runs) == most[1]


def test_a_function_goes_by_all_that_it_has_taken_along() -> None:
    def made(held: int, given: int) -> Callable[[], object]:
        return lambda x=given: (x, held)

    def plain(given: int) -> Callable[[], object]:
        return lambda x=given: x

    of_value = Contents(lambda oid: 0).of_value
    assert of_value(made(1, 2)) == of_value(made(1, 2))
    assert len({of_value(made(held, given)) for held in (1, 2) for given in (1, 2)}) == 4
    assert of_value(plain(1)) != of_value(plain(2))


def test_who_has_something_that_cannot_be_told_stands_nowhere() -> None:
    """Until it is overwritten by what can be told, or is gone."""
    tracker: Any = SimpleNamespace(
        footprints=Footprints(),
        contents=SimpleNamespace(held=set()),
        names=SimpleNamespace(objects={}),
    )
    own = OwnState(tracker)
    own._put(1, 256, 7, False, False)
    assert own.look(1) is not None
    own._put(1, 512, UNKNOWN, False, False)
    assert own.look(1) is None
    own._put(1, 512, 9, False, False)
    told = own.look(1)
    assert told is not None and told.contents == {256: 7, 512: 9}
    own.begin()
    anew = own.look(1)
    assert anew is not None and not anew.contents and not anew.total


def test_who_held_locks_when_a_run_was_broken_off_holds_none_in_the_next() -> None:
    lock = object()
    tracker: Any = SimpleNamespace(
        footprints=Footprints(),
        names=SimpleNamespace(base={id(lock)}),
        sim=SimpleNamespace(current=SimpleNamespace(index=1)),
    )
    steps = Steps(tracker)
    steps.took(lock, True)
    assert steps._context(1).exclusive == {id(lock)}
    steps.begin()
    assert not steps._context(1).held and not steps._context(1).exclusive
    # Nor does who gave them back.
    steps.took(lock, False)
    assert steps._context(1).held == {id(lock)} and not steps._context(1).exclusive
    steps.drops(lock)
    assert not steps._context(1).held


def test_what_lacks_accesses_is_walked_no_more() -> None:
    """Steps in a row that are known as one were made of steps that are forgotten."""
    tracker: Any = SimpleNamespace(footprints=Footprints())
    transitions = Transitions(tracker, forgets=True, keeps=False)
    transitions.tails[(1, False, False, False), 5] = []
    transitions.drop({7})
    assert not transitions.tails


def test_all_that_promises_read_is_noted() -> None:
    """Whatever else they read in the same look."""
    tracker: Any = SimpleNamespace(
        footprints=Footprints(),
        names=SimpleNamespace(name_of=lambda oid: oid, class_at=lambda name: 0),
    )
    watched = Watched(tracker)
    parts = [PART_LOCATION + nr << 2 | S for nr in range(64)]
    watched.note([*parts, *[nr << 10 | S for nr in range(1, 9)]])
    assert watched._read == {nr << 8 for nr in range(1, 9)}


def test_what_was_taken_for_unread_is_read_once_promises_read_it() -> None:
    """And what was computed before counts no more."""
    tracker: Any = SimpleNamespace(
        footprints=Footprints(),
        lock_of={},
        names=SimpleNamespace(class_at=lambda name: 0),
        places=SimpleNamespace(is_in_parts=lambda location: False),
    )
    watched = Watched(tracker)
    assert not watched[512]
    watched.learn(512)
    assert watched[512]
    assert tracker.footprints.news == {EVERYWHERE}


class Holding:
    """Something with a slot."""

    __slots__ = ("held",)


@pytest.fixture
def logged() -> Iterator[Callable[..., list[int]]]:
    """Gives the kinds of the accesses of a slot that are logged, by what is done with it."""
    member = vars(Holding)["held"]
    tracker: Any = SimpleNamespace(
        log=[], leaks=PLAIN, changed={}, building=[0], names=SimpleNamespace(base=set())
    )

    def does(call: Callable[[Any], object], **how: bool) -> list[int]:
        tracker.log.clear()
        of = {"counting": False, "special": False, **how}
        slot = logging_slot(tracker, member, 3, **of)
        call(slot)
        assert {access >> 2 & 255 for access in tracker.log} <= {3}
        return [access & 3 for access in tracker.log]

    yield does


def test_who_gets_hold_of_a_plain_container_may_change_it(logged) -> None:  # type: ignore[no-untyped-def]
    """Where nothing else tells what is done to it."""
    of = Holding()
    for held, kind in ((5, S), ([5], X), ({5: 6}, X)):
        of.held = held  # type: ignore[attr-defined]
        assert logged(lambda slot: slot.fget(of)) == [kind]
        assert logged(lambda slot: slot.fget(of), special=True) == [S]
        assert logged(lambda slot: slot.fget(of), counting=True)[0] == (IS if kind == S else X)


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [(0, 4, IX), (8, 4, IX), (4, 8, IX), (4, 12, X), (0, 1, X), (1, 5, X), (6, 2, X), (4, 4, X)],
)
def test_shared_holders_commute_only_while_nobody_wants_it_alone(  # type: ignore[no-untyped-def]
    logged, old: int, new: int, kind: int
) -> None:
    of = Holding()
    for counting, told in ((True, kind), (False, X)):
        of.held = old  # type: ignore[attr-defined]
        assert logged(lambda slot: slot.fset(of, new), counting=counting) == [told]
        assert of.held == new  # type: ignore[attr-defined]


def test_which_names_are_never_given_again_is_told() -> None:
    """And not how many they are: two that differ in it would give others."""
    lasting = set()
    for names in ((1,), (2,), (1, 2), (3,), (1, 3)):
        own = OwnState(SimpleNamespace())  # type: ignore[arg-type]
        for nr in names:
            own._keep_for_good(made_names(1, 7) + nr)
        lasting.add(own._lasting[1])
    assert len(lasting) == 5


def test_what_a_step_makes_is_not_forgotten_for_what_others_made_before() -> None:
    """What was made in steps that were made again is looked at first."""
    made: list[list[int]] = []
    objects = {name: object() for name in (1, 2, 3)}
    tracker: Any = SimpleNamespace(
        footprints=Footprints(),
        names=SimpleNamespace(objects=objects, name_of=lambda oid: 0),
        own=SimpleNamespace(note=lambda accesses: made.append([a >> 10 for a in accesses])),
        places=SimpleNamespace(in_class=lambda kind: (0,)),
        making=SimpleNamespace(look=lambda name, obj: None),
    )
    steps = Steps(tracker)
    steps.fresh += [1, 2]
    steps.passes(1)
    steps.fresh += [2, 3]  # the number of the second was given again
    steps._catch_up()
    assert made == [[], [1]]
    assert steps.fresh == [2, 3]


def test_who_writes_all_of_what_is_its_own_writes_all_parts() -> None:
    whole, parts = 256, (PART_LOCATION | 1, PART_LOCATION | 2, PART_LOCATION | 3)
    footprints = Footprints()
    for part, within in zip(parts, (whole, whole, parts[0]), strict=True):
        footprints.add_part(within, part)
    nothing: frozenset[int] = frozenset()
    mine = [at << 2 | X for at in (whole, *parts)]
    footprints.register(footprints.context(1, nothing, nothing), mine)
    contents = dict.fromkeys((whole, *parts), 5)
    tracker: Any = SimpleNamespace(
        footprints=footprints,
        contents=SimpleNamespace(held=set(), named=set()),
        content_of=lambda location: contents[location],
        may_have_parts=lambda location: location in footprints.parts,
        watched=dict.fromkeys(contents, False),
    )
    own = OwnState(tracker)
    own.note(mine)
    contents.update(dict.fromkeys(parts, 6))
    own.note([whole << 2 | X])
    noted = own._world[1].by_location
    assert noted == {at: sign_of(at, content) for at, content in contents.items()}


def test_who_starts_over_tells_no_more_of_what_lacks_something() -> None:
    """Nor is it taken over by those who know better, or who do not."""
    searcher = Searcher(LOST_UPDATE, Options())
    try:
        searcher.prepare()
        files = make_files(2)
        searcher.exchange_by(files, 0)
        transitions, tracker = searcher.transitions, searcher.tracker
        assert transitions is not None and tracker is not None
        exchange = transitions.exchange
        assert exchange is not None
        searcher.do(Job(1, Strategy.EXHAUSTIVE, preemptions=0))
        tag = exchange.tag
        exchange.tell_end(1, None)
        tracker.footprints.news.add(next(iter(tracker.footprints.bits)))
        searcher._start_over(transitions)
        assert exchange.tag != tag
        assert not (exchange._steps or exchange._ends or exchange._looks or exchange._visits)
    finally:
        searcher.close()


def test_steps_made_as_one_leave_what_the_last_of_them_left() -> None:
    made: list[Step] = []
    for writes, digests in (
        (((0, 1, 5), (1, 2, 6), (1, 3, 7)), ((9, 2),)),
        (((0, 1, 8), (1, 2, None), (1, 4, 9)), ((9, 3), (8, -1))),
    ):
        step = Step(Seen(frozenset(), frozenset(), ()), 1, ())
        step.change = Change(writes, (), ())
        step.change.digests = digests
        made.append(step)
    change = tails._change(made)
    assert dict(change.digests) == {9: 5, 8: -1}
    assert set(change.writes) == {(0, 1, 8), (1, 2, None), (1, 3, 7), (1, 4, 9)}


def test_an_end_after_a_failure_is_judged_by_itself() -> None:
    """Unless nothing breaks in it without one: then nothing does."""
    finding = Finding("toy", "it breaks", "end", "t0", 0)
    for alone in (None, finding):
        ends = JudgedEnds()
        assert not ends.knows(7, False) and not ends.knows(7, True)
        ends.add(7, False, alone)
        assert ends.knows(7, False) and ends.finding(7, False) is alone
        assert ends.knows(7, True) == (alone is None)
        ends.add(7, True, finding)
        assert ends.knows(7, True) and ends.finding(7, True) is finding
        assert ends.finding(7, False) is alone
    ends = JudgedEnds()
    ends.add(7, True, None)
    assert ends.knows(7, True) and not ends.knows(7, False)


KINDS = (S, X, IX, IS)
MEET = {(S, X), (S, IX), (X, X), (X, IX), (X, IS)}
"""Kinds of accesses that do not commute."""


def test_steps_depend_by_the_kinds_of_their_accesses() -> None:
    """Whatever else they touch: several together depend on all that any of them depends on."""
    footprints = Footprints()
    places = (1, 2)
    nothing: frozenset[int] = frozenset()
    for task in (1, 2):
        context = footprints.context(task, nothing, nothing)
        footprints.register(context, [at << 2 | kind for at in places for kind in KINDS])
    accesses = [(at, kind) for at in places for kind in KINDS]
    masks = {one: footprints.masks([one[0] << 2 | one[1]]) for one in accesses}
    dependent = {
        (a, b): a[0] == b[0] and ((a[1], b[1]) in MEET or (b[1], a[1]) in MEET)
        for a in accesses
        for b in accesses
    }
    for a, b in dependent:
        assert depend(masks[a], masks[b]) == dependent[a, b], (a, b)
        for c in accesses:
            either = dependent[a, c] or dependent[b, c]
            assert depend(join(masks[a], masks[b]), masks[c]) == either
            assert depend(masks[c], join(masks[a], masks[b])) == either
            total = {1: masks[a]}
            add_to(total, 1, masks[b])
            add_to(total, 2, masks[c])
            assert total == {1: join(masks[a], masks[b]), 2: masks[c]}
            join_into(total, {1: masks[c], 3: masks[a]})
            assert depend(total[1], masks[c]) == (either or dependent[c, c])
            assert total[3] == masks[a]


def searched(toy: Toy, options: Options, schedules_max: int = 0) -> JobResult:
    searcher = Searcher(toy, options)
    try:
        job = Job(1, Strategy.EXHAUSTIVE, preemptions=1, schedules_max=schedules_max)
        return searcher.do(job)
    finally:
        searcher.close()


@pytest.mark.parametrize("most", [1, 2])
def test_a_search_that_is_not_through_is_not_complete(most: int) -> None:
    result = searched(GRACE_PERIOD, Options(), most)
    assert not result.complete and result.schedules == most
    assert searched(GRACE_PERIOD, Options()).complete


def test_names_that_are_used_up_are_told() -> None:
    """Beyond so many of one class none is given again, and that counts."""
    own = OwnState(SimpleNamespace())  # type: ignore[arg-type]
    names = [own.name_for(1, 7) for _ in range(REUSED_MAX)]
    assert not own._lasting
    lasting = []
    for _ in range(3):
        names.append(own.name_for(1, 7))
        lasting.append(own._lasting[1])
    assert len(set(names)) == REUSED_MAX + 3 and len({0, *lasting}) == 4
