"""Numbers and addresses as people read them."""

from __future__ import annotations

import re
import textwrap

WIDTH = 80
TDX_LEVELS = ("4K", "2M", "1G", "512G", "256T")
"""Sizes of pages by the levels of the module, which begin at 0."""
LEVELS = dict(enumerate(TDX_LEVELS, 1))
"""The same by KVM's levels, which begin at 1."""

_WORD = re.compile(r"\w")
_UNITS = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def size_text(size_bytes: int) -> str:
    """4294967296 -> "4 GiB"; at most one decimal."""
    for unit, name in _UNITS:
        if size_bytes >= unit:
            whole, rest = divmod(size_bytes * 10 // unit, 10)
            return f"{whole}.{rest} {name}" if rest else f"{whole} {name}"
    return f"{size_bytes} B"


def time_text(time_ns: int) -> str:
    """Virtual time: "850 ns", "1.2 us", "3.45 ms", "12.3 s"."""
    for unit, name in ((10**9, "s"), (10**6, "ms"), (10**3, "us")):
        if time_ns >= unit:
            return (
                f"{time_ns / unit:.3g} {name}" if time_ns < 1000 * unit else f"{time_ns // unit} s"
            )
    return f"{time_ns} ns"


def count_text(n: int) -> str:
    """Thousands apart: 17626 -> "17,626"."""
    return f"{n:,}"


def plural(n: int, one: str, many: str = "") -> str:
    """ "1 promise", "2 promises"."""
    return f"{count_text(n)} {one if n == 1 else many or one + 's'}"


def ordinal(n: int) -> str:
    """ "1st", "12th", "65th", "71st"."""
    ending = {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{'th' if 10 < n % 100 < 14 else ending}"


def wrap(
    text: str,
    indent: str = "",
    hang: str | None = None,
    width: int = WIDTH,
    *,
    break_long: bool = True,
) -> list[str]:
    """Lines of at most `width` columns; the first begins with `indent`, the others with `hang`.

    A word that is longer than a line (a token) is cut, unless `break_long` is False.
    """
    return textwrap.wrap(
        text,
        width,
        initial_indent=indent,
        subsequent_indent=indent if hang is None else hang,
        break_long_words=break_long,
        break_on_hyphens=False,
    )


def gpa_text(gpa: int, digits: int = 9) -> str:
    """An address with leading zeros, so that those above and below 4 GiB line up."""
    return f"0x{gpa:0{digits}x}"


def begins(text: str, beginning: str) -> bool:
    """Whether `text` begins with `beginning`, and no word of it is cut there. A number is a word of
    its own: `vcpu` begins `vcpu0`, `TDH.MEM` begins `TDH.MEM.TRACK`, `vm1` does not begin `vm10`.
    """
    if not text.startswith(beginning):
        return False
    last, following = beginning[-1:], text[len(beginning) :][:1]
    cut = _WORD.match(last) and _WORD.match(following)
    return not cut or (last.isalpha() and following.isdigit())


def control_character(text: str) -> str:
    """The first character of `text` that a terminal would obey, but for tabs and ends of lines; ""
    for none."""
    return next((at for at in text if _is_control(at)), "")


def _is_control(at: str) -> bool:
    return at not in "\t\n\r" and (at < " " or "\x7f" <= at < "\xa0")
