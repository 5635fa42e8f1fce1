"""Which patch of the series a kernel function is from, as its docstring says."""

from __future__ import annotations

import inspect
import re
import sys
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

KERNEL = "septum.linux"
_PATCH = re.compile(r"[Pp]atch(?:es)? (\d\d(?:(?:, | and )\d\d)*)")


@cache
def patch_of(function: str) -> str:
    """ "patch 08", or "patches 11, 16"; "" when the function is not the series' own, or unknown."""
    for found in _functions(function):
        match = _PATCH.search(inspect.getdoc(found) or "")
        if match is not None:
            numbers = match.group(1).replace(" and ", ", ")
            return f"patches {numbers}" if "," in numbers else f"patch {numbers}"
    return ""


def _functions(name: str) -> Iterator[object]:
    """Every function and method of that name in the host's modules, in the order of their names."""
    for module_name in sorted(sys.modules):
        if module_name != KERNEL and not module_name.startswith(f"{KERNEL}."):
            continue
        for thing in vars(sys.modules[module_name]).values():
            if inspect.isclass(thing) and name in vars(thing):
                yield vars(thing)[name]
            elif inspect.isfunction(thing) and thing.__name__ == name:
                yield thing
