"""Numbers that stand for contents: sums of them tell sets apart, whatever the contents are."""

from __future__ import annotations

from typing import cast

_SMALL = 1 << 60
"""Integers from 0 up to here stand for themselves."""

_INTS = frozenset((int, bool))


def spread(number: int) -> int:
    """A hash of one element, as what a set is told by, where such numbers are added up.

    Hashes of tuples are nearly linear: where the last element is one more, two tuples in five
    become more by the same number, whatever comes before it. So a sum of hashes often stays the
    same where two locations swap their contents, or one counts up what another counts down.
    """
    return (number ^ number >> 31) * number


def of_int(value: int) -> int:
    """What stands for an integer. Its own hash is not enough: -1 has that of -2, and bit 63, which
    suppresses #VE in entries of page tables, that of bit 2."""
    if 0 <= value < _SMALL:
        return value
    return hash((value >> 60, value & _SMALL - 1))


def all_small(values: tuple[object, ...]) -> bool:
    """Whether all values are integers that stand for themselves."""
    if not _INTS.issuperset(map(type, values)):
        return False
    numbers = cast("tuple[int, ...]", values)
    return min(numbers) >= 0 and max(numbers) < _SMALL
