"""What tests of the search share: a comparison of the two judges on a toy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from plainly import plain_search

from septum.explore.subject import Options, Strategy
from septum.explore.toybox import LIVELOCK, RETRY
from septum.explore.toys import Toy
from septum.explore.workers import search
from septum.explore.workers.search import Job, Searcher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LIMIT = 3000


class FinalsOf(Toy):
    """A toy that notes the ends of its runs."""

    __slots__ = ("finals",)

    def __init__(self, toy: Toy) -> None:
        super().__init__(toy.name, toy.programs, toy.bad, goes_on=toy.goes_on)
        self.finals: set[object] = set()

    def finish(self, built) -> None:  # type: ignore[no-untyped-def]
        super().finish(built)
        if not built.sim.findings:
            self.finals.add(self.final(built))


def _options_for(toy: Toy, preemptions: int | None) -> Options:
    spins = 5 if toy in (LIVELOCK, RETRY) else 1000
    return Options(
        strategy=Strategy.EXHAUSTIVE,
        preemptions=preemptions,
        failures=1,
        spin_points=spins,
        max_points=60 if spins == 5 else 2000,
        keep_going=True,
    )


def _compare(toy: Toy, preemptions: int | None) -> tuple[int, int] | None:
    """Numbers of schedules of the two; None when the plain judge needs too many."""
    options = _options_for(toy, preemptions)
    plain = plain_search(toy, options, LIMIT)
    if not plain.complete:
        return None
    noted = FinalsOf(toy)
    searcher = Searcher(noted, options)
    searcher.prepare()
    noted.finals.clear()
    try:
        result = searcher.do(
            Job(1, Strategy.EXHAUSTIVE, preemptions=options.max_preemptions(), failures=1)
        )
    finally:
        searcher.close()
    assert result.complete and not result.note
    found = {(f.finding.promise, f.finding.text) for f in result.found}
    assert found == set(plain.findings)
    assert noted.finals == plain.finals
    return plain.schedules, result.schedules


@pytest.fixture
def options_for() -> Callable[[Toy, int | None], Options]:
    """Gives the options of a search of a toy within so many preemptions."""
    return _options_for


@pytest.fixture
def compare() -> Callable[[Toy, int | None], tuple[int, int] | None]:
    """Has both judges search a toy within so many preemptions, and asserts that they agree. Gives
    the numbers of schedules of the two; None when the plain judge needs too many."""
    return _compare


@pytest.fixture
def notices(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[Toy, Callable[[pytest.MonkeyPatch], None], int | None], None]:
    """Asserts that the judges agree on a toy, and that they do not when the search is broken."""

    def assert_noticed(
        toy: Toy, breaks: Callable[[pytest.MonkeyPatch], None], preemptions: int | None
    ) -> None:
        _compare(toy, preemptions)
        breaks(monkeypatch)
        with pytest.raises(AssertionError):
            _compare(toy, preemptions)

    return assert_noticed


@pytest.fixture(scope="module")
def few_runs() -> Iterator[None]:
    """Random runs before a search only save it beginnings: what they do not show of what tasks
    share it learns on its way. Where worlds are small and nothing is about those runs, few do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "CALIBRATION_RUNS", 6)
        patch.setattr(search, "LEARNING_CALM", 6)
        yield
