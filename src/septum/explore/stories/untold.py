"""What cannot be told of a counterexample, and why: a verdict must not be lost by its story.

A user's design may leave in the model's objects what nobody can read. A run gets by without that;
the look at the whole world after each event does not.
"""

from __future__ import annotations

import traceback
from pathlib import Path

import septum
from septum.designs.own import is_own

_ROOT = Path(septum.__file__).parent.parent
_TEXT_MAX = 200


def why_untold(error: Exception, design: str) -> str:
    """The end of a sentence that begins with what cannot be told: what was raised and where, and
    whose fault it may be."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    path = Path(frame.filename)
    if path.is_relative_to(_ROOT):
        path = path.relative_to(_ROOT)
    raised = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if len(raised) > _TEXT_MAX:
        raised = f"{raised[:_TEXT_MAX]}..."
    code = f" at `{frame.line}`" if frame.line else ""
    where = f"{frame.name} ({path.as_posix()}, line {frame.lineno}){code}"
    fault = (
        "look at what the design assigns to the objects that are read there, and if nothing is"
        " wrong with that, report it as a defect of Septum"
        if is_own(design)
        else "that is a defect of Septum, please report it"
    )
    return f"cannot be told, as {where} raises {raised}; {fault}."
