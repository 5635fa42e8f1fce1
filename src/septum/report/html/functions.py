"""What the kernel functions of a run are: where they are here, their patches, their first words."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from septum.explore.stories.origin import patch_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PACKAGE = Path(__file__).resolve().parents[2]
ROOMS = ("linux", "vmm", "designs")
"""Where functions of the kernel and of the VMM are; designs override some."""


class Function(msgspec.Struct, omit_defaults=True):
    """A function of the host under its kernel name.

    `place` is its file below src/septum and its line, `text` the first paragraph of its docstring.
    """

    place: str
    text: str = ""


@cache
def all_functions() -> dict[str, list[Function]]:
    """Every function of the host by name, the base host's before those of designs."""
    found: dict[str, list[Function]] = {}
    for room in ROOMS:
        for path in sorted((PACKAGE / room).rglob("*.py")):
            for name, function in _functions_in(path):
                found.setdefault(name, []).append(function)
    return found


def _functions_in(path: Path) -> Iterator[tuple[str, Function]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.FunctionDef):
            continue
        doc = ast.get_docstring(node) or ""
        place = f"{path.relative_to(PACKAGE).as_posix()}:{node.lineno}"
        text = " ".join(doc.partition("\n\n")[0].split())
        yield node.name, Function(place, text)


class Known(msgspec.Struct, omit_defaults=True):
    """What is known of a function's name: its patches of the v3 series, where it is defined."""

    places: list[Function]
    patch: str = ""


def functions_of(vias: Iterable[str]) -> dict[str, Known]:
    """Of each function that the paths name ("callee < caller < ..."), what is known of it."""
    known = all_functions()
    names = dict.fromkeys(name for via in vias for name in via.split(" < ") if name)
    return {name: Known(known[name], patch_of(name)) for name in names if name in known}
