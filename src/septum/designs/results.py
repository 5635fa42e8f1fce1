"""What an override in a user's design returns, beside what the function returns that it overrides:
told from its source, before anything runs."""

from __future__ import annotations

import ast
import inspect
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FunctionType

_ANYTHING = ("Any", "object", "NoReturn")
_NUMBERS = ("int", "bool")
_NO_NUMBER = (ast.Tuple, ast.List, ast.Dict, ast.Set, ast.JoinedStr)


def wrong_result(tree: ast.Module, mine: FunctionType, theirs: FunctionType) -> str:
    """What is wrong with what `mine` returns, as the end of a sentence that begins with its name;
    "" for nothing, and for a function that is not in the file by itself."""
    if inspect.iscoroutinefunction(mine) or inspect.isasyncgenfunction(mine):
        return "is `async`, so that a call of it does nothing; write `def` alone"
    wanted = str(inspect.signature(theirs).return_annotation)
    if inspect.isgeneratorfunction(mine):
        if wanted.startswith("Iterator"):
            return ""
        return "has a `yield`, so that a call of it does nothing; model code is plain code"
    node = _node_of(tree, mine)
    kinds = [ast.unparse(kind) for kind in _either(ast.parse(wanted, mode="eval").body)]
    if node is None or any(kind in _ANYTHING for kind in kinds):
        return ""
    for line, said in _returned(node, kinds):
        return f"returns {said} in line {line}, and what it overrides returns {wanted}"
    if "None" not in kinds and _may_end(node.body):
        return f"may come to its end without a `return`, and what it overrides returns {wanted}"
    return ""


def _node_of(tree: ast.Module, function: FunctionType) -> ast.FunctionDef | None:
    code = function.__code__
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == code.co_name:
            first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
            if first == code.co_firstlineno:
                return node
    return None


def _either(kind: ast.expr) -> Iterator[ast.expr]:
    """The parts of `a | b | c`."""
    if isinstance(kind, ast.BinOp):
        yield from _either(kind.left)
        yield from _either(kind.right)
    else:
        yield kind


def _returned(function: ast.FunctionDef, kinds: list[str]) -> Iterator[tuple[int, str]]:
    """(line, what is returned there) of each `return` of what none of `kinds` is."""
    for node in _own_nodes(function):
        if not isinstance(node, ast.Return):
            continue
        value = node.value
        if value is None or (isinstance(value, ast.Constant) and value.value is None):
            if "None" not in kinds:
                yield node.lineno, "nothing"
        elif kinds != ["None"] and all(_is_no(kind, value) for kind in kinds):
            yield node.lineno, ast.unparse(value)


def _is_no(kind: str, value: ast.expr) -> bool:
    """Whether what stands there in full is surely nothing of that kind."""
    if kind in _NUMBERS:
        text = isinstance(value, ast.Constant) and not isinstance(value.value, int)
        return text or isinstance(value, _NO_NUMBER)
    if not kind.startswith("tuple["):
        text = isinstance(value, ast.Constant) and isinstance(value.value, str)
        return text and kind != "str" and not kind.startswith("Literal[")
    if isinstance(value, ast.Tuple) and not any(isinstance(e, ast.Starred) for e in value.elts):
        parts = ast.parse(kind, mode="eval").body
        assert isinstance(parts, ast.Subscript) and isinstance(parts.slice, ast.Tuple)
        return len(value.elts) != len(parts.slice.elts)
    return isinstance(value, ast.Constant)


def _own_nodes(function: ast.FunctionDef) -> Iterator[ast.AST]:
    """All within the function, but not within functions of its own."""
    nodes: list[ast.AST] = list(function.body)
    while nodes:
        node = nodes.pop(0)
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            nodes += ast.iter_child_nodes(node)


def _may_end(body: list[ast.stmt]) -> bool:
    """Whether the last of these statements may be followed by the next one."""
    last = body[-1]
    match last:
        case ast.Return() | ast.Raise() | ast.Continue() | ast.Break():
            return False
        case ast.If():
            return not last.orelse or _may_end(last.body) or _may_end(last.orelse)
        case ast.With():
            return _may_end(last.body)
        case ast.While(test=ast.Constant(value=always)) if always:
            return any(isinstance(node, ast.Break) for node in ast.walk(last))
        case ast.Try():
            if last.finalbody and not _may_end(last.finalbody):
                return False
            whole = last.orelse or last.body
            return _may_end(whole) or any(_may_end(each.body) for each in last.handlers)
        case ast.Match():
            return not _takes_all(last.cases[-1]) or any(_may_end(c.body) for c in last.cases)
    return True


def _takes_all(case: ast.match_case) -> bool:
    pattern = case.pattern
    return case.guard is None and isinstance(pattern, ast.MatchAs) and pattern.pattern is None
