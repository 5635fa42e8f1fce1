"""One lock held by another processor, an otherwise valid call: what Intel's module 1.5.25 answers.

The table is the same in static and dynamic mode, so it is checked in both.
"""

import pytest

from septum.abi.status import status_name
from septum.module import common, locks
from septum.module.outcome import OutcomeKind

GPA = 0x40000000
TDR = 0x40000000
PAGE_2M = 0x42000000
PAGE_4K = 0x41000000
NEW_2M = 0x42200000
NEW_4K = 0x41001000

HOLDS = (
    "tdr ex",
    "tdr sh",
    "op_state ex",
    "op_state sh",
    "secure_ept ex",
    "secure_ept sh",
    "epoch ex",
    "epoch sh",
    "sept_entry",
    "target ex",
    "target sh",
    "new ex",
    "new sh",
    "tdr 2M ex",
    "kot ex",
    "kot sh",
)
OK = "TDX_SUCCESS"
RDX, RCX, R8 = (f"TDX_OPERAND_BUSY|{name}" for name in ("RDX", "RCX", "R8"))
OPS, TREE, EPOCH, TDR_BUSY, KOT = (
    f"TDX_OPERAND_BUSY|{name}" for name in ("OP_STATE", "SEPT_TREE", "TD_EPOCH", "TDR", "KOT")
)
NOT_DONE = "TDX_FLUSHVP_NOT_DONE"
NA = None
_SHARED_TREE = (RDX, OK, OPS, OK, TREE, OK, OK, OK, RCX)
_EX_TREE = (RDX, OK, OPS, OK, TREE, TREE, OK, OK, RCX)
_TAIL = (RDX, OK, OK)

# call, level -> the answer for each hold (None: not applicable)
TABLE = {
    ("TDH.MEM.SEPT.ADD", 1): (*_SHARED_TREE, NA, NA, R8, R8, *_TAIL),
    ("TDH.MEM.PAGE.AUG", 1): (*_SHARED_TREE, NA, NA, R8, R8, *_TAIL),
    ("TDH.MEM.PAGE.AUG", 0): (*_SHARED_TREE, NA, NA, R8, R8, *_TAIL),
    ("TDH.MEM.RANGE.BLOCK", 1): (*_EX_TREE, OK, OK, NA, NA, *_TAIL),
    ("TDH.MEM.RANGE.UNBLOCK", 1): (*_EX_TREE, OK, OK, NA, NA, *_TAIL),
    ("TDH.MEM.TRACK", 0): (
        *(RCX, OK, OPS, OK, OK, OK, EPOCH, EPOCH),
        *(NA, NA, NA, NA, NA, RCX, OK, OK),
    ),
    ("TDH.MEM.PAGE.DEMOTE", 1): (*_SHARED_TREE, RCX, RCX, R8, R8, *_TAIL),
    ("TDH.MEM.PAGE.PROMOTE", 1): (*_EX_TREE, RCX, RCX, NA, NA, *_TAIL),
    ("TDH.MEM.PAGE.REMOVE", 0): (*_SHARED_TREE, RCX, RCX, NA, NA, *_TAIL),
    ("TDH.MEM.PAGE.REMOVE", 1): (*_SHARED_TREE, RCX, RCX, NA, NA, *_TAIL),
    ("TDH.MEM.SEPT.REMOVE", 1): (*_EX_TREE, NA, NA, NA, NA, *_TAIL),
    ("TDH.MEM.PAGE.RELOCATE", 0): (*_SHARED_TREE, RCX, RCX, R8, R8, *_TAIL),
    ("TDH.MEM.SEPT.RD", 1): (*_SHARED_TREE, OK, OK, NA, NA, *_TAIL),
    ("TDH.VP.ENTER", 0): (
        *(TDR_BUSY, OK, OPS, OK, OK, OK, EPOCH, OK),
        *(NA, NA, NA, NA, NA, RCX, OK, OK),
    ),
    ("TDH.VP.FLUSH", 0): (
        *(TDR_BUSY, OK, OK, OK, OK, OK, OK, OK),
        *(NA, NA, NA, NA, NA, RCX, OK, OK),
    ),
    ("TDH.MNG.VPFLUSHDONE", 0): (
        *(RCX, RCX, NOT_DONE, NOT_DONE, NOT_DONE, NOT_DONE, NOT_DONE, NOT_DONE),
        *(NA, NA, NA, NA, NA, RCX, KOT, KOT),
    ),
    ("TDH.PHYMEM.PAGE.RDMD", 0): (*(OK,) * 9, RCX, OK, NA, NA, *(OK,) * 3),
    ("TDG.MEM.PAGE.ACCEPT", 1): (NA, *(OK,) * 7, RCX, OK, OK, NA, NA, NA, OK, OK),
}


def prepare(bench, leaf, level):
    """Bring the TD to where the call is valid."""
    bench.build()
    page = PAGE_2M if level else PAGE_4K
    on_page = leaf.startswith("TDH.MEM") or leaf == "TDH.PHYMEM.PAGE.RDMD"
    if level == 0 and on_page and leaf != "TDH.MEM.TRACK":
        bench.sept_page(GPA, 1)
    state = {
        "TDH.MEM.RANGE.BLOCK": "PENDING",
        "TDH.MEM.RANGE.UNBLOCK": "PENDING_BLOCKED",
        "TDH.MEM.PAGE.DEMOTE": "PENDING_BLOCKED",
        "TDH.MEM.PAGE.REMOVE": "PENDING_BLOCKED",
        "TDH.MEM.PAGE.RELOCATE": "PENDING_BLOCKED",
        "TDH.MEM.SEPT.RD": "PENDING",
        "TDH.PHYMEM.PAGE.RDMD": "PENDING",
        "TDG.MEM.PAGE.ACCEPT": "PENDING",
        "TDH.MEM.SEPT.REMOVE": "NL_BLOCKED",
    }.get(leaf)
    if state:
        bench.put(GPA, level, state, page)
    if leaf == "TDH.MEM.PAGE.PROMOTE":
        bench.put(GPA, 1, "PENDING_BLOCKED", PAGE_2M)
        bench.ok("TDH.MEM.PAGE.DEMOTE", GPA | 1, TDR, r8=bench.page(), **bench.pair())
        bench.ok("TDH.MEM.RANGE.BLOCK", GPA | 1, TDR)
        bench.track()
    if leaf.startswith("TDG"):
        bench.enter()


def call(bench, leaf, level, new):
    """The call itself; its status."""
    if leaf.startswith("TDG"):
        outcome, regs = bench.accept(GPA, level)
        assert outcome.kind == OutcomeKind.TD
        return regs.rax
    if leaf in ("TDH.VP.ENTER", "TDH.VP.FLUSH"):
        return bench.call(leaf, bench.vcpus[0], lp=1).rax
    if leaf in ("TDH.MEM.TRACK", "TDH.MNG.VPFLUSHDONE"):
        return bench.call(leaf, TDR).rax
    if leaf == "TDH.PHYMEM.PAGE.RDMD":
        return bench.call(leaf, PAGE_4K).rax
    k = {"r8": new} if new else {}
    if leaf == "TDH.MEM.PAGE.DEMOTE":
        k |= bench.pair()
    return bench.call(leaf, GPA | level, TDR, **k).rax


def take(bench, hold, leaf, level, new):
    """Let someone else hold a lock."""
    kind, _, mode = hold.partition(" ")
    hold_lock = bench.m.hold_lock
    target = PAGE_2M if level else PAGE_4K
    if kind == "tdr":
        if mode == "2M ex":
            return hold_lock("pamt", "ex", hpa=TDR, level=1)
        return hold_lock("pamt", mode, hpa=TDR, level=0)
    if kind == "target":
        return hold_lock("pamt", mode, hpa=target, level=level)
    if kind == "new":
        is_2m = leaf == "TDH.MEM.PAGE.AUG" and level
        return hold_lock("pamt", mode, hpa=new, level=1 if is_2m else 0)
    if kind == "sept_entry":
        return hold_lock("sept_entry", td=TDR, gpa=GPA, level=level)
    return hold_lock(kind, mode, td=TDR)


def differences(make_bench, dynamic, table=None):
    """(call, level, hold, answer) wherever the model answers otherwise."""
    wrong = []
    for (leaf, level), row in (table or TABLE).items():
        for hold, expected in zip(HOLDS, row, strict=True):
            if expected is NA:
                continue
            bench = make_bench(dynamic=dynamic)
            prepare(bench, leaf, level)
            new = 0
            if leaf in ("TDH.MEM.SEPT.ADD", "TDH.MEM.PAGE.DEMOTE"):
                new = bench.page()
            elif leaf in ("TDH.MEM.PAGE.AUG", "TDH.MEM.PAGE.RELOCATE"):
                new = NEW_2M if level else NEW_4K
            promoted = leaf == "TDH.MEM.PAGE.PROMOTE" and hold.startswith("target")
            held = take(bench, hold, leaf, 1 if promoted else level, new)
            got = status_name(call(bench, leaf, level, new))
            bench.m.release_lock(held)
            if got != expected:
                wrong.append((leaf, level, hold, got))
            assert no_lock_left(bench), (leaf, hold)
    return wrong


def no_lock_left(bench):
    """Nothing but host priority, and what a vCPU inside the TD holds, is left in any lock word."""
    inside = sum(1 for lp in bench.machine.lps if lp.guest is not None)
    td = bench.m.td_by_hpa[TDR]
    words = [td.op_state_lock.lock, td.sept_lock.lock, td.p4k.lock - 4 * inside]
    if not inside:
        for entry in bench.m.pamt.entries_2m():
            words += [entry.lock, entry.parent.lock, *(c.lock for c in entry.children.values())]
    return not (any(w & ~2 for w in words) or td.epoch_lock.word or bench.m.kot.lock.word)


@pytest.mark.parametrize("dynamic", [False, True])
def test_lock_table(make_bench, dynamic):
    assert differences(make_bench, dynamic) == []


def _only(*names):
    return {key: row for key, row in TABLE.items() if key[0] in names}


def test_the_table_catches_a_tree_that_is_never_exclusive(make_bench, monkeypatch):
    monkeypatch.setattr(common, "hp_lock_ex", common.hp_lock_sh)
    monkeypatch.setattr(common, "LOCK_HP", ~0)
    found = differences_or_defect(make_bench, _only("TDH.MEM.RANGE.BLOCK"))
    assert found


def test_the_table_catches_a_track_that_ignores_the_epoch_lock(make_bench, monkeypatch):
    monkeypatch.setattr(locks.PlainLock, "try_ex", lambda self: True)
    assert differences_or_defect(make_bench, _only("TDH.MEM.TRACK"))


def test_the_table_catches_an_entry_lock_that_nobody_looks_at(make_bench, monkeypatch):
    monkeypatch.setattr(common, "LOCK", 0)
    assert differences_or_defect(make_bench, _only("TDH.MEM.SEPT.RD"))


def differences_or_defect(make_bench, table):
    """A broken model may also break down; that is caught too."""
    try:
        return differences(make_bench, False, table)
    except AssertionError as defect:
        return [defect]


def test_host_priority_shuts_the_guest_out_until_a_host_call_succeeds(bench):
    """A host call that failed on an entry leaves HP: ACCEPT is BUSY until SEPT.RD succeeds."""
    bench.put(GPA, 1, "PENDING", PAGE_2M)
    bench.enter()
    held = bench.m.hold_lock("sept_entry", td=TDR, gpa=GPA, level=1, by="guest")
    assert bench.call("TDH.MEM.RANGE.BLOCK", GPA | 1, TDR).rax == 0x8000020000000001
    bench.m.release_lock(held)
    for _ in range(2):
        outcome, regs = bench.accept(GPA, 1)
        assert (outcome.kind, regs.rax) == (OutcomeKind.TD, 0x8000020000000001)
    bench.ok("TDH.MEM.SEPT.RD", GPA | 1, TDR)
    bench.accept_ok(GPA, 1)


def test_host_priority_for_a_second_is_a_td_exit(bench):
    bench.put(GPA, 1, "PENDING", PAGE_2M)
    bench.enter()
    held = bench.m.hold_lock("sept_entry", td=TDR, gpa=GPA, level=1, by="guest")
    bench.call("TDH.MEM.RANGE.BLOCK", GPA | 1, TDR)
    bench.m.release_lock(held)
    bench.accept(GPA, 1)
    bench.sim.advance(1_000_000_000)
    outcome, regs = bench.accept(GPA, 1)
    assert outcome.kind == OutcomeKind.TD_EXIT
    assert outcome.exit.rax == 0x9000020500000000
    assert regs.rax == 0x8000020000000001, "the guest learns why, when it runs again"
    hint = 1 << 52
    bench.ok("TDH.VP.ENTER", bench.vcpus[0] | hint, lp=1)
    assert regs.rax == 0x9000020000000001


def test_host_priority_is_remembered_over_td_exits(bench):
    """Only a TDCALL that returns with another status forgets since when the guest was kept out."""
    bench.put(GPA, 1, "PENDING", PAGE_2M)
    bench.enter()
    held = bench.m.hold_lock("sept_entry", td=TDR, gpa=GPA, level=1, by="guest")
    bench.call("TDH.MEM.RANGE.BLOCK", GPA | 1, TDR)
    bench.m.release_lock(held)
    bench.accept(GPA, 1)
    assert bench.tdcall("TDG.VP.VMCALL", 1)[0].kind == OutcomeKind.TD_EXIT
    bench.enter()
    bench.sim.advance(1_000_000_000)
    assert bench.accept(GPA + (2 << 20), 1)[0].exit.rax == 0x30, "an EPT violation"
    bench.enter()
    assert bench.accept(GPA, 1)[0].exit.rax == 0x9000020500000000
    bench.enter()
    assert bench.accept(GPA, 1)[0].kind == OutcomeKind.TD, "and then it begins anew"
    bench.tdcall("TDG.VP.INFO", 1)
    bench.sim.advance(1_000_000_000)
    assert bench.accept(GPA, 1)[0].kind == OutcomeKind.TD
