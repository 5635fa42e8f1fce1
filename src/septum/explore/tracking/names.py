"""What objects go by: their addresses differ from run to run, and are given again within one.

An object of the built world is where it was whenever a run begins: its id is its name. One that a
run made goes by its maker, its class, and a number (`own` says which), or by what it
stands for, whoever makes it. A lock shares its name with its list of waiters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.explore.tracking.adopt import CONTAINERS
from septum.explore.tracking.locations import class_of_keyed, keyed_name
from septum.explore.tracking.private import LOCKS

if TYPE_CHECKING:
    from septum.explore.tracking.track import Tracker
    from septum.sim.state import Snapshot


class Names:
    """Of the objects of one world, and of those of the run that is under way in it."""

    __slots__ = ("_gone", "_kinds", "_tracker", "base", "made", "objects", "of_base")

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self.base: set[int] = set()  # ids of the objects of the built world
        self.of_base: dict[int, object] = {}  # those objects, by id
        self.made: dict[int, int] = {}  # id of an object made in this run -> its name
        self.objects: dict[int, object] = {}  # those objects, by name
        self._gone: set[int] = set()  # ids of objects that had a name, which others have now
        self._kinds: dict[object, int] = {}

    def install(self, snapshot: Snapshot) -> None:
        """`snapshot` is of the built world."""
        self.of_base = {id(part.obj): part.obj for part in snapshot.parts}
        self.base.clear()
        self.base.update(self.of_base)

    def begin(self) -> None:
        """A run begins."""
        self.made.clear()
        self._gone.clear()
        self.objects.clear()

    def number_of(self, kind: object) -> int:
        """The number of a class, or of the slot that a container was made for."""
        return self._kinds.setdefault(kind, len(self._kinds) + 1)

    def give(self, obj: object, kind: object) -> None:
        """Give an object of this run a name."""
        tracker = self._tracker
        self._put(obj, tracker.own.name_for(tracker.sim.current.index, self.number_of(kind)))

    def give_by(self, obj: object, kind: object, key: int) -> None:
        """Name an object of this run by what it stands for, whoever makes it."""
        name = keyed_name(self.number_of(kind), key)
        if name in self.objects:
            self.unname(name)
        self._put(obj, name)

    def _put(self, obj: object, name: int) -> None:
        for part in _all_of(obj):
            self.made[id(part)] = name
            self._gone.discard(id(part))
        self.objects[name] = obj
        self._tracker.steps.fresh.append(name)

    def unname(self, name: int) -> None:
        """The object that had a name is gone; another will have it."""
        for part in _all_of(self.objects.pop(name)):
            self.made.pop(id(part), None)
            self._gone.add(id(part))

    def name_of(self, oid: int) -> int:
        """The name of an object by its id; 0 where it has none."""
        return oid if oid in self.base else self.made.get(oid, 0)

    def is_gone(self, oid: int) -> bool:
        """Whether an object made in this run had the id, and nobody has it any more."""
        return oid in self._gone

    def class_at(self, name: int) -> int:
        """The number of the class of what is in the built world, or goes by what it stands for; 0
        for a container of the built world."""
        obj = self.of_base.get(name)
        if obj is None:
            return class_of_keyed(name)
        return 0 if isinstance(obj, CONTAINERS) else self.number_of(type(obj))


def _all_of(obj: object) -> tuple[object, ...]:
    """What goes by one name: an object, and those who wait for it."""
    return (obj, obj.waiters) if isinstance(obj, LOCKS) else (obj,)
