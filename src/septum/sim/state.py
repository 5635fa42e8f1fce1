"""All mutable state that some roots lead to: captured, compared and restored as one.

How each object was is in its part (`septum.sim.parts`). Immutable values are only walked through;
functions, types and the scheduler's stacks are no state.
"""

from __future__ import annotations

import random
import types
from collections import deque
from enum import Enum
from operator import call
from typing import TYPE_CHECKING

import greenlet

from septum.sim.memo import Memo
from septum.sim.parts import Part, forget_slots, immutable_children, part_of, slots_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from septum.sim.parts import Put

__all__ = ["Part", "Snapshot", "forget_slots", "immutable_children", "slots_of"]

_ATOMS = (
    int,
    str,
    bytes,
    float,
    type(None),
    type,
    Enum,
    range,
    types.ModuleType,
    types.BuiltinFunctionType,
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
    greenlet.greenlet,
    Memo,  # what it holds is true in every run
    random.Random,  # a schedule's; each run has a new schedule
)


def _join(path: str, label: str) -> str:
    return path + label if len(path) < 160 else path


class Snapshot:
    """Everything mutable that `roots` lead to, as it was when this was made.

    `restore` restores only what is known to change in runs: learned, or named by `add_hot`.
    `verify` looks at everything, and learns. The objects of `skip` are not entered.
    """

    __slots__ = ("_hot", "_puts", "parts")

    def __init__(self, roots: Iterable[object], skip: Iterable[object] = ()) -> None:
        self.parts: list[Part] = []
        self._hot: dict[int, Part] = {}  # by their objects' ids
        self._puts: list[Put] = []  # what puts them back
        self._walk(list(roots), {id(obj) for obj in skip})
        for part in self.parts:
            part.save()

    def _walk(self, roots: list[object], skip: set[int]) -> None:
        seen: set[int] = set(skip)
        keep: list[object] = []  # bound methods are made on access: their ids must not be reused
        queue: list[tuple[str, object, Part | None, str]] = [
            (type(root).__name__, root, None, "") for root in reversed(roots)
        ]
        while queue:
            path, obj, owner, label = queue.pop()
            if isinstance(obj, _ATOMS) or id(obj) in seen:
                continue
            seen.add(id(obj))
            keep.append(obj)
            children = immutable_children(obj)
            if children is None:
                part = part_of(obj, path)
                if part is None:
                    continue
                part.owner = owner
                part.label = label
                owner = part
                self.parts.append(part)
                children = part.children()
            queue.extend(
                reversed([(_join(path, name), value, owner, name) for name, value in children])
            )

    def changed(self) -> list[Part]:
        """The parts that are not as captured."""
        return [part for part in self.parts if part.changed()]

    def add_hot(self, parts: Iterable[Part]) -> None:
        """These may change in runs."""
        self._hot.update((id(part.obj), part) for part in parts)
        self._puts = [put for part in self._hot.values() for put in part.puts()]

    def restore(self) -> None:
        """Put back what is known to change in runs."""
        # Without Python code between the calls, which takes half the time of a loop.
        deque(map(call, self._puts), maxlen=0)

    def verify(self) -> list[Part]:
        """After `restore`: the parts that it missed, which are restored and known from now on."""
        missed = self.changed()
        for part in missed:
            part.learn()
            part.restore()
        if missed:
            self.add_hot(missed)
        return missed
