"""The text of a scenario file, before anything is made of it."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING

from septum.errors import InputError
from septum.inputs import no_file, read_written
from septum.scenarios.places import wrong
from septum.words import control_character

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAME_ONE = "name a TOML file with the scenario"
NAME_SHOWN_MAX = 60


def is_file(path: Path) -> bool:
    """Whether a file is there. What no file can be called, as it is too long, is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def shown(name: str) -> str:
    """What a user took for a name, in quotes, and not all of a text that is none."""
    return repr(name if len(name) <= NAME_SHOWN_MAX else f"{name[:NAME_SHOWN_MAX]}...")


def no_file_text(path: Path) -> str:
    """Why a scenario cannot be read from what is at `path`; "" when nothing is there."""
    what = no_file(path)
    return what and f"{path} is {what}; {NAME_ONE}"


def read_text(path: Path) -> str:
    """What stands in the file. Raises InputError."""
    try:
        # An editor's mark at the beginning is no text, and a line may end as elsewhere.
        text = read_written(path).decode("utf-8-sig")
        return text.replace("\r\n", "\n").replace("\r", "\n")
    except OSError as error:
        raise InputError(f"{path}: the file cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: the file cannot be read, as byte {error.start} is not UTF-8 ({error.reason});"
            " save it as UTF-8"
        ) from None
    except ValueError as error:
        raise InputError(f"{path} {error}; {NAME_ONE}") from None


def decode(text: str, where: str) -> dict[str, object]:
    """The tables in `text`, with nothing in them that a terminal would obey. Raises InputError."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        why = str(error)
    except ValueError:  # Python reads no longer ones
        why = "a number in it has more than 4300 digits"
    except RecursionError:
        why = "its brackets are nested too deeply"
    else:
        _check_characters(raw, text, where)
        return raw
    raise InputError(f"{where}: this is not TOML ({why}); docs/scenarios.md shows the format")


def _check_characters(raw: dict[str, object], text: str, where: str) -> None:
    for key, value in raw.items():
        for string in _strings(key, value):
            control = control_character(string)
            if control:
                raise wrong(
                    where,
                    text,
                    f"{key} has the control character U+{ord(control):04X} in a text; leave it out",
                    key=key,
                )


def _strings(*values: object) -> Iterator[str]:
    waiting = list(values)
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list):
            waiting += value
