"""When promises are looked at, by the words that users say: for options, tokens and files alike."""

from __future__ import annotations

from typing import Literal, get_args

from septum.errors import InputError

Mode = Literal["end", "quiet", "every-step"]
"""When a run has ended; after every operation, too; or at every step."""
MODES: tuple[Mode, ...] = get_args(Mode)


def check_mode(text: str) -> Mode:
    """The mode that `--check` asks for. Raises InputError for a word that is none."""
    for mode in MODES:
        if text == mode:
            return mode
    raise InputError(f"--check {text!r}: choose from {', '.join(MODES)}")
