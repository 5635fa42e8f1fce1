"""Loops of a user's design that a search would follow wrongly, by looking at its source."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOOPS = (ast.For, ast.While)
_FUNCTIONS = (ast.FunctionDef, ast.Lambda)
_FIELDS = (ast.Attribute, ast.Subscript)


def counted_retry(tree: ast.Module) -> int:
    """The line of the first `sim.retry()` in a loop that counts its rounds where a search does not
    see that, 0 for none.

    A search takes it from `retry` that nothing comes of another round before somebody else has run,
    unless a number in a variable has changed. What `for` is at, or a field, is no variable.
    """
    lines = [
        node.lineno
        for loop in ast.walk(tree)
        if isinstance(loop, _LOOPS)
        for node in _within(loop)
        if isinstance(node, ast.Call) and _is_retry(node) and _is_counted(loop)
    ]
    return min(lines, default=0)


def _is_retry(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Attribute) and call.func.attr == "retry"


def _is_counted(loop: ast.For | ast.While) -> bool:
    """`for ... in`, or a loop that adds to a field that it tests."""
    if isinstance(loop, ast.For):
        return True
    nodes = [loop.test, *_within(loop)]
    added = {ast.unparse(target) for node in nodes for target in _added_to(node)}
    tests = [loop.test, *(node.test for node in nodes if isinstance(node, ast.If | ast.IfExp))]
    tested = (part for test in tests for part in ast.walk(test))
    return any(ast.unparse(part) in added for part in tested if isinstance(part, _FIELDS))


def _added_to(node: ast.AST) -> list[ast.expr]:
    """What `vm.n += 1`, or `vm.n = vm.n - 1`, adds to."""
    if isinstance(node, ast.AugAssign):
        return [node.target]
    if not (isinstance(node, ast.Assign) and isinstance(node.value, ast.BinOp)):
        return []
    terms = {ast.unparse(term) for term in (node.value.left, node.value.right)}
    return [target for target in node.targets if ast.unparse(target) in terms]


def _within(node: ast.AST) -> Iterator[ast.AST]:
    """What stands in it, and not in a loop or a function in it."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, (*_LOOPS, *_FUNCTIONS)):
            yield from _within(child)
