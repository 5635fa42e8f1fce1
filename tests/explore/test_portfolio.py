"""The random part of a search draws more of what lately brought something new, and ends when
nothing does; what it draws depends on outcomes alone."""

from collections.abc import Callable
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from septum.explore import Options, Outcome, Strategy, explore
from septum.explore.bounds import NUMBER_MAX
from septum.explore.runs.portfolio import (
    BATCH_MAX,
    BATCH_RUNS,
    PCT,
    ROUND_BATCHES,
    STAYING_WALK,
    WALK,
    Dice,
    Portfolio,
    batch_sizes,
    nr_batches,
)
from septum.explore.toybox import LOCKED_UPDATE, TOYS
from septum.explore.toys import Toy

KINDS = (PCT, WALK, STAYING_WALK)
Brings = dict[Dice, int]
"""How many new outcomes each batch of a kind brings."""


def play(portfolio: Portfolio, rounds: int, brings: Callable[[int], Brings]) -> list[Brings]:
    """Rounds whose batches bring so much; the batches of each round, by kind."""
    played: list[Brings] = []
    fresh = 0
    for number in range(rounds):
        batches = portfolio.draw()
        if not batches:
            break
        told = []
        for batch in batches:
            new = range(fresh, fresh + brings(number)[batch.dice])
            told.append((batch, [-1, *new], 10))
            fresh += len(new)
        portfolio.learn(told)
        played.append({kind: sum(b.dice is kind for b in batches) for kind in KINDS})
    return played


@given(st.lists(st.tuples(*[st.integers(2, BATCH_RUNS)] * 3), min_size=1, max_size=6))
def test_more_is_drawn_of_what_pays(rates: list[tuple[int, int, int]]) -> None:
    """In every round each kind has a batch, and what brought more in the last has no fewer."""
    said = [dict(zip(KINDS, row, strict=True)) for row in rates]
    played = play(Portfolio(10_000), len(said) + 1, lambda n: said[min(n, len(said) - 1)])
    assert len(played) == len(said) + 1
    for brought, drawn in zip(said, played[1:], strict=True):
        assert sum(drawn.values()) == ROUND_BATCHES and min(drawn.values()) >= 1
        for more in KINDS:
            for less in KINDS:
                if brought[more] > brought[less]:
                    assert drawn[more] >= drawn[less], (brought, drawn)


def test_it_switches() -> None:
    """What alone brings something has all but one batch of each other kind; when another one does
    instead, that has."""
    only = [{kind: 20 * (kind is best) for kind in KINDS} for best in (PCT, PCT, WALK, WALK)]
    played = play(Portfolio(10_000), 5, lambda n: only[min(n, 3)])
    most = ROUND_BATCHES - 2
    assert [round_[PCT] for round_ in played[1:]] == [most, most, 1, 1]
    assert [round_[WALK] for round_ in played[1:]] == [1, 1, most, most]


def test_it_ends_when_nothing_is_new() -> None:
    """The round after one that brought nothing is not drawn; nor is one beyond the limit."""
    assert len(play(Portfolio(10_000), 9, lambda n: dict.fromkeys(KINDS, 9 * (n < 3)))) == 4
    played = play(Portfolio(450), 9, lambda n: dict.fromkeys(KINDS, 9))
    assert sum(sum(drawn.values()) for drawn in played) == 450 // BATCH_RUNS


@given(st.lists(st.tuples(*[st.integers(2, BATCH_RUNS)] * 3), min_size=1, max_size=5))
def test_no_schedule_is_drawn_twice(rates: list[tuple[int, int, int]]) -> None:
    """The numbers of schedules: all of each strategy differ."""
    said = [dict(zip(KINDS, row, strict=True)) for row in rates]
    portfolio = Portfolio(10_000)
    numbers: set[tuple[str, int]] = set()
    for brought in said:
        batches = portfolio.draw()
        for batch in batches:
            stride = batch.dice.stride
            mine = range(batch.number(), batch.number() + batch.count * stride, stride)
            fresh = {(batch.dice.strategy.value, number) for number in mine}
            assert len(fresh) == batch.count and numbers.isdisjoint(fresh)
            numbers |= fresh
        portfolio.learn(
            [(b, range(b.count * 50, b.count * 50 + brought[b.dice]), 1) for b in batches]
        )


def test_what_is_drawn_does_not_depend_on_workers() -> None:
    """A search by one, two and three processes draws the same."""
    held = (toy for toy in TOYS if explore(toy, Options()).outcome is Outcome.HELD)
    toys: list[Toy] = list(islice(held, 2))
    assert len(toys) == 2
    for toy in toys:
        drawn = [explore(toy, Options(workers=workers)).drawn for workers in (1, 2, 3)]
        assert drawn[0] == drawn[1] == drawn[2] and sum(drawn[0].values()) >= 200


def test_the_verdict_says_what_was_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    """On the command line, by kind; a search of one strategy says nothing of kinds."""
    from septum.explore.command import verdict_lines
    from septum.explore.wanted import Wanted

    options = Wanted().options(LOCKED_UPDATE)
    text = "\n".join(verdict_lines(explore(LOCKED_UPDATE, options)))
    assert "random schedules: 75 by PCT, 75 by uniform walk, 50 by walk that mostly stays" in text
    options = Wanted(strategy="pct", schedules=50).options(LOCKED_UPDATE)
    assert "random schedules:" not in "\n".join(verdict_lines(explore(LOCKED_UPDATE, options)))


@given(st.integers(1, 20_000))
def test_batches_have_all_runs_and_no_long_one_is_the_last(limit: int) -> None:
    """Who draws one kind alone: none has more than a part of all, so that several processes are
    through at about the same time."""
    sizes = list(batch_sizes(limit))
    assert sum(sizes) == limit and max(sizes) <= BATCH_MAX
    assert max(sizes) <= max(BATCH_RUNS, limit // ROUND_BATCHES)
    assert list(islice(batch_sizes(None), len(sizes) - 1)) == sizes[:-1]
    assert nr_batches(limit) == len(sizes)


def test_a_limit_that_no_search_comes_to_costs_nothing() -> None:
    """The clock ends the search, as always."""
    options = Options(strategy=Strategy.RANDOM, schedules=NUMBER_MAX, time_s=0.1)
    assert explore(LOCKED_UPDATE, options).timed_out
