"""What must be so before a command begins: streams to write to, a Python that has the docstrings,
arguments that are text."""

from __future__ import annotations

import io
import os
import sys
from itertools import pairwise
from typing import TYPE_CHECKING, TextIO

from septum.errors import InputError
from septum.words import control_character

if TYPE_CHECKING:
    from collections.abc import Sequence

WITHOUT_DOCSTRINGS = 2
FOLDER = "--report"
"""The option of a folder. Path takes an empty name for the folder that the user is in."""


def open_streams() -> None:
    """What is written to a stream that is closed goes nowhere, and not into the other one, or into
    the next file; what a stream cannot encode is a question mark there, and not our end."""
    if sys.stdout is None:
        sys.stdout = _nowhere()
    if sys.stderr is None:
        sys.stderr = _nowhere()
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")


def _nowhere() -> TextIO:
    return os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")


def check_python() -> None:
    """Raises InputError for a Python that has thrown away what reports say."""
    if sys.flags.optimize >= WITHOUT_DOCSTRINGS:
        raise InputError(
            "Python leaves docstrings out here, which are sentences of the reports; run it without"
            " PYTHONOPTIMIZE=2 and -OO"
        )


def check_arguments(arguments: Sequence[str]) -> None:
    """Raises InputError for one that no token could carry and no terminal should be given, and for
    a folder without a name, which is a variable of a script that is not set."""
    if FOLDER + "=" in arguments or (FOLDER, "") in pairwise(arguments):
        raise InputError(f"{FOLDER} '': name a folder; this one here is {FOLDER} .")
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise InputError(
                f"the argument {argument!r} is not UTF-8; name it otherwise, a file by renaming it"
            ) from None
        control = control_character(argument)
        if control:
            raise InputError(
                f"the argument {argument!r} has the control character U+{ord(control):04X};"
                " leave it out"
            )
