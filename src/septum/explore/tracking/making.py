"""What objects are made with, where nobody writes to it later.

Reads of such slots are not logged: whoever has an object finds there what its maker put there, and
what the object is called follows from who made it. But a maker may put different things into what
is called alike, by what it saw, and when it is gone nobody remembers what that was. So where
objects of one name were made in two ways, and others can get at such objects, the slot is logged
like one that is written to. What was computed before lacks it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.explore.tracking.special import KEYED

if TYPE_CHECKING:
    from septum.explore.tracking.places import Slot
    from septum.explore.tracking.track import Tracker


class Making:
    """Compares what runs make, in all steps that are learned."""

    __slots__ = ("_handed_on", "_made_as", "_tracker", "_two_ways", "_unlogged")

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        # The contents of slots of the first object, by its class (or its name), and number.
        self._made_as: dict[tuple[object, int], int] = {}
        self._unlogged: dict[type, tuple[int, tuple[Slot, ...]]] = {}
        self._two_ways: dict[type, set[tuple[type, str]]] = {}  # by class: slots
        self._handed_on: set[type] = set()  # classes of objects that others could get at

    def look(self, name: int, obj: object) -> None:
        """A step has made an object."""
        kind = type(obj)
        told = self._tracker.contents
        is_shared = self._tracker.footprints.is_shared
        keyed = kind.__name__ in KEYED
        alike = name if keyed else kind
        others = keyed or kind in self._handed_on  # can get at it
        for k, owner, slot in self._slots(kind):
            content = told.of_slot(obj, k)
            if content is None:
                continue
            two_ways = self._two_ways.setdefault(kind, set())
            if self._made_as.setdefault((alike, k), content) != content:
                two_ways.add((owner, slot))
            if (owner, slot) in two_ways and (others or is_shared(name << 8 | k)):
                self._tracker.log_slot(owner, slot)

    def is_handed_on(self, name: int) -> None:
        """Others than its maker can get at an object from now on."""
        kind = type(self._tracker.names.objects[name])
        if kind not in self._handed_on:
            self._handed_on.add(kind)
            for owner, slot in sorted(self._two_ways.get(kind, ()), key=lambda one: one[1]):
                self._tracker.log_slot(owner, slot)

    def _slots(self, kind: type) -> tuple[Slot, ...]:
        nr_logged = len(self._tracker.logged)
        known = self._unlogged.get(kind)
        if known is None or known[0] != nr_logged:
            known = self._unlogged[kind] = (nr_logged, self._tracker.places.unlogged(kind))
        return known[1]
