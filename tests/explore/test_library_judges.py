"""Two judges on scenarios of the library: the plain search, which makes a run of every schedule,
and the fast one agree on how runs end and on what breaks."""

import pytest

from septum.explore.graph import GraphSearch
from septum.explore.scenario import ScenarioSubject
from septum.explore.search import Job, Searcher
from septum.explore.subject import Options, Strategy

SMALL = {
    "convert-against-convert": 2,
    "finding-stale-page": 2,
    "gmem-conversions-before-allocation": 2,
    "host-fault-against-convert": 2,
    "prefault-by-thread": 2,
    "slot-delete-against-prefault": 2,
    "accept-against-convert": 1,
    "convert-against-fault": 1,
    "finding-spinning-on-folio": 1,
    "write-against-convert": 1,
}
"""Scenarios, and within how many preemptions."""


class Ends(ScenarioSubject):
    """A scenario that notes how its runs end."""

    __slots__ = ("ends",)

    def finish(self, built) -> None:  # type: ignore[no-untyped-def]
        super().finish(built)
        self.ends.add((self.final(built), tuple(f.text for f in built.sim.findings)))


def judged(name: str, strategy: Strategy, preemptions: int):  # type: ignore[no-untyped-def]
    """(how runs ended, what was found, states) of all within so many preemptions."""
    subject = Ends(name, "v3", "end")
    subject.ends = set()
    searcher = Searcher(subject, Options(keep_going=True, preemptions=preemptions))
    try:
        if strategy is Strategy.EXHAUSTIVE:
            searcher.prepare()
        subject.ends.clear()  # of the runs in which it got ready
        result = searcher.do(Job(1, strategy, preemptions=preemptions))
    finally:
        searcher.close()
    assert result.complete and not result.note
    return subject.ends, {(f.finding.promise, f.finding.text) for f in result.found}, result.states


@pytest.mark.parametrize("name", SMALL)
def test_the_judges_agree(name: str) -> None:
    ends, found, states = judged(name, Strategy.EXHAUSTIVE, SMALL[name])
    assert states
    assert (ends, found) == judged(name, Strategy.PLAIN, SMALL[name])[:2]


def test_a_search_that_leaves_something_out_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that never prefers another task reaches fewer ends."""
    monkeypatch.setattr(GraphSearch, "_wanted", lambda self, node, task: False)
    with pytest.raises(AssertionError):
        test_the_judges_agree("slot-delete-against-prefault")
