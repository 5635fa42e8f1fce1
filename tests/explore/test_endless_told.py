"""What goes round for ever is told as one whole round, how often it comes again, and what stays."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from septum.explore.api import Search
from septum.explore.command import stories
from septum.explore.replay import find_subject
from septum.explore.stories.endless import Mark, Marks, loop_of
from septum.explore.subject import Options, Subject
from septum.explore.toybox import DEADLOCK, LIVELOCK
from septum.explore.wanted import Wanted
from septum.sim import Finding
from septum.trace.ladder import FOLD_FROM
from septum.words import ordinal


def told(subject: Subject, options: Options) -> list[str]:
    """The ladder of what a search finds, without lanes; a row on one line."""
    search = Search(subject, options)
    search.start()
    verdict = search.run()
    (story,) = stories(verdict, search.runner, [])
    first = next(at for at, line in enumerate(story) if line.startswith("        + "))
    lines = story[first : story.index("", first)]
    text = "\n".join(re.sub(r"^(.{8})[|* ]+", r"\1", line) for line in lines)
    return re.sub(r"\n {8}(?!\.\.\.|\d+ quiet|[~=])", " ", text).splitlines()


STAYS = {
    ("accept-level-prefault", "accept-level-off-by-one"): [
        "   6    TDG.MEM.PAGE.ACCEPT 0x80005000 4K -> TD exit",
        "   7    kvm_exit EPT_VIOLATION (ACCEPT 4K)  [tdx_handle_exit]",
        "   8    page fault 0x80005000  [tdx_handle_ept_violation]",
        "        ... the last 3 steps come again 63 times, and this stays:",
        "        = S-EPT GFN 0x80005: 2M pending",
        "        = mirror GFN 0x80005: 2M mapped",
        "   9 XX promise progress is broken",
    ],
    ("slot-delete-against-fault", "retries-going-slot"): [
        "  20    `smp_rmb` in kvm_mmu_faultin_pfn < kvm_tdp_mmu_page_fault",
        "  21    `cond_resched` in tdx_handle_ept_violation < tdx_handle_exit",
        "        ... the last 2 steps come again 63 times, and this stays:",
        "        = S-EPT GFN 0x80007: 2M pending",
        "        = mirror GFN 0x80007: 2M mapped",
        "        = memslot: KVM_MEMSLOT_INVALID, it is being deleted",
        "        = host.vmm waits for synchronize_srcu(vm1 srcu)",
        "  22 XX promise progress is broken",
    ],
    ("fault-against-fault", "frozen-for-ever"): [
        "  24    `cond_resched` in tdx_handle_ept_violation < tdx_handle_exit",
        "  25    `smp_rmb` in kvm_mmu_faultin_pfn < kvm_tdp_mmu_page_fault",
        "  26    `down_read` in filemap_invalidate_lock_shared < kvm_gmem_get_pfn",
        "  27    `read_lock` in kvm_tdp_mmu_page_fault < kvm_tdp_page_fault",
        "        ... the last 4 steps come again 63 times, and this stays:",
        "        = S-EPT GFN 0x80001: none",
        "        = mirror GFN 0x80001: 4K frozen",
        "  28 XX promise progress is broken",
    ],
}


@pytest.mark.parametrize(("scenario", "bug"), STAYS, ids=[bug for _, bug in STAYS])
def test_one_round_is_told_and_what_stays(scenario: str, bug: str) -> None:
    """By the guest; by KVM's retries, of which an event tells, or none."""
    subject = find_subject(scenario, f"bug-{bug}")
    options = Wanted().options(subject)
    expected = STAYS[scenario, bug]
    assert told(subject, options)[-len(expected) :] == expected


def test_who_takes_turns_without_end() -> None:
    """A round of each; how often it would come nobody knows."""
    rows = told(LIVELOCK, Options(max_points=300))
    assert rows[-5:-1] == [
        "   1    `cpu_relax`",
        "        ... t0 goes on like that without end ...",
        "   2    `cpu_relax`",
        "        ... t1 goes on like that without end ...",
    ]
    assert rows[-1].endswith("promise progress is broken")


def test_who_waits_goes_round_nowhere() -> None:
    assert not any(".." in row for row in told(DEADLOCK, Options()))


marks = st.integers(0, 3).map(lambda nr: Mark("t", "point", "", f"f{nr}", -1))


A, B = (Mark("t", "point", "", name, -1) for name in "ab")


@example([], [A, A, A, B, A], 8)
@given(st.lists(marks, max_size=6), st.lists(marks, min_size=1, max_size=5), st.integers(0, 9))
def test_a_round_is_what_comes_again_up_to_the_end(
    head: list[Mark], body: list[Mark], times: int
) -> None:
    """Whole rounds, then maybe a part of one: `first` is the least that makes it all up."""
    part = body[: times % len(body)]
    row = [*head, *body * times, *part]
    loop = loop_of(row)
    if loop is None:
        assert times < FOLD_FROM
        return
    period, rounds = len(loop.first), loop.times + 1
    assert rounds >= FOLD_FROM
    least = min(n for n in range(1, period + 1) if loop.first == loop.first[:n] * (period // n))
    assert least == period  # not two rounds for one
    left = next(
        n for n in range(period) if row[: len(row) - n][-period * rounds :] == loop.first * rounds
    )
    assert row[len(row) - left :] == loop.first[:left]
    before = row[: len(row) - left - period * rounds]
    assert before[-period:] != loop.first  # nor a round too few
    assert len(row) - len(before) >= len(body) * times or times < FOLD_FROM


@given(st.integers(1, 200))
def test_only_what_repeats_is_folded(nr: int) -> None:
    """An invalidation that was never ended is seen at the end, where nobody goes round."""
    seen = Marks(0)
    seen.marks.extend([Mark("main", "point", "", "f", -1)] * 20)
    retried = f"the fault of GPA 0x1000 is retried for the {ordinal(nr)} time"
    loops = [seen.loops(Finding("progress", text, "", "main", 0)) for text in (retried, "no end")]
    assert [len(each) for each in loops] == [1, 0]


def test_ordinals() -> None:
    told = [ordinal(n) for n in (1, 2, 3, 4, 11, 12, 13, 21, 65, 71, 101, 111, 122)]
    assert " ".join(told) == "1st 2nd 3rd 4th 11th 12th 13th 21st 65th 71st 101st 111th 122nd"
