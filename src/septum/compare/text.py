"""A comparison as text of 80 columns: the table, what stands behind each number, the costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
from septum.report.lines import Lines, Span
from septum.report.words import WIDTH, plural, wrap

if TYPE_CHECKING:
    from septum.compare.result import Comparison, Cost, Example, Row

NAME_WIDTH = 28
CELL_WIDTH = 3
COST_NAME_WIDTH = 24
COST_WIDTHS = (6, 8, 6, 6, 8, 6, 5, 6, 5)
_STYLES = {
    "broken": "bad",
    "differs": "warn",
    "v3": "warn",
    "undetermined": "warn",
    "failed": "bad",
    "mended": "good",
}


def comparison_lines(comparison: Comparison, folder: str) -> Lines:
    """The whole report; `folder` is where the stories are."""
    lines = Lines()
    lines.paragraph(f"{summary(comparison)}.", "", "  ", style="head")
    lines.paragraph(bounds_text(comparison.bounds), "  ")
    if comparison.interrupted:
        left = plural(comparison.left_out, "search or load", "searches and loads")
        lines.paragraph(f"Interrupted: {left} not run.", "  ", style="warn")
    _table(lines, comparison)
    _legend(lines, comparison)
    _examples(lines, comparison, folder)
    _unseen(lines, comparison)
    _failed(lines, comparison)
    for load, what in comparison.loads.items():
        _costs(lines, comparison, load, what)
    lines.blank()
    pieces = wrap(comparison.command, width=WIDTH - 9)
    for at, piece in enumerate(pieces):
        lines.add(f"{'' if at else 'Again:':<7}{piece}" + " \\" * (at + 1 < len(pieces)))
    lines.add(f"Report: {folder}")
    return lines


def _table(lines: Lines, comparison: Comparison) -> None:
    heads = "".join(f"{short(promise):>{CELL_WIDTH}}" for promise in comparison.promises)
    lines.blank()
    lines.add(Span(f"{'':{NAME_WIDTH}}{heads}  tried", "dim"))
    kind = "base"
    for row in comparison.rows:
        if row.kind != kind:
            kind = row.kind
            lines.add(Span(KINDS.get(kind, "Your own"), "dim"))
        _row(lines, row, comparison)


def _row(lines: Lines, row: Row, comparison: Comparison) -> None:
    name = row.design
    if len(name) >= NAME_WIDTH:
        lines.add(name)
        name = ""
    spans: list[Span | str] = [f"{name:<{NAME_WIDTH}}"]
    for promise in comparison.promises:
        cell = row.cells[promise]
        spans.append(Span(f"{sign(cell):>{CELL_WIDTH}}", _STYLES.get(cell.mark.value, "")))
    lines.add(*spans, f"  {tried(row, comparison.bounds)}")


def _legend(lines: Lines, comparison: Comparison) -> None:
    lines.blank()
    words = "  ".join(f"{short(promise)} {promise}" for promise in comparison.promises)
    lines.paragraph(words, "  ")
    for mark, meaning in MEANINGS:
        lines.paragraph(meaning, f"  {mark:<10}", " " * 12)
    lines.paragraph(
        "number of preemptions in a run up to which every schedule was tried; all: within the"
        " bounds; some: not even those without preemptions",
        f"  {'tried':<10}",
        " " * 12,
    )


def _examples(lines: Lines, comparison: Comparison, folder: str) -> None:
    if not comparison.examples:
        return
    lines.heading("What was broken")
    for example in comparison.examples:
        _example(lines, example, folder)


def _example(lines: Lines, example: Example, folder: str) -> None:
    broken = example.broken
    head = f"{example.number:>3}. "
    lines.paragraph(
        f"{example.design}: {broken.promise} in {example.scenario}", head, "     ", style="head"
    )
    lines.paragraph(broken.text, "     ")
    for later in example.then:
        lines.paragraph(f"then {later.promise}: {later.text}", "     ", "       ")
    counts = (
        f"{plural(broken.steps, 'step')}, {plural(broken.preemptions, 'preemption')},"
        f" {plural(broken.failures, 'injected failure')}"
    )
    lines.paragraph(f"{counts}; story: {folder}/{example.file}", "     ")
    lines.paragraph(broken.token, "     ")


def _unseen(lines: Lines, comparison: Comparison) -> None:
    unseen = [row for row in comparison.rows if row.unseen]
    if not unseen:
        return
    lines.heading("Said to break, and not seen broken within the bounds")
    for row in unseen:
        lines.paragraph(f"{row.design}: {', '.join(row.unseen)}", "  ", "    ")


def _failed(lines: Lines, comparison: Comparison) -> None:
    failed = [searched for searched in comparison.searches if searched.failed]
    slow = [s for s in comparison.searches if s.out_of_time and not s.failed]
    if slow:
        lines.heading("Ended by the clock: another machine may get further")
        lines.paragraph(", ".join(f"{s.design} in {s.scenario}" for s in slow), "  ")
    if failed:
        lines.heading("Searches that failed")
        for searched in failed:
            last = searched.failed.strip().splitlines()[-1]
            lines.paragraph(f"{searched.design} in {searched.scenario}: {last}", "  ", "    ")


# Costs


def _costs(lines: Lines, comparison: Comparison, load: str, what: str) -> None:
    costs = [cost for cost in comparison.costs if cost.load == load]
    base = next((cost for cost in costs if cost.design == "v3"), None)
    if not costs:
        return
    lines.heading(f"Cost of the load {load!r}")
    lines.paragraph(f"{what}.", "  ")
    for at in (0, 1):
        heads = "".join(f"{h[at]:>{w}}" for h, w in zip(COST_HEADS, COST_WIDTHS, strict=True))
        lines.add(Span(f"{'':{COST_NAME_WIDTH}}{heads}", "dim"))
    for cost in costs:
        _cost(lines, cost, base)
    lines.paragraph(COST_NOTE, "  ")
    if base is None:
        return
    lines.blank()
    lines.add("  SEAMCALLs by leaf: v3, then what others call more or less often")
    told = ", ".join(f"{leaf} {count}" for leaf, count in sorted(base.seamcalls.items()))
    lines.paragraph(f"v3: {told}", "  ", "    ")
    for cost in costs:
        changes = leaf_changes(cost, base)
        if changes and not cost.ended:
            lines.paragraph(f"{cost.design}: {', '.join(changes)}", "  ", "    ")


def _cost(lines: Lines, cost: Cost, base: Cost | None) -> None:
    name = cost.design
    if len(name) >= COST_NAME_WIDTH:
        lines.add(name)
        name = ""
    if cost.ended:
        lines.paragraph(f"{name:<{COST_NAME_WIDTH}}  ended early: {cost.ended}", "", "    ")
        return
    figures = cost_figures(cost)
    if base is not None and cost is not base and figures == cost_figures(base):
        lines.add(f"{name:<{COST_NAME_WIDTH}}  as v3")
        return
    row = "".join(f"{f:>{w}}" for f, w in zip(figures, COST_WIDTHS, strict=True))
    lines.add(f"{name:<{COST_NAME_WIDTH}}{row}")
