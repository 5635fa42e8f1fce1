"""The facts' generated tables as figures: what a running module answered, cell by cell.

Three tables: host leaf by entry state, guest ACCEPT by entry state, and one lock held by another
processor. They hold a clone without transcripts to account.
"""

from __future__ import annotations

STATES = ("FREE", "NL_MAPPED", "NL_BLOCKED", "PENDING", "MAPPED", "PENDING_BLOCKED", "BLOCKED")

ENTRY_VIEW: dict[int, dict[str, tuple[int, int]]] = {
    1: {
        "FREE": (0x8000000000000000, 0x001),
        "NL_MAPPED": (0x407, 0x8401),
        "NL_BLOCKED": (0, 0x8101),
        "PENDING": (0x80000000420000F0, 0x201),
        "MAPPED": (0x80000000420004F7, 0x401),
        "PENDING_BLOCKED": (0x80000000420000F0, 0x301),
        "BLOCKED": (0x80000000420000F0, 0x101),
    },
    0: {
        "FREE": (0x8000000000000000, 0x000),
        "PENDING": (0x80000000410000F0, 0x200),
        "MAPPED": (0x80000000410004F7, 0x400),
        "PENDING_BLOCKED": (0x80000000410000F0, 0x300),
        "BLOCKED": (0x80000000410000F0, 0x100),
    },
}
"""(RCX, RDX) that describe the entry, by level and state. Pages: 0x42000000 and 0x41000000."""

LEAF_CODES: dict[str, tuple[str, str]] = {
    "ok": ("TDX_SUCCESS", ""),
    "rd": ("TDX_SUCCESS", "entry"),
    "st": ("TDX_EPT_ENTRY_STATE_INCORRECT|RCX", "entry"),
    "nb": ("TDX_GPA_RANGE_NOT_BLOCKED|RCX", "entry"),
    "ab": ("TDX_GPA_RANGE_ALREADY_BLOCKED|RCX", "entry"),
    "pc": ("TDX_EPT_INVALID_PROMOTE_CONDITIONS|RCX", "entry"),
    "oi": ("TDX_OPERAND_INVALID|RCX", "zero"),
}
"""Cell -> status, and what RCX and RDX hold: the entry, zero, or (empty) not in the table."""

_LEVEL_1 = """
                       FREE  NL_MAPPED  NL_BLOCKED  PENDING  MAPPED  PENDING_BLOCKED  BLOCKED
TDH.MEM.SEPT.ADD       ok    st         st          st       st      st               st
TDH.MEM.PAGE.AUG       ok    st         st          st       st      st               st
TDH.MEM.RANGE.BLOCK    st    ok         ab          ok       ok      ab               ab
TDH.MEM.RANGE.UNBLOCK  st    st         ok          st       st      ok               ok
TDH.MEM.PAGE.DEMOTE    st    st         st          nb       nb      ok               ok
TDH.MEM.PAGE.PROMOTE   st    nb         pc          st       st      st               st
TDH.MEM.PAGE.REMOVE    st    st         st          nb       nb      ok               ok
TDH.MEM.SEPT.REMOVE    st    nb         ok          st       st      st               st
TDH.MEM.PAGE.RELOCATE  oi    oi         oi          oi       oi      oi               oi
TDH.MEM.SEPT.RD        rd    rd         rd          rd       rd      rd               rd
"""
_LEVEL_0 = """
                       FREE  PENDING  MAPPED  PENDING_BLOCKED  BLOCKED
TDH.MEM.SEPT.ADD       oi    oi       oi      oi               oi
TDH.MEM.PAGE.AUG       ok    st       st      st               st
TDH.MEM.RANGE.BLOCK    st    ok       ok      ab               ab
TDH.MEM.RANGE.UNBLOCK  st    st       st      ok               ok
TDH.MEM.PAGE.DEMOTE    oi    oi       oi      oi               oi
TDH.MEM.PAGE.PROMOTE   oi    oi       oi      oi               oi
TDH.MEM.PAGE.REMOVE    st    nb       nb      ok               ok
TDH.MEM.SEPT.REMOVE    oi    oi       oi      oi               oi
TDH.MEM.PAGE.RELOCATE  st    nb       nb      ok               ok
TDH.MEM.SEPT.RD        rd    rd       rd      rd               rd
"""


def _grid(text: str) -> dict[str, dict[str, str]]:
    """Row label -> column label -> cell, from a table with aligned words."""
    header, *rows = text.strip("\n").splitlines()
    columns = header.split()
    grid: dict[str, dict[str, str]] = {}
    for row in rows:
        words = row.split()
        cells = words[-len(columns) :]
        grid[" ".join(words[: -len(columns)])] = dict(zip(columns, cells, strict=True))
    return grid


LEAF_BY_STATE: dict[int, dict[str, dict[str, str]]] = {1: _grid(_LEVEL_1), 0: _grid(_LEVEL_0)}
"""Level -> leaf -> entry state -> code, for a RUNNABLE TD whose blocked entries are tracked."""


ACCEPT: tuple[tuple[int, str, int, int, int], ...] = (
    # entry at level, state, requested level, RAX, RDX of the TD exit (RAX 0x30) else 0
    (1, "FREE", 0, 0x30, 0x800000001),
    (1, "FREE", 1, 0x30, 0x900000001),
    (1, "NL_MAPPED", 0, 0x30, 0x1),
    (1, "NL_MAPPED", 1, 0xC0000B0B00000001, 0),
    (1, "NL_BLOCKED", 0, 0x30, 0x204800000001),
    (1, "NL_BLOCKED", 1, 0xC0000B0B00000001, 0),
    (1, "PENDING", 0, 0x30, 0x408800000001),
    (1, "PENDING", 1, 0, 0),
    (1, "MAPPED", 0, 0xB0A00000001, 0),
    (1, "MAPPED", 1, 0xB0A00000001, 0),
    (1, "PENDING_BLOCKED", 0, 0x30, 0x40C800000001),
    (1, "PENDING_BLOCKED", 1, 0x30, 0x40C900000001),
    (1, "BLOCKED", 0, 0x30, 0x404800000001),
    (1, "BLOCKED", 1, 0x30, 0x404900000001),
    (0, "FREE", 0, 0x30, 0x1),
    (0, "FREE", 1, 0xC0000B0B00000001, 0),
    (0, "PENDING", 0, 0, 0),
    (0, "PENDING", 1, 0xC0000B0B00000001, 0),
    (0, "MAPPED", 0, 0xB0A00000000, 0),
    (0, "MAPPED", 1, 0xC0000B0B00000001, 0),
    (0, "PENDING_BLOCKED", 0, 0x30, 0x40C000000001),
    (0, "PENDING_BLOCKED", 1, 0xC0000B0B00000001, 0),
    (0, "BLOCKED", 0, 0x30, 0x404000000001),
    (0, "BLOCKED", 1, 0xC0000B0B00000001, 0),
)
ACCEPT_EXIT_QUALIFICATION = 0x2
"""RCX of every TD exit in the table (R8 is the GPA, all else 0)."""

LOCK_CODES: dict[str, str] = {
    "rcx": "TDX_OPERAND_BUSY|RCX",
    "rdx": "TDX_OPERAND_BUSY|RDX",
    "r8": "TDX_OPERAND_BUSY|R8",
    "tdr": "TDX_OPERAND_BUSY|TDR",
    "op": "TDX_OPERAND_BUSY|OP_STATE",
    "tree": "TDX_OPERAND_BUSY|SEPT_TREE",
    "ep": "TDX_OPERAND_BUSY|TD_EPOCH",
    "kot": "TDX_OPERAND_BUSY|KOT",
    "fnd": "TDX_FLUSHVP_NOT_DONE",
    "ok": "TDX_SUCCESS",
}

_LOCKS = """
                         tdr_ex tdr_sh op_ex op_sh sept_ex sept_sh epoch_ex epoch_sh entry page_ex page_sh new_ex new_sh tdr2m_ex kot_ex kot_sh
TDH.MEM.SEPT.ADD 1       rdx    ok     op    ok    tree    ok      ok       ok       rcx   -       -       r8     r8     rdx      ok     ok
TDH.MEM.PAGE.AUG 1       rdx    ok     op    ok    tree    ok      ok       ok       rcx   -       -       r8     r8     rdx      ok     ok
TDH.MEM.PAGE.AUG 0       rdx    ok     op    ok    tree    ok      ok       ok       rcx   -       -       r8     r8     rdx      ok     ok
TDH.MEM.RANGE.BLOCK 1    rdx    ok     op    ok    tree    tree    ok       ok       rcx   ok      ok      -      -      rdx      ok     ok
TDH.MEM.RANGE.UNBLOCK 1  rdx    ok     op    ok    tree    tree    ok       ok       rcx   ok      ok      -      -      rdx      ok     ok
TDH.MEM.TRACK 0          rcx    ok     op    ok    ok      ok      ep       ep       -     -       -       -      -      rcx      ok     ok
TDH.MEM.PAGE.DEMOTE 1    rdx    ok     op    ok    tree    ok      ok       ok       rcx   rcx     rcx     r8     r8     rdx      ok     ok
TDH.MEM.PAGE.PROMOTE 1   rdx    ok     op    ok    tree    tree    ok       ok       rcx   rcx     rcx     -      -      rdx      ok     ok
TDH.MEM.PAGE.REMOVE 0    rdx    ok     op    ok    tree    ok      ok       ok       rcx   rcx     rcx     -      -      rdx      ok     ok
TDH.MEM.PAGE.REMOVE 1    rdx    ok     op    ok    tree    ok      ok       ok       rcx   rcx     rcx     -      -      rdx      ok     ok
TDH.MEM.SEPT.REMOVE 1    rdx    ok     op    ok    tree    tree    ok       ok       rcx   -       -       -      -      rdx      ok     ok
TDH.MEM.PAGE.RELOCATE 0  rdx    ok     op    ok    tree    ok      ok       ok       rcx   rcx     rcx     r8     r8     rdx      ok     ok
TDH.MEM.SEPT.RD 1        rdx    ok     op    ok    tree    ok      ok       ok       rcx   ok      ok      -      -      rdx      ok     ok
TDH.VP.ENTER 0           tdr    ok     op    ok    ok      ok      ep       ok       -     -       -       -      -      rcx      ok     ok
TDH.VP.FLUSH 0           tdr    ok     ok    ok    ok      ok      ok       ok       -     -       -       -      -      rcx      ok     ok
TDH.MNG.VPFLUSHDONE 0    rcx    rcx    fnd   fnd   fnd     fnd     fnd      fnd      -     -       -       -      -      rcx      kot    kot
TDH.PHYMEM.PAGE.RDMD 0   ok     ok     ok    ok    ok      ok      ok       ok       ok    rcx     ok      -      -      ok       ok     ok
TDG.MEM.PAGE.ACCEPT 1    -      ok     ok    ok    ok      ok      ok       ok       rcx   ok      ok      -      -      -        ok     ok
"""  # noqa: E501 -- rows of the tables stay whole
LOCK_TABLE: dict[str, dict[str, str]] = _grid(_LOCKS)
"""`leaf level` -> what the other processor holds -> code of LOCK_CODES, or `-` where it does not
apply. It holds, exclusively or shared: the TDR's PAMT entry, op_state, the S-EPT tree, the epoch
lock, the S-EPT entry, the PAMT entry of the page behind the entry, that of the new page (R8), the
2 MB PAMT entry above the TDR, the KOT."""
