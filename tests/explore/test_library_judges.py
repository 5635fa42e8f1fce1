"""Two judges on scenarios of the library: the plain search, which makes a run of every schedule,
and the fast one agree on how runs end and on what breaks."""

from pathlib import Path

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


def judged(  # type: ignore[no-untyped-def]
    name: str, strategy: Strategy, preemptions: int, failures: int = 0
):
    """(how runs ended, what was found, states) of all within so many preemptions and failures."""
    subject = Ends(name, "v3", "end")
    subject.ends = set()
    options = Options(keep_going=True, preemptions=preemptions, failures=failures)
    searcher = Searcher(subject, options)
    try:
        if strategy is Strategy.EXHAUSTIVE:
            searcher.prepare()
        subject.ends.clear()  # of the runs in which it got ready
        result = searcher.do(Job(1, strategy, preemptions=preemptions, failures=failures))
    finally:
        searcher.close()
    assert result.complete and not result.note
    return subject.ends, {(f.finding.promise, f.finding.text) for f in result.found}, result.states


@pytest.mark.parametrize("name", SMALL)
def test_the_judges_agree(name: str) -> None:
    ends, found, states = judged(name, Strategy.EXHAUSTIVE, SMALL[name])
    assert states
    assert (ends, found) == judged(name, Strategy.PLAIN, SMALL[name])[:2]


LESS_EXPECTED = """
summary = "A page fails, and what is left of its folio is no more accepted."
setup = ["vcpu0: use 4K pages 0-3"]
[vm]
[host]
fail = ["fail page 1 => any"]
[failures]
allow = ["need_resched"]
"""


def test_after_a_failure_less_is_expected(tmp_path: Path) -> None:
    """A scenario says how runs end in which nothing failed. So an end that comes with a failure and
    without is judged twice, and only one of the two breaks anything."""
    path = tmp_path / "less.toml"
    path.write_text(LESS_EXPECTED, encoding="utf-8")
    ends, found, states = judged(str(path), Strategy.EXHAUSTIVE, 0, 1)
    assert len(ends) == 1 and {promise for promise, _ in found} == {"expectation"} and states
    assert (ends, found) == judged(str(path), Strategy.PLAIN, 0, 1)[:2]


def test_a_search_that_leaves_something_out_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that never prefers another task reaches fewer ends."""
    monkeypatch.setattr(GraphSearch, "_wanted", lambda self, node, task: False)
    with pytest.raises(AssertionError):
        test_the_judges_agree("slot-delete-against-prefault")
