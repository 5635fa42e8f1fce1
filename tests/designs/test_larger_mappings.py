"""Where mappings may be larger than folios: what a fault maps, and what a memory failure takes."""

from pathlib import Path

import pytest

from septum.scenarios.outcome import ScenarioOutcome
from septum.scenarios.reader import read_scenario
from septum.scenarios.run import RandomRun, run_scenario

DOC = (Path(__file__).parents[2] / "docs" / "designs.md").read_text(encoding="utf-8")


def promises(outcome: ScenarioOutcome) -> set[str]:
    return {finding.promise for finding in outcome.findings}


def section_of(name: str) -> str:
    """What docs/designs.md says of a design."""
    return next(part for part in DOC.split("\n### ") if part.startswith(f"{name}\n"))


IN_1G = """
summary = "A page of a 1 GB folio is shared; then something happens in its second 2 MB."
setup = ["vcpu0: accept 2M {frames}", "host: set-attributes page 0 to shared"{then}]
[vm]
memory = "1G"
at = "0x100000000"
backing = "hugetlb-1g"
in-place = true
[host]
vmm = ["set-attributes page 1 to shared"]
{failures}
"""


def in_1g(design: str, *then: str, frames: str = "frame 0", failures: str = "") -> ScenarioOutcome:
    steps = "".join(f', "{step}"' for step in then)
    text = IN_1G.format(frames=frames, then=steps, failures=failures)
    return run_scenario(read_scenario("in-1g", text, "in-1g"), design)


def test_what_is_left_of_a_1g_folio_stays_large_by_its_attributes() -> None:
    """In v3 one shared page makes 4 KB of all that is not mapped yet."""
    counts = {d: in_1g(d, "vcpu0: accept frame 1").counts for d in ("v3", "order-from-attributes")}
    aug = "seamcall.TDH.MEM.PAGE.AUG"
    assert [(c[aug], c.get("pages_2m", 0)) for c in counts.values()] == [(513, 0), (2, 1)]


def test_a_page_that_has_failed_is_not_mapped_with_its_neighbours() -> None:
    """One that was never mapped: nothing is zapped, and the next fault must not take it along."""
    outcome = in_1g(
        "order-from-attributes",
        "host: fail page 3 of frame 1",
        "host: prefault page 7 of frame 1 by vcpu0",
    )
    assert outcome.held and outcome.counts.get("pages_2m", 0) == 0
    sound = in_1g("order-from-attributes", "host: prefault page 7 of frame 1 by vcpu0")
    assert sound.held and sound.counts["pages_2m"] == 1


def test_a_fresh_huge_folio_over_mixed_memory_is_not_mapped_whole() -> None:
    """F9, the race: the schedules in which v3 does."""
    race = "finding-fresh-folio-race"
    seeds = [
        seed
        for seed in range(60)
        if "mapping-in-folio" in promises(run_scenario(race, "v3", RandomRun(seed)))
    ]
    assert seeds
    for seed in seeds:
        outcome = run_scenario(race, "order-from-attributes", RandomRun(seed))
        assert "mapping-in-folio" not in promises(outcome)
    assert race in section_of("order-from-attributes")


WARNED = ["folio-1g-convert-4k", "folio-1g-convert-2m", "folio-1g-dynamic-pamt"]


@pytest.mark.parametrize("scenario", [*WARNED, "finding-without-fixup-2"])
def test_a_wrapper_that_warns_goes_on(scenario: str) -> None:
    """F5: v3 bugs the VM for its own check; a warning is all that is left of it."""
    v3, now = run_scenario(scenario), run_scenario(scenario, "warn-wrappers")
    bugs = ["\n".join(f.text for f in end.findings if f.promise == "no-bug") for end in (v3, now)]
    assert "KVM_BUG_ON" in bugs[0] and "WARN: the range" not in bugs[0]
    assert bugs[1] == "WARN: the range is not in one folio"
    assert promises(now) - {"no-bug"} <= promises(v3) & {"mapping-in-folio"}
    assert "no-bug" not in promises(run_scenario(scenario, "pfn-wrappers"))
    assert scenario in section_of("warn-wrappers")


OVERZAP = {"precise-zap", "guest-data", "accept-once"}


@pytest.mark.parametrize(
    "design",
    ["pfn-wrappers", "folio-first-pfn", "seven-steps", "order-from-attributes", "rfc-v5"],
)
def test_a_memory_failure_takes_the_leaf_over_it(design: str) -> None:
    assert promises(run_scenario("memory-failure-under-leaf", design)) == OVERZAP
    assert design in section_of("split-for-memory-failure")
    warned = promises(run_scenario("memory-failure-under-leaf", "warn-wrappers"))
    assert warned == OVERZAP | {"no-bug", "mapping-in-folio"}
    for holds in ("split-for-memory-failure", "split-sept-first"):
        assert not promises(run_scenario("memory-failure-under-leaf", holds))


def test_a_memory_failure_does_not_wait_for_memory() -> None:
    """The split fails: all of the leaf goes, as without it."""
    fails = "mce = ['fail page 3 of frame 1']\n[failures]\n"
    lost = [
        promises(in_1g(design, frames="frames 0-1", failures=fails + failures))
        for design, failures in (
            ("split-for-memory-failure", ""),
            ("split-for-memory-failure", "inject = ['alloc:tdp_mmu_alloc_sp_for_split']"),
            ("pfn-wrappers", ""),
        )
    ]
    assert lost == [set(), {"precise-zap", "guest-data"}, {"precise-zap", "guest-data"}]
