"""BUSY is earned: calls that run at once meet on the module's real locks, and leave none behind."""

import pytest

from septum.abi.status import STATUS_MASK, TDX_OPERAND_BUSY, status_name
from septum.module import OutcomeKind
from septum.sim import RandomSchedule

TDR = 0x40000000
GPA = 0x40000000
PAGE_2M = 0x42000000
MB2 = 2 << 20


def together(bench, seed, *bodies):
    """Run each body as a task on its own processor, under one random schedule."""
    bench.sim.schedule = RandomSchedule(seed)
    for index, body in enumerate(bodies):
        bench.sim.spawn(f"task{index}", body, cpu=index)
    bench.sim.run()


def caller(bench, lp, log, name, *args, **k):
    """A task body: one call, its status in the log."""

    def body():
        log.append((name, status_name(bench.call(name, *args, lp=lp, **k).rax)))

    return body


def statuses(make_bench, seeds, calls, prepare=lambda bench: None):
    """Every (name, status) seen when `calls` run together under each of `seeds`."""
    seen = set()
    for seed in range(seeds):
        bench = make_bench().build()
        prepare(bench)
        log = []
        bodies = [caller(bench, i, log, *call[:-1], **call[-1]) for i, call in enumerate(calls)]
        together(bench, seed, *bodies)
        seen.update(log)
        td = bench.m.tds[TDR >> 12]
        assert not (td.sept_lock.lock | td.op_state_lock.lock | td.p4k.lock) & ~2
    return seen


@pytest.fixture
def two_pages():
    """Two AUGs of different pages, and a BLOCK of a third."""
    return [
        ("TDH.MEM.PAGE.AUG", GPA | 1, TDR, {"r8": PAGE_2M}),
        ("TDH.MEM.PAGE.AUG", GPA + MB2 | 1, TDR, {"r8": PAGE_2M + MB2}),
    ]


def test_augs_of_different_pages_do_not_meet(make_bench, two_pages):
    assert {status for _, status in statuses(make_bench, 30, two_pages)} == {"TDX_SUCCESS"}


def test_aug_and_block_meet_on_the_tree(make_bench, two_pages):
    def prepare(bench):
        bench.put(GPA + 2 * MB2, 1, "PENDING", PAGE_2M + 2 * MB2)

    calls = [two_pages[0], ("TDH.MEM.RANGE.BLOCK", GPA + 2 * MB2 | 1, TDR, {})]
    seen = statuses(make_bench, 60, calls, prepare)
    assert ("TDH.MEM.PAGE.AUG", "TDX_OPERAND_BUSY|SEPT_TREE") in seen
    assert ("TDH.MEM.RANGE.BLOCK", "TDX_OPERAND_BUSY|SEPT_TREE") in seen


def test_augs_of_one_page_meet_on_the_entry(make_bench, two_pages):
    calls = [two_pages[0], ("TDH.MEM.PAGE.AUG", GPA | 1, TDR, {"r8": PAGE_2M + MB2})]
    seen = {status for _, status in statuses(make_bench, 60, calls)}
    assert "TDX_OPERAND_BUSY|RCX" in seen
    assert "TDX_EPT_ENTRY_STATE_INCORRECT|RCX" in seen


def test_track_meets_track_on_the_epoch(make_bench):
    calls = [("TDH.MEM.TRACK", TDR, {})] * 3
    seen = {status for _, status in statuses(make_bench, 40, calls)}
    assert seen == {"TDX_SUCCESS", "TDX_OPERAND_BUSY|TD_EPOCH"}


def test_demote_is_told_that_a_host_call_waits(make_bench):
    """A BLOCK that failed on the tree makes an interruptible DEMOTE give way."""

    def prepare(bench):
        bench.put(GPA, 1, "PENDING_BLOCKED", PAGE_2M)
        bench.put(GPA + MB2, 1, "PENDING", PAGE_2M + MB2)

    seen = set()
    for seed in range(80):
        bench = make_bench().build()
        prepare(bench)
        log = []
        sept = bench.page()
        together(
            bench,
            seed,
            caller(bench, 0, log, "TDH.MEM.PAGE.DEMOTE", GPA | 1, TDR, r8=sept),
            caller(bench, 1, log, "TDH.MEM.RANGE.BLOCK", GPA + MB2 | 1, TDR),
        )
        seen.update(log)
    assert ("TDH.MEM.PAGE.DEMOTE", "TDX_INTERRUPTED_BUSY") in seen
    assert ("TDH.MEM.PAGE.DEMOTE", "TDX_SUCCESS") in seen


def test_accept_and_block_meet_on_the_entry(make_bench):
    """The guest is told BUSY, or finds the page blocked; a race never loses a page."""
    outcomes = set()
    for seed in range(80):
        bench = make_bench().build()
        bench.put(GPA, 1, "PENDING", PAGE_2M)
        bench.enter()
        log = []

        def guest(bench=bench, log=log):
            outcome, regs = bench.accept(GPA, 1)
            log.append(("accept", int(outcome.kind), regs.rax))

        together(bench, seed, guest, caller(bench, 2, log, "TDH.MEM.RANGE.BLOCK", GPA | 1, TDR))
        outcomes.update(log)
    kinds = {(o[1], o[2] & STATUS_MASK) for o in outcomes if o[0] == "accept"}
    assert (OutcomeKind.TD, 0) in kinds
    assert (OutcomeKind.TD, TDX_OPERAND_BUSY) in kinds
    assert any(kind == OutcomeKind.TD_EXIT for kind, _ in kinds)
    assert ("TDH.MEM.RANGE.BLOCK", "TDX_OPERAND_BUSY|RCX") in outcomes


def test_accept_can_meet_an_aug_halfway(make_bench):
    """AUG between ACCEPT's walk and its lock: PAGE_SIZE_MISMATCH, as the module's code has it."""
    seen = set()
    for seed in range(60):
        bench = make_bench().build()
        bench.enter()
        log = []

        def guest(bench=bench, log=log):
            outcome, regs = bench.accept(GPA, 1)
            done = outcome.kind == OutcomeKind.TD
            log.append(("accept", status_name(regs.rax) if done else "TD exit"))

        together(
            bench,
            seed,
            guest,
            caller(bench, 2, log, "TDH.MEM.PAGE.AUG", GPA | 1, TDR, r8=PAGE_2M),
        )
        seen.update(log)
    assert ("accept", "TDX_PAGE_SIZE_MISMATCH|1") in seen
    assert ("accept", "TDX_SUCCESS") in seen
    assert ("accept", "TD exit") in seen
