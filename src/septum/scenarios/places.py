"""Where in a scenario file something stands, and sentences that say so."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from septum.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

WORD_MAX = 120
"""Longer words are not said in full: the sentence would go under."""


def wrong(
    where: str, text: str, what: str, near: str = "", *, key: str = "", table: str = ""
) -> InputError:
    """`what` is wrong with the file, at the place that the others say (see `placed`)."""
    said = re.sub(rf"\S{{{WORD_MAX},}}", lambda word: f"{word[0][:40]}...", what)
    return InputError(f"{placed(where, text, near, key=key, table=table)}: {said}")


def placed(where: str, text: str, near: str = "", *, key: str = "", table: str = "") -> str:
    """`my.toml, line 12`: the line of the value `near`, or of the `key`, in `[table]` if it is
    there. Without such a line the file."""
    wanted = near or key
    if not wanted:
        return where
    lines = text.split("\n")  # as TOML counts them: other separators may stand in a string
    inside = list(_numbered(_of_table(lines, table)))
    for pattern in _patterns(wanted, is_key=not near):
        for number, line in (*inside, *_numbered(enumerate(lines, 1))):
            if pattern.search(line):
                return f"{where}, line {number}"
    return where


def _numbered(lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    return ((number, line) for number, line in lines if not line.lstrip().startswith("#"))


def _of_table(lines: list[str], table: str) -> Iterator[tuple[int, str]]:
    """The lines from the heading `[table]` to the next one."""
    within = False
    for number, line in enumerate(lines, 1):
        bare = line.strip()
        if bare.startswith("["):
            heading = re.sub(r"[\s\"']", "", bare.partition("]")[0].lstrip("["))
            within = bool(table) and heading == table
        if within:
            yield number, line


def _patterns(wanted: str, *, is_key: bool) -> tuple[re.Pattern[str], ...]:
    """From the surest sign on: a key or a value as such, then a word. Not a part of a word."""
    left = r"(?<![\w-])" if re.match(r"[\w-]", wanted) else ""
    right = r"(?![\w-])" if re.search(r"[\w-]\Z", wanted) else ""
    word = f"{left}{re.escape(wanted)}{right}"
    value = f"[\"']{re.escape(wanted)}[\"']"
    key = rf"(?:^\s*(?:\[[^\]]*)?|[{{,.]\s*)[\"']?{word}[\"']?(?=\s*[=.\]])"
    return tuple(re.compile(text) for text in ((key, value, word) if is_key else (value, word)))
