"""What a story says of the world when it begins: what the world has, of the pages that matter."""

import re
from types import SimpleNamespace
from typing import Any

import pytest

from septum.abi.sept import BLOCKED, PENDING
from septum.checks.view import VmView
from septum.explore.replay import find_subject
from septum.explore.runs.run import Runner
from septum.explore.runs.steering import Replaying
from septum.explore.stories.beginning import beginning_lines
from septum.explore.stories.recording import Beat, Recording
from septum.explore.stories.watching import Seen
from septum.explore.subject import Options
from septum.linux.kvm.events import KvmPageFaultEvent
from septum.scenarios.states import Pages, VmState, WorldState
from septum.sim import Finding
from septum.words import LEVELS

HUGE = Pages(0x80000, 0x80200, 2, "mapped", 0x100000)
BROKEN = Finding("tlb", "it broke", "", "vcpu0", 0)


def lines(*setup: str, gpa: int = 0x80005000, task: str = "vcpu0", **parts: Any) -> list[str]:
    """Of a world in which a vCPU faults at `gpa`, whatever happens then."""
    vms = parts.get("vms") or {"vm1": vm(**parts)}
    state = WorldState(vms, parts.get("tlbs", {}), {}, parts.get("pamt", {}))
    beat = Beat(KvmPageFaultEvent(0, task, 0, 0, gpa, 0), (), -1)
    recording: Any = SimpleNamespace(
        start=Seen(state), setup=list(setup), beats=[beat], notes=[], names={}
    )
    return [" ".join(line.split()) for line in beginning_lines(recording, BROKEN)]


def vm(
    sept: tuple[Pages, ...] = (HUGE,),
    mirror: tuple[Pages, ...] = (HUGE,),
    private: tuple[tuple[int, int], ...] = ((0x80000, 0x80400),),
    **_: Any,
) -> VmState:
    return VmState(sept, mirror, private, False)


def test_a_frame_is_one_line() -> None:
    assert lines("host: prefault frame 0") == [
        "When it begins, after `host: prefault frame 0`:",
        "GFN 0x80000+0x200: private, S-EPT and mirror 2M mapped at PFN 0x100000",
    ]


def said(**parts: Any) -> str:
    return " ".join(lines(**parts)[1:])


def test_where_the_trees_differ_both_are_said() -> None:
    pending = Pages(0x80000, 0x80200, 2, "pending", 0x100000)
    assert said(sept=(pending,)).endswith("S-EPT 2M pending, mirror 2M mapped at PFN 0x100000")
    page = Pages(0x80003, 0x80004, 1, "blocked mapped", 0x100003)
    assert said(sept=(page,), mirror=()).endswith(
        "S-EPT 4K blocked mapped (1 page) and none (511 pages), mirror none"
    )
    assert said(sept=(), mirror=()).endswith("private, not mapped")


def test_attributes_and_pamt_are_of_the_frame() -> None:
    assert "0x200: 511 pages private, S-EPT" in said(private=((0x80001, 0x80400),))
    assert "0x200: not private, S-EPT" in said(private=((0x80200, 0x80400),))
    pamt = {0x100000: "pair, count 1", 0x100200: "pair, count 2"}
    assert said(pamt=pamt).endswith("PFN 0x100000, PAMT pair, count 1")


def test_a_translation_of_another_vm_is_not_of_this_one() -> None:
    """TLBs are of logical processors: where two VMs have the GFN, the frame tells them apart."""
    other = Pages(0x80000, 0x80200, 2, "mapped", 0x200000)
    vms = {"vm1": vm(), "vm2": vm((other,), (other,))}
    cached = Pages(0x80000, 0x80200, 2, "cached", 0x200000)
    first, second = " ".join(lines(vms=vms, tlbs={3: (cached,)})[1:]).split(" vm2 ")
    assert first.startswith("vm1 GFN") and "TLB" not in first
    assert second.startswith("GFN") and second.endswith("in the TLB of cpu3")
    # One VM: what is cached though it is not mapped is what matters.
    assert said(sept=(), mirror=(), tlbs={3: (cached,)}).endswith("not mapped, in the TLB of cpu3")


def test_only_what_the_story_comes_to_is_said() -> None:
    """Not the other frame; nor what is taken down with the VM; a shared GPA is that page."""
    assert [line[:11] for line in lines(gpa=0x80200000)[1:]] == ["GFN 0x80200"]
    assert [line[:11] for line in lines(gpa=1 << 47 | 0x80200000)[1:]] == ["GFN 0x80200"]
    assert [line[:11] for line in lines(gpa=0x80200000, task="main")[1:]] == ["GFN 0x80000"]


SCENARIOS = ("accept-level-prefault", "convert-against-write", "accept-against-convert")


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_it_is_what_the_module_has(scenario: str) -> None:
    """Level, state and frame of each line, by a walk of the Secure EPT before the first step."""
    design = (
        "bug-no-track" if scenario != "accept-level-prefault" else "bug-accept-level-off-by-one"
    )
    runner = Runner(find_subject(scenario, design), Options())
    run = runner.run(Replaying([]))
    assert run.finding is not None
    recording = Recording(runner, list(run.answers), run.finding, run.free)
    text = " ".join(" ".join(beginning_lines(recording, run.finding)).split())
    runner.clean()
    world = runner.built.world.world  # type: ignore[attr-defined]
    view = VmView(world, world.host.kvms[1], None)
    view.refresh()
    frames = re.findall(r"GFN (0x\w+)\+0x200: [^:]*?S-EPT (?:and mirror )?(2M \w+)", text)
    assert frames
    for gfn, words in frames:
        level, entry = view.walk(int(gfn, 16))
        state = "pending" if entry & PENDING else "mapped"
        assert (words, entry & BLOCKED) == (f"{LEVELS[level]} {state}", 0)


def test_a_toy_has_no_pages() -> None:
    recording: Any = SimpleNamespace(start=Seen(), setup=[], beats=[], notes=[], names={})
    assert beginning_lines(recording, BROKEN) == []
