"""What the module refuses, case by case: checks that tables and recordings do not reach.

A case is a function that returns the status of its last call; the status that the facts (or the
module's interface) name stands above it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

from septum.abi.status import status_name

CASES: dict[str, tuple[Callable[[], int], str]] = {}
"""Name -> (the case, the status it must end in, in words)."""


def case(expected: str) -> Callable[[Callable[[], int]], Callable[[], int]]:
    """Register a function that returns the status of its last call."""

    def register(function: Callable[[], int]) -> Callable[[], int]:
        CASES[function.__name__] = function, expected
        return function

    return register


def wrong_refusals() -> list[str]:
    """The cases that end otherwise."""
    for subject in ("host", "pages", "phymem", "td"):  # they register their cases
        importlib.import_module(f"septum.conform.refusals_{subject}")
    wrong = []
    for name, (function, expected) in CASES.items():
        try:
            answered = status_name(function())
        except Exception as error:
            answered = f"{type(error).__name__}: {error}"
        if answered != expected:
            wrong.append(f"{name.replace('_', ' ')}: {expected} expected, {answered} returned")
    return wrong
