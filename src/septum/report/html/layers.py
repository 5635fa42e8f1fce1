"""A layer of a guest's memory: one value for each page, kept for 2 MB at once where they agree.

A value is a small number that stands for words and, where there is a frame, for PFN minus GFN: so
pages that map neighbouring frames in the same way have the same value. 0 is nothing.
"""

from __future__ import annotations

NR = 512
NO_FRAME = None

Part = tuple[int, int, int, int]
"""(first GFN, number of pages, value before, value after)."""


class Values:
    """The values of all layers: their words, and PFN minus GFN of those that have a frame."""

    __slots__ = ("_ids", "table")

    def __init__(self) -> None:
        self.table: list[tuple[str, int | None]] = [("", NO_FRAME)]
        self._ids: dict[tuple[str, int | None], int] = {self.table[0]: 0}

    def of(self, words: str, offset: int | None = NO_FRAME) -> int:
        """The number of a value; `offset` is PFN minus GFN."""
        key = (words, offset)
        found = self._ids.get(key)
        if found is None:
            found = self._ids[key] = len(self.table)
            self.table.append(key)
        return found

    def words(self, value: int) -> str:
        """What the value says."""
        return self.table[value][0]

    def pfn(self, value: int, gfn: int) -> int | None:
        """The frame that the value has at `gfn`."""
        offset = self.table[value][1]
        return None if offset is None else gfn + offset


class Layer:
    """The values of the pages of one VM."""

    __slots__ = ("cells",)

    def __init__(self) -> None:
        # 2 MB of GFNs -> the value of all of them, or the 512 values.
        self.cells: dict[int, int | list[int]] = {}

    def get(self, gfn: int) -> int:
        """The value of one page."""
        cell = self.cells.get(gfn >> 9, 0)
        return cell if isinstance(cell, int) else cell[gfn & 511]

    def set(self, gfn: int, nr_pages: int, value: int) -> list[Part]:
        """Give [gfn, gfn + nr_pages) a value; returns what changed, in order."""
        changed: list[Part] = []
        end = gfn + nr_pages
        while gfn < end:
            upto = min(end, (gfn >> 9) + 1 << 9)
            self._set_in_cell(gfn, upto, value, changed)
            gfn = upto
        return joined(changed)

    def _set_in_cell(self, gfn: int, end: int, value: int, changed: list[Part]) -> None:
        key = gfn >> 9
        cell = self.cells.get(key, 0)
        if isinstance(cell, int):
            if cell == value:
                return
            changed.append((gfn, end - gfn, cell, value))
            if end - gfn == NR:
                self._put(key, value)
                return
            cell = self.cells[key] = [cell] * NR
        else:
            changed += _differing(cell, gfn, end, value)
        if end - gfn == NR:
            self._put(key, value)
            return
        cell[gfn & 511 : (end - 1 & 511) + 1] = [value] * (end - gfn)
        if cell.count(value) == NR:
            self._put(key, value)

    def _put(self, key: int, value: int) -> None:
        if value:
            self.cells[key] = value
        else:
            self.cells.pop(key, None)

    def runs(self, gfn: int, nr_pages: int) -> list[tuple[int, int, int]]:
        """(first GFN, number of pages, value) of [gfn, gfn + nr_pages), without a gap."""
        found: list[tuple[int, int, int]] = []
        end = gfn + nr_pages
        while gfn < end:
            upto = min(end, (gfn >> 9) + 1 << 9)
            cell = self.cells.get(gfn >> 9, 0)
            if isinstance(cell, int):
                _extend(found, gfn, upto - gfn, cell)
            else:
                for at in range(gfn, upto):
                    _extend(found, at, 1, cell[at & 511])
            gfn = upto
        return found

    def clear(self) -> list[Part]:
        """Take everything away; returns what changed."""
        changed: list[Part] = []
        for key in sorted(self.cells):
            changed += self.set(key << 9, NR, 0)
        return joined(changed)


def _differing(cell: list[int], gfn: int, end: int, value: int) -> list[Part]:
    """The parts of [gfn, end), which lies in one cell, that are not `value` yet."""
    parts: list[Part] = []
    for at in range(gfn, end):
        old = cell[at & 511]
        if old == value:
            continue
        if parts and parts[-1][0] + parts[-1][1] == at and parts[-1][2] == old:
            parts[-1] = (parts[-1][0], parts[-1][1] + 1, old, value)
        else:
            parts.append((at, 1, old, value))
    return parts


def _extend(runs: list[tuple[int, int, int]], gfn: int, nr_pages: int, value: int) -> None:
    if runs and runs[-1][2] == value:
        runs[-1] = (runs[-1][0], runs[-1][1] + nr_pages, value)
    else:
        runs.append((gfn, nr_pages, value))


def joined(parts: list[Part]) -> list[Part]:
    """The parts, with neighbours that changed from and to the same values made one."""
    found: list[Part] = []
    for gfn, nr, old, new in parts:
        if found and found[-1][0] + found[-1][1] == gfn and found[-1][2:] == (old, new):
            found[-1] = (found[-1][0], found[-1][1] + nr, old, new)
        else:
            found.append((gfn, nr, old, new))
    return found
