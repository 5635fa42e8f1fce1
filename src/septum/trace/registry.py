"""Which events there are: every subclass of `Event` that a room defines in its events.py."""

from __future__ import annotations

import importlib
from functools import cache
from typing import TYPE_CHECKING

from septum.sim.events import Event

if TYPE_CHECKING:
    from collections.abc import Iterator

EVENT_MODULES = (
    "septum.sim.events",
    "septum.module.events",
    "septum.linux.kvm.events",
    "septum.guest.events",
    "septum.vmm.events",
)
"""Where rooms define events."""


class RegistryError(Exception):
    """Two event classes share a tag, or one has none: a defect of Septum."""


def _subclasses(cls: type[Event]) -> Iterator[type[Event]]:
    for child in cls.__subclasses__():
        yield child
        yield from _subclasses(child)


def event_tag(cls: type[Event]) -> str:
    """The tag of an event class, which is the value of "type" in a trace."""
    tag = cls.__struct_config__.tag
    if not isinstance(tag, str):
        raise RegistryError(f"{cls.__module__}.{cls.__qualname__} has no text tag")
    return tag


@cache
def event_types() -> dict[str, type[Event]]:
    """tag -> class of every event, in order of tags. Raises RegistryError when two share one.

    Classes are those of `EVENT_MODULES`; a subclass that somebody defines elsewhere (a test) does
    not change what a trace can hold.
    """
    for module in EVENT_MODULES:
        importlib.import_module(module)
    types: dict[str, type[Event]] = {}
    for cls in _subclasses(Event):
        if cls.__module__ not in EVENT_MODULES:
            continue
        tag = event_tag(cls)
        if tag in types and types[tag] is not cls:
            raise RegistryError(f"{types[tag].__qualname__} and {cls.__qualname__} are both {tag}")
        types[tag] = cls
    return dict(sorted(types.items()))


def fields_of(cls: type[Event]) -> tuple[str, ...]:
    """The names of the fields of an event class, the common ones first."""
    return cls.__struct_fields__
