"""What a command says on stdout, to whoever may have gone meanwhile, as `head` has."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def read_or_not() -> Iterator[None]:
    """What is printed here goes nowhere where nobody reads it, and the command goes on: its exit
    code says what a run came to, and does not depend on how much of that a pipe could hold."""
    try:
        yield
    except BrokenPipeError:
        write_no_more()


def write_no_more() -> None:
    """What is left of the output goes nowhere: else Python tries again at its end."""
    with contextlib.suppress(OSError):  # no file: somebody else's stream
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
