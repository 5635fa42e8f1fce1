"""One palette for terminal and pictures. Blue, amber and pink keep apart for the colour-blind, and
each kind has a letter of its own."""

from __future__ import annotations

from septum.report.cells import MIXED
from septum.report.result import PageKind

COLOURS: dict[str, str] = {
    PageKind.PRIVATE_1G: "#17375e",
    PageKind.PRIVATE_2M: "#3b78b3",
    PageKind.PRIVATE_4K: "#eaa33c",
    PageKind.PENDING: "#a9cfe8",
    PageKind.BLOCKED: "#b8402a",
    PageKind.SHARED: "#cf7fae",
    PageKind.UNACCEPTED: "#e9e6df",
}

LETTERS: dict[str, str] = {
    PageKind.PRIVATE_1G: "G",
    PageKind.PRIVATE_2M: "2",
    PageKind.PRIVATE_4K: "4",
    PageKind.PENDING: "p",
    PageKind.BLOCKED: "b",
    PageKind.SHARED: "s",
    PageKind.UNACCEPTED: ".",
    MIXED: "m",
}

LABELS: dict[str, str] = {
    PageKind.PRIVATE_1G: "private, 1 GB leaves",
    PageKind.PRIVATE_2M: "private, 2 MB leaves",
    PageKind.PRIVATE_4K: "private, 4 KB leaves",
    PageKind.PENDING: "mapped, not accepted",
    PageKind.BLOCKED: "blocked",
    PageKind.SHARED: "shared",
    PageKind.UNACCEPTED: "unaccepted",
    MIXED: "more than one kind",
}

RICH_STYLES: dict[str, str] = {
    "head": "bold",
    "good": "bold green",
    "bad": "bold red",
    "warn": "bold yellow",
    "dim": "dim",
    "number": "bold",
    f"kind.{PageKind.PRIVATE_1G}": "white on #17375e",
    f"kind.{PageKind.PRIVATE_2M}": "white on #3b78b3",
    f"kind.{PageKind.PRIVATE_4K}": "black on #eaa33c",
    f"kind.{PageKind.PENDING}": "black on #a9cfe8",
    f"kind.{PageKind.BLOCKED}": "white on #b8402a",
    f"kind.{PageKind.SHARED}": "black on #cf7fae",
    f"kind.{PageKind.UNACCEPTED}": "#8a877f",
    f"kind.{MIXED}": "black on #f1d9a7",
}
