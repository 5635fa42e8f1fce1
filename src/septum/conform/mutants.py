"""Broken modules: each check of the module's source turned off in turn.

A check is an `if` whose body returns or sets a status, or answers a helper's yes-or-no question;
an `if status:` that only hands on an inner check's answer does not count.
Its test is still evaluated (a lock attempt still happens), but the branch is never taken.
"""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from types import CodeType, FunctionType
from typing import TYPE_CHECKING

import septum.module

if TYPE_CHECKING:
    from collections.abc import Iterator

FILES = (
    "common",
    "guest",
    "locks",
    "mem_demote",
    "mem_page",
    "mem_range",
    "mem_sept",
    "mng",
    "mng_init",
    "module",
    "mr",
    "pamt",
    "phymem",
    "phymem_pamt",
    "steps",
    "tdg",
    "vp",
    "vp_enter",
)


# Not checks of a leaf: loops around guest programs, and injected outcomes.
_NOT_A_CHECK = frozenset({"Module.tdcall", "Module._translate", "Module.vp_enter", "Pamt.lookup"})
_INJECTED = ("sim.choose", "self.vp_enter(")


class Mutant:
    """One check turned off: file, line of its `if`, function, and its test as source."""

    __slots__ = ("file", "function", "line", "test")

    def __init__(self, file: str, line: int, function: str, test: str) -> None:
        self.file = file
        self.line = line
        self.function = function
        self.test = test

    def __repr__(self) -> str:
        return f"{self.file}.py:{self.line} {self.function}: {self.test}"


def _source(file: str) -> tuple[str, str]:
    path = Path(septum.module.__file__).parent / f"{file}.py"
    return path.read_text(), str(path)


def _names_status(node: ast.AST) -> bool:
    """The expression is, or contains, a status: a TDX_ name, `status`, or a failing return."""
    for part in ast.walk(node):
        if isinstance(part, ast.Name) and (part.id.startswith("TDX_") or part.id == "status"):
            return True
    return False


def _is_check(node: ast.If) -> bool:
    if isinstance(node.test, ast.Call) and ast.unparse(node.test.func) == "isinstance":
        return False  # hands on what an inner check said
    if isinstance(node.test, ast.Name) and node.test.id == "status":
        return False  # likewise
    for statement in node.body:
        if isinstance(statement, ast.Return):
            value = statement.value
            if value is None or _names_status(value):
                return True
            if isinstance(value, ast.Constant) and value.value in (True, False, None):
                return not (isinstance(value.value, int) and not isinstance(value.value, bool))
        if (
            isinstance(statement, ast.Assign)
            and isinstance(statement.targets[0], ast.Name)
            and statement.targets[0].id == "status"
            and _names_status(statement.value)
        ):
            return True
    return False


def _functions(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef]]:
    for node in body:
        if isinstance(node, ast.FunctionDef):
            yield prefix + node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from _functions(node.body, f"{prefix}{node.name}.")


def all_mutants() -> list[Mutant]:
    """Every check of the module, in order of file and line."""
    found = []
    for file in FILES:
        tree = ast.parse(_source(file)[0])
        for name, function in _functions(tree.body):
            if name.endswith("__deepcopy__") or name in _NOT_A_CHECK:
                continue
            for node in ast.walk(function):
                if isinstance(node, ast.If) and _is_check(node):
                    test = ast.unparse(node.test)
                    if not any(word in test for word in _INJECTED):
                        found.append(Mutant(file, node.lineno, name, test))
    return sorted(found, key=lambda m: (m.file, m.line))


class _TurnOff(ast.NodeTransformer):
    def __init__(self, line: int, test: str) -> None:
        self.line = line
        self.test = test
        self.done = 0

    def visit_If(self, node: ast.If) -> ast.If:
        self.generic_visit(node)
        if node.lineno == self.line and ast.unparse(node.test) == self.test:
            self.done += 1
            node.test = ast.BoolOp(ast.And(), [node.test, ast.Constant(False)])
        return node


def _find_code(code: CodeType, qualname: str) -> CodeType | None:
    for const in code.co_consts:
        if isinstance(const, CodeType):
            if const.co_qualname == qualname:
                return const
            found = _find_code(const, qualname)
            if found is not None:
                return found
    return None


class Applied:
    """While entered, the module is `mutant`. Only code objects are swapped, so every reference to
    the function sees it."""

    def __init__(self, mutant: Mutant) -> None:
        self.mutant = mutant
        module = importlib.import_module(f"septum.module.{mutant.file}")
        owner: object = module
        for part in mutant.function.split("."):
            owner = getattr(owner, part)
        assert isinstance(owner, FunctionType), mutant
        self.function = owner
        self.original = owner.__code__

    def __enter__(self) -> None:
        source, path = _source(self.mutant.file)
        turn_off = _TurnOff(self.mutant.line, self.mutant.test)
        tree = ast.fix_missing_locations(turn_off.visit(ast.parse(source)))
        assert turn_off.done == 1, self.mutant
        code = _find_code(compile(tree, path, "exec"), self.mutant.function)
        assert code is not None, self.mutant
        self.function.__code__ = code

    def __exit__(self, *_: object) -> None:
        self.function.__code__ = self.original
