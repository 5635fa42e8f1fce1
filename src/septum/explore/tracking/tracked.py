"""Lists, dicts, sets and arrays that say what is done to them.

They take the place of the world's own containers while a search needs to know what each step
touches, and behave alike. Before its first change in any run a container of the built world leaves
a copy, from which all runs are undone.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any, ClassVar

from septum.explore.tracking.footprint import IS, IX, S, X

if TYPE_CHECKING:
    from collections.abc import Callable

    from septum.explore.tracking.track import Tracker

PLAIN = frozenset((list, dict, set, array, bytearray))
"""Containers that say nothing: whoever gets hold of one may change it."""


def container_types(tracker: Tracker) -> dict[type, type]:
    """The tracked twin of each kind of container, for `tracker`."""
    list_type = _twin(list, tracker, _LIST_READS, _LIST_WRITES)
    set_type = _twin(set, tracker, _SET_READS, _SET_WRITES)
    array_type = _twin(array, tracker, _ARRAY_READS, _ARRAY_WRITES)
    return {list: list_type, set: set_type, array: array_type, dict: _dict_type(tracker)}


_COMMON_READS = ("__iter__", "__len__", "__contains__", "__eq__", "__ne__")
_LIST_READS = (
    *_COMMON_READS,
    *("__getitem__", "__reversed__", "__add__", "__mul__", "copy", "count", "index", "__lt__"),
)
_LIST_WRITES = (
    *("append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort", "__setitem__"),
    *("__delitem__", "__iadd__", "__imul__"),
)
_SET_READS = (
    *_COMMON_READS,
    *("copy", "difference", "intersection", "isdisjoint", "issubset", "issuperset", "union"),
    *("__and__", "__or__", "__sub__", "__xor__", "__le__", "__lt__", "__ge__", "__gt__"),
)
_SET_WRITES = (
    *("add", "clear", "discard", "pop", "remove", "update", "difference_update"),
    *("intersection_update", "symmetric_difference_update", "__iand__", "__ior__", "__isub__"),
    "__ixor__",
)
_ARRAY_READS = (*_COMMON_READS, "__getitem__", "__add__", "__mul__", "tobytes", "tolist", "count")
_ARRAY_WRITES = ("append", "extend", "pop", "insert", "__setitem__", "__delitem__", "__iadd__")


def _twin(base: type, tracker: Tracker, reads: tuple[str, ...], writes: tuple[str, ...]) -> type:
    """A subclass of `base` that logs each read and write of itself as a whole."""
    body: dict[str, object] = {"__slots__": (), "__hash__": None}
    for name in reads:
        if hasattr(base, name):
            body[name] = _reader(getattr(base, name), tracker)
    for name in writes:
        if hasattr(base, name):
            body[name] = _writer(getattr(base, name), tracker)
    # A lambda has no place for the types that `base` has at run time.
    body["__reduce_ex__"] = lambda self, protocol: (base, (base.__iter__(self),))  # type: ignore[attr-defined]
    twin = type(f"Tracked{base.__name__.capitalize()}", (base,), body)
    for name in ("__iter__", "__len__", "__contains__", "__getitem__", *writes):
        if name in body:
            tracker.patches.hushable.append((twin, name, body[name], getattr(base, name)))
    return twin


def _reader(method: Callable[..., Any], tracker: Tracker) -> Callable[..., Any]:
    append = tracker.log.append

    def read(self: object, *args: object) -> Any:
        result = method(self, *args)
        append(id(self) << 10 | (X if result.__class__ in PLAIN else S))
        return result

    return read


def _writer(method: Callable[..., Any], tracker: Tracker) -> Callable[..., Any]:
    append = tracker.log.append
    base = tracker.names.base
    changed = tracker.changed

    def write(self: Any, *args: object, **named: object) -> Any:
        key = id(self) << 10
        append(key | X)
        if key not in changed and id(self) in base:
            changed[key] = (self, None, self.__class__.__base__(_codes(self), _raw(self)))
        return method(self, *args, **named)

    def write_plain(self: Any, *args: object, **named: object) -> Any:
        key = id(self) << 10
        append(key | X)
        if key not in changed and id(self) in base:
            changed[key] = (self, None, self.__class__.__base__(_raw(self)))
        return method(self, *args, **named)

    # Method descriptors have __objclass__; typeshed's type of them does not.
    return write if method.__objclass__ is array else write_plain  # type: ignore[attr-defined]


def _codes(values: Any) -> str:
    code: str = values.typecode
    return code


def _raw(values: Any) -> Any:
    """The elements, without saying so."""
    base = values.__class__.__base__
    return base.__getitem__(values, slice(None)) if base is not set else set.__iter__(values)


def put_back(obj: Any, saved: Any) -> None:
    """Give a tracked container the elements that it left in `saved`."""
    if isinstance(obj, list):
        list.__setitem__(obj, slice(None), saved)
    elif isinstance(obj, dict):
        dict.clear(obj)
        dict.update(obj, saved)
    elif isinstance(obj, set):
        set.clear(obj)
        set.update(obj, saved)
    else:
        array.__setitem__(obj, slice(None), saved)


def _dict_type(tracker: Tracker) -> type:
    """A dict that logs key by key: two tasks that touch different keys do not meet.

    The order of keys counts only for dicts that are ever looked at as a whole.
    """
    append = tracker.log.append
    base = tracker.names.base
    changed = tracker.changed
    key_location = tracker.part_location
    missing = object()
    raw_get = dict.get

    class TrackedDict(dict[Any, Any]):
        __slots__ = ("in_order",)
        __hash__: ClassVar[None] = None

        def _read(self, key: object, value: object) -> None:
            append(id(self) << 10 | IS)
            kind = X if value.__class__ in PLAIN else S
            append(key_location(self, key) << 2 | kind)

        def _write(self, key: object) -> None:
            oid = id(self) << 10
            if oid not in changed and id(self) in base:
                changed[oid] = (self, None, dict(dict.items(self)))
            append(key_location(self, key) << 2 | X)
            whole = dict.__contains__(self, key) or not hasattr(self, "in_order")
            append(oid | (IX if whole else X))

        def look_at_order(self) -> None:
            if not hasattr(self, "in_order"):
                self.in_order = True
                tracker.order_counts(self)

        def _all(self) -> None:
            if not hasattr(self, "in_order") and tracker.sees():
                self.look_at_order()
            append(id(self) << 10 | S)

        def _rewrite(self) -> None:
            oid = id(self) << 10
            if oid not in changed and id(self) in base:
                changed[oid] = (self, None, dict(dict.items(self)))
            append(oid | X)

        def __getitem__(self, key: object) -> Any:
            value = raw_get(self, key, missing)
            self._read(key, value)
            if value is missing:
                raise KeyError(key)
            return value

        def get(self, key: object, default: Any = None) -> Any:
            value = raw_get(self, key, default)
            self._read(key, value)
            return value

        def __contains__(self, key: object) -> bool:
            self._read(key, None)
            return dict.__contains__(self, key)

        def __setitem__(self, key: object, value: object) -> None:
            self._write(key)
            dict.__setitem__(self, key, value)

        def __delitem__(self, key: object) -> None:
            self._write(key)
            append(id(self) << 10 | (X if hasattr(self, "in_order") else IX))
            dict.__delitem__(self, key)

        def pop(self, key: object, *default: Any) -> Any:
            self._write(key)
            append(id(self) << 10 | (X if hasattr(self, "in_order") else IX))
            return dict.pop(self, key, *default)

        def setdefault(self, key: object, default: Any = None) -> Any:
            self._write(key)
            return dict.setdefault(self, key, default)

        def popitem(self) -> Any:
            self._rewrite()
            return dict.popitem(self)

        def clear(self) -> None:
            self._rewrite()
            dict.clear(self)

        def update(self, *args: Any, **named: Any) -> None:
            self._rewrite()
            dict.update(self, *args, **named)

        def __iter__(self) -> Any:
            self._all()
            return dict.__iter__(self)

        def __len__(self) -> int:
            # How many there are does not depend on their order.
            append(id(self) << 10 | S)
            return dict.__len__(self)

        def items(self) -> Any:
            self._all()
            return dict.items(self)

        def keys(self) -> Any:
            self._all()
            return dict.keys(self)

        def values(self) -> Any:
            self._all()
            return dict.values(self)

        def copy(self) -> Any:
            self._all()
            return dict(dict.items(self))

        def __eq__(self, other: object) -> bool:
            self._all()
            return dict.__eq__(self, other)

        def __reduce_ex__(self, protocol: Any) -> Any:
            return (dict, (dict(dict.items(self)),))

    reads = ("get", "__getitem__", "__contains__")
    for name in (*reads, "__setitem__", "__delitem__", "pop", "setdefault"):
        logging = vars(TrackedDict)[name]
        tracker.patches.hushable.append((TrackedDict, name, logging, getattr(dict, name)))
    return TrackedDict
