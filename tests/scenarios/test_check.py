"""`make scenarios`: one world for many runs is as good as a new one for each, and where it is not,
the check says so."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from septum.designs.registry import Design, designs
from septum.linux.host import v3_units
from septum.linux.kvm.gmem_types import GmemInode
from septum.linux.kvm.guest_memfd import GuestMemfd
from septum.scenarios.bench import ScenarioBench
from septum.scenarios.check import Bounds, Verdict, judge, main, run_recorded
from septum.scenarios.reader import read_scenario
from septum.scenarios.run import RandomRun, load_scenario
from septum.scenarios.world import ScenarioWorld

STUCK = """
summary = "A page is converted, and then the guest touches another."
after = ["vcpu0: touch page 2 => any"]
[vm]
ve = true
[host]
convert = ["set-attributes page 0 to shared"]
"""


class LeavesInvalidationOpen(GuestMemfd):
    """Begins an invalidation with each conversion and never ends it: faults retry for ever."""

    __slots__ = ()

    def kvm_gmem_invalidate_end(self, inode: GmemInode, start: int, end: int) -> None:
        """Nothing."""


def test_it_runs_once_what_has_but_one_order() -> None:
    assert judge("tdx-vm-huge-page", Bounds(seeds=5)).nr_runs == 1
    assert judge("punch-against-accept", Bounds(seeds=5)).nr_runs == 7


def test_it_sees_a_world_that_is_not_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def put_back_in_part(bench: ScenarioBench, world: ScenarioWorld) -> None:
        put_back(bench, world)
        world.vmms["vm"].vcpus[0].stat.add("exits")

    put_back = ScenarioBench._put_back
    monkeypatch.setattr(ScenarioBench, "_put_back", put_back_in_part)
    found = judge("punch-against-accept", Bounds(seeds=2)).problems
    assert any("made again, it is another run" in text for text in found)


def test_a_bench_builds_its_world_once() -> None:
    bench = ScenarioBench(load_scenario("reference"))
    for seed in (5, 6, 5):
        events: list[object] = []
        outcome = bench.run(RandomRun(seed), events.append)
        assert run_recorded("reference", RandomRun(seed)) == (outcome, events)
    assert bench.nr_built == 1


def test_a_bench_builds_anew_after_a_run_that_was_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken = replace(v3_units(), gmem=LeavesInvalidationOpen)
    monkeypatch.setitem(designs(), "open", Design("open", "a test", "broken", lambda: broken))
    bench = ScenarioBench(read_scenario("stuck", STUCK, "stuck.toml"), "open")
    first = bench.run(RandomRun(3))
    assert "is retried for the 65th time" in first.findings[-1].text
    assert bench.run(RandomRun(3)) == first
    assert bench.nr_built == 2


def test_the_check_by_command(capsys: pytest.CaptureFixture[str]) -> None:
    bounds = ["--seeds", "2", "--failing", "1", "--workers", "1"]
    assert main([*bounds, "convert-one-page", "reference"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out == [
        "[1/2] convert-one-page  as expected, the only order",
        "[2/2] reference         as expected, 4 schedules",
        "2 of 2 scenarios as expected: round-robin, 2 seeds from 0 on, 1 with failures; 5 runs",
    ]
    assert main(["--seeds", "2", "no-such"]) == 2
    assert "no scenario is called 'no-such'" in capsys.readouterr().err


def test_an_interrupt_keeps_what_was_judged(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(names: list[str], bounds: Bounds, workers: int) -> Iterator[Verdict]:
        yield judge(names[0], bounds)
        raise KeyboardInterrupt

    monkeypatch.setattr("septum.scenarios.check._verdicts", interrupted)
    assert main(["--seeds", "1", "convert-one-page", "reference"]) == 130
    printed = capsys.readouterr()
    assert "1 of 1 scenarios as expected" in printed.out
    assert "1 scenarios were not judged" in printed.err


def test_failures_come_where_the_scenario_allows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert judge("punch-against-accept", Bounds(seeds=0, failing=3)).nr_runs == 5
    monkeypatch.setattr("septum.scenarios.check.FAILURE_ODDS", 1)
    found = judge("convert-against-accept", Bounds(seeds=0, failing=2))
    assert found.nr_runs == 4 and not found.problems
