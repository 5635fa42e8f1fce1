"""Counterexamples as a maintainer reads them: all ten points, 80 columns, and every word true."""

import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from septum.abi.leaves import TDH_MEM_PAGE_AUG
from septum.cli.main import app
from septum.cli.run import decode_run
from septum.explore.api import Search
from septum.explore.command import explore_command, verdict_lines
from septum.explore.command import stories as tell_stories
from septum.explore.replay import find_subject
from septum.explore.runs.run import Runner
from septum.explore.stories.origin import patch_of
from septum.explore.stories.recording import Beat, Recorded, Recording
from septum.explore.stories.retell import retell
from septum.explore.stories.story import Row, cause
from septum.explore.stories.why import why_lines
from septum.explore.subject import Options
from septum.explore.verdict import Outcome, Verdict
from septum.explore.wanted import Wanted
from septum.module.events import SeamcallEvent, TdcallEvent, TdExitEvent
from septum.scenarios.changes import changes, lock_changes
from septum.scenarios.run import load_scenario
from septum.scenarios.states import Pages, VmState, WorldState
from septum.sim import Finding, RoundRobin
from septum.sim.events import ChoiceEvent, Event, LockEvent, SwitchEvent
from septum.trace.describe import describe
from septum.words import WIDTH

GOLDEN = Path(__file__).parent / "golden"
RACE = """\
summary = "Two vCPUs fault the last huge page of a guest_memfd at once."
source = "docs/findings.md, F1, without the word that it may end so"

[guest]
vcpu0 = ["accept 4K page 0"]
vcpu1 = ["accept 4K page 1"]
"""
ASKS = """\
summary = "A thread of the VMM does two things while the guest looks on."
setup = ["vcpu0: accept 2M frame 0"]

[guest]
vcpu0 = ["touch page 0"]

[host]
convert = ["prefault frame 1", "set-attributes page 1 to shared"]
"""
FINDINGS = {
    "race": ("race.toml", "v3"),
    "split": ("convert-one-page", "v3-without-11"),
    "track": ("convert-against-write", "bug-no-kick"),
}


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What `septum explore` prints for three findings."""
    folder = tmp_path_factory.mktemp("stories")
    (folder / "race.toml").write_text(RACE)
    before = Path.cwd()
    os.chdir(folder)
    try:
        found = {}
        for name, (scenario, design) in FINDINGS.items():
            report = folder / name
            wanted = Wanted(design=design, check="quiet", report=report)
            assert explore_command([scenario], wanted) == 1
            (text,) = (path.read_text() for path in report.glob("*.txt"))
            found[name] = text
        return found
    finally:
        os.chdir(before)


def settled(text: str) -> str:
    """The text without what is not the story's: the token (compression differs from one zlib to
    another), which host frames were free, and how many scheduling points and quiet steps there are
    between its steps."""
    text = re.sub(r"0x[12][0-9a-f]{5,}", "0xHOST", text)
    text = re.sub(r"token: septum1\.(?:[\w-]+\n)+", "token: (here)\n", text)
    text = re.sub(r"\d+ quiet steps?", "N quiet steps", text)
    size = re.search(r"The shortest schedule found: [^.]*\.", text)
    assert size is not None
    return text.replace(size[0], "The shortest schedule found: (here).")


@pytest.mark.parametrize("name", FINDINGS)
def test_golden_story(stories: dict[str, str], name: str) -> None:
    """When a change of the model changes a story: SEPTUM_UPDATE_GOLDEN=1, and look at the diff."""
    path = GOLDEN / f"{name}.txt"
    text = settled(stories[name])
    if os.environ.get("SEPTUM_UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("name", FINDINGS)
def test_ten_points(stories: dict[str, str], name: str) -> None:
    """Every point that the finding has matter for."""
    text = stories[name]
    scenario, design = FINDINGS[name]
    assert max(map(len, text.splitlines())) <= WIDTH
    joined = " ".join(text.split())
    assert joined.startswith("BROKEN: ")  # 1
    assert f"scenario {scenario.removesuffix('.toml')} on design {design} (seed 0)" in joined
    assert "Cause: " in text  # 2
    assert "The shortest schedule found: " in text  # 3
    assert re.search(r"^   1 (  |>>) [*|]", text, re.M)  # 4
    assert "quiet step" in text
    assert re.search(r"^ +\d+ XX ", text, re.M)  # 5
    assert re.search(r"~ S-EPT GFN 0x80\d+(\+0x200)?: \w+.* -> \w+", text)  # 6
    assert ("Why:" in text) == (name == "track")  # 7
    assert re.search(r"\[[a-z_]+, patch(es)? \d\d", joined)  # 8
    assert "assing schedule" in text or "schedule that passes" in text  # 9
    for command in ("Again: ", "Picture: ", "Test: "):  # 10
        assert command in text


def test_a_verdict_is_80_columns_wide() -> None:
    verdict = Verdict(
        Outcome.UNDETERMINED, "a-scenario-with-a-long-name", "v3-without-08-kick", "auto", 0, 2, 1,
        complete=False, why="a budget ran out in the search of all with 2 preemptions; " * 2,
        schedules=10**8, states=10**8, steps=10**10, seconds=10**5,
        coverage={f"{kind}:{n}": 1 for kind in ("call", "tdcall", "choice", "wait", "sept")
                  for n in range(1000)},
        missing_witnesses=[f"call:TDH.MEM.PAGE.DEMOTE:{n}" for n in range(9)],
    )  # fmt: skip
    lines = verdict_lines(verdict)
    assert max(map(len, lines)) <= WIDTH
    assert "never reached: call:TDH.MEM.PAGE.DEMOTE:0" in "\n".join(lines)


def test_a_search_that_ended_with_a_finding_need_not_have_reached_all() -> None:
    """What it did not come to is told where it held, and where it went on to the end."""
    missing = ["call:TDH.MEM.PAGE.DEMOTE"]
    for outcome, complete, told in (
        (Outcome.BROKEN, False, False),
        (Outcome.BROKEN, True, True),
        (Outcome.UNDETERMINED, False, True),
    ):
        verdict = Verdict(
            outcome, "a", "v3", "auto", 0, 2, 1,
            complete=complete, why="", schedules=1, states=1, steps=1, seconds=1.0,
            missing_witnesses=missing,
        )  # fmt: skip
        assert ("never reached: " in "\n".join(verdict_lines(verdict))) == told


def test_the_race_names_who_is_where(stories: dict[str, str]) -> None:
    text = " ".join(stories["race"].split())
    assert "once vcpu1 runs while vcpu0 is at `alloc` in hugetlb_alloc_folio <" in text
    assert re.search(r"5 >> \* \|\s+vcpu1 runs, vcpu0 is at `alloc`", text)
    assert "The nearest schedule that passes lets vcpu0 go on at step 5." in text


def test_what_the_scenario_asks_for_begins_with_a_step(tmp_path: Path) -> None:
    """Each ioctl of a thread of the VMM: the scenario's words, its GFNs, its kernel function; and
    what the guest does, which no function is called for."""
    path = tmp_path / "asks.toml"
    path.write_text(ASKS)
    lines = retell(load_scenario(str(path)), "v3-without-11", RoundRobin(), "quiet")
    steps = [line[13:] for line in lines if re.match(r" +\d+ ", line)]
    asked = [step for step in steps if "GFN" in step]
    assert [step.split("  ")[0].strip() for step in asked] == [
        "prefault frame 1 (GFN 0x80200+0x200)",
        "touch page 0 (GFN 0x80000)",
        "set-attributes page 1 to shared (GFN 0x80001)",
    ]
    text = " ".join(" ".join(lines).replace("|", "").split())
    assert "(GFN 0x80200+0x200) [kvm_vcpu_ioctl_pre_fault_memory]" in text
    assert "(GFN 0x80001) [kvm_gmem_set_attributes]" in text
    assert "touch page 0 (GFN 0x80000) [" not in text


def test_rounds_are_folded_and_marks_are_not() -> None:
    """Steps that are not shown have numbers all the same."""
    scenario = load_scenario("teardown-memory-first")
    lines = retell(scenario, "bug-vm-never-gone", RoundRobin(), "end")
    text = "\n".join(lines)
    assert "... 510 more like it ..." in text
    assert len(lines) < 120
    assert re.search(r"^ +5\d\d XX ", text, re.M)


ROUNDS = """
summary = "A page after the other is used, and what is read at the end is not what is expected."
[vm]
ve = true
[guest]
vcpu0 = ["use 4K pages 0-31", "read page 0 => 0x5"]
"""


@pytest.mark.parametrize(
    ("name", "design"),
    [
        ("tdx-vm-huge-page", "bug-reservation-stays"),
        ("prefault-by-thread", "bug-vcpu-moves-unflushed"),
        (ROUNDS, "v3"),
    ],
    ids=["teardown", "one step", "quiet rows between"],
)
def test_a_fold_says_how_many_steps_it_stands_for(name: str, design: str, tmp_path: Path) -> None:
    """The number of the step behind it is that of the one before it, and so many more."""
    if name == ROUNDS:
        path = tmp_path / "rounds.toml"
        path.write_text(ROUNDS)
        name = str(path)
    lines = retell(load_scenario(name), design, RoundRobin(), "end")
    last = 0
    skipped = folds = 0
    for line in lines:
        if fold := re.search(
            r"\.\.\. ([\d,]+) more (?:like it|rounds of these (\d+) steps?)", line
        ):
            folds += 1
            skipped += int(fold[1].replace(",", "")) * int(fold[2] or 1)
        elif row := re.match(r" *(\d+) (?:>>|!!|XX|  )", line):
            assert int(row[1]) == last + skipped + 1
            last, skipped = int(row[1]), 0
    assert folds


def test_the_token_is_read_back_with_its_line_breaks(stories: dict[str, str]) -> None:
    text = stories["race"]
    token = text[text.index("septum1.") : text.index("\n\nCause")]
    assert "\n" in token
    recipe, schedule = decode_run(token)
    assert recipe.design == "v3"
    assert schedule.spec()[0] == "list"


def test_the_test_command_of_a_story_runs(
    stories: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pasted as it is printed, it finds the same again and writes the regression test."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "race.toml").write_text(RACE)
    command = stories["race"].split("Test:")[1].replace("\\\n", " ")
    words = shlex.split(command)
    assert words[0] == "septum"
    with pytest.raises(SystemExit) as stop:
        app(words[1:], standalone_mode=False)
    assert stop.value.code == 1
    assert "replay_answers" in (tmp_path / "test_it.py").read_text()


@pytest.mark.parametrize(
    ("scenario", "design"),
    [
        ("accept-against-block", "bug-block-busy-ignored"),
        ("accept-against-convert", "bug-kick-before-track"),
        ("write-against-convert", "bug-module-entry-unflushed"),
    ],
)
def test_a_place_in_the_module_has_its_leaf(scenario: str, design: str) -> None:
    """Of every task that another one follows, it is the call that this task then ends; where it is
    told, and in the cause."""
    search = Search(find_subject(scenario, design), Options())
    search.start()
    verdict = search.run()
    (found,) = verdict.counterexamples
    (story,) = tell_stories(verdict, search.runner, [])
    text = " ".join(" ".join(story).replace("|", " ").split())
    places = re.findall(r"`module\.\w+`(?: of (TD[HG]\.[A-Z.]+[A-Z]))?", text)
    assert len(places) >= 2 and all(places)
    runner = search.runner
    recording = Recording(runner, found.answers, found.finding, found.free)
    told = recording.beats
    switches = [at for at, beat in enumerate(told) if isinstance(beat.event, SwitchEvent)]
    named = 0
    for at in switches:
        event, call = told[at].event, told[at].call
        assert isinstance(event, SwitchEvent)
        assert bool(call) == event.at.startswith("module.")
        asked = recording.asked_at(found.answers, told[at].decision)  # of who parts from it there
        assert asked is not None and asked.call == (call if told[at].preempted else "")
        later = (beat.event for beat in told[at + 1 :] if beat.event.task == event.task)
        ends = (SeamcallEvent, TdcallEvent, TdExitEvent)
        ended = next((one for one in later if isinstance(one, ends)), None)
        if call and ended is not None:
            enters = isinstance(ended, TdExitEvent) and call in ("TDH.VP.ENTER", "TDG.VP.VMCALL")
            assert enters or describe(ended).verb == call
            named += 1
    assert named


# Why; what the module and the pages have to do with it is in test_why.py

BROKEN = Finding("tlb", "it broke", "there", "vcpu1", 0)


def beats(*events: Event) -> Recorded:
    recorded = Recorded()
    recorded.beats = [Beat(event, (), -1) for event in events]
    return recorded


def why(*events: Event) -> list[str]:
    recording = beats(*events)
    numbers = {id(beat): at for at, beat in enumerate(recording.beats, 1)}
    return why_lines(recording, numbers, BROKEN)


def call(task: str, leaf: int) -> SeamcallEvent:
    return SeamcallEvent(0, task, 0, leaf, 0, 0x80000001, 0, 0, 0, 0, 0)


def test_a_wait_names_the_holder_and_since_when() -> None:
    """A lock that nobody holds is on its way from one to the next: the ladder says all there is."""
    events = (
        LockEvent(0, "vcpu0", 0, "lock", "mmu_lock", "sh"),
        call("vcpu0", TDH_MEM_PAGE_AUG),
        LockEvent(0, "host", 1, "wait", "mmu_lock", "ex"),
    )
    assert why(*events) == ["step 3: host waits for mmu_lock, held by vcpu0 since step 1"]
    released = LockEvent(0, "vcpu0", 0, "unlock", "mmu_lock", "sh")
    assert why(*events[:2], released, events[2]) == []


def test_failures_say_who_wanted_them() -> None:
    recording = beats(
        ChoiceEvent(0, "vcpu0", 0, "alloc:tdx_split_cache", 1),
        ChoiceEvent(0, "host", 0, "seamcall:TDH.MEM.TRACK", 1),
    )
    recording.beats[0].injected = True
    numbers = {id(beat): at for at, beat in enumerate(recording.beats, 1)}
    assert why_lines(recording, numbers, BROKEN) == [
        "step 1: the search injects it: the allocation tdx_split_cache fails",
        "step 2: the scenario injects it: TDH.MEM.TRACK returns TDX_OPERAND_BUSY|SEPT_TREE",
    ]


def test_patches_are_those_of_the_docstrings() -> None:
    import septum.linux.host  # noqa: F401 - the host's modules, to be searched

    assert patch_of("tdx_sept_split_private_spte").startswith("patches 08, ")
    assert patch_of("tdx_honor_guest_accept_level") == "patch 13"
    assert patch_of("tdp_mmu_iter_set_spte") == ""
    assert patch_of("no_such_function") == ""


# Changes


def world(**parts: Any) -> WorldState:
    vm = VmState(parts.pop("sept", ()), parts.pop("mirror", ()), parts.pop("private", ()), False)
    return WorldState({"vm1": vm}, parts.pop("tlbs", {}), parts.pop("locks", {}), {})


def test_changes_are_told_page_by_page_and_joined() -> None:
    huge = Pages(0x200, 0x400, 2, "mapped", 0x1000)
    split = Pages(0x200, 0x400, 1, "mapped", 0x1000)
    first, last = Pages(0x200, 0x205, 1, "mapped", 0x1000), Pages(0x206, 0x400, 1, "mapped", 0x1006)
    assert changes(world(sept=(huge,)), world(sept=(split,))) == [
        "S-EPT GFN 0x200+0x200: 2M mapped -> 4K mapped"
    ]
    assert changes(world(sept=(split,)), world(sept=(first, last))) == [
        "S-EPT GFN 0x205: 4K mapped -> none"
    ]
    moved = Pages(0x200, 0x400, 1, "mapped", 0x2000)
    assert changes(world(mirror=(split,)), world(mirror=(moved,))) == [
        "mirror GFN 0x200+0x200: 4K mapped at PFN 0x1000 -> 4K mapped at PFN 0x2000"
    ]
    assert changes(world(mirror=(split,)), world(mirror=(moved,)), mirror=False) == []
    assert changes(world(private=((0, 8),)), world(private=((0, 7),))) == [
        "attributes GFN 0x7: private -> shared"
    ]
    assert changes(world(), world(tlbs={3: (huge,)})) == [
        "TLB of cpu3 GFN 0x200+0x200: none -> 2M mapped at PFN 0x1000"
    ]
    frozen = Pages(0, 1 << 27, 4, "frozen", 0)
    assert changes(world(), world(mirror=(frozen,))) == [
        "mirror GFN 0x0+0x8000000: none -> 512G frozen"
    ]
    hole = world(sept=(first, last))
    assert changes(hole, world(sept=(split,))) == [
        "S-EPT GFN 0x205: none -> 4K mapped at PFN 0x1005"  # its own, not that of the stretch
    ]


def test_locks_change_hands() -> None:
    old = world(locks={"a": (("t", "sh"),), "b": (("t", "ex"),)})
    new = world(locks={"b": (("t", "ex"), ("t", "ex"))})
    assert lock_changes(old, new, frozenset("a")) == ["a: t (sh) -> free"]


def test_a_cause_with_too_many_needs_counts_them() -> None:
    """A round robin preempts at every point: its story does not begin with all of them."""
    beat = Beat(SwitchEvent(0, "vcpu0", 0, "vcpu1", "lock", True), ("f",), 0)
    few, many = ([Row(1, "vcpu0", ">>", "", beat)] * count for count in (2, 9))
    assert cause(BROKEN, few).count("vcpu1 runs while vcpu0 is at `lock` in f") == 2
    assert cause(BROKEN, many).endswith(", after 9 preemptions.")
    failed = Row(2, "vcpu0", "!!", "", Beat(ChoiceEvent(0, "vcpu0", 0, "alloc:x", 1), ("f",), 1))
    assert cause(BROKEN, [failed] * 9).endswith(", after 9 injected failures.")
    both = cause(BROKEN, [*many, failed])
    assert both.endswith(", after 10 preemptions and injected failures.")


def test_a_story_that_does_not_repeat_is_a_defect() -> None:
    """What is told is what was found, or nothing is told."""
    runner = Runner(find_subject("toy:rare"), Options())
    with pytest.raises(RuntimeError, match="did not repeat: tlb: it broke"):
        Recording(runner, [], BROKEN)
