"""A page-table page of 512 entries, held as a template while it is uniform.

Both the kernel's page tables and the Secure EPT are made of these. A page whose entries are
`base + i * stride` (all free, or the 512 children of a demoted page) is three integers; it
becomes an array on the first entry that differs.
"""

from array import array
from functools import lru_cache

from septum.abi.types import PTRS_PER_TABLE


@lru_cache(128)
def _template(base: int, stride: int) -> "array[int]":
    """Entries `base + i * stride`: those of the last few templates, to be copied."""
    if stride == 0:
        return array("Q", (base,)) * PTRS_PER_TABLE
    return array("Q", range(base, base + PTRS_PER_TABLE * stride, stride))


class Writes:
    """`nr` counts writes to all page tables of a machine, and their freeing. A check that finds it
    unchanged need not look at any table again."""

    __slots__ = ("nr",)

    def __init__(self) -> None:
        self.nr = 0


class TablePage:
    """512 entries of 64 bits. Entry i is `entries[i]`, or `base + i * stride` while uniform.

    `written` is the value of `writes.nr` at this page's last write. A check that finds it unchanged
    need not read the page again: freeing the table counts as a write, too.
    """

    __slots__ = ("base", "entries", "pfn", "stride", "writes", "written")

    def __init__(
        self, pfn: int, base: int = 0, stride: int = 0, writes: Writes | None = None
    ) -> None:
        self.pfn = pfn
        self.base = base
        self.stride = stride
        self.entries: array[int] | None = None
        if writes is None:
            writes = Writes()
        self.writes = writes
        writes.nr = self.written = writes.nr + 1

    def entry(self, index: int) -> int:
        """The 64-bit entry `index` (0..511)."""
        entries = self.entries
        if entries is not None:
            return entries[index]
        return self.base + index * self.stride

    def set_entry(self, index: int, value: int) -> None:
        """Write entry `index`."""
        entries = self.entries
        if entries is None:
            if value == self.base + index * self.stride:
                return
            entries = self._expand()
        entries[index] = value
        writes = self.writes
        writes.nr = self.written = writes.nr + 1

    def set_lock(self, index: int, value: int) -> None:
        """Write entry `index` where `value` differs from it in the lock bits only. This does not
        count as a write: no check judges by the locks of entries."""
        entries = self.entries
        if entries is None:
            if value == self.base + index * self.stride:
                return
            entries = self._expand()
        entries[index] = value

    def touch(self) -> None:
        """Count a write, so that checks read the page again."""
        writes = self.writes
        writes.nr = self.written = writes.nr + 1

    def fill(self, base: int, stride: int = 0) -> None:
        """Write all entries: entry i becomes `base + i * stride`."""
        self.base = base
        self.stride = stride
        self.entries = None
        self.touch()

    def uniform(self) -> tuple[int, int] | None:
        """(base, stride) while the page is held as a template, else None."""
        if self.entries is None:
            return self.base, self.stride
        return None

    def try_cmpxchg(self, index: int, old: int, new: int) -> int:
        """Atomic compare-exchange; returns the value found, which is `old` on success."""
        found = self.entry(index)
        if found == old:
            self.set_entry(index, new)
        return found

    def values(self) -> "array[int]":
        """All 512 entries, as a new array."""
        entries = self.entries
        if entries is not None:
            return entries[:]
        return _template(self.base, self.stride)[:]

    def _expand(self) -> "array[int]":
        self.entries = entries = self.values()
        return entries
