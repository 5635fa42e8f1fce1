"""A logical processor's TLB: translations stay until the architecture flushes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator


class TlbEntry:
    """A cached translation of a guest page of KVM level `level` (1: 4 KB, 2: 2 MB, 3: 1 GB)."""

    __slots__ = ("gfn", "hkid", "level", "pfn", "tag", "writable")

    def __init__(self, tag: int, gfn: int, level: int, pfn: int, writable: bool, hkid: int) -> None:
        self.tag = tag
        self.gfn = gfn  # first GFN of the page
        self.level = level
        self.pfn = pfn  # PFN of the first 4 KB page
        self.writable = writable
        self.hkid = hkid

    def __repr__(self) -> str:
        return f"TlbEntry(gfn={self.gfn:#x} level={self.level} pfn={self.pfn:#x})"


class Tlb:
    """Translations by (tag, page). The tag names the address space (a TD's root)."""

    __slots__ = ("_spaces",)

    def __init__(self) -> None:
        self._spaces: dict[int, dict[int, TlbEntry]] = {}

    def lookup(self, tag: int, gfn: int) -> TlbEntry | None:
        """The translation that covers `gfn` in `tag`, whatever its size; None on a miss."""
        space = self._spaces.get(tag)
        if not space:
            return None
        return (
            space.get(gfn << 2 | 1)
            or space.get((gfn >> 9 << 9) << 2 | 2)
            or space.get((gfn >> 18 << 18) << 2 | 3)
        )

    def insert(self, tag: int, gfn: int, level: int, pfn: int, writable: bool, hkid: int) -> None:
        """Cache a translation; `gfn` and `pfn` are those of the page's first 4 KB."""
        space = self._spaces.get(tag)
        if space is None:
            space = self._spaces[tag] = {}
        space[gfn << 2 | level] = TlbEntry(tag, gfn, level, pfn, writable, hkid)

    def flush(self, tag: int) -> None:
        """Drop every translation of `tag`."""
        self._spaces.pop(tag, None)

    def flush_all(self) -> None:
        """Drop everything."""
        self._spaces.clear()

    def entries_of(self, tag: int) -> Collection[TlbEntry]:
        """Every cached translation of `tag`, in order of insertion."""
        space = self._spaces.get(tag)
        return space.values() if space else ()

    def entries(self) -> Iterator[TlbEntry]:
        """Every cached translation, in order of insertion within each tag."""
        for tag in sorted(self._spaces):
            yield from self._spaces[tag].values()
