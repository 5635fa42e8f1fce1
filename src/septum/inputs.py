"""What a user names to be read has an end: it is a regular file, and no line of it is read that has
none."""

from __future__ import annotations

import stat
from functools import partial
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LINE_MAX_BYTES = 64 << 20
"""More than the longest line of a trace or a transcript has: it is a token of some megabytes."""
WRITTEN_MAX_BYTES = 1 << 20
"""More than anybody writes by hand."""


def no_file(path: Path) -> str:
    """What is at `path`, and is no file that can be read to its end: "a folder", "no regular file".
    "" for a file, and where nothing is: opening it tells."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return ""
    if stat.S_ISDIR(mode):
        return "a folder"
    return "" if stat.S_ISREG(mode) else "no regular file"


class Lines(Protocol):
    """An open file, also one that is unpacked as it is read."""

    def readline(self, size: int = -1, /) -> bytes:
        """At most `size` bytes of the line that is next."""


def lines_of(file: Lines) -> Iterator[bytes]:
    """The lines of an open file; a longer one than LINE_MAX_BYTES comes in pieces."""
    return iter(partial(file.readline, LINE_MAX_BYTES), b"")


def read_written(path: Path) -> bytes:
    """What somebody has written into the file at `path`. Raises OSError, and ValueError with what
    is wrong with it."""
    what = no_file(path)
    if what:
        raise ValueError(f"is {what}")
    with path.open("rb") as file:
        data = file.read(WRITTEN_MAX_BYTES + 1)
    if len(data) > WRITTEN_MAX_BYTES:
        raise ValueError(f"has more than {WRITTEN_MAX_BYTES >> 20} MiB")
    return data
