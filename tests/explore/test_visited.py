"""What a search keeps of the states that it was through with."""

from __future__ import annotations

from collections import Counter

from septum.explore import Options, Strategy
from septum.explore.exhaustive.visited import Visited
from septum.explore.scenario import ScenarioSubject
from septum.explore.subject import UNBOUNDED
from septum.explore.workers.search import Job, Searcher


def test_without_a_bound_no_state_is_searched_again_for_its_preemptions(monkeypatch) -> None:
    """However many there were on the way: from one state the same follows. Only where somebody
    slept who is awake now it is entered once more."""
    entered: Counter[object] = Counter()
    add, clear = Visited.add, Visited.clear

    def counts(self, node):  # type: ignore[no-untyped-def]
        entered[node.key, frozenset(node.asleep)] += 1
        add(self, node)

    def starts_over(self) -> None:  # type: ignore[no-untyped-def]
        entered.clear()
        clear(self)

    monkeypatch.setattr(Visited, "add", counts)
    monkeypatch.setattr(Visited, "clear", starts_over)
    searcher = Searcher(ScenarioSubject("convert-against-fault", "v3", "end"), Options())
    try:
        result = searcher.do(Job(1, Strategy.EXHAUSTIVE, preemptions=UNBOUNDED))
    finally:
        searcher.close()
    assert result.complete and not result.note
    assert len(entered) > 500
    assert set(entered.values()) == {1}
