"""The proposals of the review: what each removes, what each breaks, and what it costs.

Every claim here is a difference to v3 in the same scenario under the same schedule, so that none
can hold for a reason that v3 shares.
"""

import re
from functools import cache
from pathlib import Path

import msgspec
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from replaying import replay_scenario

from septum.abi.errno import EBUSY
from septum.abi.kvm import PG_LEVEL_2M
from septum.designs import Design, designs, find_design, on_v3
from septum.designs.proposals import DESIGNS
from septum.designs.proposals.pamt_at_alloc import ControlPageTdpMmu
from septum.designs.proposals.range_unblock import UnblockTdxArch
from septum.designs.proposals.shared_demote import SharedUnblockTdx
from septum.linux.kvm.tdp_iter import TdpIter
from septum.linux.kvm.tdp_mmu import TdpMmu
from septum.linux.kvm.tdx_base import tdx_operand_busy
from septum.scenarios.outcome import ScenarioOutcome
from septum.scenarios.reader import read_scenario
from septum.scenarios.run import (
    RandomRun,
    ScenarioRecipe,
    load_scenario,
    run_scenario,
)
from septum.sim import Sim, decode_token

DOC = (Path(__file__).parents[2] / "docs" / "designs.md").read_text(encoding="utf-8")
NAMES = [design.name for design in DESIGNS]
run = cache(run_scenario)


def promises(outcome: ScenarioOutcome) -> set[str]:
    return {finding.promise for finding in outcome.findings}


def texts(outcome: ScenarioOutcome) -> str:
    return "\n".join(f"{f.promise}: {f.text}" for f in outcome.findings)


def section_of(name: str) -> str:
    """What docs/designs.md says of a design."""
    return next(part for part in DOC.split("\n### ") if part.startswith(f"{name}\n"))


def result(outcome: ScenarioOutcome, op: str) -> str:
    """What the operation that begins like this came to."""
    return next(r.result for r in outcome.results if r.op.startswith(op))


# What v3 breaks and the design does not: design, scenario, finding, promises.
REMOVES = [
    ("split-sept-first", "finding-folio-split-enomem", "F3", {"all-or-nothing"}),
    ("split-sept-first", "folio-1g-convert-4k", "F5", {"no-bug", "cache", "mapping-in-folio"}),
    ("split-sept-first", "finding-fault-meets-leaf", "F11", {"progress", "no-bug"}),
    ("folio-first", "finding-folio-split-enomem", "F3", {"all-or-nothing"}),
    ("folio-first-pfn", "finding-folio-split-enomem", "F3", {"all-or-nothing"}),
    ("folio-first-pfn", "finding-without-fixup-2", "F5", {"no-bug", "private-unreachable"}),
    ("folio-split-2m", "folio-1g-convert-4k", "F5", {"no-bug", "cache", "mapping-in-folio"}),
    ("folio-split-2m", "folio-1g-convert-2m", "F5", {"no-bug", "cache"}),
    ("folio-split-2m", "folio-1g-dynamic-pamt", "F5", {"no-bug", "teardown"}),
    ("folio-split-2m", "finding-fault-meets-leaf", "F11", {"progress", "no-bug"}),
    ("folio-split-2m-sept-first", "finding-folio-split-enomem", "F3", {"all-or-nothing"}),
    ("seven-steps", "finding-folio-split-enomem", "F3", {"all-or-nothing"}),
    ("seven-steps", "folio-1g-convert-4k", "F5", {"no-bug", "cache", "mapping-in-folio"}),
    ("prealloc-folio-split", "finding-folio-split-enomem", "F3", {"all-or-nothing"}),
    ("pfn-wrappers", "folio-1g-convert-4k", "F5", {"no-bug", "cache", "mapping-in-folio"}),
    ("pfn-wrappers", "folio-1g-convert-2m", "F5", {"no-bug", "cache"}),
    ("warn-wrappers", "folio-1g-convert-4k", "F5", {"cache"}),
    ("warn-wrappers", "folio-1g-dynamic-pamt", "F5", {"teardown"}),
    ("order-from-attributes", "folio-1g-convert-4k", "F5", {"no-bug", "cache"}),
    ("order-from-attributes", "finding-fault-meets-leaf", "F11", {"progress", "no-bug"}),
    (
        "order-from-attributes",
        "finding-fresh-folio-enomem",
        "F9",
        {"mapping-in-folio", "private-unreachable"},
    ),
    ("split-for-memory-failure", "memory-failure-under-leaf", "F5", {"no-bug", "precise-zap"}),
    ("attributes-two-passes", "attributes-slots-enomem", "F2", {"mapping-in-folio"}),
    ("prealloc-sept-split", "finding-attributes-enomem", "F2", {"mapping-in-folio"}),
    ("prealloc-sept-split", "attributes-slots-enomem", "F2", {"mapping-in-folio"}),
    ("no-vm-attributes", "finding-attributes-enomem", "F2", {"mapping-in-folio"}),
    ("pamt-at-alloc", "finding-demote-busy-dpamt", "F4", {"no-bug", "teardown"}),
    ("shared-demote-unblock", "finding-fault-meets-leaf", "F11", {"progress", "no-bug"}),
    ("shared-demote-non-blocking", "finding-fault-meets-leaf", "F11", {"progress", "no-bug"}),
    ("accept-shared-non-blocking", "finding-fault-meets-leaf", "F11", {"progress", "no-bug"}),
    ("rfc-v5", "folio-1g-convert-4k", "F5", {"no-bug", "cache", "mapping-in-folio"}),
    ("rfc-v5", "finding-attributes-enomem", "F2", {"mapping-in-folio"}),
]


@pytest.mark.parametrize(
    "design,scenario,finding,removed", REMOVES, ids=[f"{r[0]}-{r[2]}-{r[1]}" for r in REMOVES]
)
def test_removes_a_finding(design: str, scenario: str, finding: str, removed: set[str]) -> None:
    assert removed <= promises(run(scenario))
    assert not removed & promises(run(scenario, design)), texts(run(scenario, design))
    assert finding in section_of(design)


# The errors of F2 as user space sees them: scenario, operation, v3, by design.
ERRORS = [
    ("finding-convert-enomem", "set-attributes", "1 at page 1", "-ENOMEM at page 1"),
    ("finding-punch-enomem", "punch", "1", "-ENOMEM"),
]


@pytest.mark.parametrize("design", ["head-tail", "gmem-convert-hook", "prealloc-sept-split"])
@pytest.mark.parametrize("scenario,op,posted,now", ERRORS, ids=[e[0] for e in ERRORS])
def test_an_error_is_an_error(design: str, scenario: str, op: str, posted: str, now: str) -> None:
    assert result(run(scenario), op) == posted
    assert result(run(scenario, design), op) == now
    assert run(scenario, design).held


@pytest.mark.parametrize(
    "design", ["head-tail", "accept-to-level", "prealloc-sept-split", "rfc-v5"]
)
def test_no_memory_to_split_for_an_accept_goes_to_user_space(design: str) -> None:
    assert not run("finding-accept-enomem").ended
    assert "KVM_RUN failed: -ENOMEM" in " ".join(run("finding-accept-enomem", design).ended)


RACES = {"range-locks-exact"}
"""They break what they break in some schedules only."""
SCHEDULES = [RandomRun(seed) for seed in range(10)]

BREAKING = [design for design in DESIGNS if design.breaks]


@pytest.mark.parametrize("design", BREAKING, ids=lambda design: design.name)
def test_breaks_what_it_says(design: Design) -> None:
    broken = set()
    for scenario in design.scenarios:
        broken |= promises(run(scenario, design.name)) - promises(run(scenario))
        if design.name in RACES:
            for schedule in SCHEDULES:
                broken |= promises(run(scenario, design.name, schedule))
                assert run(scenario, "v3", schedule).held
    assert broken == set(design.breaks)


STORIES = {
    ("folio-first", "convert-aligned-2m"): "TDH_PHYMEM_PAGE_WBINVD failed: .*OPERAND_INVALID",
    ("folio-first", "dpamt-convert"): "TDH_MEM_PAGE_DEMOTE failed: .*OPERAND_INVALID",
    ("unmap-first", "convert-one-page"): r"\(5 pages\) lost the guest's ACCEPT though nobody asked",
    ("head-tail", "finding-attributes-enomem"): "was begun and never ended",
    ("split-in-zap", "two-vms-1g-enomem"): r"failed \(1\), and GFNs .* \(12 pages\) lost",
    ("accept-in-vcpu-root", "accept-level-prefault"): "under shared lock occurs",
    ("shared-demote-unblock", "accept-demote-busy"): "RANGE_BLOCK failed: .*ALREADY_BLOCKED",
    ("accept-shared-non-blocking", "accept-parallel-4k"): "0x80000 was found changed 64 times",
    ("restartable-fatal", "demote-interrupted"): "DEMOTE failed: .*INTERRUPTED_RESTARTABLE",
    ("restartable-retry", "interrupt-storm"): "soft lockup: TDH.MEM.PAGE.DEMOTE was interrupted",
    (
        "rfc-v5",
        "dpamt-demote-busy",
    ): "TDH_MEM_PAGE_DEMOTE failed: 0x8000ff0000000000, .*TDX_SW_ERROR",
}


@pytest.mark.parametrize("case", STORIES, ids=lambda case: "-".join(case))
def test_breaks_it_in_the_way_that_is_told(case: tuple[str, str]) -> None:
    design, scenario = case
    assert re.search(STORIES[case], texts(run(scenario, design))), texts(run(scenario, design))
    assert not re.search(STORIES[case], texts(run(scenario)))


def test_nothing_is_unmapped_before_everything_is_split() -> None:
    """The downside that the log of patch 15 tells, once an error of the split is one."""
    scenario = "attributes-slots-enomem"
    ends = {design: run(scenario, design) for design in ("v3-f2-repaired", "attributes-two-passes")}
    assert {result(end, "set-attributes") for end in ends.values()} == {"-ENOMEM"}
    assert [promises(end) for end in ends.values()] == [{"all-or-nothing"}, set()]
    kept = [end.counts["pages_2m"] * 512 + end.counts["pages_4k"] for end in ends.values()]
    assert kept == [1024 - 256, 1024]


# The order of a conversion


def test_a_failed_folio_split_loses_data_or_not_by_the_order() -> None:
    """F3 by design: who can still read the page that was not converted?"""
    scenario = load_scenario("finding-folio-split-enomem")
    kept = {
        design: run(scenario.name, design).pages["page 1"]
        for design in ("v3", "split-sept-first", "folio-first", "unmap-first")
    }
    assert kept == {
        "v3": "unmapped",
        "split-sept-first": "private 4K",
        "folio-first": "private 2M",
        "unmap-first": "unmapped",
    }
    assert run(scenario.name).pages["page 0"] == "private 4K"
    assert run(scenario.name, "unmap-first").pages["page 0"] == "unmapped"


TWICE = """
summary = "Two conversions have no memory: one for the S-EPT's split, one for the folio's."
setup = ["vcpu0: accept 2M frame 0"]
[vm]
in-place = true
[host]
convert = ["set-attributes page 1 to shared => any", "set-attributes page 1 to shared => any"]
[failures]
inject = ["alloc:tdp_mmu_alloc_sp_for_split", "alloc:hugetlb_vmemmap_restore @2"]
"""


def test_what_is_allocated_ahead_is_freed_again() -> None:
    """The first conversion allocates for the folio, and fails; the second has to allocate again."""
    outcome = run_scenario(read_scenario("twice", TWICE, "twice"), "prealloc-folio-split")
    assert [r.result for r in outcome.results[1:]] == ["1 at page 1", "-ENOMEM at page 1"]
    assert outcome.counts["pages_2m"] == 1 and outcome.held


@pytest.mark.parametrize("late", ["finding-attributes-late", "finding-attributes-late-accept"])
def test_attributes_that_are_stored_in_time_leave_no_window(late: str) -> None:
    """F6: the schedule that v3 breaks under is only one that seven-steps holds under. With the late
    mapping goes what follows from it."""
    seeds = range(40)
    broken = {seed for seed in seeds if promises(run_scenario(late, "v3", RandomRun(seed)))}
    assert broken
    assert not any(
        promises(run_scenario(late, "seven-steps", RandomRun(seed))) for seed in broken | {0, 1, 2}
    )
    assert "F6" in section_of("seven-steps")


COSTS = [
    # (design, scenario, counter, v3, design)
    ("split-sept-first", "convert-aligned-2m", "seamcall.TDH.MEM.PAGE.DEMOTE", 0, 1),
    ("split-sept-first", "folio-1g-convert-4k", "splits", 1, 3),
    ("split-sept-first", "folio-1g-convert-4k", "pages_2m", 2, 0),
    ("folio-split-2m-sept-first", "folio-1g-convert-4k", "splits", 1, 1),
    ("folio-split-2m-sept-first", "convert-aligned-2m", "seamcall.TDH.MEM.PAGE.DEMOTE", 0, 1),
    ("folio-split-2m-sept-first", "convert-aligned-2m", "kick", 2, 514),
    ("prealloc-sept-split", "dpamt-straddling", "mmu_lock_write", 7, 3),
    ("no-vm-attributes", "convert-against-convert", "seamcall.TDH.MEM.PAGE.AUG", 1, 512),
    ("shared-demote-non-blocking", "accept-level-prefault", "kick", 1, 0),
    ("shared-demote-non-blocking", "accept-level-prefault", "seamcall.TDH.MEM.RANGE.BLOCK", 1, 0),
    ("shared-demote-non-blocking", "accept-level-prefault", "seamcall.TDH.MEM.TRACK", 1, 0),
    ("shared-demote-non-blocking", "accept-level-prefault", "mmu_lock_write", 2, 0),
    ("promotion", "promotion-after-return", "seamcall.TDH.MEM.RANGE.UNBLOCK", 0, 1),
    ("promotion", "promotion-after-return", "promote.refused", 0, 1),
    ("promotion", "promotion-all-pending", "seamcall.TDH.MEM.PAGE.PROMOTE", 0, 1),
    ("promotion", "promotion-all-pending", "pages_2m", 0, 1),
]


@pytest.mark.parametrize("design,scenario,counter,posted,now", COSTS)
def test_costs(design: str, scenario: str, counter: str, posted: int, now: int) -> None:
    counts = [run(scenario, name).counts.get(counter, 0) for name in ("v3", design)]
    assert counts == [posted, now]


def test_a_vmm_that_gives_pages_back_fails_conversions_where_holes_are_whole() -> None:
    """As QEMU: attributes, then a hole; a hole that is refused is a MapGPA that is refused."""
    setup = "convert page 5 to shared"
    assert result(run("private-again-per-vm"), setup) == "ok"
    assert result(run("private-again-per-vm", "punch-whole"), setup) == "refused"
    assert result(run("finding-punch-enomem", "punch-whole"), "punch") == "-EINVAL"
    assert result(run("private-again-per-vm", "rfc-v5"), setup) == "ok"


def test_pamt_at_alloc_takes_more_pairs_and_no_cache() -> None:
    """Its S-EPT pages have their PAMT before the module has them; a split tops nothing up."""
    v3, now = run("dpamt-convert"), run("dpamt-convert", "pamt-at-alloc")
    assert now.held and v3.held
    top_up = "alloc:tdx_split_cache"
    scenario = load_scenario("dpamt-topup-enomem")
    assert any(top_up in injection.name for injection in scenario.injections)
    assert result(run(scenario.name), "set-attributes").startswith("1")
    assert result(run(scenario.name, "pamt-at-alloc"), "set-attributes") == "ok"


def test_a_page_that_goes_without_its_pair_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The promise `pamt` allows counts ahead of use, and still sees one that is never dropped."""
    monkeypatch.setattr(ControlPageTdpMmu, "tdp_mmu_free_sp", TdpMmu.tdp_mmu_free_sp)
    assert "pamt" in promises(run_scenario("dpamt-convert", "pamt-at-alloc"))


LARGE = """
summary = "A large range of accepted memory is converted, all but a page at each end."
setup = ["vcpu0: accept frames 0-31"]
[vm]
memory = "64M"
[host]
convert = ["set-attributes pages 1-16382 to shared"]
"""


def entries_walked(design: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many entries walks that split look at in the scenario above."""
    steps: list[int] = []
    honest = TdpIter.next

    def counted(self: TdpIter) -> None:
        steps.append(self.min_level == PG_LEVEL_2M)
        honest(self)

    with monkeypatch.context() as patch:
        patch.setattr(TdpIter, "next", counted)
        outcome = run_scenario(read_scenario("large", LARGE, "large"), design)
    assert outcome.held and outcome.counts["splits"] == 2
    return sum(steps)


def test_the_walk_of_head_and_tail_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hole of 12 TiB is Sean's example; guest_memfd converts one huge folio after the other, so
    that v3 walks each of them, and the proposal the first and the last."""
    v3, now = (entries_walked(design, monkeypatch) for design in ("v3", "head-tail"))
    assert v3 > 4 * now > 0


# The same as v3 where nothing fails

RANGE = """
summary = "A range of accepted memory is converted."
setup = ["vcpu0: accept frames 0-2", "vcpu0: write frames 0-2"]
[vm]
memory = "6M"
backing = "{backing}"
in-place = {in_place}
[host]
convert = ["set-attributes pages {first}-{last} to shared"]
[expect]
pages = {{ "all" = "shared" }}
"""
SAME = [
    "head-tail",
    "prealloc-sept-split",
    "gmem-convert-hook",
    "one-hook",
    "accept-to-level",
    "rfc-v5",
]


@settings(max_examples=8, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(
    first=st.integers(0, 1535),
    length=st.integers(1, 1536),
    backing=st.sampled_from(["hugetlb-2m", "thp"]),
    design=st.sampled_from(SAME),
)
def test_the_same_pages_are_left_whatever_the_range(
    first: int, length: int, backing: str, design: str
) -> None:
    last = min(first + length - 1, 1535)
    in_place = str(backing != "thp").lower()
    text = RANGE.format(backing=backing, in_place=in_place, first=first, last=last)
    scenario = read_scenario("range", text, "range")
    v3, now = run_scenario(scenario), run_scenario(scenario, design)
    assert v3.held and now.held, texts(now)
    assert now.pages == v3.pages
    for counter in ("splits", "pages_2m", "pages_4k", "seamcall.TDH.MEM.PAGE.REMOVE"):
        assert now.counts.get(counter) == v3.counts.get(counter), counter


@pytest.mark.parametrize(
    "scenario", ["dying-vm", "busy-once", "two-vms-one-inode", "teardown-split"]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_one_hook_changes_no_verdict(
    scenario: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The same schedule: a design's unlocks are scheduling points, and v3's are not.
    monkeypatch.setattr(Sim, "released", lambda sim, lock: None)
    v3, now = (run_scenario(scenario, name, RandomRun(seed)) for name in ("v3", "one-hook"))
    assert promises(v3) == promises(now)
    assert v3.counts == now.counts


def test_one_hook_is_all_that_tdx_is_asked_by(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but the hook is called: an op of v3 that is called would be an error."""
    unit = find_design("one-hook").units().tdx

    def never(self, *args):
        raise AssertionError("an op for a single transition was called")

    for name in ("link_external_spt", "set_external_spte", "remove_external_spte"):
        monkeypatch.setattr(unit, name, never)
    monkeypatch.setattr(unit, "split_external_spte", never)
    outcome = run_scenario("convert-one-page", "one-hook")
    assert outcome.ok, outcome.unmet


# Split under mmu_lock for reading


def test_unblock_wants_the_tracking_that_has_failed() -> None:
    """Without injection: TRACK is BUSY while a vCPU enters, and UNBLOCK is then refused."""
    scenario = "accept-parallel-4k"
    for seed in range(400):
        outcome = run_scenario(scenario, "shared-demote-unblock", RandomRun(seed))
        if promises(outcome):
            break
    assert outcome.counts["unblock.failed"] >= 1
    assert "RANGE_BLOCK failed: 0xb0700000001" in texts(outcome)
    assert run_scenario(scenario, "v3", RandomRun(seed)).held
    assert run_scenario(scenario, "shared-demote-non-blocking", RandomRun(seed)).held


class ToleratesBlocked(SharedUnblockTdx):
    """A split that takes a leaf which is blocked already as one that it has blocked."""

    __slots__ = ()

    def tdx_sept_block_shared(self, kvm, gpa, level):
        err, _, _ = self.host.x86_tdx.tdh_mem_range_block(kvm.tdx, gpa, level - 1)
        return -EBUSY if tdx_operand_busy(err) else 0


LEFT_BLOCKED = """
summary = "While an accept tries again and again to split its leaf, a part of it is converted."
setup = ["host: prefault frame 0", "vcpu0: accept 4K page 0 of frame 1"]
[vm]
memory = "4M"
[guest]
vcpu0 = ["signal go", "accept 4K page 5"]
[host]
vmm = ["wait go", "set-attributes page 7 to shared"]
[failures]
inject = ["seamcall:TDH.MEM.PAGE.DEMOTE=busy @1-9", "seamcall:TDH.MEM.RANGE.UNBLOCK=busy @1-9"]
"""


def test_to_tolerate_a_blocked_leaf_moves_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The retry of the split then goes well; whoever else blocks the leaf first does not."""
    units = on_v3(tdx=ToleratesBlocked, x86_tdx=UnblockTdxArch)
    monkeypatch.setitem(designs(), "tolerates", Design("tolerates", "a test", "", units))
    assert run_scenario("accept-demote-busy", "tolerates").held
    scenario = read_scenario("left-blocked", LEFT_BLOCKED, "left-blocked")
    runs = (texts(run_scenario(scenario, "tolerates", RandomRun(seed))) for seed in range(40))
    assert any(re.search("RANGE_BLOCK failed: .*ALREADY_BLOCKED", text) for text in runs)


def test_a_blocking_module_refuses_the_non_blocking_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """That the design holds is the module's doing: with today's, DEMOTE wants a blocked leaf."""
    module = find_design("shared-demote-non-blocking").module_class()
    monkeypatch.setattr(module, "demote_blocking", True)
    outcome = run_scenario("accept-level-prefault", "shared-demote-non-blocking")
    assert "TDX_GPA_RANGE_NOT_BLOCKED" in texts(outcome)


# The document


@pytest.mark.parametrize("design", DESIGNS, ids=lambda design: design.name)
def test_each_is_told(design: Design) -> None:
    assert design.kind == "proposal"
    assert re.search(r"20\d\d-\d\d-\d\d", design.origin), design.origin
    section = section_of(design.name)
    for promise in design.breaks:
        assert f"`{promise}`" in section, promise
    for scenario in design.scenarios:
        assert load_scenario(scenario).summary
        assert scenario in section, scenario


ROWS = re.findall(
    r"^\| ([\w-]+) \| ([\w-]+) \| ([^|]+) \| `(septum1\.[\w-]+)` \|$", DOC, re.MULTILINE
)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]}-{row[1]}")
def test_tokens_replay(row: tuple[str, str, str, str]) -> None:
    """If one does not any more: python tools/design_tokens.py."""
    design, scenario, broken, token = row
    _, packed, schedule = decode_token(token)
    recipe = msgspec.msgpack.decode(packed, type=ScenarioRecipe)
    assert (recipe.design, recipe.name) == (design, scenario)
    assert promises(replay_scenario(recipe, schedule)) == set(broken.split(", "))


def test_each_design_that_breaks_has_a_token() -> None:
    assert {design.name for design in BREAKING} == {row[0] for row in ROWS}


def test_names_are_unique() -> None:
    assert len(set(NAMES)) == len(NAMES)
