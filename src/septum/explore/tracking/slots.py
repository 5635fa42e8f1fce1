"""Slots that log that they are read and written.

A slot's property takes the place of its descriptor in the class. The log holds numbers:
the id of the object, the number of the slot, the kind of access.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any

from septum.explore.tracking.footprint import IS, IX, S, X

if TYPE_CHECKING:
    import types
    from collections.abc import Callable

    from septum.explore.tracking.track import Tracker

MISSING = object()
"""Stands for what a slot holds that was never written."""


def logging_slot(
    tracker: Tracker, member: types.MemberDescriptorType, k: int, *, counting: bool, special: bool
) -> property:
    """Slot number `k` of a class. `counting`: it is a lock word whose shared holders commute;
    `special`: the containers in it are told of by other means."""
    return property(
        _getter(tracker, member, k, IS if counting else S, special),
        _setter(tracker, member, k, counting),
    )


def _getter(
    tracker: Tracker, member: types.MemberDescriptorType, k: int, kind: int, special: bool
) -> Callable[[object], object]:
    append = tracker.log.append
    get = member.__get__
    read = k << 2 | kind
    leak = k << 2 | (kind if special else X)
    leaks = tracker.leaks

    def logged_get(obj: object) -> object:
        value = get(obj)
        append(id(obj) << 10 | (leak if value.__class__ in leaks else read))
        return value

    return logged_get


def _setter(
    tracker: Tracker, member: types.MemberDescriptorType, k: int, counting: bool
) -> Callable[[object, object], None]:
    append = tracker.log.append
    changed = tracker.changed
    get: Callable[[object], Any] = member.__get__
    put = member.__set__
    building = tracker.building
    base = tracker.names.base
    slot = k << 2

    def logged_set(obj: object, value: Any) -> None:
        oid = id(obj)
        if oid == building[0]:
            put(obj, value)
            return
        key = oid << 10 | slot
        try:
            old = get(obj)
        except AttributeError:
            old = MISSING
        if oid in base and (key, put) not in changed:
            changed[key, put] = (obj, put, old)
        if counting and old is not MISSING and not (old | value) & 3 and abs(value - old) == 4:
            append(key | IX)
        elif value is old and isinstance(value, list | dict | set | array):
            append(key | S)
        else:
            append(key | X)
        put(obj, value)

    return logged_set
