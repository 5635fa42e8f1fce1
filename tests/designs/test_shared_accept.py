"""Patch 13's own future: an ACCEPT that splits and sets the bit under mmu_lock for reading."""

import re
from pathlib import Path

import pytest

import septum.scenarios
from septum.designs import find_design
from septum.explore.api import Search
from septum.explore.replay import find_subject
from septum.explore.wanted import Wanted
from septum.scenarios.outcome import ScenarioOutcome
from septum.scenarios.reader import read_scenario
from septum.scenarios.run import run_scenario
from septum.sim import ListSchedule

STALE, REREAD = "accept-shared-non-blocking", "accept-shared-non-blocking-reread"
LIBRARY = Path(septum.scenarios.__file__).parent / "library"


def promises(outcome: ScenarioOutcome) -> set[str]:
    return {finding.promise for finding in outcome.findings}


def test_who_comes_second_spins_unless_it_reads_the_entry_again() -> None:
    """One preemption is enough; the same answers do no harm to who reads it, nor to v3."""
    wanted = Wanted(preemptions=1, failures=0, time_s=30.0, schedules=1000)
    subject = find_subject("accept-level-race", STALE, "quiet")
    example = Search(subject, wanted.options(subject)).run().counterexamples[0]
    assert example.finding.promise == "progress" and example.preemptions == 1
    assert re.search("was found changed .* with mmu_lock held for reading", example.finding.text)
    for design in (REREAD, "v3"):
        schedule = ListSchedule(list(example.answers))
        assert run_scenario("accept-level-race", design, schedule, "quiet").held


@pytest.mark.parametrize(
    "scenario", ["accept-level-race", "accept-parallel-4k", "dpamt-accept-parallel"]
)
def test_a_search_of_who_reads_it_again_finds_nothing(scenario: str) -> None:
    wanted = Wanted(preemptions=1, time_s=60.0)
    subject = find_subject(scenario, REREAD, "quiet")
    verdict = Search(subject, wanted.options(subject)).run()
    assert verdict.complete and not verdict.counterexamples


@pytest.mark.parametrize("design", [STALE, REREAD])
def test_an_accept_takes_mmu_lock_for_reading_and_kicks_nobody(design: str) -> None:
    v3, now = (run_scenario("accept-level-prefault", name).counts for name in ("v3", design))
    calls = ("TDH.MEM.PAGE.DEMOTE", "TDH.MEM.RANGE.BLOCK", "TDH.MEM.TRACK")
    names = ("mmu_lock_write", "kick", *(f"seamcall.{call}" for call in calls))
    assert [v3.get(name, 0) for name in names] == [2, 1, 1, 1, 1]
    assert [now.get(name, 0) for name in names] == [0, 0, 1, 0, 0]


def test_the_bit_is_for_all_vcpus() -> None:
    """As in v3, and not as in shared-demote-non-blocking: accept-level-b maps nothing at 2 MB."""
    for design in ("v3", STALE, REREAD):
        assert run_scenario("accept-32-pages", design).counts.get("splits", 0) == 0


def test_a_conversion_needs_no_block_either() -> None:
    counts = run_scenario("convert-one-page", REREAD).counts
    v3 = run_scenario("convert-one-page").counts
    assert counts["splits"] == v3["splits"] == 1
    assert counts["seamcall.TDH.MEM.RANGE.BLOCK"] == v3["seamcall.TDH.MEM.RANGE.BLOCK"] - 1


def test_with_dynamic_pamt_a_fault_that_meets_a_leaf_finds_no_pages() -> None:
    """F11 stays there: nobody tops up the per-VM cache in a fault."""
    text = (LIBRARY / "finding-fault-meets-leaf.toml").read_text(encoding="utf-8")
    for machine, broken in (("", set()), ("\n[machine]\ndynamic-pamt = true\n", {"progress"})):
        scenario = read_scenario("meets", text + machine, "meets")
        assert promises(run_scenario(scenario, STALE)) & {"progress", "no-bug"} == broken


def test_pages_that_others_have_taken_are_topped_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """need_topup() under the cache's lock: without it the VM is dead."""
    unit = find_design(REREAD).units().tdx
    honest = unit.need_topup_external_per_vm_split_cache
    asked: list[bool] = []

    def taken_meanwhile(self, kvm, level):
        """The first look that finds enough is followed by somebody who takes it."""
        needs = honest(self, kvm, level)
        if not needs and not asked:
            asked.append(True)
            with kvm.tdx.prealloc_split_cache_lock:
                self.free_external_per_vm_split_cache(kvm)
        return needs

    monkeypatch.setattr(unit, "need_topup_external_per_vm_split_cache", taken_meanwhile)
    outcome = run_scenario("dpamt-accept-parallel", REREAD)
    assert not promises(outcome), outcome.findings
    assert asked and outcome.counts["splits"] == 1
