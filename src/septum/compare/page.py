"""A comparison as one HTML page: complete in itself, without scripts, for narrow and wide."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jinja2

from septum.checks import PROMISES, consequence, sentence
from septum.compare.result import AS_EXPECTED, Mark
from septum.compare.words import (
    COST_HEADS,
    COST_NOTE,
    MEANINGS,
    bounds_text,
    cost_figures,
    leaf_changes,
    short,
    sign,
    summary,
    tried,
)
from septum.designs import KINDS
from septum.report.words import plural

if TYPE_CHECKING:
    from septum.compare.result import Cell, Comparison, Cost, Row

SPOKEN = {
    Mark.HELD: "held",
    Mark.BROKEN: "broken",
    Mark.DIFFERS: "not as the scenario expects of v3",
    Mark.V3: "broken, as v3 breaks it",
    Mark.MENDED: "held, where v3 breaks it",
    Mark.UNDETERMINED: "undetermined",
    Mark.FAILED: "the search failed",
}


def page_html(comparison: Comparison) -> str:
    """The page as text."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("septum.compare", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        plural=plural,
        short=short,
        sign=sign,
        tried=tried,
        spoken=_spoken,
        says=_says,
        sought=_sought,
    )
    template = environment.get_template("compare.html.j2")
    return template.render(
        comparison=comparison,
        summary=summary(comparison),
        bounds=bounds_text(comparison.bounds),
        groups=_groups(comparison),
        meanings=MEANINGS,
        cost_heads=[" ".join(filter(None, head)).replace("- ", "") for head in COST_HEADS],
        cost_note=COST_NOTE,
        loads=[_load(comparison, load, what) for load, what in comparison.loads.items()],
    )


def _groups(comparison: Comparison) -> list[tuple[str, list[Row]]]:
    """The rows by kind, with the heading of each."""
    groups: list[tuple[str, list[Row]]] = []
    for row in comparison.rows:
        heading = KINDS.get(row.kind, "Your own")
        if not groups or groups[-1][0] != heading:
            groups.append((heading, []))
        groups[-1][1].append(row)
    return groups


def _spoken(promise: str, cell: Cell) -> str:
    """A cell in words: for a screen reader, and when the mouse rests on it."""
    where = f" in {cell.scenario}" if cell.mark in (Mark.BROKEN, Mark.DIFFERS, Mark.V3) else ""
    return f"{promise}: {SPOKEN[cell.mark]}{where}"


def _says(promise: str) -> str:
    """What a promise says, and what happens on hardware otherwise."""
    if promise == AS_EXPECTED:
        return "Results, counts and pages are those that the scenario expects of v3."
    found = PROMISES.get(promise)
    return f"{sentence(found)} {consequence(found)}" if found is not None else promise


def _sought(comparison: Comparison, row: Row) -> str:
    """The scenarios of a design and how much was tried in each."""
    return "; ".join(
        f"{s.scenario}: {plural(s.schedules, 'schedule')}, {s.why}"
        for s in comparison.searches
        if s.design == row.design
    )


def _load(comparison: Comparison, load: str, what: str) -> dict[str, object]:
    """One load: a row of figures for each design, and the leaves that differ from v3's."""
    costs = [cost for cost in comparison.costs if cost.load == load]
    base = next((cost for cost in costs if cost.design == "v3"), None)
    return {
        "name": load,
        "what": what,
        "rows": [_cost_row(cost, base) for cost in costs],
        "base": sorted(base.seamcalls.items()) if base is not None else [],
    }


def _cost_row(cost: Cost, base: Cost | None) -> dict[str, object]:
    figures = cost_figures(cost)
    theirs = cost_figures(base) if base is not None else figures
    return {
        "design": cost.design,
        "ended": cost.ended,
        "figures": [
            (figure, figure != other) for figure, other in zip(figures, theirs, strict=True)
        ],
        "leaves": leaf_changes(cost, base) if base is not None and not cost.ended else [],
    }
