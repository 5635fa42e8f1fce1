"""Single mutable objects: how each was when captured, whether it has changed, how to restore it.

For the kinds of objects that the model is made of: slotted classes, instances with a dict, lists,
dicts, sets, arrays and bytearrays. A captured coroutine that has not run yet begins from its start
after each restore.
"""

from __future__ import annotations

import types
from array import array
from collections import Counter, defaultdict, deque
from functools import partial
from operator import is_
from typing import TYPE_CHECKING, Any

import msgspec

from septum.sim.sim import SimDefect
from septum.sim.task import Coroutine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    Put = Callable[[], object]
    """One step of restoring an object, with its arguments bound. Where a method of a built-in type
    will do it is that, for speed: a search makes some hundred steps before each run."""

_MISSING = object()
_slots_of: dict[type, tuple[tuple[str, types.MemberDescriptorType], ...]] = {}


def slots_of(kind: type) -> tuple[tuple[str, types.MemberDescriptorType], ...]:
    """(name, descriptor) of every slot of `kind`, base classes first."""
    found = _slots_of.get(kind)
    if found is None:
        rows: list[tuple[str, types.MemberDescriptorType]] = []
        for base in reversed(kind.__mro__):
            for name, member in vars(base).items():
                if isinstance(member, types.MemberDescriptorType):
                    rows.append((name, member))
        found = _slots_of[kind] = tuple(rows)
    return found


def forget_slots(kinds: Iterable[type]) -> None:
    """Drop `kinds` from the cache of `slots_of`, which keeps a class alive, with all that its
    methods refer to."""
    for kind in kinds:
        _slots_of.pop(kind, None)


class Part:
    """One mutable object: how it was when captured. Subclasses know one kind of object."""

    __slots__ = ("label", "obj", "owner", "path", "saved")

    def __init__(self, obj: object, path: str) -> None:
        self.obj = obj
        self.path = path  # how it is reached from the roots, for messages
        self.owner: Part | None = None  # the mutable object that led to it first
        self.label = ""  # the last part of the path, such as ".field" or "[3]"
        self.saved: object = None

    def children(self) -> Iterator[tuple[str, object]]:
        """(label, value) of what it refers to now."""
        raise NotImplementedError

    def save(self) -> None:
        """Remember how the object is."""
        raise NotImplementedError

    def changed(self) -> bool:
        """Whether the object is not as it was saved."""
        raise NotImplementedError

    def restore(self) -> None:
        """Make the object as it was saved."""
        raise NotImplementedError

    def learn(self) -> None:
        """Note what differs now from what was saved: `puts` has to restore it from now on."""

    def puts(self) -> Iterable[Put]:
        """The steps that restore what is known to change."""
        return [self.restore]


class _FieldsPart(Part):
    """An object with named fields; which of them change is learned field by field."""

    __slots__ = ("_hot", "_setters", "names")

    def __init__(
        self,
        obj: object,
        path: str,
        names: tuple[str, ...],
        setters: tuple[Callable[[Any, Any], object], ...],
    ) -> None:
        super().__init__(obj, path)
        self.names = names
        self._setters = setters
        self._hot: set[str] | None = None  # the fields that are known to change; None: all may

    def _now(self) -> list[object]:
        raise NotImplementedError

    def _was(self) -> list[object]:
        assert isinstance(self.saved, list)
        return self.saved

    def children(self) -> Iterator[tuple[str, object]]:
        for name, value in zip(self.names, self._now(), strict=True):
            if value is not _MISSING:
                yield f".{name}", value

    def save(self) -> None:
        self.saved = self._now()

    def changed(self) -> bool:
        return not _same(self.saved, self._now())

    def learn(self) -> None:
        self._hot = (self._hot or set()).union(
            name
            for name, value, now in zip(self.names, self._was(), self._now(), strict=True)
            if not _same([value], [now])
        )

    def puts(self) -> Iterable[Put]:
        hot = self._hot
        return [
            partial(put, self.obj, value)
            for name, put, value in zip(self.names, self._setters, self._was(), strict=True)
            if hot is None or name in hot
        ]

    def restore(self) -> None:
        for put, value in zip(self._setters, self._was(), strict=True):
            put(self.obj, value)


class _SlotsPart(_FieldsPart):
    __slots__ = ("members",)

    def __init__(self, obj: object, path: str) -> None:
        rows = slots_of(type(obj))
        self.members = tuple(member for _, member in rows)
        super().__init__(
            obj,
            path,
            tuple(name for name, _ in rows),
            tuple(member.__set__ for member in self.members),
        )

    def _now(self) -> list[object]:
        obj = self.obj
        try:
            return [member.__get__(obj) for member in self.members]
        except AttributeError:
            values: list[object] = []
        for member in self.members:
            try:
                values.append(member.__get__(obj))
            except AttributeError:
                values.append(_MISSING)
        return values

    def puts(self) -> Iterable[Put]:
        return [self.restore] if _MISSING in self._was() else super().puts()

    def restore(self) -> None:
        obj = self.obj
        for member, value in zip(self.members, self._was(), strict=True):
            if value is not _MISSING:
                member.__set__(obj, value)
            elif hasattr(obj, member.__name__):
                member.__delete__(obj)


class _CoroutinePart(_SlotsPart):
    """A coroutine that has not run: it begins anew after each restore."""

    __slots__ = ()

    def children(self) -> Iterator[tuple[str, object]]:
        return iter(())

    def save(self) -> None:
        super().save()
        assert isinstance(self.obj, Coroutine)
        if self.obj.started():
            raise SimDefect(
                f"{self.path}: coroutine {self.obj.name} has already run, so that the world cannot"
                " be captured; capture it before guests are entered"
            )

    def changed(self) -> bool:
        assert isinstance(self.obj, Coroutine)
        return self.obj.started()

    def learn(self) -> None:
        """Nothing to note: all of it is restored."""

    def puts(self) -> Iterable[Put]:
        return [self.restore]

    def restore(self) -> None:
        assert isinstance(self.obj, Coroutine)
        self.obj.renew()


class _DictPart(Part):
    """A dict. The order of its keys is part of its state."""

    __slots__ = ()

    def children(self) -> Iterator[tuple[str, object]]:
        assert isinstance(self.obj, dict)
        for key, value in self.obj.items():
            yield f"[{key!r:.40}]", value
            if not isinstance(key, int | str):
                yield "[key]", key

    def save(self) -> None:
        assert isinstance(self.obj, dict)
        self.saved = dict(self.obj)

    def changed(self) -> bool:
        assert isinstance(self.obj, dict) and isinstance(self.saved, dict)
        now, saved = self.obj, self.saved
        return (
            len(now) != len(saved)
            or not _same(list(now.keys()), list(saved.keys()))
            or not _same(list(now.values()), list(saved.values()))
        )

    def restore(self) -> None:
        for put in self.puts():
            put()

    def puts(self) -> Iterable[Put]:
        assert isinstance(self.obj, dict) and isinstance(self.saved, dict)
        # The built-in types' own methods, here and below: those of a tracked subclass would record
        # the restore as a write of the model.
        clear = partial(dict.clear, self.obj)
        return [clear, partial(dict.update, self.obj, self.saved)] if self.saved else [clear]


class _ListPart(Part):
    __slots__ = ()

    def children(self) -> Iterator[tuple[str, object]]:
        assert isinstance(self.obj, list | deque)
        for index, value in enumerate(self.obj):
            yield f"[{index}]", value

    def save(self) -> None:
        assert isinstance(self.obj, list | deque)
        self.saved = list(self.obj)

    def changed(self) -> bool:
        assert isinstance(self.obj, list | deque) and isinstance(self.saved, list)
        return not _same(self.saved, self.obj)

    def restore(self) -> None:
        assert isinstance(self.saved, list)
        if isinstance(self.obj, list):
            list.__setitem__(self.obj, slice(None), self.saved)
        else:
            assert isinstance(self.obj, deque)
            self.obj.clear()
            self.obj.extend(self.saved)

    def puts(self) -> Iterable[Put]:
        if isinstance(self.obj, list):
            return [partial(list.__setitem__, self.obj, slice(None), self.saved)]
        return super().puts()


class _SetPart(Part):
    __slots__ = ()

    def children(self) -> Iterator[tuple[str, object]]:
        assert isinstance(self.obj, set)
        for value in self.obj:
            yield "[member]", value

    def save(self) -> None:
        assert isinstance(self.obj, set)
        self.saved = set(self.obj)

    def changed(self) -> bool:
        return self.obj != self.saved

    def restore(self) -> None:
        for put in self.puts():
            put()

    def puts(self) -> Iterable[Put]:
        assert isinstance(self.obj, set) and isinstance(self.saved, set)
        return [partial(set.clear, self.obj), partial(set.update, self.obj, self.saved)]


class _ArrayPart(Part):
    """An array or a bytearray: numbers only."""

    __slots__ = ()

    def children(self) -> Iterator[tuple[str, object]]:
        return iter(())

    def save(self) -> None:
        assert isinstance(self.obj, array | bytearray)
        self.saved = self.obj[:]

    def changed(self) -> bool:
        return self.obj != self.saved

    def restore(self) -> None:
        for put in self.puts():
            put()

    def puts(self) -> Iterable[Put]:
        assert isinstance(self.obj, array | bytearray)
        return [partial(self.obj.__setitem__, slice(None), self.saved)]


class _InstancePart(Part):
    """An object with a __dict__ and maybe slots of its bases."""

    __slots__ = ("slots",)

    def __init__(self, obj: object, path: str) -> None:
        super().__init__(obj, path)
        self.slots = _SlotsPart(obj, path)

    def children(self) -> Iterator[tuple[str, object]]:
        for name, value in vars(self.obj).items():
            yield f".{name}", value
        yield from self.slots.children()

    def save(self) -> None:
        self.saved = dict(vars(self.obj))
        self.slots.save()

    def changed(self) -> bool:
        now = vars(self.obj)
        assert isinstance(self.saved, dict)
        return (
            now.keys() != self.saved.keys()
            or not _same(list(now.values()), [self.saved[k] for k in now])
            or self.slots.changed()
        )

    def restore(self) -> None:
        now = vars(self.obj)
        assert isinstance(self.saved, dict)
        now.clear()
        now.update(self.saved)
        self.slots.restore()


class _StructPart(_FieldsPart):
    """A msgspec Struct that is not frozen."""

    __slots__ = ()

    def __init__(self, obj: object, path: str) -> None:
        assert isinstance(obj, msgspec.Struct)
        names = obj.__struct_fields__
        super().__init__(obj, path, names, tuple(partial(_set_field, name) for name in names))

    def _now(self) -> list[object]:
        return [getattr(self.obj, name) for name in self.names]


def _set_field(name: str, obj: object, value: object) -> None:
    setattr(obj, name, value)


def _same(a: object, b: object) -> bool:
    """Element by element the same object, or equal numbers and texts."""
    assert isinstance(a, list)
    assert isinstance(b, list | deque)
    if len(a) != len(b):
        return False
    if all(map(is_, a, b)):
        return True
    for x, y in zip(a, b, strict=True):
        if x is not y and (
            x.__class__ is not y.__class__
            or not isinstance(x, int | str | bytes | float | tuple | frozenset | range)
            or x != y
        ):
            return False
    return True


_CONTAINERS = (dict, list, deque, set, array, bytearray)
_KNOWN = frozenset((*_CONTAINERS, defaultdict, Counter))


class UnknownState(SimDefect):
    """At `path` there is an object of a `kind` whose state cannot be captured."""

    def __init__(self, path: str, kind: type) -> None:
        name = f"{kind.__module__}.{kind.__qualname__}"
        super().__init__(f"{path}: state of type {name} is not known")


def part_of(obj: object, path: str) -> Part | None:
    """The part that can capture `obj`; None when it is not mutable by itself.

    Raises UnknownState for an object of a kind that cannot be captured. A container of a kind that
    the model or a design makes is put back by the methods of the one that it derives from; others
    may keep more than those know of.
    """
    kind = type(obj)
    known = kind in _KNOWN or kind.__module__.startswith("septum.")
    if isinstance(obj, _CONTAINERS) and not known:
        raise UnknownState(path, kind)
    if isinstance(obj, dict):
        return _DictPart(obj, path)
    if isinstance(obj, list | deque):
        return _ListPart(obj, path)
    if isinstance(obj, set):
        return _SetPart(obj, path)
    if isinstance(obj, array | bytearray):
        return _ArrayPart(obj, path)
    if isinstance(obj, Coroutine):
        return _CoroutinePart(obj, path)
    if isinstance(obj, msgspec.Struct):
        return None if obj.__struct_config__.frozen else _StructPart(obj, path)
    if hasattr(obj, "__dict__"):
        return _InstancePart(obj, path)
    if slots_of(kind) or "__slots__" in vars(kind):
        params = getattr(kind, "__dataclass_params__", None)
        if params is not None and params.frozen:
            return None
        return _SlotsPart(obj, path)
    if type(obj).__module__ in ("_hashlib", "_sha512", "_sha256", "_sha2"):
        return None  # a measurement's, which is never changed in place
    raise UnknownState(path, kind)


def immutable_children(obj: object) -> Iterator[tuple[str, object]] | None:
    """What an immutable value refers to; None when `obj` is not one of those known."""
    if isinstance(obj, tuple):
        return ((f"[{i}]", value) for i, value in enumerate(obj))
    if isinstance(obj, frozenset):
        return (("[member]", value) for value in obj)
    if isinstance(obj, types.MethodType):
        return iter([(".__self__", obj.__self__)])
    if isinstance(obj, types.FunctionType):
        cells = obj.__closure__ or ()
        return ((f".<{i}>", _cell(cell)) for i, cell in enumerate(cells))
    if isinstance(obj, msgspec.Struct) and obj.__struct_config__.frozen:
        return ((f".{name}", getattr(obj, name)) for name in obj.__struct_fields__)
    params = getattr(type(obj), "__dataclass_params__", None)
    if params is not None and params.frozen:
        return (
            (f".{name}", getattr(obj, name))
            for name in getattr(type(obj), "__dataclass_fields__", ())
        )
    return None


def _cell(cell: types.CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:
        return None
