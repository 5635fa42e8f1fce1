"""Loops of a user's design that say what they must not say, by looking at its source."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOOPS = (ast.For, ast.While)
_FUNCTIONS = (ast.FunctionDef, ast.Lambda)


def counted_retry(tree: ast.Module) -> int:
    """The line of the first `sim.retry()` in a loop that gives up after so many rounds, 0 for none.

    A search takes it from `retry` that nothing comes of another round before somebody else has run.
    Of a loop that gives up something does.
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
    """`for ... in`, or a loop that adds to what it tests."""
    if isinstance(loop, ast.For):
        return True
    nodes = [loop.test, *_within(loop)]
    added = {
        node.target.id
        for node in nodes
        if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name)
    }
    tests = [loop.test, *(node.test for node in nodes if isinstance(node, ast.If | ast.IfExp))]
    tested = {name.id for test in tests for name in ast.walk(test) if isinstance(name, ast.Name)}
    return bool(added & tested)


def _within(node: ast.AST) -> Iterator[ast.AST]:
    """What stands in it, and not in a loop or a function in it."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, (*_LOOPS, *_FUNCTIONS)):
            yield from _within(child)
