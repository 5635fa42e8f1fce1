"""Two judges: the fast search and the plain one say the same of every small system.

The plain search tries every schedule; the fast one leaves out what it takes to be equivalent. They
must agree on all findings and on all final states, for every bound on preemptions.
"""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from septum.explore.exhaustive.graph import GraphSearch
from septum.explore.exhaustive.known import Step
from septum.explore.exhaustive.loops import Row
from septum.explore.exhaustive.transitions import Unfaithful
from septum.explore.runs.run import Runner
from septum.explore.scenario import ScenarioSubject
from septum.explore.states import fingerprint
from septum.explore.states.values import Contents
from septum.explore.subject import Options, Strategy
from septum.explore.toybox import LIVELOCK, TOYS, dice_toy
from septum.explore.toys import Toy
from septum.explore.tracking import special
from septum.explore.tracking.footprint import Context, Footprints
from septum.explore.workers.search import Job, Searcher
from septum.explore.workers.split import split

pytestmark = pytest.mark.usefixtures("few_runs")

Compare = Callable[[Toy, int | None], tuple[int, int] | None]
OptionsFor = Callable[[Toy, int | None], Options]

BOUNDS = (0, 1, 2, None)
ENDLESS = {
    "toy:grace-period",
    "toy:livelock",
    "toy:rare",
    "toy:made-otherwise",
    "toy:handed-on",
    "toy:held",
    "toy:cut-off",
    "toy:new-queue",
}
"""Of these the plain search does not come to an end without a bound."""
CASES = [
    pytest.param(toy, bound, id=f"{bound}-{toy.name}")
    for bound in BOUNDS
    for toy in TOYS
    if bound is not None or toy.name not in ENDLESS
]


@pytest.mark.parametrize("toy,preemptions", CASES)
def test_toys(compare: Compare, toy: Toy, preemptions: int | None) -> None:
    """The judges agree on the toys made by hand."""
    assert compare(toy, preemptions) is not None


@pytest.mark.parametrize("tasks,length,seeds,bounds", [(2, 4, 8, BOUNDS), (3, 2, 6, BOUNDS[:3])])
def test_dice(
    compare: Compare, tasks: int, length: int, seeds: int, bounds: tuple[int | None, ...]
) -> None:
    """The judges agree on toys made by dice, and the fast one needs far fewer schedules."""
    plain = fast = 0
    for seed in range(seeds):
        for preemptions in bounds:
            numbers = compare(dice_toy(seed, tasks, length), preemptions)
            assert numbers is not None
            plain += numbers[0]
            fast += numbers[1]
    assert plain > 4 * fast


def rounds_toy(seed: int) -> Toy:
    """A toy from dice in which tasks do the same several times in a row, and then go on."""
    base = dice_toy(seed, 2, 2)
    dice = random.Random(seed)
    programs = [list(program) for program in base.programs]
    for program in programs:
        op = dice.choice([("read", dice.randrange(3)), ("point",), ("peek",), ("trylock", 0)])
        at = dice.randrange(len(program) + 1)
        if at and program[at - 1][0] in ("unless", "fail"):
            at -= 1  # these skip what follows
        program[at:at] = [op] * dice.choice([3, 4, 6, 9])
    return Toy(f"rounds-{seed}", [tuple(program) for program in programs], base.bad)


def test_who_goes_round_and_comes_out_of_it_is_followed(compare: Compare) -> None:
    """That a task sees the same again and again does not mean that it goes round for ever."""
    for seed in range(24):
        for preemptions in (0, 1):
            compare(rounds_toy(seed), preemptions)


def test_who_takes_the_same_for_a_round_is_noticed(
    compare: Compare, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search that puts aside who has looked at the same three times misses ends."""
    add = Row.add

    def hasty(self: Row, step: Step, state: int) -> list[Step]:
        before = self._steps[-2:]
        if [other.observed for other in before] == [step.observed] * 2:
            return [step]
        return add(self, step, state)

    monkeypatch.setattr(Row, "add", hasty)
    with pytest.raises(AssertionError):
        test_who_goes_round_and_comes_out_of_it_is_followed(compare)


def test_judge_notices(compare: Compare, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fast search that never takes a task to be worth preempting is caught."""
    monkeypatch.setattr(GraphSearch, "_wanted", lambda self, node, task: False)
    with pytest.raises(AssertionError):
        compare(TOYS[0], 1)


def test_contents_that_are_not_told_apart_are_noticed(
    compare: Compare, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search for which all words look alike comes to other ends, or sees that steps do."""
    monkeypatch.setattr(Contents, "of_slot", lambda self, obj, k: 1)
    with pytest.raises((AssertionError, Unfaithful)):
        for toy in TOYS:
            compare(toy, 2)


def swaps(a: int, b: int) -> Toy:
    """Two tasks write the same two values to each of four cells, in other places."""
    one = tuple(("write", cell, b if cell % 2 else a) for cell in range(4))
    other = tuple(("write", cell, a if cell % 2 else b) for cell in range(4))
    return Toy(f"swaps-{a}-{b}", [one, other])


def test_ends_that_differ_in_who_has_which_content_are_all_reached(
    compare: Compare, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every end counts. With sums of plain hashes some are taken for one: with almost any two
    values, wherever the cells are."""
    assert compare(swaps(1, 2), None) is not None
    monkeypatch.setattr(fingerprint, "spread", lambda number: number)
    with pytest.raises(AssertionError):
        for b in range(2, 8):
            compare(swaps(1, b), None)


def test_guards_that_do_not_guard_are_noticed(
    compare: Compare, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search that takes every access for one under a lock is caught."""
    keep = Footprints._keep

    def guarded(self: Footprints, context: Context, access: int) -> bool:
        news = keep(self, context, access)
        context.kept.clear()
        return news

    monkeypatch.setattr(Footprints, "_keep", guarded)
    with pytest.raises(AssertionError):
        for toy in TOYS:
            compare(toy, 2)


def test_what_a_lock_guards_needs_no_preemption(compare: Compare) -> None:
    """Two tasks that only ever touch a word under a lock are searched lock by lock."""
    body = (("lock", 0), *((("read", 0), ("write", 0, 1)) * 6), ("unlock", 0))
    guarded = compare(Toy("guarded", [body, body]), 2)
    bare = compare(Toy("bare", [body[1:-1], body[1:-1]]), 2)
    assert guarded is not None
    assert bare is None or guarded[1] < bare[1]


TWICE = """
summary = "A vCPU that does the same twice, against a conversion."
source = "a test"
setup = ["host: allocate frame 0"]

[vm]
ve = true

[guest]
vcpu0 = ["accept 2M frame 0 => any", "accept 2M frame 0 => any"]

[kernel]
attributes = "vm"

[host]
convert = ["set-attributes page 1 to shared"]
"""


def test_how_far_a_program_is_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A vCPU that does the same twice stands in two places. Where nobody counts, steps that are
    known lead to another place."""
    path = tmp_path / "twice.toml"
    path.write_text(TWICE)

    def note() -> str:
        searcher = Searcher(ScenarioSubject(str(path), "v3", "end"), Options(keep_going=True))
        try:
            return searcher.do(Job(1, Strategy.EXHAUSTIVE, preemptions=2)).note
        finally:
            searcher.close()

    assert not note()
    monkeypatch.setattr(special, "STATISTICS", special.STATISTICS | {("ScenarioGuest", "done")})
    # What a search falls back to is another matter, and takes its time.
    monkeypatch.setattr(Searcher, "_plain", lambda self, job, result: None)
    assert note()


CHOICES = """
summary = "Two vCPUs that choose."
source = "a test"

[vm]
memory = "16K"
backing = "4k"
ve = true

[guest]
vcpu0 = ["choose: accept 4K page 0 => any | touch page 1 => any"]
vcpu1 = ["choose: accept 4K page 1 => any | touch page 0 => any"]
"""


def test_subtrees_together_are_the_whole(tmp_path: Path) -> None:
    """The search is cut into subtrees, also behind choices that came out otherwise: what they reach
    together is what the search of all of it reaches."""
    path = tmp_path / "choices.toml"
    path.write_text(CHOICES)
    options = Options(keep_going=True)
    searcher = Searcher(ScenarioSubject(str(path), "v3", "end"), options)
    try:
        assert searcher.do(Job(1, Strategy.EXHAUSTIVE)).complete
        assert searcher.transitions is not None
        whole = set(searcher.transitions.ends)
        runner = Runner(ScenarioSubject(str(path), "v3", "end"), options)
        prefixes = split(runner, options, 0, 10)
        assert any(1 in prefix[8:] for prefix in prefixes)
        reached: set[int] = set()
        for number, prefix in enumerate(prefixes):
            searcher.transitions.clear()
            result = searcher.do(Job(number, Strategy.EXHAUSTIVE, prefix=prefix))
            assert result.complete
            assert not result.note
            assert result.states or result.schedules
            reached |= set(searcher.transitions.ends)
        assert reached == whole
    finally:
        searcher.close()


def test_what_goes_round_unjudged_is_not_complete(
    options_for: OptionsFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search that makes no more real runs to see whether a loop ends must not say that all is
    well."""
    monkeypatch.setattr("septum.explore.exhaustive.real.LASTING_MAX", 0)
    searcher = Searcher(LIVELOCK, options_for(LIVELOCK, 2))
    try:
        result = searcher.do(Job(1, Strategy.EXHAUSTIVE, preemptions=2))
    finally:
        searcher.close()
    assert not result.complete or result.found
