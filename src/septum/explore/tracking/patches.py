"""What a tracker changes for the time that it watches: attributes of the model's classes, put back
at its end, and what runs write to the built world, put back after each of them."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from septum.explore.tracking.slots import MISSING
from septum.explore.tracking.tracked import put_back

if TYPE_CHECKING:
    from collections.abc import Callable


class Patches:
    """Attributes of classes that are others meanwhile. `hushable`: what logs, and what does the
    same without (class, name, the one, the other)."""

    __slots__ = ("_originals", "hushable", "hushed")

    def __init__(self) -> None:
        self._originals: list[tuple[type, str, object]] = []
        self.hushable: list[tuple[type, str, object, object]] = []
        self.hushed = False  # nothing is logged now

    def put(self, kind: type, name: str, value: object) -> None:
        """Give a class another attribute."""
        self._originals.append((kind, name, vars(kind)[name]))
        setattr(kind, name, value)

    def hush(self, quiet: bool) -> None:
        """From now on log nothing, or again all. Only for steps that were logged once, in this
        process: what they change is known, and can be undone."""
        if quiet is not self.hushed:
            self.hushed = quiet
            for kind, name, logging, plain in self.hushable:
                setattr(kind, name, plain if quiet else logging)

    def undo(self) -> None:
        """Put every class back as it was."""
        for kind, name, original in reversed(self._originals):
            setattr(kind, name, original)
        self._originals.clear()
        self.hushable.clear()
        self.hushed = False


class Changed(dict[object, tuple[object, "Callable[..., None] | None", object]]):
    """What runs have changed of the built world, ever: an object, how to put it back (None: it is a
    tracked container), and what it was."""

    __slots__ = ()

    def put_back(self) -> None:
        """All of it, whether this run has changed it or not."""
        for obj, put, old in self.values():
            if put is None:
                put_back(obj, old)
            elif old is not MISSING:
                put(obj, old)
            else:
                with suppress(AttributeError):  # this run has not written it
                    # A slot's setter is a bound method of its descriptor; its type says less.
                    put.__self__.__delete__(obj)  # type: ignore[attr-defined]
