"""The guest's memory as text: one letter per 2 MB, or more where memory is large."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from septum.abi.types import PAGE_SHIFT
from septum.report.cells import MIXED, BankCells, bank_title, cell_size, count_kinds, cut
from septum.report.lines import Lines, Span
from septum.report.palette import LABELS, LETTERS
from septum.report.result import PageKind
from septum.words import gpa_text, plural, size_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from septum.report.result import Bank, Region

PER_ROW = 64
MAX_ROWS = 40
LEAF_PAGES = {PageKind.PRIVATE_1G: 1 << 18, PageKind.PRIVATE_2M: 512}


def leaves_text(kind: str, nr_pages: int) -> str:
    """How many leaves (or pages, where there are no leaves) `nr_pages` pages are."""
    per_leaf = LEAF_PAGES.get(PageKind(kind), 1)
    if per_leaf > 1 or kind == PageKind.PRIVATE_4K:
        return plural(nr_pages // per_leaf, "leaf", "leaves")
    return plural(nr_pages, "page")


def memory_map_lines(
    banks: Sequence[Bank], regions: Sequence[Region], max_rows: int = MAX_ROWS
) -> Lines:
    """The picture and its legend, at most 80 columns wide."""
    lines = Lines()
    if not banks:
        return lines
    cell_bytes = cell_size(banks, max_rows * PER_ROW)
    cut_banks = cut(banks, regions, cell_bytes)
    digits = max(9, *(len(f"{bank.gpa + bank.size_bytes - 1:x}") for bank in banks))
    for bank_cells in cut_banks:
        _bank_lines(lines, bank_cells, digits)
    lines.blank()
    _legend_lines(lines, cut_banks, cell_bytes)
    return lines


def _bank_lines(lines: Lines, bank_cells: BankCells, digits: int) -> None:
    """A bank: its name, then its rows."""
    bank = bank_cells.bank
    end = bank.gpa + bank.size_bytes
    lines.add(
        Span(f"  {bank_title(bank)}", "head"),
        Span(f"  {size_text(bank.size_bytes)}  [{bank.gpa:#x}, {end:#x})", "dim"),
    )
    for start, cells in bank_cells.rows(PER_ROW):
        skipped = (cells[0].gpa - start) // bank_cells.cell_bytes
        spans = [Span(f"  {gpa_text(start, digits)} ", "dim"), Span(" " * skipped)]
        for kind, same in groupby(cell.kind for cell in cells):
            spans.append(Span(LETTERS[kind] * len(list(same)), f"kind.{kind}"))
        lines.add(*spans)


def _legend_lines(lines: Lines, cut_banks: list[BankCells], cell_bytes: int) -> None:
    cells = [cell for bank_cells in cut_banks for cell in bank_cells.cells]
    lines.add(f"  one letter is {size_text(cell_bytes)}, one row {size_text(cell_bytes * PER_ROW)}")
    for kind, nr_pages in count_kinds(cells).items():
        lines.add(
            "  ",
            Span(f" {LETTERS[kind]} ", f"kind.{kind}"),
            f" {LABELS[kind]:22}{size_text(nr_pages << PAGE_SHIFT):>12}"
            f"{leaves_text(kind, nr_pages):>20}",
        )
    mixed = sum(cell.kind == MIXED for cell in cells)
    if mixed:
        lines.add(
            "  ",
            Span(f" {LETTERS[MIXED]} ", f"kind.{MIXED}"),
            f" {LABELS[MIXED]:22}{'':12}{plural(mixed, 'cell'):>20}",
        )
