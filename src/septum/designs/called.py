"""What a function calls, by the place in it where something went wrong."""

from __future__ import annotations

import ast
import tokenize
from pathlib import Path

NEAR = 2
"""So many functions, from the innermost, may have gone wrong by what an override gave them."""


def names_called(path: str, line: int) -> set[str]:
    """Names of the methods that the innermost function around that line calls; none where the file
    is not to be read."""
    try:
        with tokenize.open(Path(path)) as file:
            tree = ast.parse(file.read())
    except (OSError, SyntaxError, ValueError):
        return set()
    around = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.lineno <= line <= (node.end_lineno or 0)
    ]
    if not around:
        return set()
    innermost = max(around, key=lambda node: node.lineno)
    return {
        node.func.attr
        for node in ast.walk(innermost)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
