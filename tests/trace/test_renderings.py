"""Filters and renderings of a trace. ftrace text is parsed back by a parser of its own."""

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from septum.errors import InputError
from septum.linux.kvm.events import KvmEntry, KvmExit, KvmMmuSplitHugePage
from septum.module.events import SeamcallEvent
from septum.sim.events import Event, FindingEvent, LockEvent, SwitchEvent
from septum.trace import TraceHeader, TraceReader, TraceWriter, event_types, read_trace
from septum.trace.command import FORMATS, render, trace
from septum.trace.describe import describe
from septum.trace.filters import categories, make_filter, parse_only, tag_of
from septum.trace.ftrace import ftrace_lines
from septum.trace.ladder import ladder_lines
from septum.trace.mermaid import MAX_STEPS, mermaid_lines
from septum.trace.perfetto import perfetto_chunks

Golden = Callable[[str, str], None]


# Filters


def kept(events: list[Event], only: str) -> Counter[str]:
    wanted = make_filter(parse_only(only))
    return Counter(tag_of(type(event)) for event in events if wanted(event))


def test_only_keeps_what_it_names(story: list[Event]) -> None:
    assert kept(story, "split") == {"kvm_mmu_split_huge_page": 2, "seamcall": 1}
    assert kept(story, "conversions") == {"conversion": 1}
    assert kept(story, "accept") == {"tdcall": 12}
    assert kept(story, "seamcall,phase") == {"seamcall": 9, "guest_phase": 2}
    assert kept(story, "kvm_exit") == {"kvm_exit": 7}


def test_without_words_all_but_switches(story: list[Event]) -> None:
    everything = Counter(tag_of(type(event)) for event in story)
    assert kept(story, "all") == everything
    assert kept(story, "") == everything - Counter({"switch": 1})


def test_every_category_is_known_and_every_event_in_one(story: list[Event]) -> None:
    assert all(parse_only(word) == [word] for word in categories())
    wanted = make_filter(categories())
    assert all(wanted(event) for event in story)


def test_unknown_category_is_told() -> None:
    with pytest.raises(InputError, match=r"--only 'nonsense'.*seamcall, split"):
        parse_only("split,nonsense")


def test_writer_filters(tmp_path: Path, header: TraceHeader, story: list[Event]) -> None:
    path = tmp_path / "t.jsonl"
    with TraceWriter(path, header, make_filter(["split"])) as writer:
        for event in story:
            writer.write(event)
    assert len(read_trace(path)[1]) == 3


# Ladder


def test_golden_ladder(story: list[Event], golden: Golden) -> None:
    golden("ladder.txt", "\n".join(ladder_lines(story)) + "\n")


def test_golden_ladder_of_two(story: list[Event], golden: Golden) -> None:
    two = [event for event in story if event.task != "vmm0.vcpu0"]
    golden("ladder-two.txt", "\n".join(ladder_lines(two)) + "\n")


def test_folds_count_what_they_hide(story: list[Event]) -> None:
    text = "\n".join(ladder_lines(story))
    # Six faults of four lines: the first and the last are shown.
    assert "4 more rounds of these" in text
    assert len(list(ladder_lines(story, every_step=True))) >= len(story)


TASKS = st.sampled_from([f"task-with-a-long-name-{n}" for n in range(45)])


@given(
    st.lists(st.tuples(TASKS, st.text(st.characters(codec="ascii"), max_size=200)), max_size=60),
    st.integers(0, 10**13),
)
def test_ladder_is_80_columns_wide(steps: list[tuple[str, str]], time_ns: int) -> None:
    events: list[Event] = [FindingEvent(time_ns, task, 0, "p", text) for task, text in steps]
    for chosen in (events, events[:1], events[:2]):
        assert all(len(line) <= 80 for line in ladder_lines(chosen))


@given(st.lists(st.sampled_from("abc"), max_size=120))
def test_ladder_loses_no_step_when_it_folds_none(letters: list[str]) -> None:
    events: list[Event] = [FindingEvent(0, "t", 0, letter, "x") for letter in letters]
    lines = [line for line in ladder_lines(events, every_step=True) if "FINDING" in line]
    assert len(lines) == len(letters)


# ftrace

LINE = re.compile(
    r"^ *(?P<comm>.{1,15}?)-(?P<pid>\d+) +\[(?P<cpu>\d{3})\] (?P<flags>[\w.]{5}) +"
    r"(?P<time>\d+\.\d{6}): (?P<event>\w+): (?P<text>.*)$"
)
X64 = r"0x[0-9a-f]{16}"
X32 = r"0x[0-9a-f]{8}"
FORMATS_OF_KERNEL = {
    "kvm_entry": rf"vcpu \d+, rip 0x[0-9a-f]+ intr_info {X32} error_code {X32}",
    "kvm_exit": rf"vcpu \d+ reason \w+ rip 0x[0-9a-f]+ info1 {X64} info2 {X64} intr_info {X32}"
    rf" error_code {X32} requests {X64}",
    "kvm_page_fault": rf"vcpu \d+ rip 0x[0-9a-f]+ address {X64} error_code 0x[0-9a-f]+",
    "kvm_mmu_spte_requested": r"gfn [0-9a-f]+ pfn [0-9a-f]+ level \d",
    "kvm_tdp_mmu_spte_changed": r"as id \d+ gfn [0-9a-f]+ level \d old_spte [0-9a-f]+"
    r" new_spte [0-9a-f]+",
    "kvm_mmu_split_huge_page": r"gfn [0-9a-f]+ spte [0-9a-f]+ level \d errno -?\d+",
    "kvm_mmu_set_spte": r"gfn [0-9a-f]+ spte [0-9a-f]+ \([r-][w-][x-]u?\) level \d at [0-9a-f]+",
    "kvm_userspace_exit": r"reason (\S+) \(\d+\)",
    "tdh_mem_page_aug": r"\(seamcall_ret <- tdh_mem_page_aug\) rcx=0x\w+ rdx=0x\w+ r8=0x\w+"
    r" ret=0x\w+",
}
"""Written from the kernel's TP_printk strings, not from the code that prints them."""


def parsed(events: list[Event]) -> list[dict[str, str]]:
    lines = "".join(ftrace_lines(events)).splitlines()
    found = []
    for line in lines:
        if line.startswith("#"):
            continue
        match = LINE.match(line)
        assert match is not None, line
        found.append(match.groupdict())
    return found


def test_golden_ftrace(story: list[Event], golden: Golden) -> None:
    golden("ftrace.txt", "".join(ftrace_lines(story)))


def test_ftrace_reads_back(story: list[Event]) -> None:
    lines = parsed(story)
    seen = Counter(line["event"] for line in lines)
    for name, pattern in FORMATS_OF_KERNEL.items():
        texts = [line["text"] for line in lines if line["event"] == name]
        assert texts, name
        assert all(re.fullmatch(pattern, text) for text in texts), (name, texts)
    assert seen["kvm_exit"] == sum(isinstance(event, KvmExit) for event in story)
    split = [line["text"] for line in lines if line["event"] == "kvm_mmu_split_huge_page"]
    assert split == [
        "gfn 12400 spte 8600001234400bb7 level 2 errno 0",
        "gfn 12600 spte 8600001234400bb7 level 2 errno -12",
    ]


def test_ftrace_is_in_order_of_time_with_one_pid_for_each_task() -> None:
    events: list[Event] = [
        KvmEntry(2_000_001_000, "vmm0.vcpu1", 1, 1),
        KvmEntry(1_999_999_999, "vmm0.vcpu0", 0, 0),
        KvmEntry(3_000_000_000, "vmm0.vcpu1", 1, 1),
    ]
    lines = parsed(events)
    assert [line["time"] for line in lines] == ["1.999999", "2.000001", "3.000000"]
    assert [line["comm"] for line in lines] == ["CPU 0/KVM", "CPU 1/KVM", "CPU 1/KVM"]
    assert lines[1]["pid"] == lines[2]["pid"] != lines[0]["pid"]


def test_ftrace_leaves_out_what_no_kernel_shows(story: list[Event]) -> None:
    hidden = {"lock", "switch", "tdcall", "td_exit", "conversion", "guest_phase", "finding"}
    assert not hidden & {line["event"] for line in parsed(story)}


# Perfetto


def perfetto(events: list[Event], timed: bool = True) -> list[dict[str, object]]:
    body = json.loads(b"".join(perfetto_chunks(events, timed)))
    made = body["traceEvents"]
    assert isinstance(made, list)
    return made


def test_perfetto_slices_are_balanced(story: list[Event]) -> None:
    made = perfetto(story)
    depth: Counter[object] = Counter()
    for event in made:
        if event["ph"] == "B":
            depth[event["tid"]] += 1
        elif event["ph"] == "E":
            depth[event["tid"]] -= 1
            # A trace may begin with a vCPU inside the TD, never leave it more often than enter.
            assert depth[event["tid"]] >= 0
    opened = Counter(event["id"] for event in made if event["ph"] == "b")
    closed = Counter(event["id"] for event in made if event["ph"] == "e")
    assert opened == closed
    assert all(float(str(event["dur"])) >= 0 for event in made if event["ph"] == "X")


def test_perfetto_names_tracks_calls_and_kicks(story: list[Event]) -> None:
    made = perfetto(story)
    names = {
        event["tid"]: event["args"]["name"]  # type: ignore[index]
        for event in made
        if event.get("name") == "thread_name"
    }
    assert sorted(names.values()) == ["vmm0", "vmm0.vcpu0", "vmm0.vcpu1"]
    calls = Counter(event["name"] for event in made if event["ph"] == "X")
    assert calls["TDH.MEM.PAGE.AUG"] == 6
    flows = [event for event in made if event.get("cat") == "kick"]
    assert [event["ph"] for event in flows] == ["s", "f"]
    assert [names[event["tid"]] for event in flows] == ["vmm0", "vmm0.vcpu1"]


def test_perfetto_without_virtual_time_counts_events() -> None:
    events: list[Event] = [LockEvent(0, "t", 0, op, "l", "ex") for op in ("lock", "unlock")]
    assert [event["ts"] for event in perfetto(events, timed=False)[2:]] == [1, 2]


# Mermaid


def test_golden_mermaid(story: list[Event], golden: Golden) -> None:
    golden("story.mmd", "\n".join(mermaid_lines(story)) + "\n")


def test_mermaid_text_cannot_end_a_statement(story: list[Event]) -> None:
    lines = list(mermaid_lines(story))
    finding = next(line for line in lines if "FINDING" in line)
    assert "page #35;5 lost#59; vCPU 1" in finding
    assert finding.count("->") == 0
    assert all(len(re.findall("--?>>", line)) <= 1 for line in lines)


def test_mermaid_refuses_what_nobody_could_read(story: list[Event]) -> None:
    with pytest.raises(InputError, match="--only"):
        mermaid_lines(story * (MAX_STEPS // 20))


# All formats


@pytest.mark.parametrize("fmt", [name for name in FORMATS if name != "jsonl"])
def test_same_events_same_rendering(header: TraceHeader, story: list[Event], fmt: str) -> None:
    first = b"".join(render(story, header, fmt))
    assert first
    assert b"".join(render(iter(story), header, fmt)) == first


def test_unknown_format_is_told(header: TraceHeader) -> None:
    with pytest.raises(InputError, match="ladder, ftrace"):
        list(render([], header, "html"))


def test_command(
    tmp_path: Path,
    header: TraceHeader,
    story: list[Event],
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    path = tmp_path / "t.jsonl.gz"
    with TraceWriter(path, header) as writer:
        for event in story:
            writer.write(event)
    trace(path, "ladder", "split", "", False, None)
    assert b"TDH.MEM.PAGE.DEMOTE 0x12400000 2M" in capfdbinary.readouterr().out
    out = tmp_path / "small.jsonl"
    trace(path, "jsonl", "split", "", False, out)
    assert [type(event) for event in read_trace(out)[1]] == [
        SeamcallEvent,
        KvmMmuSplitHugePage,
        KvmMmuSplitHugePage,
    ]
    with TraceReader(path) as reader:
        kept_lines = [reader.line for event in reader if make_filter(["split"])(event)]
    assert out.read_bytes().splitlines(keepends=True)[1:-1] == kept_lines
    with pytest.raises(InputError, match="--output"):
        trace(path, "jsonl", "", "", False, None)


def test_every_event_class_has_words() -> None:
    """A new event is shown by its fields until somebody describes it."""

    class NewEvent(Event, tag="test_new", frozen=True):
        gpa: int
        why: str

    step = describe(NewEvent(0, "t", 0, 0x1000, "so"))
    assert step.text == "test_new gpa 0x1000 why so"
    assert "test_new" not in event_types()
    assert describe(SwitchEvent(0, "t", 0, "u", "lock")).text == "switch to u at lock"
