"""A comparison as text of 80 columns: the table, what stands behind each number, the costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.compare.reading import (
    COST_HEADS,
    COST_NOTE,
    Reading,
    example_counts,
    example_notes,
)
from septum.compare.words import MEANINGS
from septum.report.lines import Lines, Span
from septum.words import WIDTH, wrap

if TYPE_CHECKING:
    from septum.compare.reading import CostRow, Load, RowRead
    from septum.compare.result import Comparison, Example

CELL_WIDTH_MIN = 3
TRIED_WIDTH = 7
COST_NAME_WIDTH = 23
COST_WIDTHS = (6, 8, 6, 6, 8, 6, 6, 6, 5)
_STYLES = {
    "broken": "bad",
    "differs": "warn",
    "otherwise": "warn",
    "base": "warn",
    "undetermined": "warn",
    "failed": "bad",
    "mended": "good",
}


def comparison_lines(comparison: Comparison, folder: str) -> Lines:
    """The whole report; `folder` is where the stories are."""
    reading = Reading(comparison)
    lines = Lines()
    lines.paragraph(f"{reading.summary}.", "", "  ", style="head")
    lines.paragraph(reading.bounds, "  ")
    if reading.interrupted:
        lines.paragraph(reading.interrupted, "  ", style="warn")
    _table(lines, reading)
    _legend(lines, reading)
    if comparison.examples:
        lines.heading("What was broken")
    for example in comparison.examples:
        _example(lines, example, folder)
    _unseen(lines, reading)
    _failed(lines, comparison, reading)
    for load in reading.loads:
        _costs(lines, load)
    lines.blank()
    pieces = wrap(comparison.command, width=WIDTH - 9)
    for at, piece in enumerate(pieces):
        lines.add(f"{'' if at else 'Again:':<7}{piece}" + " \\" * (at + 1 < len(pieces)))
    lines.add(f"Report: {folder}")
    return lines


def _table(lines: Lines, reading: Reading) -> None:
    rows = [row for group in reading.groups for row in group.rows]
    widths = [
        max(CELL_WIDTH_MIN, *(len(row.cells[at].sign) + 1 for row in rows))
        for at in range(len(reading.heads))
    ]
    longest = max(len(row.design) + 1 for row in rows)
    name_width = min(longest, WIDTH - sum(widths) - TRIED_WIDTH)
    heads = "".join(f"{h.short:>{width}}" for h, width in zip(reading.heads, widths, strict=True))
    lines.blank()
    lines.add(Span(f"{'':{name_width}}{heads}  tried", "dim"))
    for group in reading.groups:
        lines.add(Span(group.heading, "dim"))
        for row in group.rows:
            _row(lines, row, name_width, widths)


def _row(lines: Lines, row: RowRead, name_width: int, widths: list[int]) -> None:
    name = row.design
    if len(name) >= name_width:
        lines.add(name)
        name = ""
    spans: list[Span | str] = [f"{name:<{name_width}}"]
    for cell, width in zip(row.cells, widths, strict=True):
        spans.append(Span(f"{cell.sign:>{width}}", _STYLES.get(cell.mark, "")))
    lines.add(*spans, f"  {row.tried}")
    if row.note:
        lines.add(Span(f"  {row.note}", "dim"))


def _legend(lines: Lines, reading: Reading) -> None:
    lines.blank()
    lines.paragraph("  ".join(f"{head.short} {head.promise}" for head in reading.heads), "  ")
    for mark, meaning in MEANINGS:
        lines.paragraph(meaning, f"  {mark:<10}", " " * 12)


def _example(lines: Lines, example: Example, folder: str) -> None:
    broken = example.broken
    head = f"{example.number:>3}. "
    lines.paragraph(
        f"{example.design}: {broken.promise} in {example.scenario}", head, "     ", style="head"
    )
    lines.paragraph(broken.text, "     ")
    for note in example_notes(example):
        lines.paragraph(note, "     ", "       ")
    story = f"; story: {folder}/{example.file}" if broken.token else ""
    lines.paragraph(f"{example_counts(example)}{story}", "     ")
    if broken.token:
        lines.paragraph(broken.token, "     ")


def _unseen(lines: Lines, reading: Reading) -> None:
    unseen = [row for group in reading.groups for row in group.rows if row.unseen]
    if not unseen:
        return
    lines.heading("Said to break, and not seen broken within the bounds")
    for row in unseen:
        lines.paragraph(f"{row.design}: {', '.join(row.unseen)}", "  ", "    ")


def _failed(lines: Lines, comparison: Comparison, reading: Reading) -> None:
    failed = [searched for searched in comparison.searches if searched.failed]
    if reading.slow:
        lines.heading("Ended by the clock: another machine may get further")
        lines.paragraph(", ".join(reading.slow), "  ")
    if failed:
        lines.heading("Searches that failed")
        for searched in failed:
            last = searched.failed.strip().splitlines()[-1]
            lines.paragraph(f"{searched.design} in {searched.scenario}: {last}", "  ", "    ")


# Costs


def _costs(lines: Lines, load: Load) -> None:
    lines.heading(f"Cost of the load {load.name!r}")
    lines.paragraph(f"{load.what}.", "  ")
    for at in (0, 1):
        heads = "".join(f"{h[at]:>{w}}" for h, w in zip(COST_HEADS, COST_WIDTHS, strict=True))
        lines.add(Span(f"{'':{COST_NAME_WIDTH}}{heads}", "dim"))
    for row in load.rows:
        _cost(lines, row)
    lines.paragraph(COST_NOTE, "  ")
    if not load.leaves:
        return
    lines.blank()
    lines.add("  SEAMCALLs by leaf: v3, then what others call more or less often")
    told = ", ".join(f"{leaf} {count}" for leaf, count in load.leaves)
    lines.paragraph(f"v3: {told}", "  ", "    ")
    for row in load.rows:
        if row.leaves:
            lines.paragraph(f"{row.design}: {', '.join(row.leaves)}", "  ", "    ")


def _cost(lines: Lines, row: CostRow) -> None:
    name = row.design
    if len(name) >= COST_NAME_WIDTH:
        lines.add(name)
        name = ""
    if row.ended:
        lines.paragraph(f"{name:<{COST_NAME_WIDTH}}  ended early: {row.ended}", "", "    ")
    elif row.as_base:
        lines.add(f"{name:<{COST_NAME_WIDTH}}  as {row.base}")
    else:
        figures = zip(row.figures, COST_WIDTHS, strict=True)
        told = "".join(f"{figure:>{width}}" for (figure, _), width in figures)
        lines.add(f"{name:<{COST_NAME_WIDTH}}{told}")
