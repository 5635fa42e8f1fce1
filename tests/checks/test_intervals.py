"""Interval sets agree with Python's sets."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from septum.checks.intervals import Intervals

RANGES = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 8)).map(lambda p: (p[0], sum(p))))


def members(intervals):
    return {i for start, end in intervals for i in range(start, end)}


@given(RANGES, RANGES, st.integers(0, 40), st.integers(0, 20))
def test_operations(left, right, first, nr):
    a, b = Intervals(left), Intervals(right)
    x, y = members(left), members(right)
    window = set(range(first, first + nr))
    assert members(a) == x
    assert members(a.union(b)) == x | y
    assert members(a.minus(b)) == x - y
    assert members(a.intersect(b)) == x & y
    assert members(a.within(first, first + nr)) == x & window
    assert members(a.replace(first, first + nr, b.within(first, first + nr))) == (x - window) | (
        y & window
    )
    assert a.nr == len(x)
    for i in range(45):
        assert (i in a) == (i in x)


@given(RANGES)
def test_ranges_are_sorted_and_apart(ranges):
    a = Intervals(ranges)
    for (_, end), (start, _) in zip(list(a), list(a)[1:], strict=False):
        assert end < start
