"""What a marker or a call asks for, held to what can be meant: a sentence, and no traceback of the
search."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

COUNTS = ("preemptions", "failures", "schedules", "seed")
WORDS = ("strategy", "check")
LISTS = ("fail",)
SECONDS = "time_s"
NONE_MEANS_NO_BOUND = ("preemptions", "schedules", SECONDS)
SEARCH_KEYS = frozenset((*COUNTS, *WORDS, *LISTS, SECONDS))
"""What a marker may say of the search; absent: the command line's, or the default."""


class AskedError(ValueError):
    """What is wrong with it, and what would be right, in one sentence."""


def names(key: str, value: object) -> list[str]:
    """The names in a list, or the one that stands alone. Raises AskedError."""
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list | tuple) or not all(isinstance(name, str) for name in found):
        raise AskedError(f"{key}={value!r}: give a list of names, as in {key}=['...']")
    return list(found)


def designs(value: object) -> list[str]:
    """The designs of a test. Raises AskedError for none: the test would be skipped."""
    found = names("designs", value)
    if not found:
        raise AskedError("designs=[]: the test would be of nothing; name a design, or leave it out")
    return found


def bounds(asked: Mapping[str, object]) -> dict[str, object]:
    """What is asked of the search. Raises AskedError."""
    unknown = sorted(set(asked) - SEARCH_KEYS)
    if unknown:
        raise AskedError(f"unknown {', '.join(unknown)}; see docs/pytest.md")
    made: dict[str, object] = {}
    for key, value in asked.items():
        made[key] = names(key, value) if key in LISTS else value
        if value is None and key in NONE_MEANS_NO_BOUND:
            continue
        if key in COUNTS and (not isinstance(value, int) or isinstance(value, bool)):
            raise AskedError(f"{key}={value!r}: give a whole number, as in {key}=2")
        if key == SECONDS and (not isinstance(value, int | float) or isinstance(value, bool)):
            raise AskedError(f"{key}={value!r}: give a number of seconds, as in {key}=60")
        if key in WORDS and not isinstance(value, str):
            raise AskedError(f"{key}={value!r}: give its name; see docs/pytest.md")
    return made


def scenario(positional: tuple[object, ...]) -> str | Path | None:
    """The scenario of a marker; None when it names none. Raises AskedError."""
    if len(positional) > 1:
        raise AskedError(
            f"{positional[1]!r} stands after the scenario; one test is of one scenario, and what"
            " else is asked for has a name; see docs/pytest.md"
        )
    found = positional[0] if positional else None
    if found is not None and not isinstance(found, str | Path):
        raise AskedError(f"{found!r} is no scenario; give a name or a file")
    return found
