"""Filters and renderings of a trace. ftrace text is parsed back by a parser of its own."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from septum.errors import InputError
from septum.linux.kvm.events import (
    KvmGmemFolioEvent,
    KvmMemoryAttributesEvent,
    KvmMirrorLeavesEvent,
    KvmMmuSplitHugePage,
)
from septum.module.events import SeamcallEvent
from septum.sim.events import Event, FindingEvent, SwitchEvent
from septum.trace import TraceHeader, TraceReader, TraceWriter, event_types, read_trace
from septum.trace.command import FORMATS, render, trace
from septum.trace.describe import describe
from septum.trace.filters import categories, make_filter, parse_only, tag_of
from septum.trace.ladder import ladder_lines

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
@example([("task-with-a-long-name-0", ""), ("task-with-a-long-name-1", "0" * 19)], 10**11)
def test_ladder_is_80_columns_wide(steps: list[tuple[str, str]], time_ns: int) -> None:
    events: list[Event] = [FindingEvent(time_ns, task, 0, "p", text) for task, text in steps]
    for chosen in (events, events[:1], events[:2]):
        assert all(len(line) <= 80 for line in ladder_lines(chosen))


@given(st.lists(st.sampled_from("abc"), max_size=120))
def test_ladder_loses_no_step_when_it_folds_none(letters: list[str]) -> None:
    events: list[Event] = [FindingEvent(0, "t", 0, letter, "x") for letter in letters]
    lines = [line for line in ladder_lines(events, every_step=True) if "FINDING" in line]
    assert len(lines) == len(letters)


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


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (KvmMemoryAttributesEvent(0, "t", 0, 1, 5, 1, 0), "gfn 0x5 + 0x1 page: shared"),
        (KvmMemoryAttributesEvent(0, "t", 0, 1, 5, 2, 0), "gfn 0x5 + 0x2 pages: shared"),
        (KvmGmemFolioEvent(0, "t", 0, 1, 5, 1, 8, 0), "+ 0x1 page: 4K folio, pfn 0x8"),
        (KvmGmemFolioEvent(0, "t", 0, 1, 0, 512, 0, 9), "+ 0x200 pages: 2M folio, pfn 0x0"),
        (KvmGmemFolioEvent(0, "t", 0, 1, 0, 1024, 0, 9), "+ 0x400 pages: 2M folios, pfn 0x0"),
        (KvmGmemFolioEvent(0, "t", 0, 1, 5, 1, 0, -1), "gfn 0x5 + 0x1 page: no folio"),
        (KvmMirrorLeavesEvent(0, "t", 0, 1, 0, 2, 1, 0), "gfn 0x0 2M + 0x1 leaf"),
        (KvmMirrorLeavesEvent(0, "t", 0, 1, 0, 2, 3, 0), "gfn 0x0 2M + 0x3 leaves"),
    ],
)
def test_one_page_is_a_page(event: Event, words: str) -> None:
    """Nouns are as many as their number says."""
    assert describe(event).text.endswith(words)
