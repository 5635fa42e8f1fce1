"""Every failure of the model is a named choice point, documented, and met by some scenario."""

import re
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import pytest

from septum.abi.leaves import SEAMCALL_NAMES
from septum.scenarios.failures import Failures
from septum.scenarios.injections import parse_injection
from septum.scenarios.model_names import ANYTHING, SEAMCALL, model_names
from septum.scenarios.run import load_scenario, run_scenario
from septum.scenarios.scenario import Scenario

ROOT = Path(__file__).parents[2]
NOWHERE = "nowhere: "


@cache
def documented() -> dict[str, list[str]]:
    """Choice point -> what stands under "met in", of docs/scenarios.md."""
    text = (ROOT / "docs" / "scenarios.md").read_text(encoding="utf-8")
    _, _, section = text.partition("\n## Choice points\n")
    rows = re.findall(r"^\| `(\S+)` \| .+ \| (.+) \|$", section.partition("\n## ")[0], re.MULTILINE)
    return {name: met.split(", ") for name, met in rows}


def met_in(scenario: Scenario, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The choice points that the programs of a scenario meet."""
    met = set()

    class Noting(Failures):
        def settled(self, name: str) -> int | None:
            if self.open:
                met.add(name)
            return super().settled(name)

    monkeypatch.setattr("septum.scenarios.world.Failures", Noting)
    run_scenario(scenario, check="end")
    return met


def test_all_are_documented() -> None:
    in_the_code = {name for name in model_names().choices if not name.startswith(SEAMCALL)}
    assert len(in_the_code) >= 35
    assert set(documented()) - {"seamcall:LEAF"} == in_the_code


def test_every_name_in_the_code_is_known() -> None:
    """A `*` would be a name that is put together in a way that `model_names` cannot follow."""
    names = model_names()
    assert [name for name in (*names.choices, *names.counters) if ANYTHING in name] == []
    other = model_names("class X:\n  def f(self, a): self.sim.choose(a + 'x')")
    assert [name for name in other.choices if ANYTHING in name] == [ANYTHING]


@pytest.mark.parametrize(
    "name", sorted({scenario for met in documented().values() for scenario in met})
)
def test_each_is_met_where_it_is_said(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name.startswith(NOWHERE):
        return
    met = met_in(load_scenario(name), monkeypatch)
    known = model_names().choices
    assert [each for each in met if Failures.is_failure(each) and each not in known] == []
    for point, scenarios in documented().items():
        if name in scenarios:
            assert any(fnmatchcase(each, point.replace("LEAF", "*")) for each in met)


def test_times_are_counted_once_however_many_injections_name_the_point() -> None:
    failures = Failures((), tuple(parse_injection(f"point @{times}") for times in ("1-2", "4")))
    failures.open = True
    assert [failures.settled("point") for _ in range(5)] == [1, 1, 0, 1, 0]


def test_every_seamcall_of_the_kernel_may_be_busy_or_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    scenario = load_scenario("build-while-running")
    allowed = Failures(("seamcall:*",), ())
    assert allowed.seamcall_leaves() == set(SEAMCALL_NAMES)
    monkeypatch.setattr(
        "septum.scenarios.failures.Failures.seamcall_leaves", lambda self: frozenset(SEAMCALL_NAMES)
    )
    met = met_in(scenario, monkeypatch)
    leaves = {name.removeprefix("seamcall:") for name in met if name.startswith("seamcall:")}
    counted = {
        name.removeprefix("seamcall.")
        for name in run_scenario(scenario).counts
        if name.startswith("seamcall.")
    }
    # TDH.VP.ENTER goes to the module without the wrapper; AUG is in the setup.
    assert counted - {"TDH.VP.ENTER", "TDH.MEM.PAGE.AUG"} <= leaves
    assert {"TDH.MNG.CREATE", "TDH.MEM.PAGE.ADD", "TDH.MEM.PAGE.DEMOTE"} <= leaves
