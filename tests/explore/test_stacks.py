"""Where a task stands, as a number: what tells two places apart, and what must not.

What the exhaustive search takes for the same place goes on alike: shown on frames, and by searches
that are told less and go by all that a task observed, which must reach the same ends.
"""

import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest

from septum.explore.exhaustive.known import Step
from septum.explore.exhaustive.transitions import Transitions, Unfaithful
from septum.explore.scenario import ScenarioSubject
from septum.explore.states.bytecode import place
from septum.explore.states.stacks import Stacks, _codes, _Stack, place_of
from septum.explore.states.stand import NOTHING_HELD, frame_at
from septum.explore.subject import Options, Strategy
from septum.explore.tracking.footprint import IX, Footprints, X
from septum.explore.tracking.own import OwnState
from septum.explore.workers.search import Job, Searcher

pytestmark = pytest.mark.usefixtures("few_runs")


def call(*_: object) -> None:
    """Stands for a scheduling point."""


def place_of_call(function):  # type: ignore[no-untyped-def]
    """The place where `function` waits for the first `call()` in its text."""
    import dis

    code = function.__code__
    names = [row for row in dis.get_instructions(code) if row.argval == "call"]
    calls = [
        row
        for row in dis.get_instructions(code)
        if row.opname == "CALL" and row.offset > names[0].offset
    ]
    return place(code, calls[0].offset)


def looks_at_one(a, b):  # type: ignore[no-untyped-def]
    call()
    return a


def sets_before_it_looks(a, b):  # type: ignore[no-untyped-def]
    call()
    b = a
    call(b)
    return b


def loops(items, a):  # type: ignore[no-untyped-def]
    for _ in items:
        call()
    return a


def loops_over_what_it_makes(items, a):  # type: ignore[no-untyped-def]
    for _ in list(items):
        call()
    return a


def loops_and_changes(items, a):  # type: ignore[no-untyped-def]
    for _ in items:
        call()
        items.append(a)


def loops_and_sets(items, a):  # type: ignore[no-untyped-def]
    for one in items:
        one = a
        call(one)


def loops_within(items, a):  # type: ignore[no-untyped-def]
    for one in items:
        for other in a:
            call(other)
            one.of(other)


def chooses(a, b):  # type: ignore[no-untyped-def]
    for _ in range(2):
        b = (a if b else b.of, call())
    return b


def goes_on_after_a_choice(items, a):  # type: ignore[no-untyped-def]
    for one in items:
        a = one and -one if a else f"{one}"
        first, second = (one, []) if a else (a, one)
        call(first, second)
    return a


def counts(first, nr):  # type: ignore[no-untyped-def]
    for at in range(first, first + nr):
        call()
        call(at)
    return first


def counts_to_what_changes(first, nr):  # type: ignore[no-untyped-def]
    for _ in range(first, nr):
        nr = 0
        call()


def counts_an_attribute(a):  # type: ignore[no-untyped-def]
    for _ in range(a.nr):
        call()


def adds_up(a):  # type: ignore[no-untyped-def]
    return a.nr + call()


def passes_on(a, b):  # type: ignore[no-untyped-def]
    return print(a, call())


def holds(lock, a):  # type: ignore[no-untyped-def]
    with lock.mutex:
        call()
    return a


def holds_what_is_another_now(lock, a):  # type: ignore[no-untyped-def]
    with lock.mutex, a.mutex:
        lock = a()
        a.of()
        call(lock)


def holds_what_others_may_set(lock, a):  # type: ignore[no-untyped-def]
    with lock.mutex:
        lock = a()
        call()
    return lambda: lock


def handles(a):  # type: ignore[no-untyped-def]
    try:
        return a
    except ValueError:
        call()


def looks_in_a_handler(a, b):  # type: ignore[no-untyped-def]
    try:
        call()
    except ValueError:
        return b
    return a


class Above:
    """A method that looks at its first argument without a name."""

    def goes_up(self, a):  # type: ignore[no-untyped-def]
        call()
        return super().goes_up(a)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("function", "hides", "live"),
    [
        (looks_at_one, False, {"a"}),
        (sets_before_it_looks, False, {"a"}),
        (loops, False, {"a"}),
        (loops_over_what_it_makes, True, {"a"}),  # how far the iterator is
        (loops_and_changes, True, {"a", "items"}),
        (loops_and_sets, True, {"a"}),
        (loops_within, False, {"a", "one", "other"}),
        (chooses, True, {"a", "_"}),  # which it was
        (goes_on_after_a_choice, False, {"a"}),
        (counts, False, {"first", "nr", "at"}),
        (counts_to_what_changes, True, set()),
        (counts_an_attribute, True, set()),
        (adds_up, True, {"a"}),  # what a.nr was
        (passes_on, False, {"a"}),
        (holds, False, {"lock", "a"}),
        (holds_what_is_another_now, True, {"a"}),
        (holds_what_others_may_set, True, {"lock"}),
        (looks_in_a_handler, False, {"a", "b"}),
        (Above.goes_up, False, {"self", "a", "__class__"}),
    ],
)
def test_a_frame_is_told_by_what_it_will_look_at(function, hides, live) -> None:
    found = place_of_call(function)
    assert found.hides == hides
    assert found.live == live


@pytest.mark.parametrize(
    ("function", "gone_through"),
    [
        (loops, {("items", "_")}),
        (loops_within, {("items", "one"), ("a", "other")}),
        (goes_on_after_a_choice, {("items", "one")}),
        (loops_over_what_it_makes, set()),
        (loops_and_changes, set()),
        (loops_and_sets, set()),
        (counts, set()),
    ],
)
def test_what_is_gone_through_is_known(function, gone_through) -> None:  # type: ignore[no-untyped-def]
    assert place_of_call(function).loops == gone_through


def test_what_an_exception_handler_holds_is_not_told() -> None:
    assert place_of_call(handles).hides


def test_who_asks_a_generator_again_has_run() -> None:
    """Its frame lasts from one value to the next; that of its caller must be told anew."""
    stack = _Stack()
    told = []

    def stop():  # type: ignore[no-untyped-def]
        stack.now(sys._getframe(), 1)
        told.append({standing.frame.f_code.co_name: standing for standing in stack.frames})

    def values():  # type: ignore[no-untyped-def]
        stop()
        stop()
        yield 1
        stop()

    def asks():  # type: ignore[no-untyped-def]
        total = 0
        for value in values():
            total += value

    asks()
    assert told[0]["asks"].frame is told[2]["asks"].frame
    assert told[1]["asks"] is not told[2]["asks"]


def search(name: str) -> None:
    """Everything in a scenario within one preemption."""
    searcher = Searcher(ScenarioSubject(name, "v3", "quiet"), Options(keep_going=True))
    try:
        searcher.do(Job(1, Strategy.EXHAUSTIVE, preemptions=1, until=time.monotonic() + 120))
    finally:
        searcher.close()


def unfaithful(monkeypatch, name) -> list[Unfaithful]:  # type: ignore[no-untyped-def]
    """Of a search: that steps came out otherwise than they are known to."""
    noticed = []
    graph = Searcher._graph

    def watched(self, job):  # type: ignore[no-untyped-def]
        try:
            return graph(self, job)
        except Unfaithful as error:
            noticed.append(error)
            raise

    monkeypatch.setattr(Searcher, "_graph", watched)
    # What a search falls back to is another matter, and takes its time.
    monkeypatch.setattr(Searcher, "_plain", lambda self, job, result: None)
    search(name)
    return noticed


def test_forgetting_the_variables_is_noticed(monkeypatch) -> None:
    """Where tasks are taken as one whose variables hold different things, steps come out in two
    ways."""

    def look(self, standing):  # type: ignore[no-untyped-def]
        place = (id(standing.frame.f_code), standing.lasti)
        hidden = standing.observed if standing.at.hides else 0
        return frame_at(hash(place), hidden, place, NOTHING_HELD)

    monkeypatch.setattr(Stacks, "_look", look)
    assert unfaithful(monkeypatch, "write-against-convert")


def test_known_steps_that_are_followed_wrongly_are_noticed(monkeypatch) -> None:
    """Where frames are forgotten, or what a step left of its task's own, the steps after are not
    the ones that are known; nothing is noticed where nothing is wrong."""
    name = "convert-against-accept-4k"
    assert not unfaithful(monkeypatch, name)
    with monkeypatch.context() as patch:
        patch.setattr(_Stack, "_observed", lambda self, followed: self._before)
        assert unfaithful(monkeypatch, name)
    with monkeypatch.context() as patch:
        patch.setattr(OwnState, "follow", lambda self, noted: None)
        assert unfaithful(monkeypatch, name)


def test_what_was_one_tasks_alone_and_is_no_more_is_told_no_more() -> None:
    """Where a task stands tells what it alone has. When that turns out to be anybody's, a step goes
    that began where only all that was observed was known, and ended where more was told: the place
    at which it began is the same as before, the one at which it ended is another one."""
    tracker = SimpleNamespace(footprints=Footprints())
    footprints = tracker.footprints
    context = footprints.context(3, frozenset(), frozenset())
    footprints.register(context, [77 << 2 | X])
    transitions = Transitions(tracker, True, keeps=True)  # type: ignore[arg-type]
    relies, tells = (Step((), 0, ()) for _ in range(2))
    relies.relies = True
    transitions._steps[3, 1, False] = [relies, tells]
    other = Step((), 0, ())
    other.relies = True
    transitions._steps[4, 1, False] = [other]
    assert not footprints.disowned
    footprints.register(footprints.context(4, frozenset(), frozenset()), [77 << 2 | IX])
    transitions.drop(footprints.news)
    assert transitions._steps == {(3, 1, False): [tells], (4, 1, False): [other]}
    footprints.forget_news()
    assert not footprints.news and not footprints.disowned


def test_how_the_scheduler_asks_is_no_place() -> None:
    """A task that waits to hear who runs next stands where it stands, also where somebody was woken
    since, for whom the scheduler asks in another way."""
    places: list[int] = []

    def asks() -> None:
        places.append(place_of(sys._getframe()))

    def asks_for_the_woken() -> None:
        asks()

    def model(how) -> None:  # type: ignore[no-untyped-def]
        how()

    def look() -> bool:
        places.clear()
        for how in (asks, asks_for_the_woken):
            model(how)
        return places[0] == places[1]

    assert not look()
    for scheduler in (asks, asks_for_the_woken):
        _codes[scheduler.__code__] = False
    assert look()
    model(asks)
    assert places[2] != places[0]


def test_what_was_left_of_an_object_goes_with_it(monkeypatch) -> None:
    """Known steps write to an object; then others can get at it. What it held last counts, once."""

    def total() -> int:
        tracker: Any = SimpleNamespace(
            footprints=Footprints(), places=SimpleNamespace(is_silent=lambda at: True)
        )
        own = OwnState(tracker)
        name = own.name_for(1, 7)
        for sign in (11, 22):
            own.follow([(1, name << 8, sign, True, False)])
            if sign == 11:
                own._catch_up()
        own._hand_on(name)
        own._catch_up()
        return own._world[1].total

    assert total() == 22
    hand_on = OwnState._hand_on

    def too_late(self, name):  # type: ignore[no-untyped-def]
        self._handed_on.add(name)
        hand_on(self, name)

    monkeypatch.setattr(OwnState, "_hand_on", too_late)
    assert total() != 22
