"""What each task alone has changed in a run: its own objects, and its parts of the world.

Nobody else looks at it, so that it is no part of what tasks share; but it decides how its task goes
on, as what is on its stack does. Objects that a run makes are named here, so that a name says the
same in all runs: by their maker, their class, and a number, the least that no living object has.
"""

from __future__ import annotations

from sys import getrefcount
from typing import TYPE_CHECKING

from septum.explore.footprint import IX, NEW_LOCATION, X, made_in_run
from septum.explore.mix import spread

if TYPE_CHECKING:
    from collections.abc import Iterable

    from septum.explore.track import Tracker

OWN_REFERENCES = 3
"""References to an object that one slot alone refers to: its, a local name, an argument."""

NOBODYS = 2
"""References to an object that nobody has any more: the table's, an argument."""

REUSED_MAX = 16
"""So many numbers of one class are given again when they are free."""

_NUMBER = 0xFFFFFF


Noted = tuple[int, int, int | None, bool, bool]
"""(task, location, content, whether promises read it, whether it changes without a word: as a value
of one task does, or a whole of which only a part is written)."""


class _Contents:
    """Contents by location, and all of them as one number; `shown`: of those that promises see."""

    __slots__ = ("by_location", "nr_unknown", "shown", "total")

    def __init__(self) -> None:
        self.by_location: dict[int, int] = {}
        self.total = 0
        self.shown = 0
        self.nr_unknown = 0  # how many cannot be told

    def put(self, location: int, content: int | None, watched: bool) -> None:
        new = 0 if content is None else spread(hash((location, content))) or 1
        old = self.by_location.get(location)
        if old != new:
            self.by_location[location] = new
            self.total += new - (old or 0)
            self.nr_unknown += (new == 0) - (old == 0)
            if watched:
                self.shown += new - (old or 0)


class OwnState:
    """By task: the contents of what it alone changed."""

    __slots__ = (
        "_counts",
        "_free",
        "_made_by",
        "_objects",
        "_restless",
        "_reusable",
        "_tracker",
        "_world",
        "noted",
    )

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._counts: dict[int, int] = {}  # numbers given, by task and class
        self._made_by: dict[int, list[int]] = {}  # names, by task
        self._reusable: list[int] = []  # names of living objects whose numbers may be given again
        self._free: dict[int, list[int]] = {}  # names of others, by task and class
        self._objects: dict[int, _Contents] = {}  # by name
        self._world: dict[int, _Contents] = {}  # by task: of objects of the built world
        # Locations that hold values of one task, which change without a word.
        self._restless: dict[int, set[int]] = {}
        self.noted: list[Noted] = []  # since somebody emptied it

    def begin(self) -> None:
        """A run begins."""
        self._counts.clear()
        self._made_by.clear()
        self._reusable.clear()
        self._free.clear()
        self._objects.clear()
        self._world.clear()
        self._restless.clear()

    def name_for(self, task: int, kind: int) -> int:
        """The name of an object of the class `kind` that `task` makes."""
        first = NEW_LOCATION | task << 40 | kind << 24
        free = self._free.get(first)
        if free:
            name = min(free)
            free.remove(name)
            self._tracker.unname(name)
            self._objects.pop(name, None)
            self._reusable.append(name)
            return name
        count = self._counts[first] = self._counts.get(first, 0) + 1
        name = first + count
        self._made_by.setdefault(task, []).append(name)
        if count <= REUSED_MAX:
            self._reusable.append(name)
        return name

    def settle(self) -> None:
        """A step is over: whose numbers may be given again is looked at now, when nothing that has
        returned holds anything any more."""
        objects = self._tracker.objects
        gone = [name for name in self._reusable if getrefcount(objects[name]) <= NOBODYS]
        for name in gone:
            self._reusable.remove(name)
            self._free.setdefault(name & ~_NUMBER, []).append(name)

    def note(self, accesses: Iterable[int]) -> None:
        """What was written to by `accesses` has the contents of now."""
        footprints = self._tracker.footprints
        for access in accesses:
            if access & 3 in (X, IX):
                location = access >> 2
                owner = footprints.owner_of(location)
                if owner and (access & 3 == X or not self._tracker.may_have_parts(location)):
                    self._note(owner.bit_length() - 1, location)
                if access & 3 == X and location in footprints.parts:
                    self._note_parts(location)

    def _note_parts(self, whole: int) -> None:
        """A whole was written to: with it all of its parts."""
        footprints = self._tracker.footprints
        for part in footprints.parts[whole]:
            owner = footprints.owner_of(part)
            if owner:
                self._note(owner.bit_length() - 1, part)
            if part in footprints.parts:
                self._note_parts(part)

    def _note(self, task: int, location: int) -> None:
        told = self._tracker.contents
        told.met_private = False
        content = self._tracker.content_of(location)
        restless = told.met_private or self._tracker.may_have_parts(location)
        noted = (task, location, content, self._tracker.watched[location], restless)
        self.noted.append(noted)
        self._put(*noted)

    def follow(self, noted: Iterable[Noted]) -> None:
        """A step was made that is known to leave this: nobody looks."""
        for one in noted:
            self._put(*one)

    def _put(
        self, task: int, location: int, content: int | None, watched: bool, restless: bool
    ) -> None:
        whole = self._tracker.footprints.whole_of.get(location, location)
        if made_in_run(whole):
            contents = self._objects.get(whole >> 8)
            if contents is None:
                contents = self._objects[whole >> 8] = _Contents()
        else:
            contents = self._world.get(task)
            if contents is None:
                contents = self._world[task] = _Contents()
        contents.put(location, content, watched)
        if restless:
            self._restless.setdefault(task, set()).add(location)

    def _look_again(self, task: int) -> None:
        """At what changes without a word."""
        tracker = self._tracker
        for location in self._restless.get(task, ()):
            self._put(task, location, tracker.content_of(location), tracker.watched[location], True)

    def digest(self, task: int) -> int | None:
        """All of it, as one number; None where some cannot be told."""
        self._look_again(task)
        world = self._world.get(task)
        if world is not None and world.nr_unknown:
            return None
        total = 0 if world is None else world.total
        objects = self._tracker.objects
        for name in self._made_by.get(task, ()):
            if getrefcount(objects[name]) > NOBODYS:
                contents = self._objects.get(name)
                if contents is not None:
                    if contents.nr_unknown:
                        return None
                    total += contents.total
                total += spread(hash((name,)))
            if name & _NUMBER > REUSED_MAX:
                total += spread(hash((name, 0)))  # the number of the next one is a higher one
        return hash(total)

    def shown(self, task: int) -> int | None:
        """What promises can see of it, as one number; None where some of it cannot be told."""
        self._look_again(task)
        objects = self._tracker.objects
        held = [self._world.get(task)]
        held += [
            self._objects.get(name)
            for name in self._made_by.get(task, ())
            if getrefcount(objects[name]) > NOBODYS
        ]
        total = 0
        for contents in held:
            if contents is not None:
                if contents.nr_unknown:
                    return None
                total += contents.shown
        return hash(total)
