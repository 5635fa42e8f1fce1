"""A shrunk counterexample is within the search's bounds, and what its story marks is what it says.

What a search lets a task do at no cost, because another one goes round, costs nothing in a smaller
run either, and nothing else does.
"""

import re
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from septum.explore import Options, Strategy
from septum.explore.api import Search
from septum.explore.command import stories
from septum.explore.replay import find_subject
from septum.explore.runs.rounds import Rounds
from septum.explore.runs.run import Run, Runner
from septum.explore.runs.shrink import Shrinker, shrink
from septum.explore.runs.steering import Replaying
from septum.explore.stories.recording import Recording
from septum.explore.toys import Op, Program, Toy
from septum.explore.verdict import Counterexample

# One goes on for longer than `spin_points` before it is preempted, and nobody is asked meanwhile.
LONG = Toy(
    "long", [(("check", 2, 2), ("retry", 0, 1)), (("write", 2, 2), ("retry", 0, 1))], bad=[1, 2]
)
# Each waits for the other, twice: the bug needs three switches, two of them from who goes round.
WAITING = Toy(
    "waiting",
    [
        (("retry", 1, 1), ("write", 2, 1), ("retry", 1, 2), ("inc", 0)),
        (("inc", 0), ("write", 1, 1), ("retry", 2, 1), ("write", 1, 2), ("inc", 0)),
    ],
    bad=[1, 2],
)


def op() -> st.SearchStrategy[Op]:
    """One operation: some that may wait for others, some that may break something."""
    cell, value = st.integers(0, 2), st.integers(0, 2)
    return st.one_of(
        st.tuples(st.just("retry"), cell, value),
        st.tuples(st.just("write"), cell, value),
        st.tuples(st.just("inc"), cell),
        st.tuples(st.just("check"), cell, value),
        st.tuples(st.just("fail"), cell, st.just(1)),
        st.tuples(st.just("choose"), cell, st.just(2)),
        st.tuples(st.just("point")),
    )


programs = st.lists(st.lists(op(), min_size=1, max_size=4).map(tuple), min_size=2, max_size=3)
strategies = st.sampled_from([Strategy.EXHAUSTIVE, Strategy.PCT, Strategy.RANDOM])


def searched(toy: Toy, options: Options) -> list[Counterexample]:
    search = Search(toy, options)
    search.start()
    return search.run().counterexamples


def assert_told(toy: Toy, found: Counterexample, options: Options) -> None:
    """It breaks again from its answers, and has as many marks as it says."""
    recording = Recording(Runner(toy, options), found.answers, found.finding, found.free)
    assert sum(beat.preempted for beat in recording.beats) == found.preemptions
    assert sum(beat.injected for beat in recording.beats) == found.failures


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who goes on alone without end is given up early."""
    monkeypatch.setattr("septum.explore.runs.steering.ALONE_MAX", 500)
    monkeypatch.setattr("septum.explore.runs.steering.CLOCK_EVERY", 256)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(programs, strategies, st.integers(0, 2), st.integers(0, 1), st.integers(0, 3))
@example(WAITING.programs, Strategy.EXHAUSTIVE, 1, 0, 0)
@example(WAITING.programs, Strategy.PCT, 2, 0, 0)
@example(
    [(("check", 2, 2), ("retry", 0, 1)), (("write", 2, 2), ("retry", 0, 1))], Strategy.PCT, 2, 0, 0
)
@example([(("fail", 0, 1), ("write", 1, 1)), (("check", 1, 1),)], Strategy.RANDOM, 2, 1, 0)
def test_it_is_within_the_bounds(
    programs: list[Program], strategy: Strategy, preemptions: int, failures: int, seed: int
) -> None:
    """Never more preemptions or failures than the run that was found, nor than the search may have,
    nor more switches that cost nothing; more steps only with fewer preemptions or failures."""
    options = Options(
        strategy=strategy,
        preemptions=preemptions,
        failures=failures,
        seed=seed,
        schedules=30,
        spin_points=60,
        max_points=200,
        ignore=("progress", "locking"),
    )
    toy = Toy("any", programs, bad=[1, 2])
    free: list[tuple[int, int]] = []

    def watched(runner: Runner, answers: list[int], given: list[int], until: float) -> Any:
        shrunk = shrink(runner, answers, given, until)
        assert shrunk is not None
        free.append((len(shrunk.run.free), len(given)))
        return shrunk

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("septum.explore.api.shrink", watched)
        examples = searched(toy, options)
    assert all(shrunk <= given for shrunk, given in free)
    for found in examples:
        assert found.failures <= found.first_failures <= failures
        assert found.preemptions <= found.first_preemptions <= preemptions
        fewer = (found.failures, found.preemptions) < (
            found.first_failures,
            found.first_preemptions,
        )
        assert fewer or found.steps <= found.first_steps
        assert_told(toy, found, options)


@pytest.mark.parametrize("strategy", [Strategy.EXHAUSTIVE, Strategy.PCT])
def test_who_goes_round_lets_others_run(strategy: Strategy) -> None:
    """It costs nothing, and the story shows it."""
    search = Search(WAITING, Options(strategy=strategy, schedules=200))
    search.start()
    verdict = search.run()
    (found,) = verdict.counterexamples
    assert found.preemptions == 1 and found.steps < found.first_steps
    (story,) = stories(verdict, search.runner, [])
    rows = [line.split(None, 1)[1] for line in story if re.match(r" +\d ", line)]
    assert rows == [
        "* |  t0 runs, t1 goes round at `cpu_relax`",
        "| *  t1 runs, t0 goes round at `cpu_relax`",
        ">> * |  t0 runs, t1 is at `write`",
        "XX | |  promise toy is broken",
    ]


def test_more_preemptions_than_were_found_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody knew who goes round, the smaller schedules would have three preemptions: the one
    with the search's single one stays. Accepted, they would be beyond the bound."""
    options = Options(strategy=Strategy.EXHAUSTIVE, preemptions=1)
    monkeypatch.setattr(Rounds, "goes_round", lambda rounds, sim: False)
    (found,) = searched(WAITING, options)
    assert (found.preemptions, found.steps) == (1, found.first_steps)

    def accept(shrinker: Shrinker, run: Run) -> bool:
        """Anything that breaks with fewer steps."""
        better = run.finding is not None and run.steps < shrinker._best.steps
        if better:
            shrinker._best = run
        return better

    monkeypatch.setattr(Shrinker, "_accept", accept)
    (found,) = searched(WAITING, options)
    assert found.preemptions > 1


# What t0 finds after 100 points on its own is not so once t1 has begun.
LATE = Toy(
    "late",
    [(*((("read", 3),) * 100), ("check", 1, 0)), (("write", 1, 1), *((("read", 3),) * 100))],
)


@pytest.mark.parametrize("shrink", [True, False])
def test_who_went_on_where_others_should_have_run_does_so_again(shrink: bool) -> None:
    """A strict schedule lets a task go on that a replay would make yield: that nothing is disturbed
    up to the end is then no reason to leave the end out."""
    options = Options(
        strategy=Strategy.PCT,
        preemptions=None,
        depth=0,
        spin_points=50,
        schedules=20,
        shrink=shrink,
    )
    (found,) = searched(LATE, options)
    assert_told(LATE, found, options)
    assert Runner(LATE, options).run(Replaying([])).finding is None


def test_no_preemption_is_saved_by_running_for_long() -> None:
    """t0 may lose its first update by a preemption, or its second when it has run for so long that
    t1's turn costs nothing. Who found the first is not told of the second, which is far longer."""
    lost = Toy("lost", [(("inc", 0), *((("read", 3),) * 30), ("inc", 0)), (("inc", 0),)], bad=[2])
    options = Options(preemptions=1, spin_points=33)
    runner = Runner(lost, options)
    assert runner.run(Replaying([])).finding is not None
    found = runner.run(Replaying([0, 0, 1]))
    assert found.finding is not None and not found.free
    shrunk = shrink(runner, list(found.answers))
    assert shrunk is not None
    assert (shrunk.run.preemptions, shrunk.run.free) == (1, [])
    assert shrunk.run.steps <= found.steps


def test_what_a_task_did_alone_counts_when_another_need_not_wait() -> None:
    """Who waits for a lock was switched to for nothing: without that the other task comes to where
    it is to be preempted by points at which nobody was asked."""
    alone: Program = (("point",),) * 4
    late: Program = (("point",),) * 4
    holds: Program = (("lock", 0), *alone, ("unlock", 0), *late, ("write", 1, 1), ("write", 1, 2))
    toy = Toy("alone", [holds, (("lock", 0), ("unlock", 0), ("check", 1, 1))], bad=[])
    runner = Runner(toy, Options())
    shrunk = []
    for first in range(2, 6):
        for second in range(12):
            run = runner.run(Replaying([0] * first + [1] + [0] * second + [1]))
            if run.finding is not None and run.preemptions == 2:
                least = shrink(runner, list(run.answers))
                assert least is not None
                shrunk.append(least.run.preemptions)
    assert shrunk and set(shrunk) == {1}


def test_a_failure_stays_with_what_fails() -> None:
    """Preempted, t0 has fewer things that may fail before the one that does: without the preemption
    it is the same one that fails, not the one that comes as soon."""
    spared = ("unless", 1, 0, 4)
    fails: Program = (("write", 2, 1), ("fail", 4, 2), ("write", 2, 0), ("check", 2, 1))
    programs: list[Program] = [
        (("write", 0, 1), spared, ("fail", 1, 7), ("fail", 2, 6), ("fail", 3, 5), *fails),
        (("unless", 0, 1, 2), ("write", 1, 1)),
    ]
    runner = Runner(Toy("spared", programs, bad=[]), Options(failures=1))
    shrunk = []
    for at in range(1, 4):
        for later in range(6):
            run = runner.run(Replaying([0] * at + [1] + [0] * later + [1]))
            if run.finding is not None and (run.preemptions, run.failures) == (1, 1):
                least = shrink(runner, list(run.answers))
                assert least is not None and least.run.failures == 1
                shrunk.append(least.run.preemptions)
    assert shrunk and set(shrunk) == {0}


FAILS = """
summary = "A page fails while another page of its folio becomes shared."
setup = ["vcpu0: accept 2M frame 0", "vcpu0: write frame 0"]

[vm]
memory = "4M"
in-place = true
ve = true

[guest]
vcpu0 = ["touch page 7 => ok or #VE"]

[host]
convert = ["set-attributes page 3 to shared => any"]
fail = ["fail page 9"]
"""


def test_who_begins_may_be_all_that_matters(tmp_path: Path) -> None:
    """In the run that is found a vCPU goes round, and the lines of a page are flushed meanwhile:
    without a preemption they do so in another way."""
    (tmp_path / "fails.toml").write_text(FAILS, encoding="utf-8")
    subject = find_subject(str(tmp_path / "fails.toml"), "v3", "quiet")
    with closing(Search(subject, Options(strategy=Strategy.PCT, schedules=1))) as search:
        (example,) = search.run().counterexamples
    assert "a poisoned folio is split" in example.finding.text
    assert (example.first_preemptions, example.preemptions) == (2, 0)
