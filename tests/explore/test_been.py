"""Where workers have been: what one has explored to the end no other enters, and what was found
below a state is found by whoever comes to it."""

import os
import pickle
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from septum.explore import explore
from septum.explore.exhaustive.graph import ANYTHING
from septum.explore.exhaustive.transitions import Transitions
from septum.explore.exhaustive.visited import Visit, Visited
from septum.explore.scenario import ScenarioSubject
from septum.explore.subject import UNBOUNDED, Options, Strategy, Subject
from septum.explore.toybox import LOST_UPDATE, dice_toy
from septum.explore.toys import Toy
from septum.explore.tracking.footprint import IS, IX, NOTHING, Footprints, Masks, S, X
from septum.explore.workers import been
from septum.explore.workers.been import FOUND, Been, Inbox, Outbox, is_through
from septum.explore.workers.exchange import Exchange, make_files
from septum.explore.workers.search import Job, JobResult, Searcher

pytestmark = pytest.mark.usefixtures("few_runs")

TASKS = (0, 1)


def knowing(locations: list[int]) -> Footprints:
    """Somebody to whom these locations turned out to be shared, in this order."""
    footprints = Footprints()
    for location in locations:
        for task in TASKS:
            context = footprints.context(task, frozenset(), frozenset())
            footprints.register(context, [location << 2 | X])
    return footprints


def means(masks: Masks, footprints: Footprints) -> list[set[int]]:
    """The locations of each of the masks."""
    return [{at for at, bit in footprints.bits.items() if bit & mask} for mask in masks]


@st.composite
def heard(draw: st.DrawFn) -> tuple[Footprints, Footprints, dict[int, Masks]]:
    """A teller, a hearer that knows the same locations and maybe more, and what was touched."""
    locations = draw(st.lists(st.integers(1, 1 << 40), min_size=1, max_size=12, unique=True))
    known = draw(st.integers(1, len(locations)))
    theirs, own = knowing(locations[:known]), knowing(draw(st.permutations(locations)))
    kinds = st.sampled_from([S, X, IX, IS])
    accesses = st.lists(st.tuples(st.sampled_from(locations[:known]), kinds))
    below = {task: theirs.masks([at << 2 | kind for at, kind in draw(accesses)]) for task in TASKS}
    return theirs, own, below


@given(heard())
def test_what_was_touched_is_told_by_location(
    drawn: tuple[Footprints, Footprints, dict[int, Masks]],
) -> None:
    """Whoever numbers locations in another order hears of the same ones."""
    theirs, own, below = drawn
    outbox, inbox = Outbox(0, theirs), Inbox(own)
    for key, sleep in ((11, ()), (12, (1,)), (13, ())):
        outbox.put(key, Visit(-1, 2, 0, frozenset(sleep), below))
    told: Been = pickle.loads(pickle.dumps(outbox.take()))
    inbox.hear(told)
    visits = dict(inbox.visits(told))
    assert sorted(visits) == [11, 12, 13]
    assert [visits[key][0].sleep for key in (11, 12)] == [frozenset(), {1}]
    assert visits[11][0].below.keys() == below.keys()
    for task, masks in visits[11][0].below.items():
        assert means(masks, own) == means(below[task], theirs)


def test_who_does_not_know_a_location_yet_does_not_take_over_what_touches_it() -> None:
    """It would not know what depends on it."""
    theirs = knowing([5, 6])
    outbox, inbox = Outbox(0, theirs), Inbox(knowing([5]))
    for key, at in ((1, 5), (2, 6)):
        outbox.put(key, Visit(-1, 0, 0, frozenset(), {0: theirs.masks([at << 2 | S])}))
    told = outbox.take()
    inbox.hear(told)
    assert [key for key, _ in inbox.visits(told)] == [1]


def test_numbers_go_on_in_what_is_told_later() -> None:
    """What bits and numbers stand for is told once."""
    theirs = knowing([5])
    outbox, inbox = Outbox(0, theirs), Inbox(knowing([7, 5]))
    ways = [Visit(-1, left, 0, frozenset(), {0: theirs.masks([5 << 2 | X])}) for left in (0, 1)]
    tells = []
    for key, way in ((1, ways[0]), (2, ways[1]), (3, ways[0])):
        outbox.put(key, way)
        tells.append(outbox.take())
    assert [len(told.hows) for told in tells] == [1, 1, 0]
    lefts = []
    for told in tells:
        inbox.hear(told)
        lefts += [visit[0].preemptions_left for _, visit in inbox.visits(told)]
    assert lefts == [0, 1, 0]


def test_what_stood_for_something_before_a_beginning_does_not_after_it() -> None:
    """Bits and numbers are given anew, though what is known to be shared may be the same."""
    theirs = knowing([5])
    outbox, inbox = Outbox(0, theirs), Inbox(knowing([7, 5]))
    lefts = []
    for left in (1, 2):
        outbox.put(left, Visit(-1, left, 0, frozenset(), {0: theirs.masks([5 << 2 | X])}))
        told = outbox.take()
        inbox.hear(told)
        lefts += [visit[0].preemptions_left for _, visit in inbox.visits(told)]
        outbox.begin()
    assert lefts == [1, 2]


def test_while_more_turns_out_to_be_shared_nothing_is_told() -> None:
    """It was explored without that; the tag would say that it was not."""
    footprints = knowing([5])
    files = make_files(1)
    exchange = Exchange(files, 0, footprints)
    visit = Visit(-1, 0, 0, frozenset(), {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(been, "TELL_AT", 1)
        assert footprints.news and exchange.tell_visit(1, visit)
        assert os.fstat(files[0].fileno()).st_size == 0
        footprints.forget_news()
        assert exchange.tell_visit(2, visit)
        assert os.fstat(files[0].fileno()).st_size > 0


@pytest.mark.parametrize(
    "below,told", [({0: NOTHING}, 1), ({0: ANYTHING}, 0), ({0: NOTHING, FOUND: NOTHING}, 0)]
)
def test_what_is_not_known_to_its_end_is_not_told(below: dict[int, Masks], told: int) -> None:
    outbox = Outbox(0, Footprints())
    outbox.put(1, Visit(-1, 0, 0, frozenset(), below))
    assert len(outbox) == told == is_through(below)


# Two workers


class Pair:
    """A worker, and another one that has begun as it had and knows what it knows of what is
    shared."""

    def __init__(self, subject: Subject) -> None:
        self.searcher = Searcher(subject, Options(failures=0, keep_going=True))
        self.searcher.prepare()
        self.searcher.do(Job(1, Strategy.EXHAUSTIVE, preemptions=UNBOUNDED))
        self.files = make_files(2)
        self.states: list[int] = []

    def work(self, index: int) -> JobResult:
        """The worker of this number begins, and goes through all."""
        searcher = self.searcher
        assert searcher.tracker is not None
        searcher.transitions = Transitions(searcher.tracker, True, keeps=False)
        searcher.exchange_by(self.files, index)
        result = searcher.do(Job(2 + index, Strategy.EXHAUSTIVE, preemptions=UNBOUNDED))
        assert result.complete and not result.note
        return result


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every state is told at once."""
    monkeypatch.setattr(been, "TELL_AT", 1)
    yield


RACE = ScenarioSubject("convert-against-fault-there", "v3", "end")


@pytest.mark.usefixtures("often")
def test_where_one_has_been_no_other_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of two workers that are given the same finds the states explored; one that is
    deaf explores them again."""
    pair = Pair(RACE)
    try:
        first, second = pair.work(0), pair.work(1)
        assert first.states > 400
        assert second.states < first.states / 4
        monkeypatch.setattr(Visited, "hear", lambda self, key, visit: None)
        assert pair.work(1).states == first.states
    finally:
        pair.searcher.close()


# What is wrong only after both have run, in one order.
BAD = Toy(
    "bad",
    [
        (("point",), ("write", 0, 1), ("read", 1), ("point",)),
        (("write", 1, 1), ("point",), ("check", 0, 1)),
    ],
)


def kinds(result: JobResult) -> list[tuple[str, str]]:
    return [(found.finding.promise, found.finding.text) for found in result.found]


def takes_ends_for_good(below: dict[int, Masks]) -> bool:
    return all(masks[0] >= 0 for masks in below.values())


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("toy", [BAD, LOST_UPDATE], ids=["in a step", "at the end"])
def test_what_one_finds_the_other_finds_too(monkeypatch: pytest.MonkeyPatch, toy: Toy) -> None:
    """The answer does not depend on who was where first. One that tells of states below which ends
    are wrong keeps that from the other."""
    pair = Pair(toy)
    try:
        found = [(kinds(result), result.found[0].answers) for result in map(pair.work, (0, 1))]
        assert found[0][0] and found[0] == found[1]
        monkeypatch.setattr(been, "is_through", takes_ends_for_good)
        pair.files = make_files(2)
        assert kinds(pair.work(0))
        assert bool(kinds(pair.work(1))) is (toy is BAD)
    finally:
        pair.searcher.close()


def answer(subject: Subject, workers: int, preemptions: int | None) -> tuple[object, ...]:
    """All that a search says that does not depend on the clock."""
    options = Options(
        strategy=Strategy.EXHAUSTIVE,
        preemptions=preemptions,
        failures=1,
        workers=workers,
        keep_going=True,
        shrink=False,
        max_points=2000,
    )
    verdict = explore(subject, options)
    found = [(example.finding, example.answers) for example in verdict.counterexamples]
    return verdict.outcome, verdict.why, found, sorted(verdict.coverage)


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("preemptions", [1, None])
def test_how_many_workers_there_are_changes_nothing(seed: int, preemptions: int | None) -> None:
    """They tell each other of every state: the answer is that of one."""
    toy = dice_toy(seed, 3, 4)
    alone = answer(toy, 1, preemptions)
    assert all(answer(toy, workers, preemptions) == alone for workers in (2, 3))


@pytest.mark.usefixtures("often")
def test_who_starts_over_while_the_others_tell_where_they_have_been() -> None:
    """Much turns out to be shared only while workers are at it."""
    subject = ScenarioSubject("accept-against-convert", "v3", "quiet")
    assert answer(subject, 2, 1) == answer(subject, 1, 1)
