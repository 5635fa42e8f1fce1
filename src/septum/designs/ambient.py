"""What in a user's design may make two runs of one schedule differ, or end the process without a
word, by looking at its source."""

from __future__ import annotations

import ast
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

CLOCKS_AND_DICE = ("random", "secrets", "time", "datetime", "uuid")
BESIDE_THE_SCHEDULER = ("threading", "_thread", "concurrent", "multiprocessing", "subprocess")
OF_THE_PROCESS = ("os", "posix", "ctypes")
"""Modules that a model has no use for: `os._exit()` ends a search, and nobody is told."""
AMBIENT = {
    **dict.fromkeys((*CLOCKS_AND_DICE, *BESIDE_THE_SCHEDULER), "does something else in every run"),
    **dict.fromkeys(OF_THE_PROCESS, "is about the process that runs the model, and not the model"),
}
"""Modules that a function of a design may not use, and what is wrong with each."""
OF_THE_OBJECT = {
    "id": "where an object is in memory differs from process to process",
    "hash": "what it says of a text or an object differs from process to process",
}
"""Functions that a function of a design may not call, and why."""
_KEEPS = (list, dict, set, bytearray)


def ambient_use(tree: ast.Module, module: ModuleType) -> tuple[int, str] | None:
    """The first (line, what is wrong there) in a function of the file that uses an AMBIENT module,
    or asks which object it has."""
    for node in _nodes_in_functions(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            from_ = [node.module or ""] if isinstance(node, ast.ImportFrom) else names
            for of in from_:
                why = AMBIENT.get(of.split(".")[0])
                if why is not None:
                    return node.lineno, f"{of if of in names else f'{names[0]} of {of}'} {why}"
    for name in _names_in_functions(tree):
        value = vars(module).get(name.id)
        of = value.__name__ if isinstance(value, ModuleType) else _origin(value)
        if of in AMBIENT:
            said = name.id if name.id == of else f"{name.id} of {of}"
            return name.lineno, f"{said} {AMBIENT[of]}"
    for node in _nodes_in_functions(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            called = node.func.id
            if called in OF_THE_OBJECT and called not in vars(module):
                return node.lineno, f"{called}(): {OF_THE_OBJECT[called]}"
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
