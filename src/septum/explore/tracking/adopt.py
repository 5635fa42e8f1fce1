"""Which parts of a world are tracked and how, and the exchange of its containers for twins."""

from __future__ import annotations

import sys
import types
from array import array
from typing import TYPE_CHECKING

import msgspec

from septum.explore.tracking.private import PRIVATE
from septum.explore.tracking.special import OBSERVERS, is_statistic
from septum.sim.state import immutable_children, slots_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from septum.sim.state import Part, Snapshot

CONTAINERS = (list, dict, set, array)


class NotTrackable(Exception):
    """The world has state whose use cannot be seen."""


def ours(module: str) -> bool:
    """Whether a module's classes are the model's."""
    return not module.startswith(
        ("septum.sim", "septum.explore", "septum.checks", "septum.trace", "septum.cli", "builtins")
    ) or module in ("septum.explore.toys",)


def classes_of(module: str) -> list[type]:
    """The classes of a module that hold state."""
    return [kind for kind in _made_in(module) if is_state(kind)]


def arguments_of(module: str) -> list[type]:
    """The classes of a module of what ioctls are given, and may write to: their fields cannot be
    watched."""
    return [
        kind
        for kind in _made_in(module)
        if issubclass(kind, msgspec.Struct) and not kind.__struct_config__.frozen
    ]


def _made_in(module: str) -> list[type]:
    found = sys.modules.get(module)
    if found is None:
        return []
    return [
        value
        for value in vars(found).values()
        if isinstance(value, type) and value.__module__ == module
    ]


def is_state(kind: type) -> bool:
    """Whether objects of a class can change."""
    params = getattr(kind, "__dataclass_params__", None)
    if params is not None and params.frozen:
        return False
    return not issubclass(kind, BaseException | tuple | int | str) and not hasattr(
        kind, "__struct_fields__"
    )


def trackable(part: Part) -> bool:
    """Whether what is done to a part can be seen."""
    name = type(part).__name__
    return name in ("_SlotsPart", "_CoroutinePart") or of_sim(part)


def of_sim(part: Part) -> bool:
    """It belongs to the scheduler or a lock, whose use is told by other means."""
    if isinstance(part.obj, list | dict | set) and part.owner is not None:
        return of_sim(part.owner)
    return type(part.obj).__module__.startswith("septum.sim.")


def apart(part: Part) -> bool:
    """It is restored by its snapshot, and using it makes no step depend on another."""
    at = part
    while isinstance(at.obj, list | dict | set | array | bytearray):
        owner = at.owner
        if owner is None:
            return False
        if is_statistic(type(owner.obj), at.label[1:]):
            return True
        at = owner
    kind = type(at.obj)
    return (
        of_sim(at)
        or kind.__name__ in PRIVATE
        or kind.__module__.startswith(OBSERVERS)
        # What has statistics beside other slots; its containers were judged by their own slots.
        or (at is part and any(is_statistic(kind, name) for name, _ in slots_of(kind)))
    )


def parts_apart(snapshot: Snapshot) -> list[Part]:
    """What tracking does not undo and is not a lock's: to be restored after every run."""
    return [part for part in snapshot.parts if not of_sim(part) and apart(part)]


def exchange(snapshot: Snapshot, kinds: dict[type, type]) -> None:
    """Give the world containers of the given kinds for those that it has."""
    twins: dict[int, object] = {}
    for part in snapshot.parts:
        if not isinstance(part.obj, CONTAINERS) or of_sim(part) or apart(part):
            continue
        kind = next(kinds[base] for base in CONTAINERS if isinstance(part.obj, base))
        twins[id(part.obj)] = twin_of(kind, part.obj)
    for part in snapshot.parts:
        if not type(part.obj).__module__.startswith("septum.sim."):
            rewire(part, twins)
    for obj in twins.values():
        rewire_elements(obj, twins)


def twin_of(kind: type, obj: object) -> object:
    """The same elements in a container of another kind."""
    # By the plain types' own methods: the twin of an earlier search would log its being read.
    if isinstance(obj, array):
        return kind(obj.typecode, array.tolist(obj))
    if isinstance(obj, dict):
        return kind(dict.items(obj))
    if isinstance(obj, set):
        return kind(set.__iter__(obj))
    assert isinstance(obj, list)
    return kind(list.__iter__(obj))


def rewire(part: Part, twins: dict[int, object]) -> None:
    """Make a slotted object refer to the twins."""
    for name, member in slots_of(type(part.obj)):
        try:
            value = member.__get__(part.obj)
        except AttributeError:
            continue
        twin = twins.get(id(value))
        if twin is not None:
            member.__set__(part.obj, twin)
        elif isinstance(value, tuple | frozenset):
            refuse_inside(value, twins, f"{part.path}.{name}")
        elif isinstance(value, types.FunctionType):
            for cell in value.__closure__ or ():
                if id(cell.cell_contents) in twins:
                    cell.cell_contents = twins[id(cell.cell_contents)]


def rewire_elements(obj: object, twins: dict[int, object]) -> None:
    """Make a twin refer to the twins."""
    if isinstance(obj, list):
        for index, value in enumerate(list.__iter__(obj)):
            if id(value) in twins:
                list.__setitem__(obj, index, twins[id(value)])
            elif isinstance(value, tuple):
                refuse_inside(value, twins, "a list")
    elif isinstance(obj, dict):
        for key, value in list(dict.items(obj)):
            if id(value) in twins:
                dict.__setitem__(obj, key, twins[id(value)])
            elif isinstance(value, tuple):
                refuse_inside(value, twins, "a dict")


def refuse_inside(value: Iterable[object], twins: dict[int, object], where: str) -> None:
    for element in value:
        if id(element) in twins:
            raise NotTrackable(f"{where} holds a container inside an immutable value")
        inner = immutable_children(element)
        if isinstance(element, tuple) and inner is not None:
            refuse_inside([child for _, child in inner], twins, where)
