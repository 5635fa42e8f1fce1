"""What the guest last wrote to each page that it owns.

This is the guest's own knowledge, kept outside the modelled memory: comparing the two shows lost
data. Pages are kept as ranges of one content token, so that uniform memory costs nothing.

MODEL: programs write one token to all pages of a 2 MB frame, so pages that a host swapped within
a frame look right. What a guest writes to shared memory is not modelled.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator

from septum.abi.types import PAGE_SHIFT

ZERO = 0
"""The token of a page of zeros: what a page holds when it has just been accepted."""


class GuestMemory:
    """Token by GFN, as sorted, disjoint ranges [_starts[i], _ends[i]) that hold _tokens[i]."""

    __slots__ = ("_ends", "_starts", "_tokens", "last_token", "reading", "writing")

    def __init__(self) -> None:
        # GFN ranges that a vCPU is reading back, which nobody gives up meanwhile, and ranges that
        # one is writing, whose record follows the write.
        self.reading: list[tuple[int, int]] = []
        self.writing: list[tuple[int, int]] = []
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._tokens: list[int] = []
        self.last_token = 0

    def new_token(self) -> int:
        """A token that no page holds yet."""
        self.last_token += 1
        return self.last_token

    def write(self, gpa: int, nr_pages: int, token: int) -> None:
        """The guest owns `nr_pages` from `gpa`, and each holds `token`."""
        start = gpa >> PAGE_SHIFT
        end = start + nr_pages
        i = self._cut(start, end)
        if i and self._ends[i - 1] == start and self._tokens[i - 1] == token:
            i -= 1
            start = self._starts[i]
            self._delete(i, i + 1)
        if i < len(self._starts) and self._starts[i] == end and self._tokens[i] == token:
            end = self._ends[i]
            self._delete(i, i + 1)
        self._starts.insert(i, start)
        self._ends.insert(i, end)
        self._tokens.insert(i, token)

    def forget(self, gpa: int, nr_pages: int) -> None:
        """The guest gave `nr_pages` from `gpa` up: their content is of no meaning any more."""
        start = gpa >> PAGE_SHIFT
        self._cut(start, start + nr_pages)

    def token_at(self, gpa: int) -> int | None:
        """What the page at `gpa` should hold; None when the guest does not own it."""
        gfn = gpa >> PAGE_SHIFT
        i = bisect_right(self._starts, gfn) - 1
        return self._tokens[i] if i >= 0 and gfn < self._ends[i] else None

    def ranges(self) -> Iterator[tuple[int, int, int]]:
        """(gfn, nr_pages, token) of all owned memory, ascending."""
        for start, end, token in zip(self._starts, self._ends, self._tokens, strict=True):
            yield start, end - start, token

    def ranges_in(self, gpa: int, nr_pages: int) -> list[tuple[int, int, int]]:
        """(gfn, nr_pages, token) of the owned parts of `nr_pages` from `gpa`, ascending."""
        start = gpa >> PAGE_SHIFT
        end = start + nr_pages
        found: list[tuple[int, int, int]] = []
        i = max(0, bisect_right(self._starts, start) - 1)
        while i < len(self._starts) and self._starts[i] < end:
            low = max(start, self._starts[i])
            high = min(end, self._ends[i])
            if low < high:
                found.append((low, high - low, self._tokens[i]))
            i += 1
        return found

    def is_read(self, gpa: int, nr_pages: int) -> bool:
        """A vCPU is reading one of the pages back."""
        return _overlaps(self.reading, gpa >> PAGE_SHIFT, nr_pages)

    def is_written(self, gpa: int, nr_pages: int = 1) -> bool:
        """A vCPU is in the middle of writing one of the pages."""
        return _overlaps(self.writing, gpa >> PAGE_SHIFT, nr_pages)

    @property
    def nr_pages(self) -> int:
        """Number of pages that the guest owns."""
        return sum(self._ends) - sum(self._starts)

    def _cut(self, start: int, end: int) -> int:
        """Remove [start, end) from every range; returns the index where it would go."""
        i = bisect_left(self._starts, start)
        if i and self._ends[i - 1] > start:
            i -= 1
            if self._starts[i] < start:
                tail = self._ends[i]
                self._ends[i] = start
                if tail > end:
                    self._insert(i + 1, end, tail, self._tokens[i])
                i += 1
        j = i
        while j < len(self._starts) and self._ends[j] <= end:
            j += 1
        self._delete(i, j)
        if i < len(self._starts) and self._starts[i] < end:
            self._starts[i] = end
        return i

    def _insert(self, i: int, start: int, end: int, token: int) -> None:
        self._starts.insert(i, start)
        self._ends.insert(i, end)
        self._tokens.insert(i, token)

    def _delete(self, i: int, j: int) -> None:
        del self._starts[i:j]
        del self._ends[i:j]
        del self._tokens[i:j]


def _overlaps(ranges: list[tuple[int, int]], start: int, nr: int) -> bool:
    return any(low < start + nr and start < high for low, high in ranges)
