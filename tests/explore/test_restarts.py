"""What a search learns it learns once: how runs begin, what is looked at, where long ways lead."""

import pytest

from septum.explore import Options, Strategy
from septum.explore.exhaustive.known import Step
from septum.explore.exhaustive.loops import Row
from septum.explore.subject import Built
from septum.explore.toys import Toy, ToyState
from septum.explore.tracking.footprint import Footprints
from septum.explore.workers.search import Job, Searcher

pytestmark = pytest.mark.usefixtures("few_runs")


class Begun(Toy):
    """Cell 0 is set before any task runs, in every run."""

    __slots__ = ()

    def start(self, built: Built) -> None:
        state = built.world
        assert isinstance(state, ToyState)
        state.cells[0].value = 1
        super().start(built)


def searched(  # type: ignore[no-untyped-def]
    toy: Toy,
    strategy: Strategy = Strategy.EXHAUSTIVE,
    preemptions: int = 2,
    max_points: int = 20_000,
):
    """(the result of a search of all, how many runs it made)."""
    options = Options(keep_going=True, preemptions=preemptions, max_points=max_points)
    searcher = Searcher(toy, options)
    before = searcher.runner.nr_runs
    try:
        result = searcher.do(Job(1, strategy, preemptions=preemptions))
    finally:
        searcher.close()
    return result, searcher.runner.nr_runs - before


def test_a_run_begins_as_it_is_started() -> None:
    """A cell that has again what it was built with is not as it is when runs begin: one task takes
    back what was set before, and another breaks a promise only when that has happened."""
    toy = Begun("begun", [(("write", 0, 0),), (("check", 0, 0),), (("check", 0, 1),)])
    told = []
    for strategy in (Strategy.EXHAUSTIVE, Strategy.PLAIN):
        result, _ = searched(toy, strategy)
        assert result.complete and not result.note
        told.append({found.finding.text for found in result.found})
    assert told[0] == told[1] == {"cell 0 is 0", "cell 0 is 1"}


def test_what_is_looked_at_in_one_dict_that_runs_make_is_in_all() -> None:
    """Every run makes its dicts anew: a search that began over for each would never be through."""
    toy = Toy("baskets", [(("fill", 1), ("list",), ("fill", 5)), (("list",), ("list",))])
    result, runs = searched(toy)
    assert result.complete and not result.note
    assert runs < 200, runs


def test_who_retries_in_vain_is_put_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that shows all another thing in each round never comes to a state again; but the model
    says that it tries again what came to nothing. A search that does not heed that follows it until
    runs are too long."""
    toy = Toy("insist", [(("insist", 0),), (("peek",), ("write", 0, 1))])
    result, runs = searched(toy)
    assert result.complete and not result.note
    assert runs < 60, runs
    add = Row.add

    def deaf(self: Row, step: Step, state: int) -> list[Step]:
        step.retries = False
        return add(self, step, state)

    monkeypatch.setattr(Row, "add", deaf)
    result, _ = searched(toy, max_points=300)
    assert "decisions were not searched" in result.note


@pytest.mark.parametrize("length", [125, 500])
def test_long_ways_are_not_learned_bit_by_bit(length: int) -> None:
    """A task that goes on for long by itself is followed for ever longer: the number of runs grows
    as the logarithm of its length."""
    toy = Toy("long", [(("atomic_inc", 1),) * length, (("read", 0),)])
    result, runs = searched(toy, preemptions=0)
    assert result.complete and not result.note
    assert runs < 60, runs


def test_a_search_comes_to_its_limit_in_the_middle_of_a_step() -> None:
    """Choice points count as decisions, too. Wherever the limit comes, the last step that begins
    before it is learned, and what comes later is said not to have been searched."""
    choosing = (("inc", 0), ("fail", 0, 1), ("fail", 1, 1)) * 4
    toy = Toy("choosing", [(*choosing, *((("inc", 1),) * 6)), (("inc", 0), ("inc", 1))])
    notes = [searched(toy, preemptions=1, max_points=most)[0].note for most in range(20, 40)]
    assert not [note for note in notes if "without reduction" in note]
    assert notes[0] == "runs of more than 20 decisions were not searched beyond them"
    assert notes[-1] == ""


def test_a_search_that_gives_up_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """What raises in runs that are looked at, and in no other: nothing more is shared then."""

    def masks(self: Footprints, accesses: object) -> None:
        raise KeyError(6)

    monkeypatch.setattr("septum.explore.workers.search.RESTARTS_MAX", 3)
    monkeypatch.setattr(Footprints, "masks", masks)
    result, _ = searched(Toy("two", [(("write", 0, 1),), (("check", 0, 0),)]))
    assert not result.complete
    assert result.note.startswith("given up after 3 beginnings: runs since ")
    assert result.note.endswith("changed something that made the model raise KeyError")
