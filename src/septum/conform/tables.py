"""The facts' tables, computed again by running the module: every cell on a fresh machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.status import status_name
from septum.conform.figures import (
    ACCEPT,
    ACCEPT_EXIT_QUALIFICATION,
    ENTRY_VIEW,
    LEAF_BY_STATE,
    LEAF_CODES,
    LOCK_CODES,
    LOCK_TABLE,
)
from septum.conform.scene import GPA, LARGE, SMALL, TDR, TDVPR, Scene, SceneDefect, runnable_scene
from septum.module import OutcomeKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from septum.abi.regs import Regs


class Cell:
    """One cell that does not agree: where, what the facts say, what the module answered."""

    __slots__ = ("answered", "expected", "where")

    def __init__(self, where: str, expected: str, answered: str) -> None:
        self.where = where
        self.expected = expected
        self.answered = answered

    def __repr__(self) -> str:
        return f"{self.where}: facts say {self.expected}, the module {self.answered}"


def put_entry(scene: Scene, level: int, state: str) -> None:
    """Bring the entry of GPA at `level` to `state`, from FREE; blocked ones are tracked after."""
    if level == 0:
        scene.add_sept(GPA, 1)
    if state == "FREE":
        return
    if state in ("NL_MAPPED", "NL_BLOCKED"):
        scene.add_sept(GPA, level)
    else:
        scene.aug(GPA, level, LARGE if level else SMALL)
    if state in ("MAPPED", "BLOCKED"):
        if scene.enter() is not None:
            raise SceneDefect("VP.ENTER refused")
        outcome, regs = scene.accept(GPA | level)
        if outcome.kind != OutcomeKind.TD or regs.rax:
            raise SceneDefect(f"ACCEPT: {status_name(regs.rax)}")
        scene.exit()
    if state.endswith("BLOCKED"):
        scene.block_and_track(GPA, level)


def call_leaf(scene: Scene, leaf: str, level: int) -> Regs:
    """`leaf` on the entry of GPA at `level`, with every other operand valid."""
    if leaf == "TDH.MEM.SEPT.ADD":
        return scene.call(leaf, GPA | level, TDR, r8=scene.control_page())
    if leaf == "TDH.MEM.PAGE.AUG":
        page = LARGE + 0x20_0000 if level else SMALL + 0x5000
        return scene.call(leaf, GPA | level, TDR, r8=page)
    if leaf == "TDH.MEM.PAGE.RELOCATE":
        return scene.call(leaf, GPA | level, TDR, r8=SMALL + 0x6000)
    if leaf == "TDH.MEM.PAGE.DEMOTE":
        r12, r13 = scene.pamt_pair()
        return scene.call(leaf, GPA | level, TDR, r8=scene.control_page(), r12=r12, r13=r13)
    if leaf == "TDH.MEM.TRACK":
        return scene.call(leaf, TDR)
    return scene.call(leaf, GPA | level, TDR)


def leaf_by_state(dynamic_pamt: bool) -> list[Cell]:
    """Section 9: every host leaf on every entry state. Returns the cells that differ."""
    wrong = []
    for level, rows in LEAF_BY_STATE.items():
        for leaf, row in rows.items():
            for state, code in row.items():
                where = f"{leaf} on a level {level} {state} entry"
                status, view = LEAF_CODES[code]
                expected = status
                scene = runnable_scene(dynamic_pamt)
                put_entry(scene, level, state)
                regs = call_leaf(scene, leaf, level)
                answered = status_name(regs.rax)
                if view:
                    details = ENTRY_VIEW[level][state] if view == "entry" else (0, 0)
                    expected += " rcx={:#x} rdx={:#x}".format(*details)
                    answered += f" rcx={regs.rcx:#x} rdx={regs.rdx:#x}"
                if answered != expected:
                    wrong.append(Cell(where, expected, answered))
    return wrong


def accept_by_state(dynamic_pamt: bool) -> list[Cell]:
    """Section 6: ACCEPT at both levels on every entry state. Returns the cells that differ."""
    wrong = []
    for level, state, requested, rax, rdx in ACCEPT:
        scene = runnable_scene(dynamic_pamt)
        put_entry(scene, level, state)
        if scene.enter() is not None:
            raise SceneDefect("VP.ENTER refused")
        outcome, regs = scene.accept(GPA | requested)
        where = f"ACCEPT of level {requested} on a level {level} {state} entry"
        if rax == 0x30:
            expected = f"TD exit 0x30 {ACCEPT_EXIT_QUALIFICATION:#x} {rdx:#x} {GPA:#x}"
        else:
            expected = f"returns {rax:#x}"
        out = outcome.exit
        if outcome.kind == OutcomeKind.TD_EXIT and out is not None:
            answered = f"TD exit {out.rax:#x} {out.rcx:#x} {out.rdx:#x} {out.r8:#x}"
        else:
            answered = f"returns {regs.rax:#x}"
        if answered != expected:
            wrong.append(Cell(where, expected, answered))
    return wrong


# ---- section 10

_NEEDS_STATE = {
    "TDH.MEM.SEPT.ADD": "FREE",
    "TDH.MEM.PAGE.AUG": "FREE",
    "TDH.MEM.RANGE.BLOCK": "MAPPED",
    "TDH.MEM.RANGE.UNBLOCK": "BLOCKED",
    "TDH.MEM.TRACK": "FREE",
    "TDH.MEM.PAGE.DEMOTE": "BLOCKED",
    "TDH.MEM.PAGE.REMOVE": "BLOCKED",
    "TDH.MEM.SEPT.REMOVE": "NL_BLOCKED",
    "TDH.MEM.PAGE.RELOCATE": "BLOCKED",
    "TDH.MEM.SEPT.RD": "MAPPED",
    "TDG.MEM.PAGE.ACCEPT": "PENDING",
}


def _lock_scene(leaf: str, level: int, dynamic_pamt: bool) -> tuple[Scene, int, int]:
    """A scene in which `leaf` would succeed; the page behind the entry, and a new page."""
    scene = runnable_scene(dynamic_pamt)
    page = LARGE if level else SMALL
    new_page = scene.next_control
    if leaf == "TDH.MEM.PAGE.PROMOTE":
        put_entry(scene, 1, "BLOCKED")
        r12, r13 = scene.pamt_pair()
        page = scene.control_page()
        scene.must("TDH.MEM.PAGE.DEMOTE", GPA | 1, TDR, r8=page, r12=r12, r13=r13)
        scene.block_and_track(GPA, 1)
    elif leaf == "TDH.PHYMEM.PAGE.RDMD":
        put_entry(scene, 0, "MAPPED")
    elif leaf in _NEEDS_STATE:
        put_entry(scene, level, _NEEDS_STATE[leaf])
        new_page = scene.next_control
    if leaf == "TDH.MEM.PAGE.AUG":
        new_page = LARGE + 0x20_0000 if level else SMALL + 0x5000
    elif leaf == "TDH.MEM.PAGE.RELOCATE":
        new_page = SMALL + 0x6000
    if leaf == "TDG.MEM.PAGE.ACCEPT" and scene.enter() is not None:
        raise SceneDefect("VP.ENTER refused")
    return scene, page, new_page


def _lock_call(scene: Scene, leaf: str, level: int, page: int) -> str:
    if leaf == "TDH.VP.ENTER":
        refused = scene.enter()
        if refused is None:
            scene.exit()
            return "TDX_SUCCESS"
        return status_name(refused.rax)
    if leaf == "TDG.MEM.PAGE.ACCEPT":
        outcome, regs = scene.accept(GPA | level)
        return status_name(regs.rax) if outcome.kind == OutcomeKind.TD else outcome.kind.name
    if leaf == "TDH.VP.FLUSH":
        return status_name(scene.call(leaf, TDVPR).rax)
    if leaf == "TDH.MNG.VPFLUSHDONE":
        return status_name(scene.call(leaf, TDR).rax)
    if leaf == "TDH.PHYMEM.PAGE.RDMD":
        return status_name(scene.call(leaf, page).rax)
    return status_name(call_leaf(scene, leaf, level).rax)


def _hold(scene: Scene, held: str, level: int, page: int, new_page: int) -> Callable[[], None]:
    """Another processor takes what column `held` says; returns what drops it."""
    module = scene.module
    name, _, mode = held.partition("_")
    mode = mode or "ex"
    page_level = 1 if page == LARGE else 0
    new_level = 1 if new_page > LARGE else 0
    if name == "tdr":
        hold = module.hold_lock("pamt", mode, hpa=TDR, level=0)
    elif name == "tdr2m":
        hold = module.hold_lock("pamt", mode, hpa=TDR, level=1)
    elif name == "op":
        hold = module.hold_lock("op_state", mode, td=TDR)
    elif name == "sept":
        hold = module.hold_lock("secure_ept", mode, td=TDR)
    elif name == "epoch":
        hold = module.hold_lock("epoch", mode, td=TDR)
    elif name == "entry":
        hold = module.hold_lock("sept_entry", td=TDR, gpa=GPA, level=level)
    elif name == "page":
        hold = module.hold_lock("pamt", mode, hpa=page, level=page_level)
    elif name == "new":
        hold = module.hold_lock("pamt", mode, hpa=new_page, level=new_level)
    else:
        hold = module.hold_lock("kot", mode)
    return lambda: module.release_lock(hold)


def one_lock_held(dynamic_pamt: bool) -> list[Cell]:
    """Section 10: a valid call while another processor holds one lock."""
    wrong = []
    for row, cells in LOCK_TABLE.items():
        leaf, level_text = row.split()
        level = int(level_text)
        for held, code in cells.items():
            if code == "-":
                continue
            scene, page, new_page = _lock_scene(leaf, level, dynamic_pamt)
            release = _hold(scene, held, level, page, new_page)
            answered = _lock_call(scene, leaf, level, page)
            release()
            if answered != LOCK_CODES[code]:
                wrong.append(Cell(f"{row} while {held} is held", LOCK_CODES[code], answered))
    return wrong
