"""Tasks that go round, alone or together, where a search has no bound on preemptions: what leaves
somebody out is no livelock and needs no real run; what leaves nobody out is found."""

import pytest

from septum.explore.exhaustive.graph import GraphSearch
from septum.explore.exhaustive.known import Step
from septum.explore.exhaustive.loops import Row
from septum.explore.subject import Options, Strategy
from septum.explore.toys import Toy
from septum.explore.workers.search import Job, JobResult, Searcher

# t0 and t1 undo what the other did, again and again, until t2 sets cell 2: two vCPUs that retry.
TOGETHER = Toy(
    "together",
    [
        (("write", 0, 1), ("unless", 2, 1, -1)),
        (("write", 0, 2), ("unless", 2, 1, -1)),
        (("write", 2, 1),),
    ],
)
FOR_EVER = Toy("for-ever", TOGETHER.programs[:2])
# One that only looks is back where it was after each of its steps.
ALONE = Toy("alone", [(("retry", 0, 1),), (("write", 0, 2), ("write", 0, 1))])


def searched(toy: Toy) -> JobResult:
    """All schedules of it, without a bound."""
    options = Options(preemptions=None, spin_points=1000, max_points=2000, keep_going=True)
    searcher = Searcher(toy, options)
    try:
        return searcher.do(
            Job(1, Strategy.EXHAUSTIVE, preemptions=options.max_preemptions(), failures=0)
        )
    finally:
        searcher.close()


def test_what_leaves_somebody_out_is_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tasks that go round together while a third could run: it is searched what the third
    does, and no real run is needed. A search that makes one for each is not complete when it may
    make no more of them."""
    monkeypatch.setattr("septum.explore.exhaustive.real.LASTING_MAX", 0)
    result = searched(TOGETHER)
    assert result.complete and not result.found and not result.note
    monkeypatch.setattr(GraphSearch, "_leaves_nobody_out", lambda self, key: True)
    assert not searched(TOGETHER).complete


def test_what_leaves_nobody_out_is_a_livelock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the third they go on for ever; a search that always takes somebody to be left out
    says that all is well."""
    result = searched(FOR_EVER)
    assert [found.finding.promise for found in result.found] == ["progress"]
    monkeypatch.setattr(GraphSearch, "_leaves_nobody_out", lambda self, key: False)
    assert not searched(FOR_EVER).found


def test_who_comes_back_to_where_it_began_goes_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """The state in which a task began to run belongs to what it may come back to: so it is put
    aside after one round, and nobody takes several tasks to go round together."""
    rounds: list[object] = []
    plain = GraphSearch._leaves_nobody_out

    def counting(self: GraphSearch, key: int) -> bool:
        rounds.append(key)
        return plain(self, key)

    monkeypatch.setattr(GraphSearch, "_leaves_nobody_out", counting)
    assert searched(ALONE).complete and not rounds
    make = Row.__init__

    def without_start(self: Row, start: int) -> None:
        make(self, 0)

    monkeypatch.setattr(Row, "__init__", without_start)
    assert searched(ALONE).complete and rounds


def test_a_row_begins_where_its_task_began() -> None:
    """All steps since then are the loop; of one that is entered later, those since."""
    step = Step.__new__(Step)
    step.retries = False
    row = Row(1)
    assert row.add(step, 2) == [] and row.add(step, 3) == []
    assert row.add(step, 1) == [step] * 3
    assert row.add(step, 2) == [step] * 2
    row.cut(0)
    assert row.add(step, 3) == [] and row.add(step, 1) == [step] * 2
