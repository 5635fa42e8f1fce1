"""How text renderings of a trace are laid out."""

from __future__ import annotations

import textwrap

WIDTH = 80


def clock(time_ns: int) -> str:
    """Virtual time for a column of 11: milliseconds with three decimals of a microsecond."""
    return f"{time_ns // 10**6}.{time_ns % 10**6:06d}"


def wrap_to(text: str, width: int) -> list[str]:
    """`text` in lines of at most `width`; the second and later ones are indented by two."""
    indent = text[: len(text) - len(text.lstrip())]
    lines = textwrap.wrap(
        text.strip(),
        width,
        initial_indent=indent,
        subsequent_indent=indent + "  ",
        break_on_hyphens=False,
    )
    return lines or [""]
