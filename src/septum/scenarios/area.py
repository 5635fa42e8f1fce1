"""Which pages an operation is about, as a scenario says it: `page 3`, `pages 0-511`, `frame 1`.

Pages and 2 MB frames are counted from the start of the VM's memory.
"""

from __future__ import annotations

import re

import msgspec

from septum.abi.types import PAGE_SHIFT, PAGE_SIZE, PTRS_PER_TABLE

_NUMBER = r"(0x[0-9a-f]{1,16}|[0-9]{1,18})"
_SPAN = re.compile(rf"(page|pages|frame|frames) {_NUMBER}(?:-{_NUMBER})?(?: of frame {_NUMBER})?")
_GPA = re.compile(rf"gpa {_NUMBER}(?: \+ ?(\w+))?")
_SIZE = re.compile(r"([0-9]{1,18})([KMG]?)")
_SHIFTS = {"": 0, "K": 10, "M": 20, "G": 30}

HOW = "write `page 3`, `pages 0-9`, `frame 0`, `page 3 of frame 1`, `gpa 0x80000000 + 8K` or `all`"


class Area(msgspec.Struct, frozen=True):
    """`nr_pages` pages from page `start` of the memory on; nr_pages 0: all of it.

    `absolute`: `start` is a GFN instead.
    """

    start: int
    nr_pages: int
    absolute: bool = False

    def gpa(self, base_gpa: int) -> int:
        """Guest-physical address of the first byte, in a VM whose memory begins at `base_gpa`."""
        return self.start << PAGE_SHIFT if self.absolute else base_gpa + (self.start << PAGE_SHIFT)

    def offset(self, base_gpa: int) -> int:
        """Bytes from the start of the memory."""
        return self.gpa(base_gpa) - base_gpa

    def size(self, memory_bytes: int) -> int:
        """Bytes."""
        return self.nr_pages << PAGE_SHIFT if self.nr_pages else memory_bytes


def parse_size(text: str) -> int | None:
    """Bytes of `4K`, `2M`, `1G` or `4096`; None for anything else."""
    match = _SIZE.fullmatch(text.upper())
    return int(match[1]) << _SHIFTS[match[2]] if match is not None else None


def parse_area(text: str) -> Area | None:
    """The area that `text` names, in capitals or not; None when it names none."""
    text = text.lower()
    if text == "all":
        return Area(0, 0)
    match = _GPA.fullmatch(text)
    if match is not None:
        gpa = _number(match[1])
        size = parse_size(match[2]) if match[2] else PAGE_SIZE
        if size is None or not size or gpa % PAGE_SIZE or size % PAGE_SIZE:
            return None
        return Area(gpa >> PAGE_SHIFT, size >> PAGE_SHIFT, absolute=True)
    match = _SPAN.fullmatch(text)
    if match is None:
        return None
    unit = PTRS_PER_TABLE if match[1].startswith("frame") else 1
    first = _number(match[2])
    last = _number(match[3]) if match[3] else first
    within = _number(match[4]) * PTRS_PER_TABLE if match[4] else 0
    if last < first or (within and unit != 1) or (match[4] and last >= PTRS_PER_TABLE):
        return None
    return Area(within + first * unit, (last - first + 1) * unit)


def _number(text: str) -> int:
    return int(text, 16 if text.startswith("0x") else 10)
