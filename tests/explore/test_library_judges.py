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
CONVERTS_TWICE = """
summary = "One TDVMCALL after the other: its registers stay those that the world was built with."
setup = ["vcpu0: use 4K pages 0-3 => any"]
[kernel]
attributes = "vm"
[vm]
ve = true
[guest]
vcpu0 = ["convert pages 1-3 to shared => any", "convert page 511 to shared => any"]
[host]
punch = ["punch page 0 => any"]
[failures]
allow = ["need_resched"]
"""
BUILT_SOONER_OR_LATER = """
summary = "A TD that is built has the TSC offset of when that is."
[vm.a]
ve = true
[vm.c]
later = true
image = ["pages 0-3"]
[guest.a]
vcpu0 = ["use 2M pages 510-511 => any", "write 0x44 shared page 1 => any"]
[host]
build = ["build vm in c => any", "delete slot 0 in c => any"]
"""
FALLS_BACK = """
summary = "A folio of 4 KB is made where one of 2 MB was, and its maker alone looks at either."
[vm]
backing = "thp"
[guest]
vcpu0 = ["touch page 2 => any"]
[host]
create = ["create slot 0 => any"]
[failures]
allow = ["*"]
"""


@pytest.fixture
def agreed(tmp_path: Path):  # type: ignore[no-untyped-def]
    """(how runs end, what is found) by both judges, of the text of a scenario."""

    def agree(text: str, preemptions: int, failures: int):  # type: ignore[no-untyped-def]
        path = tmp_path / "drawn.toml"
        path.write_text(text, encoding="utf-8")
        *told, states = judged(str(path), Strategy.EXHAUSTIVE, preemptions, failures)
        assert states
        assert told == [*judged(str(path), Strategy.PLAIN, preemptions, failures)[:2]]
        return told

    return agree


def test_after_a_failure_less_is_expected(agreed) -> None:  # type: ignore[no-untyped-def]
    """A scenario says how runs end in which nothing failed. So an end that comes with a failure and
    without is judged twice, and only one of the two breaks anything."""
    ends, found = agreed(LESS_EXPECTED, 0, 1)
    assert len(ends) == 1 and {promise for promise, _ in found} == {"expectation"}


def test_registers_of_the_built_world_are_told(agreed) -> None:  # type: ignore[no-untyped-def]
    """Where a task last changed them nothing shows: they are its own from then on."""
    agreed(CONVERTS_TWICE, 0, 1)


def test_what_an_object_was_made_with_is_told(agreed) -> None:  # type: ignore[no-untyped-def]
    """Where it is called as another was that was made in another way."""
    agreed(FALLS_BACK, 0, 1)


def test_when_a_td_was_built_does_not_count(agreed) -> None:  # type: ignore[no-untyped-def]
    """Virtual time is no part of the state, and neither is what is computed from it."""
    agreed(BUILT_SOONER_OR_LATER, 1, 0)


def test_a_search_that_leaves_something_out_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that never prefers another task reaches fewer ends."""
    monkeypatch.setattr(GraphSearch, "_wanted", lambda self, node, task: False)
    with pytest.raises(AssertionError):
        test_the_judges_agree("slot-delete-against-prefault")
