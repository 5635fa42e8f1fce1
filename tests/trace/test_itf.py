"""States in the Informal Trace Format, read back by Apalache's own Python package."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from septum import __version__
from septum.cli.report import ReportOptions, report_run
from septum.errors import InputError
from septum.scenarios.boot import BootRecipe
from septum.scenarios.run import load_scenario
from septum.scenarios.states import scenario_states
from septum.sim import RoundRobin, encode_token
from septum.trace import TraceHeader, TraceWriter

itf_py = pytest.importorskip("itf_py", reason="itf-py is not installed: pip install itf-py")

SPLIT = """\
summary = "One page of an accepted huge one becomes shared."
source = "docs/scenarios.md"

[guest]
vcpu0 = ["accept 2M frame 0", "write page 0", "convert page 5 to shared"]
"""
GFN = 0x80000
HUGE = (GFN, GFN + 512)


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The states of a conversion of one page out of a huge one, as itf-py reads them."""
    folder = tmp_path_factory.mktemp("itf")
    target = folder / "states.itf.json"
    (folder / "split.toml").write_text(SPLIT)
    assert report_run(str(folder / "split.toml"), ReportOptions(itf=target)) == 0
    trace = itf_py.trace_from_json(json.loads(target.read_text()))
    assert {state.meta["index"] for state in trace.states} == set(range(len(trace.states)))
    assert all(set(state.values) == set(trace.vars) for state in trace.states)
    return [state.values for state in trace.states]


def pages(state: dict[str, Any], tree: str) -> dict[tuple[int, int], str]:
    """Range -> level and state, of the pages of the first 2 MB."""
    found = state[tree]["vm1"]
    return {
        where: f"{leaf.level} {leaf.state}" for where, leaf in found.items() if where[0] < HUGE[1]
    }


def test_states_tell_the_story_of_a_split(states: list[dict[str, Any]]) -> None:
    """The S-EPT goes from huge and pending over blocked to 4 KB pages with a hole, step by step."""
    told: list[dict[tuple[int, int], str]] = []
    for state in states:
        if not told or told[-1] != pages(state, "sept"):
            told.append(pages(state, "sept"))
    page = GFN + 5
    rest = {(GFN, page): "4K mapped", (page + 1, HUGE[1]): "4K mapped"}
    assert told == [
        {},
        {HUGE: "2M pending"},
        {HUGE: "2M mapped"},
        {HUGE: "2M blocked mapped"},
        {HUGE: "4K mapped"},
        {**rest, (page, page + 1): "4K blocked mapped"},
        rest,
    ]


def test_mirror_and_sept_agree_whenever_nobody_holds_mmu_lock(
    states: list[dict[str, Any]],
) -> None:
    """What a TLA+ user would ask first, asked of the file: an invariant over its variables."""

    def mapped(state: dict[str, Any], tree: str) -> dict[tuple[int, int], str]:
        return {where: text.split()[0] for where, text in pages(state, tree).items()}

    differs = [state for state in states if mapped(state, "mirror") != mapped(state, "sept")]
    assert differs
    assert all("vm1 mmu_lock" in state["locks"] for state in differs)


def test_what_is_shared_is_not_private(states: list[dict[str, Any]]) -> None:
    assert HUGE in states[0]["private"]["vm1"]
    assert HUGE not in states[-1]["private"]["vm1"]
    assert (GFN, GFN + 5) in states[-1]["private"]["vm1"]


def test_the_same_run_has_the_same_states() -> None:
    def made() -> object:
        return scenario_states(load_scenario("accept-level-b"), "v3", RoundRobin(), "quiet")

    assert made() == made()


def test_a_boot_has_too_many_states(tmp_path: Path) -> None:
    recipe = msgspec.msgpack.encode(BootRecipe(1 << 30, 1, "0" * 64))
    token = encode_token(__version__, recipe, RoundRobin())
    path = tmp_path / "boot.jsonl"
    with TraceWriter(path, TraceHeader(septum_version=__version__, token=token)):
        pass
    with pytest.raises(InputError, match="states of a scenario"):
        report_run(str(path), ReportOptions(itf=tmp_path / "x"))
