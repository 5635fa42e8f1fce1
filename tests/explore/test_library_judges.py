"""Two judges on scenarios of the library: the plain search, which makes a run of every schedule,
and the fast one agree on how runs end and on what breaks."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from judging import Searched, Told, searched, without_results

from septum.explore.exhaustive.graph import GraphSearch
from septum.explore.scenario import ScenarioSubject
from septum.explore.subject import Options, Strategy
from septum.explore.workers.search import Job, Searcher
from septum.sim import Sim

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


ALL = 100_000
"""More schedules than any of them has."""


@cache
def plainly_searched(name: str) -> Searched | None:
    return searched(name, SMALL[name], limit=ALL)


@pytest.mark.parametrize("name", SMALL)
def test_the_judges_agree(name: str) -> None:
    fast = searched(name, SMALL[name])
    plain = plainly_searched(name)
    assert fast and plain and fast.states
    assert fast.told == plain.told
    if SMALL[name] == 1:
        content = searched(name, 1, results=False)
        assert content and content.states <= fast.states
        assert content.told == without_results(plain.told)


LESS_EXPECTED = """
summary = "A page fails, and what is left of its folio is no more accepted."
setup = ["vcpu0: use 4K pages 0-3"]
[vm]
[host]
fail = ["fail page 1 => any"]
[failures]
allow = ["need_resched"]
[expect]
may-break = ["accept-once"]
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
BUILT_MEANWHILE = """
summary = "A TD that is built has the TSC offset of when that is."
[vm.a]
[vm.c]
later = true
[host]
build = ["build vm in c"]
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
def agreed(tmp_path: Path) -> Callable[[str, int, int], Told]:
    """What both judges say of the text of a scenario, within so many preemptions and failures."""

    def agree(text: str, preemptions: int, failures: int) -> Told:
        path = tmp_path / "drawn.toml"
        path.write_text(text, encoding="utf-8")
        fast = searched(str(path), preemptions, failures)
        plain = searched(str(path), preemptions, failures, limit=ALL)
        assert fast and plain and fast.told == plain.told
        return fast.told

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


def test_when_a_td_was_built_does_not_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Virtual time is no part of the state, and neither is what is computed from it: where it is
    later, all steps see and do the same."""
    path = tmp_path / "built.toml"
    path.write_text(BUILT_MEANWHILE, encoding="utf-8")
    searcher = Searcher(ScenarioSubject(str(path), "v3", "end"), Options())
    searcher.prepare()
    transitions = searcher.transitions
    assert transitions is not None

    def steps() -> set[object]:
        transitions.clear()
        result = searcher.do(Job(1, Strategy.EXHAUSTIVE, preemptions=0))
        assert result.complete and not result.note, result.note
        return {(key, s.effect()) for key, some in transitions._steps.items() for s in some}

    try:
        sooner = steps()
        now_ns = Sim.now_ns
        monkeypatch.setattr(Sim, "now_ns", lambda sim: now_ns(sim) + 1_000_000)
        assert sooner and steps() == sooner
    finally:
        searcher.close()


def test_a_search_that_leaves_something_out_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that never prefers another task reaches fewer ends."""
    monkeypatch.setattr(GraphSearch, "_wanted", lambda self, node, task: False)
    with pytest.raises(AssertionError):
        test_the_judges_agree("slot-delete-against-prefault")
