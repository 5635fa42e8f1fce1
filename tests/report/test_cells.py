"""Cells of a memory map: every page of a bank is counted once, whatever the regions are."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from septum.abi.types import PMD_SIZE
from septum.report import Bank, PageKind, Region
from septum.report.cells import MIXED, Counts, OverlapError, cell_size, count_kinds, cut
from septum.report.memory_map import leaves_text

KINDS = list(PageKind)
PAGES_PER_2M = 512


@st.composite
def memory(draw: st.DrawFn) -> tuple[list[Bank], list[Region], int]:
    """Banks of whole pages with gaps between them, regions without overlap, a cell size."""
    banks = []
    gfn = 0
    for number in range(draw(st.integers(1, 3))):
        gfn += draw(st.integers(0, 3000))
        nr_pages = draw(st.integers(1, 6000))
        banks.append(Bank(f"bank{number}", gfn << 12, nr_pages << 12))
        gfn += nr_pages
    regions = []
    at = 0
    for _ in range(draw(st.integers(0, 12))):
        at += draw(st.integers(0, 1500))
        nr_pages = draw(st.integers(1, 2000))
        regions.append(Region(at, nr_pages, draw(st.sampled_from(KINDS))))
        at += nr_pages
    shuffled = draw(st.permutations(regions))
    return banks, shuffled, PMD_SIZE << draw(st.integers(0, 3))


def kind_of(regions: list[Region], gfn: int) -> PageKind:
    """The slow and plain answer."""
    for region in regions:
        if region.start_gfn <= gfn < region.start_gfn + region.nr_pages:
            return region.kind
    return PageKind.UNACCEPTED


@given(memory())
def test_every_page_is_in_one_cell(made: tuple[list[Bank], list[Region], int]) -> None:
    banks, regions, cell_bytes = made
    for bank_cells in cut(banks, regions, cell_bytes):
        gpa = bank_cells.bank.gpa
        for cell in bank_cells.cells:
            assert cell.gpa == gpa
            assert 0 < cell.size_bytes <= cell_bytes
            assert cell.gpa // cell_bytes == (cell.gpa + cell.size_bytes - 1) // cell_bytes
            assert sum(cell.counts.values()) == cell.size_bytes >> 12
            gpa += cell.size_bytes
        assert gpa == bank_cells.bank.gpa + bank_cells.bank.size_bytes


@given(memory())
def test_counts_are_those_of_counting_page_by_page(
    made: tuple[list[Bank], list[Region], int],
) -> None:
    banks, regions, cell_bytes = made
    for bank_cells in cut(banks, regions, cell_bytes):
        for cell in bank_cells.cells:
            slow: Counts = {}
            for gfn in range(cell.gpa >> 12, (cell.gpa + cell.size_bytes) >> 12):
                kind = kind_of(regions, gfn)
                slow[kind] = slow.get(kind, 0) + 1
            assert cell.counts == slow
            assert cell.kind == (next(iter(slow)) if len(slow) == 1 else MIXED)


@given(memory())
def test_sums_do_not_depend_on_the_cell_size(made: tuple[list[Bank], list[Region], int]) -> None:
    banks, regions, cell_bytes = made
    cells = [cell for bank in cut(banks, regions, cell_bytes) for cell in bank.cells]
    coarse = [cell for bank in cut(banks, regions, cell_bytes * 4) for cell in bank.cells]
    assert count_kinds(cells) == count_kinds(coarse)
    assert sum(count_kinds(cells).values()) == sum(bank.size_bytes for bank in banks) >> 12


@given(memory(), st.integers(1, 64))
def test_cell_size_keeps_the_number_of_cells(
    made: tuple[list[Bank], list[Region], int], max_cells: int
) -> None:
    banks, _, _ = made
    size = cell_size(banks, max_cells)
    needed = sum(-(-bank.size_bytes // size) for bank in banks)
    assert needed <= max(max_cells, len(banks))
    smaller = size // 2
    if smaller >= PMD_SIZE:
        assert sum(-(-bank.size_bytes // smaller) for bank in banks) > max(max_cells, len(banks))


def test_overlapping_regions_are_refused() -> None:
    bank = Bank("ram", 0, PMD_SIZE)
    regions = [Region(0, 10, PageKind.SHARED), Region(9, 1, PageKind.PRIVATE_4K)]
    with pytest.raises(OverlapError, match="GFN 0x9"):
        cut([bank], regions, PMD_SIZE)


def test_a_page_counted_twice_would_be_seen() -> None:
    """The properties above fail on regions whose overlap nobody refused."""
    bank = Bank("ram", 0, PMD_SIZE)
    cells = cut([bank], [Region(0, 512, PageKind.SHARED)], PMD_SIZE)[0].cells
    broken = msgspec.structs.replace(cells[0], counts={**cells[0].counts, PageKind.PRIVATE_4K: 1})
    assert sum(broken.counts.values()) != broken.size_bytes >> 12


def test_regions_outside_of_banks_are_left_out() -> None:
    bank = Bank("ram", 4 * PMD_SIZE, PMD_SIZE)
    regions = [Region(0, 4 * PAGES_PER_2M + 7, PageKind.SHARED)]
    assert cut([bank], regions, PMD_SIZE)[0].cells[0].counts == {
        PageKind.SHARED: 7,
        PageKind.UNACCEPTED: 505,
    }


def test_one_leaf_is_a_leaf() -> None:
    """Nouns are as many as their number says."""
    assert leaves_text(PageKind.PRIVATE_2M, 512) == "1 leaf"
    assert leaves_text(PageKind.PRIVATE_2M, 1024) == "2 leaves"
    assert leaves_text(PageKind.SHARED, 1) == "1 page"
    assert leaves_text(PageKind.PRIVATE_4K, 2000) == "2,000 leaves"
