"""Runs of scenarios: expectations that are not met are said, broken hosts are caught, tokens
replay, failures come where the scenario opens them and nowhere else."""

from dataclasses import replace

import msgspec
import pytest
from replaying import replay_scenario

from septum.designs.registry import Design
from septum.errors import InputError
from septum.linux.host import HostUnits, v3_units
from septum.linux.kvm.gmem_types import GmemInode
from septum.linux.kvm.guest_memfd import GuestMemfd
from septum.linux.kvm.mmu import KvmMmu
from septum.linux.kvm.tdx import KvmTdxUnit
from septum.linux.kvm.types import KvmPageFault, KvmVcpu
from septum.scenarios import world as world_module
from septum.scenarios.check import Bounds, judge, run_recorded
from septum.scenarios.outcome import outcome_lines
from septum.scenarios.reader import read_scenario
from septum.scenarios.run import (
    RandomRun,
    ScenarioRecipe,
    load_scenario,
    run_scenario,
)
from septum.scenarios.scenario import Scenario
from septum.sim import ListSchedule, decode_token

TOUCH = """
summary = "s"
[vm]
ve = true
[guest]
vcpu0 = ["touch page 0 => #VE"]
"""


def scenario(text: str) -> Scenario:
    return read_scenario("test", text, "test.toml")


# Expectations


@pytest.mark.parametrize(
    ("change", "unmet"),
    [
        ("", []),
        ("[expect]\ncounts = { pages_2m = 2 }", ["pages_2m is 1, not 2"]),
        ("[expect]\ncounts = { pages_2m = '0..1' }", []),
        ("[expect]\ncounts = { pages_2m = '>= 2' }", ["pages_2m is 1, not >= 2"]),
        (
            "[expect]\npages = { 'page 0' = 'private 2M' }",
            ["page 0: pending 2M, not private 2M"],
        ),
        ("[expect]\npages = { 'frame 0' = 'shared or pending 2M' }", []),
        ("[expect]\nbroken = ['no-bug']", ["promise no-bug was not broken"]),
        ("[expect]\nmay-break = ['no-bug']", []),
        ("[expect]\ndead = true", ["VM vm is not dead"]),
        ("[expect]\nends = ['-EIO']", ["no VMM gave up with '-EIO'"]),
    ],
)
def test_expectations(change: str, unmet: list[str]) -> None:
    outcome = run_scenario(scenario(TOUCH + change))
    assert outcome.unmet == unmet
    assert outcome.ok == (not unmet) and outcome.held


def test_a_wrong_result_is_said() -> None:
    outcome = run_scenario(scenario(TOUCH.replace(" => #VE", "")))
    assert outcome.unmet == ["vcpu0: `touch page 0` came to #VE, not ok"]
    assert any(line.startswith("! vcpu0") for line in outcome_lines(outcome))


def test_what_never_ends_before_the_programs_is_refused() -> None:
    """Nothing that comes after it would be what the scenario says."""
    text = 'summary = "s"\nsetup = ["vcpu0: wait x => any"]\n[guest]\nvcpu1 = ["signal x"]\n'
    with pytest.raises(InputError, match=r"test: setup: `vcpu0: wait x` never ends: no task can"):
        run_scenario(scenario(text))


def test_nothing_comes_after_what_never_ends() -> None:
    """Who waits still holds what it holds: what others do then says nothing."""
    after = 'after = ["vcpu0: wait x => any", "host: punch page 0", "host: signal x"]'
    outcome = run_scenario(scenario(TOUCH.replace("summary", f"{after}\nsummary")))
    assert [(f.promise, f.text[:32]) for f in outcome.findings] == [
        ("progress", "no task can go on: vcpu0 waits f")
    ]
    assert all(result.op != "punch page 0" for result in outcome.results)


def test_what_never_ends_is_said() -> None:
    """With SEPT_VE_DISABLE=1 the same touch is the end of the VM."""
    outcome = run_scenario(scenario(TOUCH.replace("ve = true", "ve = false")))
    assert "vcpu0: `touch page 0` never ended" in outcome.unmet
    assert any("Guest access before accepting" in text for text in outcome.ended)
    assert "accept-once" in {finding.promise for finding in outcome.findings}


def test_a_step_after_the_end_of_its_vm() -> None:
    text = TOUCH.replace("ve = true", "") + "[expect]\nmay-break = ['no-bug', 'accept-once']"
    outcome = run_scenario(scenario(text.replace("[vm]", 'after = ["vcpu0: hlt"]\n[vm]', 1)))
    assert any(text.endswith("` was never begun: the VM had ended") for text in outcome.unmet)


def test_a_vm_that_cannot_be_built() -> None:
    text = TOUCH.replace("ve = true", 'memory = "1G"\nbacking = "hugetlb-1g"\nimage = ["page 0"]')
    assert run_scenario(scenario(text)).results[-1].actor == "vcpu0", "that one can"
    with pytest.raises(InputError, match="no design is called 'v4'"):
        run_scenario(scenario(TOUCH), design="v4")


# Broken hosts


class NoSplit(GuestMemfd):
    """Patch 16 left out: what is zapped is not split before."""

    __slots__ = ()

    def kvm_gmem_split_private(
        self, inode: GmemInode, start: int, end: int, cause: str = "conversion"
    ) -> int:
        return 0


class NoAcceptLevel(KvmTdxUnit):
    """Patch 13 left out: the guest's accept level is nobody's business."""

    __slots__ = ()

    def tdx_honor_guest_accept_level(self, vcpu: KvmVcpu, gfn: int) -> int:
        return 0


class Promoting(KvmMmu):
    """Patch 06 left out: a fault may map 2 MB over a table."""

    __slots__ = ()

    def disallowed_hugepage_adjust(self, fault: KvmPageFault, spte: int, cur_level: int) -> None:
        pass


def broken_host(monkeypatch: pytest.MonkeyPatch, **units: type) -> None:
    def broken_units() -> HostUnits:
        return replace(v3_units(), **units)  # type: ignore[arg-type]

    design = Design("v3", "", "", broken_units)
    monkeypatch.setattr(world_module, "find_design", lambda name: design)


@pytest.mark.parametrize(
    ("units", "name", "promise"),
    [
        ({"gmem": NoSplit}, "convert-one-page", "precise-zap"),
        ({"gmem": NoSplit}, "private-mem-punch-all", "precise-zap"),
        ({"tdx": NoAcceptLevel}, "accept-level-a", "progress"),
        ({"tdx": NoAcceptLevel}, "accept-level-prefault", "progress"),
        ({"mmu": Promoting}, "promotion-after-return", "no-bug"),
    ],
)
def test_broken_hosts_are_caught(
    units: dict[str, type], name: str, promise: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_scenario(name).ok
    broken_host(monkeypatch, **units)
    outcome = run_scenario(name)
    assert not outcome.ok
    assert promise in {finding.promise for finding in outcome.findings}
    assert any(text.startswith(f"promise {promise} was broken") for text in outcome.unmet)


# Schedules and failures

LOSING = """
summary = "s"
setup = ["vcpu0: accept 2M frame 0", "vcpu0: write frame 0"]
[vm]
backing = "thp"
[kernel]
attributes = "vm"
[host]
convert = ["set-attributes page 1 to shared"]
[failures]
allow = ["alloc:tdp_mmu_alloc_sp_for_split*"]
"""


def test_shared_memory_outlives_a_closed_guest_memfd() -> None:
    """It goes with the process."""
    text = """
summary = "Memory is closed; what is faulted in then is shared."
source = "test"
[vm]
vcpus = 1
[host]
vmm = ["close memory", "prefault page 0 by vcpu0"]
"""
    outcome = run_scenario(read_scenario("closed", text, "closed.toml"))
    assert outcome.ok, outcome.unmet


def test_memory_that_is_closed_during_a_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slot of it cannot be made: an error of the build."""
    monkeypatch.setattr(
        "septum.scenarios.vmm.ScenarioVmm.region", lambda self, number, delete: None
    )
    results = run_scenario("build-closed").results
    assert [done.result for done in results if done.op == "build vm"] == ["-EBADF"]


@pytest.mark.parametrize("access", ["read shared page 0", "write 0x1 shared page 0"])
def test_a_shared_access_without_a_slot_is_a_ve(access: str) -> None:
    """KVM leaves an entry there that makes a #VE of the access, not EPT violations for ever."""
    text = f"""
summary = "s"
setup = ["host: set-attributes page 0 to shared", "vcpu0: {access}", "host: delete slot 0"]
[guest]
vcpu0 = ["{access} => #VE", "{access} => #VE"]
"""
    outcome = run_scenario(scenario(text))
    assert outcome.ok, outcome_lines(outcome)


def test_failures_come_only_where_they_are_allowed() -> None:
    always = [
        run_scenario(scenario(LOSING), schedule=RandomRun(seed, failure_odds=2))
        for seed in range(12)
    ]
    injected = [outcome for outcome in always if outcome.failures]
    assert 0 < len(injected) < len(always)
    assert all(outcome.ok for outcome in always if not outcome.failures)
    assert all(not outcome.held for outcome in injected)
    closed = scenario(LOSING.replace("tdp_mmu_alloc_sp_for_split*", "kvm_vcpu"))
    for seed in range(12):
        outcome = run_scenario(closed, schedule=RandomRun(seed, failure_odds=1))
        assert outcome.ok and not outcome.failures


def test_an_unknown_seamcall_is_an_input_error() -> None:
    with pytest.raises(InputError, match=r"'seamcall:TDH.MEM.JUMP' is no choice point"):
        run_scenario(scenario(TOUCH + '[failures]\ninject = ["seamcall:TDH.MEM.JUMP=busy"]'))


def test_random_runs_take_every_alternative() -> None:
    seen = set()
    for seed in range(40):
        outcome = run_scenario("reference", schedule=RandomRun(seed), check="end")
        seen.update(result.op for result in outcome.results if result.actor == "vcpu0")
    assert len(seen) == 5


def test_a_token_replays_byte_for_byte() -> None:
    for name in ("reference", "accept-parallel-4k", "two-vms-same-page"):
        outcome, events = run_recorded(name, RandomRun(11))
        _, packed, schedule = decode_token(outcome.token)
        recipe = msgspec.msgpack.decode(packed, type=ScenarioRecipe)
        replayed: list[object] = []
        again = run_scenario(name, recipe.design, schedule, "quiet", replayed.append)
        assert replayed == events
        assert again.results == outcome.results and again.token == outcome.token
        assert replay_scenario(recipe, decode_token(outcome.token)[2]).counts == outcome.counts


def test_a_token_carries_a_file_that_is_not_in_the_library() -> None:
    outcome = run_scenario(scenario(TOUCH))
    recipe = msgspec.msgpack.decode(decode_token(outcome.token)[1], type=ScenarioRecipe)
    assert recipe.text and replay_scenario(recipe, ListSchedule([])).ok
    library = msgspec.msgpack.decode(
        decode_token(run_scenario("reference").token)[1], type=ScenarioRecipe
    )
    assert not library.text and library.digest
    with pytest.raises(InputError, match="not the one that the token was made with"):
        replay_scenario(msgspec.structs.replace(library, digest=b"0"), ListSchedule([]))


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ('summary = "', 'summary = "Now: ', True),
        ("[guest]", "# What vCPUs do.\n[guest]", True),
        ("[expect]", '[expect]\nwitnesses = ["call:TDH.MEM.TRACK:"]', True),
        ("page 5", "page 6", False),
        ("[expect]", '[expect]\nmay-break = ["mirror"]', False),
        ("[expect]", "[kernel]\nfixup-zap-before-split = false\n[expect]", False),
    ],
)
def test_a_token_stays_with_what_a_scenario_does(
    monkeypatch: pytest.MonkeyPatch, old: str, new: str, same: bool
) -> None:
    """Whatever is said of it to readers, and of what a search must reach; nothing else."""
    name = "convert-one-page"
    recipe = msgspec.msgpack.decode(decode_token(run_scenario(name).token)[1], type=ScenarioRecipe)
    text = load_scenario(name).text
    assert old in text and "witnesses" not in text and "[kernel]" not in text
    edited = read_scenario(name, text.replace(old, new, 1), name)
    monkeypatch.setattr("septum.scenarios.run.load_scenario", lambda _: edited)
    if same:
        assert replay_scenario(recipe, ListSchedule([])).ok
    else:
        with pytest.raises(InputError, match="not the one that the token was made with"):
            replay_scenario(recipe, ListSchedule([]))


UNPIN = """
summary = "A driver gives back a page that it never took."
[vm]
in-place = true
[host]
vmm = ["set-attributes page 0 to shared", "touch page 0", "unpin page 0 => -EFAULT"]
"""


def test_to_unpin_what_nobody_pinned_takes_no_reference() -> None:
    assert run_scenario(scenario(UNPIN)).ok


def test_the_checker_of_the_library_says_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    assert judge("convert-one-page", Bounds(seeds=1)).problems == ()
    broken_host(monkeypatch, gmem=NoSplit)
    found = judge("convert-one-page", Bounds(seeds=1)).problems
    assert any("promise precise-zap was broken" in text for text in found)
    assert all("septum replay septum1." in text for text in found)


def test_text_fits_eighty_columns() -> None:
    for name in ("finding-demote-busy-dpamt", "upm-explicit", "two-vms-same-page"):
        for line in outcome_lines(run_scenario(name)):
            assert len(line) <= 80 or "septum replay" in line, line


def test_building_is_the_same_whatever_is_run_before() -> None:
    """Two worlds of one scenario begin at the same state, also after other runs."""
    first = run_recorded(load_scenario("convert-one-page"), RandomRun(3))
    run_scenario("two-vms-enomem")
    assert run_recorded(load_scenario("convert-one-page"), RandomRun(3)) == first


def test_what_a_step_after_takes_away_is_seen_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a VM that a step destroys no promise sees any more what the programs broke in it."""
    gone = scenario(
        'summary = "s"\nsetup = ["vcpu0: accept 2M frame 0", "vcpu0: write frame 0"]\n'
        'after = ["host: destroy vm"]\n[vm]\n[host]\na = ["set-attributes page 1 to shared"]\n'
    )
    assert not run_scenario(gone, check="end").findings
    broken_host(monkeypatch, gmem=NoSplit)
    findings = run_scenario(gone, check="end").findings
    assert ("guest-data", "end of the programs") in {(f.promise, f.where) for f in findings}
