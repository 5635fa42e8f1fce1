"""Lines of a text report, with styles beside the text: plain for a file or a pipe, in colour on a
terminal. Colour never says anything that the characters do not.
"""

from __future__ import annotations

import os
from typing import IO, TYPE_CHECKING, NamedTuple

from septum.report.palette import RICH_STYLES
from septum.words import wrap

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import Console


class Span(NamedTuple):
    """Text in one style; "" is no style."""

    text: str
    style: str = ""


class Lines:
    """A report under construction."""

    __slots__ = ("lines",)

    def __init__(self) -> None:
        self.lines: list[list[Span]] = []

    def add(self, *spans: Span | str) -> None:
        """One line."""
        self.lines.append([span if isinstance(span, Span) else Span(span) for span in spans])

    def blank(self) -> None:
        """An empty line, unless there is one or nothing above."""
        if self.lines and self.lines[-1]:
            self.lines.append([])

    def heading(self, text: str) -> None:
        """A section begins."""
        self.blank()
        self.add(Span(text, "head"))

    def paragraph(
        self, text: str, indent: str = "", hang: str | None = None, style: str = ""
    ) -> None:
        """Wrapped text."""
        for line in wrap(text, indent, hang):
            self.add(Span(line, style))

    def table(
        self, rows: Iterable[Sequence[str]], widths: Sequence[int], styles: Sequence[str] = ()
    ) -> None:
        """Rows of cells: a width above 0 is flush left, below 0 flush right."""
        for row in rows:
            spans = []
            for at, (cell, width) in enumerate(zip(row, widths, strict=True)):
                text = f"{cell:<{width}}" if width >= 0 else f"{cell:>{-width}}"
                spans.append(Span(text, styles[at] if at < len(styles) else ""))
            self.add(*spans)

    def extend(self, other: Lines) -> None:
        """All lines of another report."""
        self.lines.extend(other.lines)

    def plain(self) -> str:
        """The text without styles, each line without trailing blanks."""
        joined = ("".join(span.text for span in line).rstrip() for line in self.lines)
        return "\n".join(joined).rstrip("\n") + "\n"


def wants_colour(stream: IO[str]) -> bool:
    """Whether `stream` is a terminal that may be coloured (NO_COLOR, TERM=dumb)."""
    return (
        stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "") != "dumb"
    )


def print_lines(lines: Lines, stream: IO[str]) -> None:
    """Print with colour where the stream wants it, else plain."""
    if not wants_colour(stream):
        stream.write(lines.plain())
        return
    console = make_console(stream)
    from rich.text import Text

    for line in lines.lines:
        text = Text()
        for span in line:
            text.append(span.text, RICH_STYLES.get(span.style, ""))
        text.rstrip()
        console.print(text, soft_wrap=True, highlight=False)


def make_console(stream: IO[str]) -> Console:
    """A rich console on `stream`."""
    from rich.console import Console

    return Console(file=stream, highlight=False, emoji=False, markup=False)
