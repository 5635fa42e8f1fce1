"""TDG.MEM.PAGE.ACCEPT in every entry state and at both levels: the module's own answers.

The table was made by running Intel's module 1.5.25; "/RCX" in a detail is the level 1.
"""

import pytest

from septum.module import OutcomeKind, tdg

GPA = 0x40000000
PAGE_2M = 0x42000000
PAGE_4K = 0x41000000
EXIT = "TD exit"

# entry level, entry state, requested level -> guest RAX, or (TD exit, extended qualification)
MATRIX = [
    (1, "FREE", 0, (EXIT, 0x800000001)),
    (1, "FREE", 1, (EXIT, 0x900000001)),
    (1, "NL_MAPPED", 0, (EXIT, 0x1)),
    (1, "NL_MAPPED", 1, 0xC0000B0B00000001),
    (1, "NL_BLOCKED", 0, (EXIT, 0x204800000001)),
    (1, "NL_BLOCKED", 1, 0xC0000B0B00000001),
    (1, "PENDING", 0, (EXIT, 0x408800000001)),
    (1, "PENDING", 1, 0),
    (1, "MAPPED", 0, 0xB0A00000001),
    (1, "MAPPED", 1, 0xB0A00000001),
    (1, "PENDING_BLOCKED", 0, (EXIT, 0x40C800000001)),
    (1, "PENDING_BLOCKED", 1, (EXIT, 0x40C900000001)),
    (1, "BLOCKED", 0, (EXIT, 0x404800000001)),
    (1, "BLOCKED", 1, (EXIT, 0x404900000001)),
    (0, "FREE", 0, (EXIT, 0x1)),
    (0, "FREE", 1, 0xC0000B0B00000001),
    (0, "PENDING", 0, 0),
    (0, "PENDING", 1, 0xC0000B0B00000001),
    (0, "MAPPED", 0, 0xB0A00000000),
    (0, "MAPPED", 1, 0xC0000B0B00000001),
    (0, "PENDING_BLOCKED", 0, (EXIT, 0x40C000000001)),
    (0, "PENDING_BLOCKED", 1, 0xC0000B0B00000001),
    (0, "BLOCKED", 0, (EXIT, 0x404000000001)),
    (0, "BLOCKED", 1, 0xC0000B0B00000001),
]


def differences(make_bench, rows=MATRIX, dynamic=False):
    """The rows of the matrix in which the model answers otherwise."""
    wrong = []
    for level, state, requested, expected in rows:
        bench = make_bench(dynamic=dynamic).build()
        if level == 0:
            bench.sept_page(GPA, 1)
        bench.put(GPA, level, state, PAGE_2M if level else PAGE_4K)
        bench.enter()
        outcome, regs = bench.accept(GPA, requested)
        if outcome.kind == OutcomeKind.TD:
            answer = regs.rax
        else:
            out = outcome.exit
            usual = (out.rax, out.rcx, out.r8) == (0x30, 0x2, GPA)
            answer = (EXIT if usual else "unusual exit", out.rdx)
        if answer != expected:
            wrong.append((level, state, requested, answer))
    return wrong


@pytest.mark.parametrize("dynamic", [False, True])
def test_accept_matrix(make_bench, dynamic):
    assert differences(make_bench, dynamic=dynamic) == []


def test_matrix_catches_a_module_that_forgets_accepted_pages(make_bench, monkeypatch):
    monkeypatch.setattr(tdg, "STATE_MAPPED", -1)
    assert differences(make_bench)


def test_matrix_catches_a_module_that_mistakes_the_level(make_bench, monkeypatch):
    real = tdg.eeq_ept
    monkeypatch.setattr(tdg, "eeq_ept", lambda kind, want, at, *rest: real(kind, at, want, *rest))
    assert differences(make_bench)
