"""The S-EPT entry automaton: every state that calls can bring an entry to, and every answer there.

A search from the entry's first state, call by call, over what matters of the TD: the entry, its
first child and the other 511, tracking of both, and whether the vCPU is inside and since when. A
state is reached on a fresh machine, by making the calls that lead to it again.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from septum.abi import sept
from septum.abi.status import status_name
from septum.conform.figures import LEAF_BY_STATE, LEAF_CODES
from septum.conform.scene import GPA, LARGE, SMALL, TDR, Scene, runnable_scene
from septum.module import OutcomeKind
from septum.module.common import walk_sept
from septum.module.state import Vcpu

if TYPE_CHECKING:
    from collections.abc import Callable

LEVEL = 1
_HOST_ON_ENTRY = (
    "TDH.MEM.RANGE.BLOCK",
    "TDH.MEM.RANGE.UNBLOCK",
    "TDH.MEM.PAGE.REMOVE",
    "TDH.MEM.PAGE.PROMOTE",
    "TDH.MEM.SEPT.REMOVE",
    "TDH.MEM.SEPT.RD",
)


class World:
    """A scene whose TD has one vCPU, and the pages that the search's calls use."""

    def __init__(self, dynamic_pamt: bool) -> None:
        self.scene: Scene = runnable_scene(dynamic_pamt)
        self.dynamic = dynamic_pamt
        self.sept_page = self.scene.control_page()
        self.pair = self.scene.pamt_pair()

    def inside(self) -> bool:
        """The vCPU is inside the TD."""
        return self.scene.machine.lps[0].guest is not None

    def host(self, name: str, rcx: int, **more: int) -> str:
        """A host call on LP 1, as text."""
        return status_name(self.scene.call(name, rcx, TDR, lp=1, **more).rax)

    def entry(self) -> int:
        """The raw 2 MB entry of GPA."""
        module = self.scene.module
        page, index, entry, _ = walk_sept(module, module.tds[TDR >> 12], GPA, LEVEL)
        assert page.entry(index) == entry
        return entry


def _accept(world: World, level: int, interrupted: bool = False) -> str:
    if not world.inside():
        return ""
    lp = world.scene.machine.lps[0]
    lp.ipi_pending = interrupted
    outcome, regs = world.scene.accept(GPA | level)
    lp.ipi_pending = False
    if outcome.kind == OutcomeKind.TD:
        return status_name(regs.rax)
    return outcome.kind.name


def _enter(world: World) -> str:
    if world.inside():
        return ""
    refused = world.scene.enter()
    return "TDX_SUCCESS" if refused is None else status_name(refused.rax)


def _exit(world: World) -> str:
    if not world.inside():
        return ""
    world.scene.exit()
    return "exits"


def _demote(world: World) -> str:
    r12, r13 = world.pair
    return world.host("TDH.MEM.PAGE.DEMOTE", GPA | LEVEL, r8=world.sept_page, r12=r12, r13=r13)


def _contended(world: World) -> str:
    hold = world.scene.module.hold_lock("sept_entry", td=TDR, gpa=GPA, level=LEVEL, by="guest")
    text = world.host("TDH.MEM.SEPT.RD", GPA | LEVEL)
    world.scene.module.release_lock(hold)
    return text


def _on_entry(name: str, level: int) -> Callable[[World], str]:
    return lambda world: world.host(name, GPA | level)


CALLS: dict[str, Callable[[World], str]] = {
    **{name: _on_entry(name, LEVEL) for name in _HOST_ON_ENTRY},
    "TDH.MEM.SEPT.ADD": lambda w: w.host("TDH.MEM.SEPT.ADD", GPA | LEVEL, r8=w.sept_page),
    "TDH.MEM.PAGE.AUG": lambda w: w.host("TDH.MEM.PAGE.AUG", GPA | LEVEL, r8=LARGE),
    "TDH.MEM.PAGE.DEMOTE": _demote,
    "TDH.MEM.TRACK": lambda w: status_name(w.scene.call("TDH.MEM.TRACK", TDR, lp=1).rax),
    "TDH.MEM.SEPT.RD (entry locked)": _contended,
    "TDG.MEM.PAGE.ACCEPT (2M)": lambda w: _accept(w, 1),
    "TDG.MEM.PAGE.ACCEPT (2M, interrupted)": lambda w: _accept(w, 1, interrupted=True),
    "TDG.MEM.PAGE.ACCEPT (4K)": lambda w: _accept(w, 0),
    "TDH.VP.ENTER": _enter,
    "external interrupt": _exit,
    "TDH.MEM.PAGE.AUG (child)": lambda w: w.host("TDH.MEM.PAGE.AUG", GPA, r8=SMALL),
    "TDH.MEM.RANGE.BLOCK (child)": _on_entry("TDH.MEM.RANGE.BLOCK", 0),
    "TDH.MEM.RANGE.UNBLOCK (child)": _on_entry("TDH.MEM.RANGE.UNBLOCK", 0),
    "TDH.MEM.PAGE.REMOVE (child)": _on_entry("TDH.MEM.PAGE.REMOVE", 0),
}
"""What the search tries in every state; an empty answer means that it cannot be done there."""


class State(NamedTuple):
    """What answers can depend on, in words; empty where it does not apply."""

    entry: str
    """State of the 2 MB entry."""
    tracking: str
    """How far TLB tracking of a blocked entry is."""
    accept: str
    """An interrupted ACCEPT has done part of a PENDING page."""
    priority: str
    """A host call failed on the entry's lock."""
    child: str
    """State of the first 4 KB entry below."""
    child_tracking: str
    others: str
    """State of the other 511."""
    vcpu: str
    """Where the vCPU is."""


Row = tuple[State, str, str]
"""State, call, answer."""


def _tracking(world: World, entry: int, level: int) -> str:
    """How far TLB tracking of a blocked entry is: BEPOCH relative to TD_EPOCH."""
    if not entry & sept.BLOCKED or entry & sept.STATE_MASK == sept.STATE_FREE:
        return ""
    module = world.scene.module
    td = module.tds[TDR >> 12]
    bepoch = module.pamt.implicit(entry & module.pfn_mask, level if entry & sept.PS else 0).bepoch
    age = td.td_epoch - bepoch
    if age == 0:
        return "no TRACK since"
    return "a vCPU runs since before" if age == 1 and td.refcount[bepoch & 1] else "tracked"


def state_of(world: World) -> State:
    """The state that `world` is in."""
    module = world.scene.module
    td = module.tds[TDR >> 12]
    entry = world.entry()
    leaf = bool(entry & sept.PS)
    child = child_tracking = others = ""
    if not leaf and entry & sept.STATE_MASK != sept.STATE_FREE:
        table = world.scene.machine.tables[(entry & module.pfn_mask) >> 12]
        child = sept.state_name(table.entry(0))
        child_tracking = _tracking(world, table.entry(0), 0)
        others = sept.state_name(table.entry(511))
    vcpu = "outside"
    guest = world.scene.machine.lps[0].guest
    if isinstance(guest, Vcpu):
        vcpu = "inside" if guest.vcpu_epoch == td.td_epoch else "inside since before TRACK"
    partly = leaf and entry & sept.STATE_MASK == sept.STATE_PENDING and entry & sept.ACCEPT_COUNTER
    return State(
        sept.state_name(entry),
        _tracking(world, entry, LEVEL),
        "in part" if partly else "",
        "host priority" if entry & sept.HP else "",
        child,
        child_tracking,
        others,
        vcpu,
    )


def reach(path: tuple[str, ...], dynamic_pamt: bool) -> World:
    """A fresh world after the calls of `path`."""
    world = World(dynamic_pamt)
    for name in path:
        CALLS[name](world)
    return world


def explore(dynamic_pamt: bool = False) -> list[Row]:
    """Every reachable (state, call, answer), in the order of the search."""
    rows: list[Row] = []
    start = state_of(reach((), dynamic_pamt))
    seen = {start}
    queue: deque[tuple[State, tuple[str, ...]]] = deque([(start, ())])
    while queue:
        state, path = queue.popleft()
        world = reach(path, dynamic_pamt)
        for name, call in CALLS.items():
            answer = call(world)
            if not answer:
                continue
            rows.append((state, name, answer))
            after = state_of(world)
            if after not in seen:
                seen.add(after)
                queue.append((after, (*path, name)))
            if after != state or answer == "TDX_SUCCESS":
                world = reach(path, dynamic_pamt)  # the call did something
    return rows


def simple_rows(rows: list[Row]) -> dict[tuple[str, str], set[str]]:
    """(entry state, call) -> answers, where the facts' table applies.

    That is: blocked entries tracked, all children FREE, the vCPU outside.
    """
    found: dict[tuple[str, str], set[str]] = {}
    for state, call, answer in rows:
        if (
            state.vcpu == "outside"
            and state.tracking in ("", "tracked")
            and state.child in ("", "FREE")
            and state.others in ("", "FREE")
        ):
            found.setdefault((state.entry, call), set()).add(answer)
    return found


def facts_that_differ(rows: list[Row]) -> list[str]:
    """Cells of the facts' level 1 table for which the search has another answer."""
    found = simple_rows(rows)
    wrong = []
    for leaf, cells in LEAF_BY_STATE[LEVEL].items():
        for state, code in cells.items():
            if leaf not in CALLS:
                continue
            answers = found.get((state, leaf), set())
            if answers != {LEAF_CODES[code][0]}:
                wrong.append(f"{leaf} on {state}: {sorted(answers)}, facts {LEAF_CODES[code][0]}")
    return wrong
