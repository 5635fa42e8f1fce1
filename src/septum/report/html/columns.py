"""Many rows of 64-bit numbers as few bytes, from which a page takes any one of them.

A column is stored byte by byte: all lowest bytes, then all second bytes, and so on, without the
bytes that are the same in all rows. Compressed, columns of addresses that go up in steps are almost
nothing; and nothing has to be unpacked before it is looked at.
"""

from __future__ import annotations

import base64
import gzip
from array import array
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

BYTES = 8
U64 = (1 << 64) - 1
GZIP_LEVEL = 6

ColumnSpec = str | int | list[str | int]
"""A constant, in hexadecimal; the number of an earlier column that is the same; or [where it
begins, which bytes differ (bit k: byte k), the bytes that do not, in hexadecimal]."""


class Blob:
    """Columns, one after the other."""

    __slots__ = ("_pieces", "nr_bytes")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self.nr_bytes = 0

    def add(self, values: Sequence[int]) -> ColumnSpec:
        """Store a column of integers from -2^63 up to 2^64 - 1; returns how to read it."""
        first = values[0] & U64 if values else 0
        rows = array("Q", [value & U64 for value in values])
        if rows.count(first) == len(rows):
            return f"{first:x}"
        raw = rows.tobytes()
        start = self.nr_bytes
        mask = rest = 0
        for byte in range(BYTES):
            plane = raw[byte::BYTES]
            if plane.count(plane[0]) == len(plane):
                rest |= plane[0] << 8 * byte
            else:
                mask |= 1 << byte
                self._pieces.append(plane)
                self.nr_bytes += len(plane)
        return [start, mask, f"{rest:x}"]

    def table(self, columns: Sequence[Sequence[int]]) -> list[ColumnSpec]:
        """Store columns of one table; those that are the same are stored once."""
        specs: list[ColumnSpec] = []
        for at, column in enumerate(columns):
            same = next((n for n in range(at) if columns[n] == column), None)
            if same is not None and len(column) > 1 and not isinstance(specs[same], str):
                specs.append(same)
            else:
                specs.append(self.add(column))
        return specs

    def pack(self, head: object) -> str:
        """`head` as JSON and the columns, compressed, as base64: what a page carries.

        The length of the head in bytes comes first, in 4 bytes, lowest first.
        """
        text = msgspec.json.encode(head)
        whole = b"".join([len(text).to_bytes(4, "little"), text, *self._pieces])
        return base64.b64encode(gzip.compress(whole, GZIP_LEVEL, mtime=0)).decode()
