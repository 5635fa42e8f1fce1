"""Words and signs of a comparison."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.checks import PROMISES, consequence, sentence
from septum.compare.result import AS_EXPECTED, V3, Mark
from septum.words import plural

if TYPE_CHECKING:
    from septum.compare.result import Bounds, Cell, Comparison, Row

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
        (
            "broken by this design and not by v3 (or the base that it changes), see that number;"
            " under ex: not as expected of v3"
        ),
    ),
    (
        "1?, 2?..",
        (
            "the same, but of v3 not every schedule with as many preemptions was tried there: it"
            " may break it, too"
        ),
    ),
    ("1~, 2~..", "v3 breaks it there, too, but shows it in another way: that number says both"),
    ("F1, F2..", "broken, as v3 breaks it there: docs/findings.md (v3: not a numbered finding)"),
    ("+", "held, where v3 breaks it"),
    ("?", "undetermined: not seen broken, but a budget ran out first"),
    ("!", "the search itself failed, which is a defect of Septum"),
    (
        "tried",
        (
            "number of preemptions in a run up to which every schedule was tried; all: within the"
            " bounds; some: not even those without preemptions"
        ),
    ),
)
SPOKEN = {
    Mark.HELD: "held",
    Mark.BROKEN: "broken",
    Mark.DIFFERS: "not as the scenario expects of v3",
    Mark.OTHERWISE: "broken; {base} breaks it, too, but shows it in another way",
    Mark.BASE: "broken, as {base} breaks it",
    Mark.MENDED: "held, where {base} breaks it",
    Mark.UNDETERMINED: "undetermined",
    Mark.FAILED: "the search failed",
}


def short(promise: str) -> str:
    """Two letters for a promise."""
    return SHORT.get(promise, promise[:2])


def says(promise: str) -> str:
    """What a promise says, and what happens on hardware otherwise."""
    if promise == AS_EXPECTED:
        return "Results, counts and pages are those that the scenario expects of v3."
    found = PROMISES.get(promise)
    return f"{sentence(found)} {consequence(found)}" if found is not None else promise


def sign(cell: Cell) -> str:
    """What a cell shows, in few characters."""
    if cell.mark in (Mark.BROKEN, Mark.DIFFERS):
        return f"{cell.number}?" if cell.base_open else str(cell.number)
    if cell.mark is Mark.OTHERWISE:
        return f"{cell.number}~"
    if cell.mark is Mark.BASE:
        return cell.finding or V3
    return SIGNS[cell.mark]


def spoken(promise: str, cell: Cell, row: Row) -> str:
    """A cell in words: for a screen reader, and when the mouse rests on it."""
    where = f" in {cell.scenario}" if cell.number or cell.finding else ""
    undetermined = f"; {row.base} is undetermined there" if cell.base_open else ""
    return f"{promise}: {SPOKEN[cell.mark].format(base=row.base)}{where}{undetermined}"


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
    others = [row for row in comparison.rows if row.design != V3]
    scenarios = plural(len({searched.scenario for searched in comparison.searches}), "scenario")
    if not others:
        return f"v3 alone, in {scenarios}"
    base = V3 if all(row.base == V3 for row in others) else "their base"
    broken = [[c for c in row.cells.values() if c.mark is Mark.BROKEN] for row in others]
    surely = sum(any(not cell.base_open for cell in cells) for cells in broken)
    perhaps = sum(bool(cells) and all(cell.base_open for cell in cells) for cells in broken)
    told = (
        f"{plural(len(others), 'design')} beside v3 in {scenarios}: {surely} of them"
        f" {'breaks' if surely == 1 else 'break'} what {base} does not"
    )
    if perhaps:
        told += f", {perhaps} what {base} may break, too, as its search ran out first"
    unknown = sum(
        not cells and any(c.mark is Mark.UNDETERMINED for c in row.cells.values())
        for row, cells in zip(others, broken, strict=True)
    )
    if unknown:
        told += f", {unknown} {'is' if unknown == 1 else 'are'} undetermined"
    return told


def base_note(row: Row) -> str:
    """What a design is compared with, when that is not v3."""
    return "" if row.base == V3 else f"changes {row.base}, and is compared with it"
