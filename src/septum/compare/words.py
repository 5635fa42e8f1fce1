"""Words and figures that the text and the page of a comparison share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.compare.result import AS_EXPECTED, Mark
from septum.report.words import plural, time_text

if TYPE_CHECKING:
    from septum.compare.result import Bounds, Cell, Comparison, Cost, Row

SHORT = {
    "mirror": "mi",
    "precise-zap": "pz",
    "mapping-in-folio": "mf",
    "guest-data": "gd",
    "accept-once": "ao",
    "tlb": "tl",
    "no-bug": "nb",
    "teardown": "td",
    "private-unreachable": "pu",
    "pamt": "pa",
    "cache": "ca",
    "locking": "lo",
    "progress": "pr",
    "all-or-nothing": "an",
    AS_EXPECTED: "ex",
}
"""Heads of the narrow columns."""

SIGNS = {
    Mark.HELD: ".",
    Mark.UNDETERMINED: "?",
    Mark.MENDED: "+",
    Mark.FAILED: "!",
}
MEANINGS = (
    (".", "held: every schedule and failure within the bounds was tried"),
    (
        "1, 2..",
        "broken by this design and not by v3, see that number; under ex: not as expected of v3",
    ),
    ("F1, F2..", "broken, as v3 breaks it there: docs/findings.md (v3: not a numbered finding)"),
    ("+", "held, where v3 breaks it"),
    ("?", "undetermined: not seen broken, but a budget ran out first"),
    ("!", "the search itself failed, which is a defect of Septum"),
)


def short(promise: str) -> str:
    """Two letters for a promise."""
    return SHORT.get(promise, promise[:2])


def sign(cell: Cell) -> str:
    """What a cell shows, at most three characters."""
    if cell.mark in (Mark.BROKEN, Mark.DIFFERS):
        return str(cell.number)
    if cell.mark is Mark.V3:
        return cell.finding or "v3"
    return SIGNS[cell.mark]


def tried(row: Row, bounds: Bounds) -> str:
    """How far every schedule was tried: `all`, or `<= 1` preemptions, or `some`."""
    if row.complete:
        return "all"
    if row.level < 0:
        return "some"
    return "all" if row.level == bounds.preemptions else f"<= {row.level}"


def bounds_text(bounds: Bounds) -> str:
    """The bounds of every search in one sentence."""
    preemptions = (
        "any number of preemptions"
        if bounds.preemptions < 0
        else f"at most {plural(bounds.preemptions, 'preemption')}"
    )
    return (
        f"Each search: {preemptions} and {plural(bounds.failures, 'injected failure')} in a run,"
        f" at most {plural(bounds.schedules, 'schedule')} and {bounds.time_s:g} s; seed"
        f" {bounds.seed}; promises checked {bounds.check}."
    )


def summary(comparison: Comparison) -> str:
    """What was compared and how it came out, in one sentence."""
    others = [row for row in comparison.rows if row.design != "v3"]
    broken = sum(any(c.mark is Mark.BROKEN for c in row.cells.values()) for row in others)
    scenarios = len({searched.scenario for searched in comparison.searches})
    if not others:
        return f"v3 alone, in {plural(scenarios, 'scenario')}"
    return (
        f"{plural(len(others), 'design')} beside v3 in {plural(scenarios, 'scenario')}:"
        f" {broken} of them {'breaks' if broken == 1 else 'break'} what v3 does not"
    )


COST_HEADS = (
    ("write", "takes"),
    ("longest", "hold"),
    ("", "kicks"),
    ("", "IPIs"),
    ("SEAM-", "CALLs"),
    ("under", "lock"),
    ("PAMT", "pages"),
    ("S-EPT", "pages"),
    ("2M", "kept"),
)
COST_NOTE = (
    "write takes, longest hold: of mmu_lock, virtual time; under lock: pages allocated with a"
    " spinning lock held; PAMT (Dynamic), S-EPT: pages at the end of the load; 2M kept: mappings"
    " then."
)


def cost_figures(cost: Cost) -> list[str]:
    """The figures of a cost, in the order of COST_HEADS."""
    return [
        str(cost.write_locks),
        time_text(cost.write_hold_ns),
        str(cost.kicks),
        str(cost.ipis),
        str(sum(cost.seamcalls.values())),
        str(cost.allocs_under_lock),
        str(cost.pamt_pages),
        str(cost.table_pages),
        str(cost.huge),
    ]


def leaf_changes(cost: Cost, base: Cost) -> list[str]:
    """`TDH.MEM.TRACK 7 -> 9` for every leaf that a design calls more or less often than v3."""
    leaves = sorted(base.seamcalls.keys() | cost.seamcalls.keys())
    pairs = [(name, base.seamcalls.get(name, 0), cost.seamcalls.get(name, 0)) for name in leaves]
    return [f"{name} {was} -> {now}" for name, was, now in pairs if was != now]
