"""What the model raises where a user's design has left a wrong value in one of its objects."""

from __future__ import annotations

import re
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import septum
from septum.designs.registry import V3
from septum.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_ROOT = Path(septum.__file__).parent
_MODEL = (
    *("abi", "checks", "guest", "linux", "machine", "module", "scenarios", "sim", "trace", "vmm"),
    "explore/stories",
    "report",
)
"""The parts that read the objects of a world. What others raise is a defect of Septum."""
_FRAME = re.compile(
    r'^ *File "(?P<path>[^"]+)", line (?P<line>\d+), in (?P<function>\S+)(?:\n +(?P<code>.+))?',
    re.M,
)
_TEXT_MAX = 200


@contextmanager
def left_behind(design: str, undisturbed: Callable[[str], object] | None = None) -> Iterator[None]:
    """Raises InputError in place of what the model raises in here where a user's design is at
    fault, but none of its functions at work. `undisturbed` runs the same on the design that it is
    given, v3: where that raises, too, the design has no part in it."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        said = _said_of(design, error)
        if not said or (undisturbed is not None and _raises(undisturbed)):
            raise
        raise InputError(said + _looks_at(undisturbed is not None)) from error


def _said_of(design: str, error: Exception) -> str:
    """The beginning of the sentence; "" where the design is not to be blamed, or is by others."""
    from septum.designs.own import blame, is_own

    if not is_own(design) or isinstance(error, OSError | MemoryError) or blame(error):
        return ""
    # A worker's error comes as the text of another one.
    text = "".join(traceback.format_exception(error))
    frames = list(_FRAME.finditer(text))
    if not frames:
        return ""
    last = frames[-1]
    path = Path(last["path"])
    part = path.relative_to(_ROOT).as_posix() if path.is_relative_to(_ROOT) else ""
    if not part.startswith(tuple(f"{each}/" for each in _MODEL)):
        return ""
    raised = [line for line in text[last.end() :].splitlines() if line and line[0] != " "]
    what = raised[0] if raised else type(error).__name__
    if len(what) > _TEXT_MAX:
        what = f"{what[:_TEXT_MAX]}..."
    name = design.partition("@")[0]
    code = f" at `{last['code']}`" if last["code"] else ""
    return (
        f"{name}: the model raises {what} in {last['function']} (septum/{part},"
        f" line {last['line']}){code}, with no function of the design at work"
    )


def _looks_at(v3_passes: bool) -> str:
    if v3_passes:
        return (
            ", and v3 does not raise in an undisturbed run of this scenario; look at what the"
            " design assigns to the objects that are read there"
        )
    return (
        "; look at what the design assigns to the objects that are read there, and if the same"
        " raises with --design v3, report it as a defect of Septum"
    )


def _raises(undisturbed: Callable[[str], object]) -> bool:
    try:
        undisturbed(V3.name)
    except InputError:
        return False
    except Exception:
        return True
    return False
