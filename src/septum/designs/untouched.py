"""What loading a user's file must leave as it is: the model, which v3 beside it has, too."""

from __future__ import annotations

import builtins
import sys
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator


class Place(NamedTuple):
    """A name in a module, or in a class of it."""

    module: str
    kind: str
    name: str

    def words(self) -> str:
        """`KvmTdxUnit.tdx_track`, `septum.linux.mm.Mm`."""
        return f"{self.kind or self.module}.{self.name}"


def model_functions() -> dict[Place, object]:
    """The functions and classes of the package as it is now, each where it is defined."""
    return dict(_functions())


def replaced_since(before: dict[Place, object]) -> str:
    """The first of `before` that is something else now, or a function that a class of it has got
    since, in words; "" for none."""
    now = model_functions()
    kinds = {(at.module, at.name) for at, was in before.items() if isinstance(was, type)}
    new = [at for at in now if at.kind and at not in before and (at.module, at.kind) in kinds]
    changed = [at for at, was in before.items() if now.get(at) is not was]
    return next((at.words() for at in (*changed, *new)), "")


def aside() -> dict[str, object]:
    """The builtins of a user's file. Its print() goes to stderr: stdout is the verdict's."""
    return {**vars(builtins), "print": _print_aside}


def _functions() -> Iterator[tuple[Place, object]]:
    for name, module in list(sys.modules.items()):
        if name.startswith("septum.") and isinstance(module, ModuleType):
            for key, value in list(vars(module).items()):
                if isinstance(value, FunctionType | type) and value.__module__ == name:
                    yield Place(name, "", key), value
                    if isinstance(value, type):
                        yield from _methods(name, value)


def _methods(module: str, kind: type) -> Iterator[tuple[Place, object]]:
    for key, value in list(vars(kind).items()):
        if isinstance(value, FunctionType | staticmethod | classmethod | property):
            yield Place(module, kind.__qualname__, key), value


def _print_aside(*values: object, **more: object) -> None:
    more.setdefault("file", sys.stderr)
    print(*values, **more)  # type: ignore[call-overload]  # as they were given, wrong ones too
