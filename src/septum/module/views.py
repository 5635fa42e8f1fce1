"""Read-only views of a TD's Secure EPT, for checks and pictures: ground truth, no locks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.sept import PS, STATE_FREE, STATE_MASK
from septum.module.common import walk_sept

if TYPE_CHECKING:
    from collections.abc import Iterator

    from septum.machine import TablePage
    from septum.module.module import Module
    from septum.module.state import Td


def sept_entry(m: Module, td: Td, gpa: int) -> tuple[int, int]:
    """(level, raw entry) where a walk for `gpa` ends."""
    _, _, entry, level = walk_sept(m, td, gpa, 0)
    return level, entry


def _below(page: TablePage, level: int, base: int) -> Iterator[tuple[int, int, int]]:
    """(gpa, level, entry) of every entry in `page` that is not FREE."""
    template = page.uniform()
    if template is not None and template[1] == 0 and template[0] & STATE_MASK == STATE_FREE:
        return
    shift = 12 + 9 * level
    for index, entry in enumerate(page.values()):
        if entry & STATE_MASK != STATE_FREE:
            yield base + (index << shift), level, entry


def sept_leaves(m: Module, td: Td, first_gpa: int, last_gpa: int) -> Iterator[tuple[int, int, int]]:
    """(gpa, level, raw entry) of every leaf that overlaps [first_gpa, last_gpa], in order.

    Leaves below a blocked non-leaf entry are included: they are still there.
    """
    if td.root is not None:
        yield from _leaves(m, td.root, td.root_level, 0, first_gpa, last_gpa)


def _leaves(
    m: Module, page: TablePage, level: int, base: int, first_gpa: int, last_gpa: int
) -> Iterator[tuple[int, int, int]]:
    size = 1 << 12 + 9 * level
    for gpa, at, entry in _below(page, level, base):
        if gpa > last_gpa:
            return
        if gpa + size <= first_gpa:
            continue
        if entry & PS:
            yield gpa, at, entry
        else:
            child = m.tables[(entry & m.pfn_mask) >> 12]
            yield from _leaves(m, child, level - 1, gpa, first_gpa, last_gpa)


def sept_tables(m: Module, td: Td) -> Iterator[tuple[int, int, int]]:
    """(gpa, level of its entries, pfn) of every S-EPT page, the root first."""
    if td.root is not None:
        yield from _tables(m, td.root, td.root_level, 0)


def _tables(m: Module, page: TablePage, level: int, base: int) -> Iterator[tuple[int, int, int]]:
    yield base, level, page.pfn
    if level:
        for gpa, _, entry in _below(page, level, base):
            if not entry & PS:
                yield from _tables(m, m.tables[(entry & m.pfn_mask) >> 12], level - 1, gpa)
