"""The guest's memory as a self-contained SVG: one square per 2 MB (or more), a tooltip on each.

A square that holds pages of several kinds is filled in proportion.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from septum.abi.types import PAGE_SHIFT
from septum.report.cells import MIXED, BankCells, Cell, bank_title, cell_size, count_kinds, cut
from septum.report.memory_map import leaves_text
from septum.report.palette import COLOURS, LABELS
from septum.words import count_text, gpa_text, size_text

if TYPE_CHECKING:
    from septum.report.cells import Counts
    from septum.report.result import Bank, Snapshot

MAX_CELLS = 4352
PER_ROW = 64
PITCH = 13
SQUARE = 12
GROUP = 8
GROUP_GAP = 3
LEFT = 132
RIGHT = 28
LEGEND_COLUMNS = 3
LEGEND_ROW = 34
MIN_SLICE = 2.5
"""Pixels that a kind has at least in a mixed square, so that a single page is seen."""

_STYLE = """
text { font-family: system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: #2b2a27 }
.title { font-size: 21px; font-weight: 600 }
.sub { font-size: 13px; fill: #6b675e }
.bank { font-size: 14px; font-weight: 600 }
.gpa { font-size: 11px; fill: #6b675e; font-family: ui-monospace, "DejaVu Sans Mono", monospace }
.label { font-size: 13px }
.small { font-size: 12px; fill: #6b675e }
"""


def memory_svg(title: str, subtitle: str, banks: list[Bank], snapshot: Snapshot) -> str:
    """The picture of one snapshot. Raises OverlapError when its regions share a page."""
    cell_bytes = cell_size(banks, MAX_CELLS)
    cut_banks = cut(banks, snapshot.regions, cell_bytes)
    cells = [cell for bank_cells in cut_banks for cell in bank_cells.cells]
    width = _x(PER_ROW - 1) + SQUARE + RIGHT
    parts: list[str] = []
    y = _head(parts, title, subtitle)
    y = _proportions(parts, count_kinds(cells), y, width)
    y = _legend(parts, cells, y, width)
    digits = max(9, *(len(f"{bank.gpa + bank.size_bytes - 1:x}") for bank in banks))
    y = _ruler(parts, cell_bytes, y)
    for bank_cells in cut_banks:
        y = _bank(parts, bank_cells, y, digits)
    height = y + 12
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
        f' width="{width}" height="{height}" role="img">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n"
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _x(column: int) -> int:
    """Left edge of a column of squares; a gap after each group of eight."""
    return LEFT + column * PITCH + column // GROUP * GROUP_GAP


def _num(value: float) -> str:
    """A coordinate with at most two decimals."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _text(x: float, y: float, css: str, text: str, anchor: str = "start") -> str:
    where = f' text-anchor="{anchor}"' if anchor != "start" else ""
    return f'<text x="{_num(x)}" y="{_num(y)}" class="{css}"{where}>{escape(text)}</text>'


def _rect(x: float, y: float, width: float, height: float, fill: str, more: str = "") -> str:
    box = f'x="{_num(x)}" y="{_num(y)}" width="{_num(width)}" height="{_num(height)}"'
    return f'<rect {box} fill="{fill}"{more}/>'


def _head(parts: list[str], title: str, subtitle: str) -> int:
    parts.append(_text(24, 40, "title", title))
    parts.append(_text(24, 62, "sub", subtitle))
    return 80


def _proportions(parts: list[str], counts: Counts, y: int, width: int) -> int:
    """One bar of all memory, so that sizes can be compared at a glance."""
    total = sum(counts.values())
    x = 24.0
    usable = width - 24 - RIGHT
    for kind, nr_pages in counts.items():
        share = usable * nr_pages / total
        tip = f"{LABELS[kind]}: {size_text(nr_pages << PAGE_SHIFT)}, {100 * nr_pages / total:.1f} %"
        parts.append(f"<g><title>{escape(tip)}</title>{_rect(x, y, share, 14, COLOURS[kind])}</g>")
        x += share
    return y + 14 + 26


def _legend(parts: list[str], cells: list[Cell], y: int, width: int) -> int:
    """Every kind that is there, with its size and its number of leaves or pages."""
    rows = [
        (
            COLOURS[kind],
            LABELS[kind],
            f"{size_text(nr_pages << PAGE_SHIFT)} · {leaves_text(kind, nr_pages)}",
        )
        for kind, nr_pages in count_kinds(cells).items()
    ]
    mixed = [cell for cell in cells if cell.kind == MIXED]
    if mixed:
        rows.append(("", LABELS[MIXED], f"{count_text(len(mixed))} squares, filled in proportion"))
    step = (width - 24 - RIGHT) / LEGEND_COLUMNS
    for at, (colour, label, detail) in enumerate(rows):
        x = 24 + at % LEGEND_COLUMNS * step
        row_y = y + at // LEGEND_COLUMNS * LEGEND_ROW
        if colour:
            parts.append(_rect(x, row_y - 11, 14, 14, colour, ' rx="2"'))
        else:
            parts.append(_rect(x, row_y - 11, 14, 9, COLOURS["4k"]))
            parts.append(_rect(x, row_y - 2, 14, 5, COLOURS["shared"]))
        parts.append(_text(x + 22, row_y, "label", label))
        parts.append(_text(x + 22, row_y + 14, "small", detail))
    return y + -(-len(rows) // LEGEND_COLUMNS) * LEGEND_ROW + 12


def _ruler(parts: list[str], cell_bytes: int, y: int) -> int:
    """What a square is, and how far each group of squares is from the start of its row."""
    parts.append(_text(24, y, "small", f"■ = {size_text(cell_bytes)}"))
    for column in range(0, PER_ROW, GROUP):
        offset = f"+{size_text(column * cell_bytes)}" if column else "+0"
        parts.append(_text(_x(column), y, "gpa", offset))
    return y + 8


def _bank(parts: list[str], bank_cells: BankCells, y: int, digits: int) -> int:
    bank = bank_cells.bank
    y += 26
    end = bank.gpa + bank.size_bytes
    parts.append(_text(24, y, "bank", bank_title(bank)))
    detail = f"{size_text(bank.size_bytes)}, GPA {bank.gpa:#x} up to {end:#x}"
    parts.append(_text(_x(PER_ROW - 1) + SQUARE, y, "small", detail, "end"))
    y += 8
    rows = bank_cells.rows(PER_ROW)
    for number, (start, cells) in enumerate(rows):
        if number % 4 == 0:
            parts.append(
                _text(LEFT - 10, y + number * PITCH + 10, "gpa", gpa_text(start, digits), "end")
            )
        skipped = (cells[0].gpa - start) // bank_cells.cell_bytes
        for column, cell in enumerate(cells, skipped):
            parts.append(_square(cell, _x(column), y + number * PITCH))
    return y + len(rows) * PITCH


def _square(cell: Cell, x: int, y: int) -> str:
    """One square with its tooltip."""
    end = cell.gpa + cell.size_bytes
    what = ", ".join(
        f"{LABELS[kind]} {size_text(nr << PAGE_SHIFT)}" for kind, nr in cell.counts.items()
    )
    tip = f"<title>{cell.gpa:#x}-{end - 1:#x}: {escape(what)}</title>"
    if len(cell.counts) == 1:
        colour = COLOURS[next(iter(cell.counts))]
        return f"<g>{tip}{_rect(x, y, SQUARE, SQUARE, colour)}</g>"
    rects = []
    at = 0.0
    for kind, height in _slices(cell.counts):
        rects.append(_rect(x, y + at, SQUARE, height, COLOURS[kind]))
        at += height
    return f"<g>{tip}{''.join(rects)}</g>"


def _slices(counts: Counts) -> list[tuple[str, float]]:
    """Heights of the kinds in one square: by pages, but none so thin that it is not seen."""
    total = sum(counts.values())
    heights = {kind: max(MIN_SLICE, SQUARE * nr / total) for kind, nr in counts.items()}
    scale = SQUARE / sum(heights.values())
    return [(kind, height * scale) for kind, height in heights.items()]
