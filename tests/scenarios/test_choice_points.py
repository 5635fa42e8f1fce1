"""Every failure of the model is a named choice point, documented, and met by some scenario."""

import ast
import re
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import pytest

from septum.abi.leaves import SEAMCALL_NAMES
from septum.scenarios.failures import Failures
from septum.scenarios.run import load_scenario, run_scenario
from septum.scenarios.scenario import Scenario

ROOT = Path(__file__).parents[2]
ROOMS = ("linux", "module", "machine", "vmm")
NOWHERE = "nowhere: "


@cache
def documented() -> dict[str, list[str]]:
    """Choice point -> what stands under "met in", of docs/scenarios.md."""
    text = (ROOT / "docs" / "scenarios.md").read_text(encoding="utf-8")
    _, _, section = text.partition("\n## Choice points\n")
    rows = re.findall(r"^\| `(\S+)` \| .+ \| (.+) \|$", section.partition("\n## ")[0], re.MULTILINE)
    return {name: met.split(", ") for name, met in rows}


def trees() -> list[ast.Module]:
    paths = [path for room in ROOMS for path in sorted((ROOT / "src/septum" / room).rglob("*.py"))]
    return [ast.parse(path.read_text(encoding="utf-8")) for path in paths]


def site_parameters(parsed: list[ast.Module]) -> dict[str, int]:
    """Methods with a parameter `site`, and which one it is when they are called."""
    return {
        node.name: [arg.arg for arg in node.args.args].index("site") - 1
        for tree in parsed
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and "site" in [arg.arg for arg in node.args.args]
    }


def in_the_code() -> set[str]:
    """Choice points by the texts in the code."""
    parsed = trees()
    sites = site_parameters(parsed)
    found = set()
    for call in (node for tree in parsed for node in ast.walk(tree) if isinstance(node, ast.Call)):
        if not isinstance(call.func, ast.Attribute):
            continue
        position = sites.get(call.func.attr, 0 if call.func.attr == "choose" else len(call.args))
        if position >= len(call.args):
            continue
        text = call.args[position]
        if isinstance(text, ast.Constant) and isinstance(text.value, str):
            found.add(text.value if call.func.attr == "choose" else f"alloc:{text.value}")
    return found


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
    assert len(in_the_code()) >= 35
    assert set(documented()) - {"seamcall:LEAF"} == in_the_code()


@pytest.mark.parametrize(
    "name", sorted({scenario for met in documented().values() for scenario in met})
)
def test_each_is_met_where_it_is_said(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name.startswith(NOWHERE):
        return
    met = met_in(load_scenario(name), monkeypatch)
    for point, scenarios in documented().items():
        if name in scenarios:
            assert any(fnmatchcase(each, point.replace("LEAF", "*")) for each in met)


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
