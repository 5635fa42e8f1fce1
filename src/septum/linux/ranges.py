"""Attributes of long index ranges as a short sorted list: what an xarray or a maple tree holds.

A list holds (start, end, value) with end exclusive, sorted, without overlap, neighbours of equal
value merged. Value 0 is not stored: an index in no range has value 0.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right

Range = tuple[int, int, int]
_TOP = 1 << 64


def range_get(ranges: list[Range], index: int) -> int:
    """The value at `index`; 0 where nothing is stored."""
    at = bisect_right(ranges, (index, _TOP, _TOP)) - 1
    if at >= 0:
        _, end, value = ranges[at]
        if index < end:
            return value
    return 0


def range_extent(ranges: list[Range], index: int) -> tuple[int, int, int]:
    """(start, end, value) of the longest run around `index` with one value (gaps are value 0)."""
    at = bisect_right(ranges, (index, _TOP, _TOP)) - 1
    start = 0
    if at >= 0:
        first, end, value = ranges[at]
        if index < end:
            return first, end, value
        start = end
    after = at + 1
    return start, ranges[after][0] if after < len(ranges) else _TOP, 0


def range_has(ranges: list[Range], start: int, end: int, mask: int, value: int) -> bool:
    """Whether every index in [start, end) has `value` in the bits of `mask`."""
    index = start
    while index < end:
        _, run_end, found = range_extent(ranges, index)
        if found & mask != value:
            return False
        index = run_end
    return True


def range_store(ranges: list[Range], start: int, end: int, value: int) -> None:
    """Give every index in [start, end) `value` (0 erases), merging with equal neighbours."""
    if start >= end:
        return
    first = bisect_left(ranges, (start, 0, 0))
    if first and ranges[first - 1][1] >= start:
        first -= 1
    last = first
    pieces: list[Range] = []
    new_start, new_end = start, end
    while last < len(ranges) and ranges[last][0] <= end:
        old_start, old_end, old_value = ranges[last]
        if old_value == value:
            new_start = min(new_start, old_start)
            new_end = max(new_end, old_end)
        else:
            if old_start < start:
                pieces.append((old_start, min(old_end, start), old_value))
            if old_end > end:
                pieces.append((max(old_start, end), old_end, old_value))
        last += 1
    if value:
        pieces.append((new_start, new_end, value))
        pieces.sort()
    ranges[first:last] = pieces
