"""Regions of guest memory cut into the cells of a picture: how many pages of each kind a cell has.

Every page of a bank is in exactly one cell, and is counted there once.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

import msgspec

from septum.abi.types import PAGE_SHIFT, PMD_SIZE
from septum.report.result import Bank, PageKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from septum.report.result import Region

MIXED = "mixed"

_BANK_TITLES = {
    "ram-below-4g": "RAM below 4 GiB",
    "ram-above-4g": "RAM above 4 GiB",
    "bios": "Firmware",
}

Counts = dict[PageKind, int]
"""Pages of each kind; kinds that are not there are left out, the rest in order of PageKind."""


class Cell(msgspec.Struct, frozen=True):
    """Part of a bank: [gpa, gpa + size_bytes), and what its pages are."""

    gpa: int
    size_bytes: int
    counts: Counts

    @property
    def kind(self) -> str:
        """The kind of all its pages, or "mixed"."""
        return next(iter(self.counts)) if len(self.counts) == 1 else MIXED


class BankCells(msgspec.Struct, frozen=True):
    """A bank and its cells, in order of address; all of `cell_bytes` but for the ends."""

    bank: Bank
    cell_bytes: int
    cells: list[Cell]

    def rows(self, per_row: int) -> list[tuple[int, list[Cell]]]:
        """(address, cells) of the rows that it is drawn in. They begin at multiples of their size,
        unless one is enough."""
        row_bytes = self.cell_bytes * per_row
        rows = [
            (row * row_bytes, list(cells))
            for row, cells in groupby(self.cells, lambda cell: cell.gpa // row_bytes)
        ]
        return rows if len(rows) != 1 else [(self.bank.gpa, self.cells)]


class OverlapError(ValueError):
    """Two regions claim the same page, which is a mistake of the caller."""


def sorted_regions(regions: Iterable[Region]) -> list[Region]:
    """The regions by address. Raises OverlapError when two share a page."""
    ordered = sorted(regions, key=lambda region: region.start_gfn)
    end = 0
    for region in ordered:
        if region.nr_pages < 1 or region.start_gfn < end:
            raise OverlapError(f"region at GFN {region.start_gfn:#x} overlaps the one before it")
        end = region.start_gfn + region.nr_pages
    return ordered


def bank_title(bank: Bank) -> str:
    """The name of a bank for people."""
    return _BANK_TITLES.get(bank.name, bank.name)


def _in_order(counts: Counts) -> Counts:
    return {kind: counts[kind] for kind in PageKind if counts.get(kind)}


def count_kinds(cells: Iterable[Cell]) -> Counts:
    """Pages of each kind in all the cells together."""
    counts: Counts = {}
    for cell in cells:
        for kind, nr_pages in cell.counts.items():
            counts[kind] = counts.get(kind, 0) + nr_pages
    return _in_order(counts)


def cell_size(banks: Sequence[Bank], max_cells: int) -> int:
    """Bytes of a cell: the smallest power of two from 2 MB up that needs at most `max_cells`."""
    size_bytes = PMD_SIZE
    while sum(-(-bank.size_bytes // size_bytes) for bank in banks) > max(max_cells, len(banks)):
        size_bytes *= 2
    return size_bytes


def cut(banks: Sequence[Bank], regions: Iterable[Region], cell_bytes: int) -> list[BankCells]:
    """The cells of every bank, by address; they begin at multiples of `cell_bytes`.

    What no region names is UNACCEPTED; what is in no bank is left out. Raises OverlapError.
    """
    ordered = sorted_regions(regions)
    in_order = sorted(banks, key=lambda bank: bank.gpa)
    return [_cut_bank(bank, ordered, cell_bytes) for bank in in_order]


def _cut_bank(bank: Bank, regions: list[Region], cell_bytes: int) -> BankCells:
    shift = PAGE_SHIFT
    first = bank.gpa >> shift
    end = (bank.gpa + bank.size_bytes) >> shift
    step = cell_bytes >> shift
    origin = first // step
    counts: list[Counts] = [{} for _ in range(origin, -(-end // step))]
    for region in regions:
        gfn = max(first, region.start_gfn)
        stop = min(end, region.start_gfn + region.nr_pages)
        kind = region.kind
        while gfn < stop:
            index = gfn // step
            upto = min(stop, (index + 1) * step)
            cell = counts[index - origin]
            cell[kind] = cell.get(kind, 0) + upto - gfn
            gfn = upto
    cells = []
    for index, cell in enumerate(counts, origin):
        start = max(first, index * step)
        nr_pages = min(end, (index + 1) * step) - start
        rest = nr_pages - sum(cell.values())
        if rest:
            cell[PageKind.UNACCEPTED] = cell.get(PageKind.UNACCEPTED, 0) + rest
        cells.append(Cell(start << shift, nr_pages << shift, _in_order(cell)))
    return BankCells(bank, cell_bytes, cells)
