"""Physical memory: what each 4 KB frame holds, under whose key, and whose dirty lines are cached.

A frame's content is a token (0: zeros); frames that are measured hold real bytes besides. The 512
frames of a 2 MB block share one record while they hold the same, so untouched memory costs
nothing.
"""

from __future__ import annotations

import hashlib
from array import array
from typing import TYPE_CHECKING

from septum.abi.types import PAGE_SIZE, PTRS_PER_TABLE

if TYPE_CHECKING:
    from septum.machine.config import MachineConfig
    from septum.sim import Sim

# What a reader gets who uses another key than the page was written with.
GARBAGE = (1 << 63) - 1
CLEAN = -1
_ZERO_PAGE = bytes(PAGE_SIZE)


class FrameBlock:
    """512 frames: `token`, `key` (HKID) and `dirty` (HKID of dirty lines, CLEAN) of each.

    Each of the three is one int while all frames agree, else an array of 512.
    """

    __slots__ = ("dirty", "key", "token")

    def __init__(self) -> None:
        self.token: int | array[int] = 0
        self.key: int | array[int] = 0
        self.dirty: int | array[int] = CLEAN


class PhysMem:
    """The frames of the machine, by PFN.

    `nr_changes` counts writes and flushes. A check that finds it unchanged need not look at any
    frame again.
    """

    __slots__ = ("_blocks", "_bytes", "hkid_min", "nr_changes", "sim")

    def __init__(self, sim: Sim, config: MachineConfig) -> None:
        self.sim = sim
        self.hkid_min = config.private_hkid_min
        self._blocks: dict[int, FrameBlock] = {}
        self._bytes: dict[int, bytes] = {}
        self.nr_changes = 0

    # What software does

    def read(self, pfn: int, hkid: int) -> int:
        """The token in frame `pfn`, read with key `hkid`.

        A TD (private key) that reads a frame last written with another key takes a machine check:
        finding `no-bug`. A host that reads a private frame gets GARBAGE.
        """
        block = self._blocks.get(pfn >> 9)
        if block is None:
            if hkid >= self.hkid_min:
                return self._integrity_failure(pfn, hkid, 0)
            return GARBAGE if hkid else 0
        key = block.key
        if not isinstance(key, int):
            key = key[pfn & 511]
        if key != hkid:
            if hkid >= self.hkid_min:
                return self._integrity_failure(pfn, hkid, key)
            return GARBAGE
        token = block.token
        return token if isinstance(token, int) else token[pfn & 511]

    def _integrity_failure(self, pfn: int, hkid: int, key: int) -> int:
        self.sim.find(
            "no-bug",
            f"machine check: frame {pfn:#x} read with HKID {hkid} but last written with HKID {key}",
            where="machine",
        )
        return GARBAGE

    def write(self, pfn: int, hkid: int, token: int) -> None:
        """Write `token` to frame `pfn` with key `hkid`; the lines are dirty in the cache.

        Dirty lines of the host over what is written with a private key: finding `cache`.

        MODEL: also for the TDX module's direct stores, which bypass the cache on hardware.
        """
        self.nr_changes += 1
        block = self._blocks.get(pfn >> 9)
        if block is None:
            block = self._blocks[pfn >> 9] = FrameBlock()
        index = pfn & 511
        block.token = _put(block.token, index, token, "q")
        if hkid >= self.hkid_min and CLEAN < _get(block.dirty, index) < self.hkid_min:
            self.sim.find(
                "cache",
                f"frame {pfn:#x} is written with HKID {hkid}, and the cache still has dirty lines "
                "of the host for it",
                where="machine",
            )
        block.key = _put(block.key, index, hkid, "h")
        block.dirty = _put(block.dirty, index, hkid, "h")
        if self._bytes:
            self._bytes.pop(pfn, None)

    def fill(self, pfn: int, nr_pages: int, hkid: int, token: int) -> None:
        """Write `token` to `nr_pages` frames from `pfn` with key `hkid`."""
        self.nr_changes += 1
        end = pfn + nr_pages
        while pfn < end:
            if not pfn & 511 and end - pfn >= PTRS_PER_TABLE:
                block = self._blocks.get(pfn >> 9)
                if block is None:
                    block = self._blocks[pfn >> 9] = FrameBlock()
                block.token = token
                block.key = hkid
                block.dirty = hkid
                self._forget_bytes(pfn)
                pfn += PTRS_PER_TABLE
            else:
                self.write(pfn, hkid, token)
                pfn += 1

    def _forget_bytes(self, first_pfn: int) -> None:
        end = first_pfn + PTRS_PER_TABLE
        for pfn in [pfn for pfn in self._bytes if first_pfn <= pfn < end]:
            del self._bytes[pfn]

    def load_bytes(self, pfn: int, hkid: int, data: bytes) -> None:
        """Write real bytes (at most 4096, zero-padded) to frame `pfn`."""
        page = data.ljust(PAGE_SIZE, b"\0")
        if page == _ZERO_PAGE:
            self.write(pfn, hkid, 0)
            return
        token = int.from_bytes(hashlib.sha256(page).digest()[:7], "little") | 1
        self.write(pfn, hkid, token)
        self._bytes[pfn] = page

    def page_bytes(self, pfn: int) -> bytes:
        """The 4096 bytes of frame `pfn`; zeros where only a token is known."""
        return self._bytes.get(pfn, _ZERO_PAGE)

    def copy_page(self, to_pfn: int, to_hkid: int, from_pfn: int, from_hkid: int) -> None:
        """Copy one frame's content, token and bytes."""
        token = self.read(from_pfn, from_hkid)
        data = self._bytes.get(from_pfn)
        self.write(to_pfn, to_hkid, token)
        if data is not None:
            self._bytes[to_pfn] = data

    # Caches

    def clflush(self, pfn: int, nr_pages: int = 1) -> None:
        """CLFLUSH of `nr_pages` frames with the host's key: their dirty host lines are written.

        MODEL: and those of other keys, which hardware leaves alone.
        """
        for frame in range(pfn, pfn + nr_pages) if nr_pages < PTRS_PER_TABLE else ():
            self.wbinvd_page(frame)
        if nr_pages >= PTRS_PER_TABLE:
            self.wbinvd_pages(pfn, nr_pages)

    def wbinvd_page(self, pfn: int, hkid: int | None = None) -> None:
        """Write back and invalidate the lines of frame `pfn` that have key `hkid` (None: any)."""
        block = self._blocks.get(pfn >> 9)
        if block is None or block.dirty == CLEAN:
            return
        dirty = _get(block.dirty, pfn & 511)
        if hkid is None or dirty == hkid:
            self.nr_changes += 1
            if dirty != CLEAN:
                block.key = _put(block.key, pfn & 511, dirty, "h")
            block.dirty = _put(block.dirty, pfn & 511, CLEAN, "h")

    def wbinvd(self) -> None:
        """Write back and invalidate everything."""
        self.nr_changes += 1
        for block in self._blocks.values():
            _written_back(block)

    def wbinvd_pages(self, pfn: int, nr_pages: int, hkid: int | None = None) -> None:
        """`wbinvd_page` of `nr_pages` frames from `pfn`."""
        self.nr_changes += 1
        end = pfn + nr_pages
        while pfn < end:
            block = self._blocks.get(pfn >> 9)
            whole = not pfn & 511 and end - pfn >= PTRS_PER_TABLE
            if whole and (block is None or hkid is None or isinstance(block.dirty, int)):
                if block is not None and hkid in (None, block.dirty):
                    _written_back(block)
                pfn += PTRS_PER_TABLE
            else:
                self.wbinvd_page(pfn, hkid)
                pfn += 1

    def movdir64b(self, pfn: int, nr_pages: int = 1) -> None:
        """Zero `nr_pages` frames by direct stores with the host's key (TD bit cleared).

        Lines of the host's key leave the cache. To the cache those of a private key are of another
        address, as the HKID is a part of it: dirty ones stay, to be written over the zeros.
        """
        end = pfn + nr_pages
        stale = [
            (frame, dirty)
            for first in range(pfn & -PTRS_PER_TABLE, end, PTRS_PER_TABLE)
            if (block := self._blocks.get(first >> 9)) is not None and block.dirty != CLEAN
            for frame in range(max(pfn, first), min(end, first + PTRS_PER_TABLE))
            if (dirty := _get(block.dirty, frame & 511)) >= self.hkid_min
        ]
        self.fill(pfn, nr_pages, 0, 0)
        self.wbinvd_pages(pfn, nr_pages)
        for frame, dirty in stale:
            block = self._blocks[frame >> 9]
            block.dirty = _put(block.dirty, frame & 511, dirty, "h")

    # Ground truth, for checks

    def token_of(self, pfn: int) -> int:
        """The token in frame `pfn`, whatever its key."""
        block = self._blocks.get(pfn >> 9)
        return 0 if block is None else _get(block.token, pfn & 511)

    def key_of(self, pfn: int) -> int:
        """The HKID that frame `pfn` was last written with."""
        block = self._blocks.get(pfn >> 9)
        return 0 if block is None else _get(block.key, pfn & 511)

    def dirty_of(self, pfn: int) -> int:
        """The HKID of dirty cached lines of frame `pfn`, or CLEAN."""
        block = self._blocks.get(pfn >> 9)
        return CLEAN if block is None else _get(block.dirty, pfn & 511)

    def block(self, pfn: int) -> FrameBlock | None:
        """The record of the 2 MB block that holds `pfn`; None when it was never written."""
        return self._blocks.get(pfn >> 9)


def _written_back(block: FrameBlock) -> None:
    """All dirty lines of the block are in memory: those of a key that MOVDIR64B has written over
    (see `movdir64b`) are there again, too."""
    dirty = block.dirty
    if isinstance(dirty, int):
        if dirty != CLEAN:
            block.key = dirty
    elif dirty != block.key:
        # Few lines of a block are dirty, and mostly of the block's key.
        there = {block.key} if isinstance(block.key, int) else set()
        for hkid in set(dirty) - there - {CLEAN}:
            index = -1
            for _ in range(dirty.count(hkid)):
                index = dirty.index(hkid, index + 1)
                block.key = _put(block.key, index, hkid, "h")
    block.dirty = CLEAN


def _get(values: int | array[int], index: int) -> int:
    return values if isinstance(values, int) else values[index]


def _put(values: int | array[int], index: int, value: int, code: str) -> int | array[int]:
    """`values` with element `index` set: the same object, or its 512-element expansion."""
    if isinstance(values, int):
        if values == value:
            return values
        values = array(code, (values,)) * PTRS_PER_TABLE
    values[index] = value
    return values
