"""Slots of the classes of the model: which have locations, which tell that they are looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.explore.tracking.adopt import CONTAINERS
from septum.explore.tracking.locations import CLASS_AND_SLOT, made_in_run
from septum.explore.tracking.private import LOCKS
from septum.explore.tracking.special import AS_ONE
from septum.machine.mem import PhysMem
from septum.sim.state import slots_of

if TYPE_CHECKING:
    from septum.explore.tracking.track import Tracker

Slot = tuple[int, type, str]
"""(number within the class, class that has it, name)."""


class Places:
    """Of the classes that a tracker watches. `told_by_hand`: classes with methods that say what is
    done to an object; `locks`: the numbers of those that are taken and given back."""

    __slots__ = ("_silent", "_tracker", "locks", "told_by_hand")

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._silent: dict[int, bool] = {}
        self.told_by_hand: set[type] = set()
        self.locks: set[int] = set()

    def forget(self) -> None:
        """More slots are logged than before."""
        self._silent.clear()

    def in_class(self, kind: type) -> tuple[int, ...]:
        """The numbers of the slots of a class that have locations of their own."""
        if kind.__name__ in AS_ONE or issubclass(kind, (*CONTAINERS, *LOCKS)):
            return (0,)
        return tuple([k for k, _, _ in self._watched(kind)])

    def unlogged(self, kind: type) -> tuple[Slot, ...]:
        """The slots of a class that no run is known to write after construction."""
        if kind.__name__ in AS_ONE or issubclass(kind, CONTAINERS):
            return ()
        logged = self._tracker.logged
        return tuple([slot for slot in self._watched(kind) if slot[1:] not in logged])

    def _watched(self, kind: type) -> list[Slot]:
        members = self._tracker.members
        return [
            (k, member.__objclass__, name)
            for k, (name, member) in enumerate(slots_of(kind))
            if (member.__objclass__, name) in members
        ]

    def is_silent(self, location: int) -> bool:
        """Whether what is at the location of an object that the run made is looked at without a
        word: no run has written to such a one after it was made."""
        kind = location & CLASS_AND_SLOT if made_in_run(location) else location
        known = self._silent.get(kind)
        if known is None:
            obj = self._tracker.names.objects.get(location >> 8)
            if obj is None:
                return True
            k = location & 255
            known = any(k == slot for slot, _, _ in self.unlogged(type(obj)))
            self._silent[kind] = known
        return known

    def is_slot(self, location: int) -> bool:
        """Whether a location is a slot of the built world that tells by itself what is done to it:
        to write to it is not to look at it."""
        obj = self._tracker.names.of_base.get(location >> 8)
        return obj is not None and type(obj) not in self.told_by_hand

    def is_in_parts(self, location: int) -> bool:
        """Whether what is at a location is told by its parts alone: it is memory."""
        return isinstance(self._tracker.names.of_base.get(location >> 8), PhysMem)
