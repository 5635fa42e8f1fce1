"""What in a user's design may make two runs of one schedule differ, by looking at its source."""

from __future__ import annotations

import ast
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

CLOCKS_AND_DICE = ("random", "secrets", "time", "datetime", "uuid")
BESIDE_THE_SCHEDULER = ("threading", "_thread", "concurrent", "multiprocessing", "subprocess")
AMBIENT = (*CLOCKS_AND_DICE, *BESIDE_THE_SCHEDULER)
"""Modules whose functions answer, or come to run, otherwise in every run."""
_KEEPS = (list, dict, set, bytearray)


def ambient_use(tree: ast.Module, module: ModuleType) -> tuple[int, str] | None:
    """The first (line, name) in a function of the file that is of an AMBIENT module."""
    for node in _nodes_in_functions(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            from_ = [node.module or ""] if isinstance(node, ast.ImportFrom) else names
            for of in from_:
                if of.split(".")[0] in AMBIENT:
                    return node.lineno, of if of in names else f"{names[0]} of {of}"
    for name in _names_in_functions(tree):
        value = vars(module).get(name.id)
        of = value.__name__ if isinstance(value, ModuleType) else _origin(value)
        if of in AMBIENT:
            return name.lineno, name.id if name.id == of else f"{name.id} of {of}"
    return None


def outliving_use(tree: ast.Module, module: ModuleType) -> tuple[int, str] | None:
    """The first (line, name) in a function of the file of a variable that is not put back when a
    run begins: a container of the module, or what is declared global."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            return node.lineno, node.names[0]
    for name in _names_in_functions(tree):
        if isinstance(vars(module).get(name.id), _KEEPS):
            return name.lineno, name.id
    return None


def _names_in_functions(tree: ast.Module) -> Iterator[ast.Name]:
    return (node for node in _nodes_in_functions(tree) if isinstance(node, ast.Name))


def _nodes_in_functions(tree: ast.Module) -> Iterator[ast.AST]:
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            yield from ast.walk(function)


def _origin(value: object) -> str:
    """The module of a function or class; of a bound function (`random.random`), of its object."""
    owner = getattr(value, "__self__", None)
    if owner is not None and not isinstance(owner, ModuleType):
        value = type(owner)
    return str(getattr(value, "__module__", "") or "")
