"""Each host leaf on an entry in each state: status, RCX and RDX as Intel's module 1.5.25 gave them.

Blocked entries are tracked; the TD is runnable.
"""

import pytest

from septum.abi import sept
from septum.abi.status import status_name
from septum.module import mem_demote, mem_page, mem_range, mem_sept

GPA = 0x40000000
TDR = 0x40000000
PAGE_2M = 0x42000000
PAGE_4K = 0x41000000
OTHER_2M = 0x42200000
OTHER_4K = 0x41001000
STATES = ("FREE", "NL_MAPPED", "NL_BLOCKED", "PENDING", "MAPPED", "PENDING_BLOCKED", "BLOCKED")

OK = "TDX_SUCCESS"
INV = "TDX_OPERAND_INVALID|RCX"
INC = "TDX_EPT_ENTRY_STATE_INCORRECT|RCX"
ALREADY = "TDX_GPA_RANGE_ALREADY_BLOCKED|RCX"
NOT_BLOCKED = "TDX_GPA_RANGE_NOT_BLOCKED|RCX"
NO_PROMOTE = "TDX_EPT_INVALID_PROMOTE_CONDITIONS|RCX"

# RCX and RDX that describe the entry, per level and state.
DETAIL = {
    1: {
        "FREE": (0x8000000000000000, 0x1),
        "NL_MAPPED": (0x407, 0x8401),
        "NL_BLOCKED": (0x0, 0x8101),
        "PENDING": (0x80000000420000F0, 0x201),
        "MAPPED": (0x80000000420004F7, 0x401),
        "PENDING_BLOCKED": (0x80000000420000F0, 0x301),
        "BLOCKED": (0x80000000420000F0, 0x101),
    },
    0: {
        "FREE": (0x8000000000000000, 0x0),
        "PENDING": (0x80000000410000F0, 0x200),
        "MAPPED": (0x80000000410004F7, 0x400),
        "PENDING_BLOCKED": (0x80000000410000F0, 0x300),
        "BLOCKED": (0x80000000410000F0, 0x100),
    },
}
_L1 = {
    "TDH.MEM.SEPT.ADD": (OK, INC, INC, INC, INC, INC, INC),
    "TDH.MEM.PAGE.AUG": (OK, INC, INC, INC, INC, INC, INC),
    "TDH.MEM.RANGE.BLOCK": (INC, OK, ALREADY, OK, OK, ALREADY, ALREADY),
    "TDH.MEM.RANGE.UNBLOCK": (INC, INC, OK, INC, INC, OK, OK),
    "TDH.MEM.PAGE.DEMOTE": (INC, INC, INC, NOT_BLOCKED, NOT_BLOCKED, OK, OK),
    "TDH.MEM.PAGE.PROMOTE": (INC, NOT_BLOCKED, NO_PROMOTE, INC, INC, INC, INC),
    "TDH.MEM.PAGE.REMOVE": (INC, INC, INC, NOT_BLOCKED, NOT_BLOCKED, OK, OK),
    "TDH.MEM.SEPT.REMOVE": (INC, NOT_BLOCKED, OK, INC, INC, INC, INC),
    "TDH.MEM.PAGE.RELOCATE": (INV, INV, INV, INV, INV, INV, INV),
    "TDH.MEM.SEPT.RD": (OK, OK, OK, OK, OK, OK, OK),
}
_L0 = {
    "TDH.MEM.SEPT.ADD": (INV, INV, INV, INV, INV),
    "TDH.MEM.PAGE.AUG": (OK, INC, INC, INC, INC),
    "TDH.MEM.RANGE.BLOCK": (INC, OK, OK, ALREADY, ALREADY),
    "TDH.MEM.RANGE.UNBLOCK": (INC, INC, INC, OK, OK),
    "TDH.MEM.PAGE.DEMOTE": (INV, INV, INV, INV, INV),
    "TDH.MEM.PAGE.PROMOTE": (INV, INV, INV, INV, INV),
    "TDH.MEM.PAGE.REMOVE": (INC, NOT_BLOCKED, NOT_BLOCKED, OK, OK),
    "TDH.MEM.SEPT.REMOVE": (INV, INV, INV, INV, INV),
    "TDH.MEM.PAGE.RELOCATE": (INC, NOT_BLOCKED, NOT_BLOCKED, OK, OK),
    "TDH.MEM.SEPT.RD": (OK, OK, OK, OK, OK),
}
_REMOVED = {
    # leaves that return the removed page in RCX
    "TDH.MEM.PAGE.REMOVE",
    "TDH.MEM.PAGE.RELOCATE",
    "TDH.MEM.SEPT.REMOVE",
}


def differences(make_bench, level, dynamic=False):
    """(leaf, state, answer) wherever the model answers otherwise than the table."""
    states = STATES if level else tuple(s for s in STATES if not s.startswith("NL"))
    wrong = []
    for leaf, row in (_L1 if level else _L0).items():
        for state, expected in zip(states, row, strict=True):
            bench = make_bench(dynamic=dynamic).build()
            if level == 0:
                bench.sept_page(GPA, 1)
            bench.put(GPA, level, state, PAGE_2M if level else PAGE_4K)
            answer = _call(bench, leaf, level)
            rcx, rdx = 0, 0
            if expected not in (OK, INV) or leaf == "TDH.MEM.SEPT.RD":
                rcx, rdx = DETAIL[level][state]
            elif expected == OK and leaf in _REMOVED:
                rcx = answer.rcx
                assert rcx & ~(1 << 62), "the removed page"
            got = (status_name(answer.rax), answer.rcx, answer.rdx)
            if got != (expected, rcx, rdx):
                wrong.append((leaf, state, got))
    return wrong


def _call(bench, leaf, level):
    k = {}
    if leaf in ("TDH.MEM.SEPT.ADD", "TDH.MEM.PAGE.DEMOTE"):
        k["r8"] = bench.page()
    if leaf == "TDH.MEM.PAGE.DEMOTE":
        k |= bench.pair()
    if leaf == "TDH.MEM.PAGE.AUG":
        k["r8"] = OTHER_2M if level else OTHER_4K
    if leaf == "TDH.MEM.PAGE.RELOCATE":
        k["r8"] = OTHER_4K
    return bench.call(leaf, GPA | level, TDR, **k)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("level", [0, 1])
def test_leaf_by_state(make_bench, level, dynamic):
    assert differences(make_bench, level, dynamic) == []


BROKEN = [
    (mem_page, "LEAF_STATES", frozenset({sept.STATE_BLOCKED})),
    (mem_page, "_AUG_STATES", frozenset({sept.STATE_FREE, sept.STATE_PENDING})),
    (mem_range, "_BLOCK_STATES", frozenset({sept.STATE_MAPPED})),
    (mem_range, "_UNBLOCK_STATES", frozenset({sept.STATE_BLOCKED})),
    (mem_range, "BLOCKED_STATES", frozenset()),
    (mem_demote, "LEAF_STATES", frozenset({sept.STATE_PENDING_BLOCKED})),
    (mem_demote, "NL_STATES", frozenset({sept.STATE_NL_MAPPED})),
    (mem_sept, "NL_STATES", frozenset({sept.STATE_NL_MAPPED})),
    (mem_page, "check_tracking", lambda *_: 0),
    (mem_sept, "check_tracking", lambda *_: 0),
    (mem_demote, "check_tracking", lambda *_: 0),
    (mem_demote, "can_merge", lambda *_: True),
]


@pytest.mark.parametrize(
    "room,name,value", BROKEN, ids=[f"{room.__name__}.{name}" for room, name, _ in BROKEN]
)
def test_the_table_catches_a_broken_check(make_bench, monkeypatch, room, name, value):
    """A module that checks less, or more, answers some call of the table differently."""
    monkeypatch.setattr(room, name, value)
    try:
        found = differences(make_bench, 1) or differences(make_bench, 0)
    except (AssertionError, KeyError, IndexError):
        return
    assert found
