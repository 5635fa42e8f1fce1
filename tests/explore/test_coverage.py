"""What a search says it reached is what its runs reached: whoever makes them, and no more."""

import re
import runpy
import sys
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from septum.abi import errno
from septum.cli.main import app
from septum.designs import find_design
from septum.explore import Options, Outcome, Strategy, Verdict, explore
from septum.explore.covering import coverage
from septum.explore.covering.coverage import Coverage
from septum.explore.covering.covered import coverage_lines, summary
from septum.explore.covering.errors import ErrorPaths
from septum.explore.exhaustive.graph import GraphSearch
from septum.explore.exhaustive.transitions import Unfaithful
from septum.explore.scenario import ScenarioSubject
from septum.linux.kvm import gmem_folio
from septum.module import Module, tdg
from septum.scenarios.model_names import model_names
from septum.scenarios.names import RACES, REACHED, check_names
from septum.scenarios.reader import read_scenario
from septum.scenarios.run import LIBRARY
from septum.words import WIDTH

pytestmark = pytest.mark.usefixtures("few_runs")

ROOT = Path(__file__).parents[2]
SMALL = {
    "accept-4k-against-2m": (1, 0),
    "accept-against-convert": (1, 1),
    "busy-once": (0, 0),
    "slot-delete-against-prefault": (1, 0),
    "convert-against-fault-there": (1, 0),
    "fault-against-fault": (1, 0),
}
"""Scenarios, and within how many preemptions and failures."""
QUICK = ("--strategy", "exhaustive", "--preemptions", "1")
"""Words of a command that need not search long."""


@pytest.fixture
def all_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage, "WATCHED_EVERY", 1)


def searched(name: str, strategy: Strategy, **more) -> Verdict:  # type: ignore[no-untyped-def]
    _, failures = SMALL.get(name, (0, 1))
    options = Options(strategy=strategy, failures=failures, keep_going=True, shrink=False, **more)
    return explore(ScenarioSubject(name, "v3", "end"), options)


def judged(name: str, strategy: Strategy) -> set[str]:
    """All that is reached within the bounds."""
    verdict = searched(name, strategy, preemptions=SMALL[name][0])
    assert verdict.complete
    return set(verdict.coverage)


@cache
def told_by_plain(name: str) -> set[str]:
    """What the plain judge tells, with all watched and nothing broken."""
    return judged(name, Strategy.PLAIN)


@cache
def told_by_search(name: str) -> set[str]:
    """What a search tells as users have it, with nothing broken."""
    return judged(name, Strategy.EXHAUSTIVE)


@cache
def told_by_fast(name: str) -> set[str]:
    """What the fast judge tells, with all watched and nothing broken."""
    return judged(name, Strategy.EXHAUSTIVE)


@pytest.mark.usefixtures("all_watched")
@pytest.mark.parametrize("name", SMALL)
def test_the_judges_reach_the_same(name: str) -> None:
    """The plain search watches the events of every schedule; the fast one makes a step once, hears
    it from hooks, and leaves out what is alike."""
    reached = told_by_fast(name)
    assert reached == told_by_plain(name)
    assert {item.partition(":")[0] for item in reached} <= set(REACHED)


@pytest.mark.usefixtures("all_watched")
@pytest.mark.parametrize("kind", ["seamcall", "tdcall", "waits"])
def test_a_search_that_hears_less_is_noticed(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    plain = told_by_plain("accept-4k-against-2m")
    monkeypatch.setattr(Coverage, kind, lambda *_: None)
    assert judged("accept-4k-against-2m", Strategy.EXHAUSTIVE) < plain


@pytest.mark.usefixtures("all_watched")
@pytest.mark.parametrize("unit", ["mmu", "tdp_mmu"])
def test_a_race_that_kvm_notices_is_told(monkeypatch: pytest.MonkeyPatch, unit: str) -> None:
    """By both judges alike; with functions that notice nothing there is none."""
    name = {"mmu": "convert-against-fault-there", "tdp_mmu": "fault-against-fault"}[unit]
    told = told_by_fast(name)
    assert told == told_by_plain(name)
    races = {item for item in told if item.startswith("race:")}
    assert {item.split(":")[1] for item in races} == {
        function for function, where in RACES.items() if where == unit
    }
    monkeypatch.setattr("septum.explore.covering.races.RACES", {})
    assert judged(name, Strategy.EXHAUSTIVE) == told - races


@pytest.mark.usefixtures("all_watched")
def test_a_state_that_another_call_met_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that ends in a call leaves what that met; the next one's does not meet it."""
    plain = told_by_plain("accept-4k-against-2m")
    monkeypatch.setattr(Coverage, "call_begins", lambda *_: None)
    monkeypatch.setattr(
        Coverage, "_met", property(lambda _: {"vcpu0": 0, "vcpu1": 0}, lambda *_: None)
    )
    assert judged("accept-4k-against-2m", Strategy.EXHAUSTIVE) != plain


def test_a_search_that_gives_up_its_reduction_tells_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what only a few of its runs reach, none of which are left out."""
    told = told_by_search("busy-once")

    def gives_up(*_: object) -> None:
        raise Unfaithful("for a test")

    monkeypatch.setattr(GraphSearch, "walk", gives_up)
    monkeypatch.setattr(coverage, "WATCHED_FIRST", 1)
    monkeypatch.setattr(coverage, "WATCHED_EVERY", 1_000_000)
    assert judged("busy-once", Strategy.EXHAUSTIVE) == told


def test_random_runs_reach_no_more_than_there_is() -> None:
    everything = told_by_search("accept-4k-against-2m")
    for strategy in (Strategy.PCT, Strategy.RANDOM):
        verdict = searched("accept-4k-against-2m", strategy, preemptions=1, schedules=40)
        assert {item for item in verdict.coverage if item.startswith("sept:")}
        assert set(verdict.coverage) <= everything


def test_workers_reach_the_same() -> None:
    one, two = (
        set(
            searched("accept-4k-against-2m", Strategy.AUTO, preemptions=1, workers=workers).coverage
        )
        for workers in (1, 2)
    )
    assert one == two


def numbers() -> dict[tuple[str, str], object]:
    """The error numbers that modules have imported."""
    return {
        (name, number): vars(module)[number]
        for name, module in list(sys.modules.items())
        if name.startswith("septum.")
        for number in errno.ERRNO_NAMES.values()
        if number in vars(module)
    }


def test_nothing_tells_afterwards() -> None:
    """The model's functions and numbers are what they were."""
    before = (Module.lock_entry_host, Module.entry_busy, tdg.unlock_entry, numbers())
    verdict = searched("convert-against-accept", Strategy.AUTO, preemptions=0)
    assert any(item.startswith("error:") for item in verdict.coverage)
    after = (Module.lock_entry_host, Module.entry_busy, tdg.unlock_entry, numbers())
    assert after == before
    assert {type(number) for number in numbers().values()} == {int}


def test_errors_are_told_where_they_begin() -> None:
    """The function that returns -ENOMEM first, and the kernel function that user space called."""
    verdict = searched("convert-against-accept", Strategy.EXHAUSTIVE, preemptions=0)
    assert [item for item in verdict.coverage if item.startswith("error:")] == [
        "error:tdp_mmu_split_huge_pages_root:-ENOMEM:kvm_gmem_set_attributes"
    ]


def test_a_comparison_is_no_error() -> None:
    """What negates a number to compare with it has no error."""
    told: list[str] = []
    paths = ErrorPaths(told.append)
    paths.install()
    try:
        source = "def f(ret): return ret == -EEXIST\ndef g(): return -EEXIST, None\n"
        names: dict[str, object] = {"EEXIST": vars(gmem_folio)["EEXIST"]}
        exec(source, names)
        assert names["f"](-17) and names["g"]() == (-17, None)  # type: ignore[operator]
    finally:
        paths.uninstall()
    assert told == ["error:g:-EEXIST"]


def test_what_is_reached_is_a_witness() -> None:
    """Every item has a name that a scenario may ask for; the names are read from the sources."""
    for name in SMALL:
        items = sorted(searched(name, Strategy.RANDOM, schedules=25).coverage)
        quoted = ", ".join(f'"{item}"' for item in items)
        text = f'summary = "s"\nsetup = ["host: wake vcpu0"]\n[expect]\nwitnesses = [{quoted}]\n'
        check_names(read_scenario("f", text, "f.toml"), find_design("v3"))
    assert model_names().errors


ITEMS = st.one_of(
    st.builds("call:{}:{}".format, st.sampled_from(["A" * 8, "B" * 30]), st.sampled_from("xyz")),
    st.builds("sept:{}:{}:{}".format, st.sampled_from("PQ"), st.just("A" * 8), st.just("z" * 31)),
    st.builds(
        "error:{}:-E{}:{}".format, st.sampled_from("fg"), st.just("X"), st.sampled_from("ij")
    ),
    st.builds("error:{}:-EY".format, st.text("f", min_size=1, max_size=60)),
    st.builds("race:{}:{}".format, st.text("r", min_size=1, max_size=40), st.sampled_from("ij")),
    st.builds("wait:vm1 {}:{}".format, st.sampled_from("lm"), st.sampled_from(["ex", "sh"])),
    st.builds("contend:vm1 {}:v0:v1".format, st.sampled_from("lm")),
    st.builds(
        "choice:alloc:{}={}".format, st.text("n", min_size=1, max_size=40), st.integers(1, 3)
    ),
)


@given(st.lists(ITEMS, max_size=30))
def test_all_of_it_is_told_in_80_columns(items: list[str]) -> None:
    verdict = Verdict(
        Outcome.HELD, "s", "v3", "auto", 0, 2, 0, True, "", 1, 1, 1, 0.1,
        coverage=dict.fromkeys(items, 1), missing_witnesses=["call:W"],
    )  # fmt: skip
    lines = coverage_lines(verdict)
    assert max(map(len, lines)) <= WIDTH
    text = " ".join("\n".join(lines).split())
    assert "call:W" in text
    for item in items:
        for part in item.split(":")[1:]:
            assert part.rpartition("=")[0] in text and part.rpartition("=")[2] in text
    assert ("reached: " in summary(items)) and len(summary(items).split(", ")) <= len(REACHED)


def test_every_kind_is_counted() -> None:
    """What a witness may begin with has a name in the summary."""
    assert [kind for kind in REACHED if summary([f"{kind}:"]) == summary([])] == []


def test_the_command_tells_and_keeps_it(tmp_path: Path) -> None:
    """On the screen with `--coverage`, and in the folder of the report."""
    given = ["explore", "busy-once", *QUICK, "--report", str(tmp_path)]
    plain, told = (CliRunner().invoke(app, [*given, *more]) for more in ([], ["--coverage"]))
    assert plain.exit_code == told.exit_code == 0
    table = (tmp_path / "busy-once-coverage.txt").read_text()
    assert "MAPPED              TDX_SUCCESS" in table
    assert table in told.output and table not in plain.output


def test_one_of_several_is_a_witness_enough(tmp_path: Path) -> None:
    """Designs come to the same in different ways."""
    text = (LIBRARY / "convert-against-accept.toml").read_text().partition("[expect]")[0]
    met = ["wait:x or call:TDH.MEM.TRACK:", "wait:vm1 mmu_lock:"]
    missed = ["wait:x or wait:y", "wait:vm1 mmu"]  # half the name of a lock is none
    for witnesses, code in ((met, 0), (met + missed, 3)):
        path = tmp_path / "f.toml"
        path.write_text(f"{text}[expect]\nwitnesses = {witnesses}\n")
        result = CliRunner().invoke(app, ["explore", str(path), *QUICK])
        assert result.exit_code == code
        told = " ".join(result.output.split())
        assert (f"never reached: {', '.join(missed)}" in told) == bool(code)


def test_the_page_tells_what_nobody_reaches(monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/coverage.md: what one scenario reaches is not among what none does."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    page = runpy.run_path(str(ROOT / "tools" / "reached_page.py"))["page"]
    verdict = searched("convert-against-accept", Strategy.RANDOM, schedules=200)
    some, nothing = page({"a": verdict.coverage, "b": []}), page({"a": []})
    for name in ("TDH.MEM.TRACK", "tdp_mmu_split_huge_pages_root: -ENOMEM", "need_resched"):
        assert re.search(rf"[,:-] {name}", nothing) and not re.search(rf"[,:-] {name}", some)
    assert "| TDH.MEM.RANGE.BLOCK | MAPPED | TDX_SUCCESS (1) |" in some
    assert "| mmu_lock | a vCPU for user space (1) |" in some
