"""The names that the model itself gives to choice points and counters, read from its sources.

A scenario names them in `[failures]` and `[expect]`. Whether a name can mean anything is asked of
the code that makes such names, so that a new choice point or counter is known as soon as it is
there: what `Sim.choose`, `Mm.fails` and `KvmStats` are given is followed to the texts that it is
made of.
"""

from __future__ import annotations

import ast
import importlib
import itertools
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, get_args

from septum.abi import leaves
from septum.abi.errno import ERRNO_NAMES
from septum.abi.leaves import LEAF_MASK, seamcall_name

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOMS = ("linux", "module", "machine", "vmm", "designs")
"""The packages that have choice points or counters."""
HOST = ("septum.linux.", "septum.designs.")
"""Of these, errors of the host are told."""
ROOT = Path(__file__).parents[1]
ANYTHING = "*"
"""Stands in a name for what only a run can tell."""
SEAMCALL = "seamcall:"

_CHOICES = {"choose": "{}", "fails": "alloc:{}"}
"""Methods that make a choice point of their first argument, and its name."""
_SEAMCALLS = ("seamcall", "seamcall_ret")
"""Methods that make the SEAMCALL of their first argument."""


class ModelNames(NamedTuple):
    """`choices`: names of choice points, and `seamcall:LEAF` of each leaf that the kernel calls by
    its wrapper. `counters`: KVM's statistics. A `*` in a name is what only a run can tell.
    `errors`: functions of the host and the errors that begin in them, `FUNCTION:-ERRNO`."""

    choices: frozenset[str]
    counters: frozenset[str]
    errors: frozenset[str]


@cache
def model_names(own: str = "", rooms: tuple[str, ...] = ROOMS) -> ModelNames:
    """Those of the model and of its designs; with those of a user's design, whose text is `own`."""
    sources = _Sources()
    for room in rooms:
        for path in sorted((ROOT / room).rglob("*.py")):
            within = path.relative_to(ROOT.parent).with_suffix("")
            sources.read(".".join(within.parts), path.read_text(encoding="utf-8"))
    if own:
        sources.read("", own)
    return ModelNames(
        frozenset(sources.choices()), frozenset(sources.counters()), frozenset(sources.errors)
    )


class _Expr(NamedTuple):
    """An expression, and where it stands."""

    node: ast.expr
    function: ast.FunctionDef | None
    module: str


class _Call(NamedTuple):
    node: ast.Call
    function: ast.FunctionDef | None
    module: str


class _Sources:
    """Files that were read: calls of methods by name, return types by function, stores by index,
    and errors of the host."""

    def __init__(self) -> None:
        self.calls: dict[str, list[_Call]] = {}
        self.returns: dict[str, tuple[str, str]] = {}
        self.stores: list[tuple[ast.expr, _Expr]] = []
        self.errors: set[str] = set()
        # Variables, each in its function, from the outermost on.
        self._followed: list[tuple[ast.FunctionDef | None, str]] = []

    def read(self, module: str, text: str) -> None:
        """Add a file. `module` is its name, "" for one that is no part of Septum."""
        self._walk(ast.parse(text), None, module)

    def _walk(self, node: ast.AST, function: ast.FunctionDef | None, module: str) -> None:
        if isinstance(node, ast.FunctionDef):
            function = node
            if isinstance(node.returns, ast.Name):
                self.returns[node.name] = module, node.returns.id
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            self.calls.setdefault(node.func.attr, []).append(_Call(node, function, module))
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            self.stores.append((node.value, _Expr(node.slice, function, module)))
        for child in ast.iter_child_nodes(node):
            if _is_error(child) and not isinstance(node, ast.Compare) and function is not None:
                if module.startswith(HOST) or not module:
                    self.errors.add(f"{function.name}:{ast.unparse(child)}")
            else:
                self._walk(child, function, module)

    # What is named

    def choices(self) -> Iterator[str]:
        """Names of choice points."""
        for method, name in _CHOICES.items():
            for call in self.calls.get(method, ()):
                if not _makes_names(call.function):
                    for text in self._argument(call, 0, ""):
                        yield name.format(text)
        for method in _SEAMCALLS:
            for call in self.calls.get(method, ()):
                for node in ast.walk(call.node.args[0]):
                    if isinstance(node, ast.Name) and hasattr(leaves, node.id):
                        yield SEAMCALL + seamcall_name(getattr(leaves, node.id) & LEAF_MASK)

    def counters(self) -> Iterator[str]:
        """Names of KVM's statistics."""
        for call in self.calls.get("add", ()):
            assert isinstance(call.node.func, ast.Attribute)
            if _last_name(call.node.func.value) == "stat":
                yield from self._argument(call, 0, "")
        for into, index in self.stores:
            if _last_name(into) == "values" and _stat_values(into, index.function):
                yield from self._texts(index)

    # Which texts an expression may be

    def _texts(self, expr: _Expr) -> set[str]:
        """All that the sources show; ANYTHING where they do not."""
        node, function, module = expr
        match node:
            case ast.Constant(value=str(constant)):
                return {constant}
            case ast.IfExp(body=body, orelse=orelse):
                return self._texts(expr._replace(node=body)) | self._texts(
                    expr._replace(node=orelse)
                )
            case ast.JoinedStr(values=parts):
                ways = (sorted(self._texts(expr._replace(node=part))) for part in parts)
                return set(map("".join, itertools.product(*ways)))
            case ast.FormattedValue(value=inner):
                return self._texts(expr._replace(node=inner))
            case ast.Subscript(value=ast.Name(id=table)) if module:
                values = getattr(importlib.import_module(module), table, ())
                return {text for text in values if isinstance(text, str)} or {ANYTHING}
            case ast.Call(func=ast.Attribute(attr=called)):
                return self._returned(called)
            case ast.Name(id=name) if (function, name) in self._followed:
                return set()  # it is given itself: an override calls what it overrides
            case ast.Name(id=name):
                found = self._variable(name, function, module) if function is not None else set()
                text = getattr(importlib.import_module(module), name, None) if module else None
                return found or {text if isinstance(text, str) else ANYTHING}
        return {ANYTHING}

    def _returned(self, called: str) -> set[str]:
        """Of a function that says in its type which texts it returns, those."""
        module, kind = self.returns.get(called, ("", ""))
        texts = get_args(getattr(importlib.import_module(module), kind, None)) if module else ()
        return {text for text in texts if isinstance(text, str)} or {ANYTHING}

    def _variable(self, name: str, function: ast.FunctionDef, module: str) -> set[str]:
        """What it is given: a parameter by all who call the function, a local name in it; nothing
        for a name of the module."""
        self._followed.append((function, name))
        parameters = [arg.arg for arg in function.args.args]
        if name in parameters:
            calls = self.calls.get(function.name, ())
            ways = [self._argument(call, parameters.index(name) - 1, name) for call in calls]
        else:
            ways = [
                self._texts(_Expr(node.value, function, module))
                for node in ast.walk(function)
                if isinstance(node, ast.Assign)
                and any(isinstance(to, ast.Name) and to.id == name for to in node.targets)
            ]
        self._followed.pop()
        return set().union(*ways)

    def _argument(self, call: _Call, position: int, name: str) -> set[str]:
        """What a call gives for a parameter; nothing where it leaves the parameter out."""
        node, function, module = call
        given = [word.value for word in node.keywords if word.arg == name]
        for value in given or node.args[position : position + 1]:
            return self._texts(_Expr(value, function, module))
        return set()


def _is_error(node: ast.AST) -> bool:
    """`-ENOMEM`, or another error."""
    return (
        isinstance(node, ast.UnaryOp)
        and isinstance(node.op, ast.USub)
        and isinstance(node.operand, ast.Name)
        and node.operand.id in ERRNO_NAMES.values()
    )


def _last_name(node: ast.expr) -> str:
    """`stat` of `kvm.stat`."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _makes_names(function: ast.FunctionDef | None) -> bool:
    """Whether the caller of `choose` is who turns a site or a leaf into a name."""
    return function is not None and function.name in ("fails", "_injected")


def _stat_values(node: ast.expr, function: ast.FunctionDef | None) -> bool:
    """Whether `values` is that of a KvmStats: `kvm.stat.values`, or a name for it."""
    if isinstance(node, ast.Attribute):
        return _last_name(node.value) == "stat"
    return function is not None and any(
        isinstance(of, ast.Attribute) and of.attr == "values" and _last_name(of.value) == "stat"
        for of in ast.walk(function)
    )
