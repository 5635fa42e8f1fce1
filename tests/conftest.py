"""What tests of several rooms share."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def nr_lines():
    """Counts the lines of Python that a call executes: what it costs, the same on any machine."""

    def count(call: Callable[[], object]) -> int:
        nr = 0

        def see(frame: object, event: str, arg: object) -> object:
            nonlocal nr
            nr += event == "line"
            return see

        before = sys.gettrace()
        sys.settrace(see)
        try:
            call()
        finally:
            sys.settrace(before)
        return nr

    return count
