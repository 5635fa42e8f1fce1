"""Where the module needs no scheduling point, searches come to the same with and without it.

Where they do not is written down (`LOST`), and is nothing that KVM does.
"""

import inspect
import re
from types import ModuleType
from typing import Any

import pytest

from septum.abi.status import status_name
from septum.explore.covering import coverage
from septum.explore.scenario import ScenarioSubject
from septum.explore.subject import Built, Strategy
from septum.module import common, mem_page, mem_range, metadata, vp, vp_enter


class Ends(ScenarioSubject):
    """A scenario that notes how its runs end."""

    __slots__ = ("ends",)

    def build(self) -> Built:
        self.ends: set[object] = set()
        return super().build()

    def finish(self, built: Built) -> None:
        super().finish(built)
        self.ends.add(self.final(built))


SCENARIOS = {
    "convert-against-fault-there": (None, 0),
    "dead-vm-per-vm": (None, 0),
    "allocate-charge-enomem": (None, 1),
    "dpamt-two-vms": (1, 0),
    "accept-against-block": (1, 0),
}
"""Scenarios of the library: within how many preemptions and failures."""


@pytest.mark.parametrize("name", SCENARIOS)
def test_hosts_reach_the_same(points: Any, name: str) -> None:
    """KVM on the module: ends, findings, and what was reached on the way."""
    bounds = SCENARIOS[name]
    without = points.search(Ends(name, "v3", "end"), Strategy.EXHAUSTIVE, *bounds)
    with points.restored():
        finer = points.search(Ends(name, "v3", "end"), Strategy.EXHAUSTIVE, *bounds)
    assert finer.size > without.size
    assert without == finer


def test_calls_reach_the_same(points: Any) -> None:
    """Tasks that make calls themselves, without a bound."""
    sizes = [0, 0]
    for seed in range(10):
        without, finer = points.both(points.world(seed), Strategy.EXHAUSTIVE, None)
        assert without == finer, points.world(seed).name
        sizes = [a + reached.size[1] for a, reached in zip(sizes, (without, finer), strict=True)]
    assert sizes[1] > sizes[0] > 1000


@pytest.mark.parametrize(
    "prepare,programs",
    [
        ("running", ("accept, exit", "block, track")),
        ("runnable", ("enter, accept", "block, track")),
        ("runnable", ("demote, aug", "block, remove")),
        ("runnable", ("enter, exit", "enter, flush")),
        ("flushed", ("enter", "flush", "enter")),
    ],
)
def test_the_plain_judge_says_so(
    points: Any, monkeypatch: pytest.MonkeyPatch, prepare: str, programs: tuple[str, ...]
) -> None:
    """Every schedule with up to two preemptions, without reduction, and each watched."""
    monkeypatch.setattr(coverage, "WATCHED_EVERY", 1)
    without, finer = points.both(points.Calls(prepare, *programs), Strategy.PLAIN, 2)
    assert finer.size > without.size
    assert without == finer


# ---- points that matter

MATTER = (
    (vp_enter, "_check_and_track", "module.commit", "runnable", ("enter", "track")),
    (mem_range, "tdh_mem_track", "module.commit", "runnable", ("enter", "track")),
    (mem_range, "tdh_mem_range_block", "module.commit", "running", ("accept", "block")),
    (mem_page, "tdh_mem_page_aug", "module.pamt", "runnable", ("aug", "add table")),
    (common, "begin", "module.sept_entry", "runnable", ("aug", "aug", "block")),
    (common, "lock_implicit_td", "module.tdr", "runnable", ("enter, exit", "flush")),
    (common, "check_state", "module.refused", "runnable", ("init vCPU", "aug")),
    (common, "begin", "module.refused", "initialized", ("read L2 attributes", "finalize")),
    (metadata, "_mng_rdwr", "module.return", "initialized", ("read TD", "finalize")),
    (metadata, "_vp_rdwr", "module.return", "flushed", ("read vCPU", "flush done")),
    (vp, "tdh_vp_addcx", "module.refused", "initialized", ("add to vCPU", "finalize")),
    (vp_enter, "enter", "module.refused", "runnable", ("enter other", "flush done")),
)
"""Module, function and kind of a point, and a world in which something is seen only there."""


def take_out(
    points: Any, patch: pytest.MonkeyPatch, module: ModuleType, name: str, kind: str
) -> None:
    """Take the points of a kind out of a function of the module."""
    function = getattr(module, name)
    point = rf'(?:m\.)?sim\.point\("{re.escape(kind)}"\)'
    source, count = re.subn(point, "pass", inspect.getsource(function))
    assert count
    names: dict[str, object] = {}
    code = compile("from __future__ import annotations\n" + source, str(module.__file__), "exec")
    exec(code, vars(module), names)
    points.put(patch, function, names[name])


@pytest.mark.parametrize("module,name,kind,prepare,programs", MATTER)
def test_a_point_that_matters_is_missed(
    points: Any,
    monkeypatch: pytest.MonkeyPatch,
    module: ModuleType,
    name: str,
    kind: str,
    prepare: str,
    programs: tuple[str, ...],
) -> None:
    """Taken out beside the others, it leaves something unseen."""
    calls = points.Calls(prepare, *programs)
    without, finer = points.both(calls, Strategy.EXHAUSTIVE, None)
    assert without == finer
    take_out(points, monkeypatch, module, name, kind)
    assert points.search(calls, Strategy.EXHAUSTIVE, None).ends < finer.ends


# ---- what is lost

BUSY = "TDX_OPERAND_BUSY|RCX"
CAME_LATER = {
    f"TDX_VCPU_ASSOCIATED | {BUSY}, TDX_SUCCESS",
    f"TDX_VCPU_STATE_INCORRECT|4 | {BUSY}, TDX_SUCCESS",
}
LOST = {
    # Who comes to a vCPU holds its TDR, which makes the other's first call BUSY; and finds that the
    # other's second one has come to the vCPU before.
    ("enter", "flush done, enter"): ("flushed", CAME_LATER),
    ("write vCPU", "flush done, enter"): ("flushed", CAME_LATER),
    # A TD has no DEBUG before it is initialised: the one thing that is looked at before any lock.
    ("read L2 attributes", "init TD"): ("created", {"TDX_OPERAND_INVALID|RDX | TDX_SUCCESS"}),
}
"""Programs: the world, and the statuses of calls that only the points reach. KVM enters a vCPU on
one processor, takes a TDR exclusively only while it builds a TD and when no vCPU runs any more, and
asks for no L2 attributes."""


def statuses(ends: frozenset[Any]) -> set[str]:
    """How the calls of each task ended, in each of the ends."""
    return {
        " | ".join(", ".join(status_name(call[1]) for call in task) for task in end[0])
        for end in ends
    }


@pytest.mark.parametrize("programs", LOST, ids=" | ".join)
def test_what_only_the_points_reach(points: Any, programs: tuple[str, ...]) -> None:
    prepare, lost = LOST[programs]
    without, finer = points.both(points.Calls(prepare, *programs), Strategy.EXHAUSTIVE, None)
    assert without.ends < finer.ends
    assert statuses(finer.ends) - statuses(without.ends) == lost
