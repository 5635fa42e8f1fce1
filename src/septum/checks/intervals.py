"""Sets of page numbers as sorted, disjoint ranges: what is mapped, accepted, or asked for.

A guest of 64 GiB is a few thousand ranges, and the operations are merges, so that two states of
it are compared in milliseconds.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class Intervals:
    """A set of ints as ranges [starts[i], ends[i])."""

    __slots__ = ("ends", "starts")

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        """The union of `ranges`, which may overlap and come in any order."""
        self.starts: list[int] = []
        self.ends: list[int] = []
        if ranges:
            for start, end in sorted(ranges):
                self.append(start, end)

    def append(self, start: int, end: int) -> None:
        """Add [start, end), which starts no earlier than every range that is there."""
        if start >= end:
            return
        ends = self.ends
        if ends and start <= ends[-1]:
            ends[-1] = max(ends[-1], end)
            return
        self.starts.append(start)
        ends.append(end)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self.starts, self.ends, strict=True)

    def __bool__(self) -> bool:
        return bool(self.starts)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Intervals):
            return NotImplemented
        return self.starts == other.starts and self.ends == other.ends

    # Mutable, so not hashable; object's __hash__ is typed as a method.
    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Intervals([{', '.join(f'({s:#x}, {e:#x})' for s, e in self)}])"

    def __contains__(self, value: int) -> bool:
        at = bisect_right(self.starts, value) - 1
        return at >= 0 and value < self.ends[at]

    @property
    def nr(self) -> int:
        """Number of members."""
        return sum(self.ends) - sum(self.starts)

    def union(self, other: Intervals) -> Intervals:
        """What is in either."""
        if not other.starts or self is other:
            return self
        if not self.starts:
            return other
        return Intervals([*self, *other])

    def minus(self, other: Intervals) -> Intervals:
        """What is in this set and not in `other`."""
        mine, theirs = self.starts, other.starts
        if not mine or not theirs:
            return self
        my_ends, their_ends = self.ends, other.ends
        if my_ends[-1] <= theirs[0] or their_ends[-1] <= mine[0]:
            return self
        result = Intervals()
        if mine == theirs and my_ends == their_ends:
            return result
        starts, ends = result.starts, result.ends
        nr_theirs = len(theirs)
        at = 0
        for start, end in zip(mine, my_ends, strict=True):
            while at < nr_theirs and their_ends[at] <= start:
                at += 1
            i = at
            while i < nr_theirs and theirs[i] < end:
                if start < theirs[i]:
                    starts.append(start)
                    ends.append(theirs[i])
                start = their_ends[i]
                i += 1
            if start < end:
                starts.append(start)
                ends.append(end)
        return result

    def intersect(self, other: Intervals) -> Intervals:
        """What is in both."""
        result = Intervals()
        if not other.starts:
            return result
        i = j = 0
        while i < len(self.starts) and j < len(other.starts):
            result.append(max(self.starts[i], other.starts[j]), min(self.ends[i], other.ends[j]))
            if self.ends[i] < other.ends[j]:
                i += 1
            else:
                j += 1
        return result

    def within(self, start: int, end: int) -> Intervals:
        """The part in [start, end)."""
        result = Intervals()
        i = max(0, bisect_right(self.starts, start) - 1)
        while i < len(self.starts) and self.starts[i] < end:
            result.append(max(start, self.starts[i]), min(end, self.ends[i]))
            i += 1
        return result

    def replace(self, start: int, end: int, part: Intervals) -> Intervals:
        """This set, but in [start, end) it is `part`, which has nothing outside."""
        starts, ends = self.starts, self.ends
        first = bisect_left(ends, start)  # the first range that reaches `start`
        last = bisect_right(starts, end)  # after the last range that begins by `end`
        result = Intervals()
        result.starts = starts[:first]
        result.ends = ends[:first]
        if first < last:
            result.append(starts[first], min(ends[first], start))
        for piece in part:
            result.append(*piece)
        if first < last:
            result.append(max(starts[last - 1], end), ends[last - 1])
        result.starts += starts[last:]
        result.ends += ends[last:]
        return result
