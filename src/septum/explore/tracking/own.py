"""What each task alone has changed in a run: its own objects, and its parts of the world.

Nobody else looks at it, so that it is no part of what tasks share; but it decides how its task goes
on, as what is on its stack does. Objects that a run makes are named here, so that a name says the
same in all runs: by their maker, their class, and a number, the least that is free.

Which numbers are free must follow from what the maker did and saw. Of an object that only its maker
has it does: its number is free again when it dies. As soon as others can get at an object, because
something that tasks share leads to it, it may live or die with what is on any task's stack; it is
*handed on* then, and its number is never given again, whether it lives or not.
"""

from __future__ import annotations

from sys import getrefcount
from typing import TYPE_CHECKING

from septum.explore.states.stand import Own, sign_of
from septum.explore.tracking.footprint import IX, X
from septum.explore.tracking.locations import (
    FIRST_MADE,
    MADE_NAME,
    made_in_run,
    made_names,
    maker_of,
    without_nr,
)
from septum.explore.tracking.mix import spread

if TYPE_CHECKING:
    from collections.abc import Iterable

    from septum.explore.tracking.track import Tracker

OWN_REFERENCES = 3
"""References to an object that one slot alone refers to: its, a local name, an argument."""

NOBODYS = 2
"""References to an object that nobody has any more: the table's, an argument."""

REUSED_MAX = 16
"""So many numbers of one class may be given again when they are free; others never are."""

Noted = tuple[int, int, int, bool, bool]
"""(task, location, what stands for its content there, whether promises read it, whether it changes
without a word: as a value of one task does, or a whole of which only a part is written)."""

UNKNOWN = 0
"""Stands for a content that cannot be told."""


class _Tally:
    """What stands for contents, by location, and the sum of it all; `shown`: of those that promises
    see; `silent`: of those that are looked at without a word."""

    __slots__ = ("by_location", "nr_unknown", "shown", "silent", "total")

    def __init__(self) -> None:
        self.by_location: dict[int, int] = {}
        self.total = 0
        self.shown = 0
        self.silent = 0
        self.nr_unknown = 0  # how many cannot be told

    def put(self, location: int, new: int, *, watched: bool, silent: bool) -> None:
        old = self.by_location.get(location)
        if old != new:
            self.by_location[location] = new
            self.total += new - (old or 0)
            if silent:
                self.silent += new - (old or 0)
            self.nr_unknown += (new == UNKNOWN) - (old == UNKNOWN)
            if watched:
                self.shown += new - (old or 0)

    def add(self, more: _Tally) -> None:
        """What `more` has, of other locations, is with these now."""
        self.by_location.update(more.by_location)
        self.total += more.total
        self.shown += more.shown
        self.silent += more.silent
        self.nr_unknown += more.nr_unknown


class OwnState:
    """By task: the contents of what it alone changed."""

    __slots__ = (
        "_alone",
        "_counts",
        "_free",
        "_handed_on",
        "_lasting",
        "_nr_reusable",
        "_objects",
        "_pending",
        "_restless",
        "_reusable",
        "_tracker",
        "_world",
        "noted",
        "refers",
    )

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._counts: dict[int, int] = {}  # numbers given, by task and class
        self._alone: dict[int, list[int]] = {}  # names of what nobody else ever had, by task
        self._handed_on: set[int] = set()  # names of the other objects
        self._lasting: dict[int, int] = {}  # by task: names that are never given again
        self._nr_reusable: dict[int, int] = {}  # names that may be, by task and class
        self._reusable: list[int] = []  # those of them that living objects have
        self._free: dict[int, list[int]] = {}  # the others, by task and class
        self._objects: dict[int, _Tally] = {}  # by name
        # By task: of objects of the built world, and of its own that were handed on.
        self._world: dict[int, _Tally] = {}
        # Locations whose contents change without a word.
        self._restless: dict[int, set[int]] = {}
        # Locations that ever led to what tasks made, or held values of theirs.
        self.refers: set[int] = set()
        self.noted: list[Noted] = []  # since somebody emptied it
        self._pending: list[Noted] = []  # of steps that were followed, not put anywhere yet

    def begin(self) -> None:
        """A run begins."""
        self._counts.clear()
        self._alone.clear()
        self._handed_on.clear()
        self._lasting.clear()
        self._nr_reusable.clear()
        self._reusable.clear()
        self._free.clear()
        self._objects.clear()
        self._world.clear()
        self._restless.clear()
        self._pending.clear()

    def name_for(self, task: int, kind: int) -> int:
        """The name of an object of the class `kind` that `task` makes."""
        alike = made_names(task, kind)
        free = self._free.get(alike)
        if free:
            name = min(free)
            free.remove(name)
            self._tracker.names.unname(name)
            self._catch_up()
            self._objects.pop(name, None)
            self._reusable.append(name)
            return name
        count = self._counts[alike] = self._counts.get(alike, 0) + 1
        name = alike + count
        self._alone.setdefault(task, []).append(name)
        reusable = self._nr_reusable.get(alike, 0)
        if reusable < REUSED_MAX:
            self._nr_reusable[alike] = reusable + 1
            self._reusable.append(name)
        else:
            self._keep_for_good(name)
        return name

    def _keep_for_good(self, name: int) -> None:
        task = maker_of(name)
        self._lasting[task] = self._lasting.get(task, 0) + spread(hash((name, 0)))

    def settle(self, task: int) -> bool:
        """A step of `task` is over: whose numbers may be given again is looked at now, when nothing
        that has returned holds anything any more. Whether what died was made by the same task, or
        before any step; else something led to it that nobody was told of."""
        objects = self._tracker.names.objects
        gone = [name for name in self._reusable if getrefcount(objects[name]) <= NOBODYS]
        for name in gone:
            self._reusable.remove(name)
            self._free.setdefault(without_nr(name), []).append(name)
        return not gone or {maker_of(name) for name in gone} <= {0, task}

    # What others can get at

    def reach(
        self, task: int, locations: Iterable[int]
    ) -> tuple[dict[int, int | None], tuple[int, ...]]:
        """A step of `task` wrote to `locations`, which tasks share: (their contents now, the names
        of the objects that it handed on with them)."""
        tracker = self._tracker
        named = tracker.contents.named
        whole_of = tracker.footprints.whole_of
        found: list[int] = []
        contents: dict[int, int | None] = {}
        for location in locations:
            named.clear()
            content = contents[location] = tracker.content_of(location)
            holder = whole_of.get(location, location) >> 8
            # What is in an object that only its maker has is handed on when the object is.
            if holder < MADE_NAME or holder in self._handed_on or content is None:
                found += self._named(task, content)
        fresh: list[int] = []
        for name in found:
            if name not in self._handed_on:
                self._hand_on(name)
                fresh.append(name)
                # And all that leads on from there.
                for content in tracker.contents.of_parts(tracker.names.objects[name]):
                    found += self._named(task, content)
                tracker.making.is_handed_on(name)
        return contents, tuple(fresh)

    def _named(self, task: int, content: int | None) -> list[int]:
        """The objects that `task` made and that were met in telling a content."""
        if content is not None:
            named = self._tracker.contents.named
            return sorted(n for n in named if n >= MADE_NAME and maker_of(n) == task)
        # It cannot be told: so it may be all.
        objects = self._tracker.names.objects
        return [n for n in self._alone.get(task, ()) if getrefcount(objects[n]) > NOBODYS]

    def hand_on(self, names: Iterable[int]) -> bool:
        """A step was made that is known to hand these on: nobody looks. Whether it may be so."""
        for name in names:
            if name not in self._alone.get(maker_of(name), ()):
                return False
            self._hand_on(name)
        return True

    def _hand_on(self, name: int) -> None:
        """Others can get at an object from now on."""
        self._catch_up()  # to where what was left is until now
        task = maker_of(name)
        self._handed_on.add(name)
        self._alone[task].remove(name)
        if name in self._reusable:
            self._reusable.remove(name)
            self._nr_reusable[without_nr(name)] -= 1
            self._keep_for_good(name)
        tally = self._objects.pop(name, None)
        if tally is not None:
            self._world.setdefault(task, _Tally()).add(tally)

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
        told.held.clear()
        told.named.clear()
        content = self._tracker.content_of(location)
        if told.held or any(name >= MADE_NAME for name in told.named):
            self.refers.add(location)
        restless = bool(told.held) or self._tracker.may_have_parts(location)
        noted = (
            task,
            location,
            _sign(location, content),
            self._tracker.watched[location],
            restless,
        )
        self.noted.append(noted)
        self._catch_up()
        self._put(*noted)

    def follow(self, noted: Iterable[Noted]) -> None:
        """A step was made that is known to leave this: nobody looks."""
        self._pending += noted

    def _catch_up(self) -> None:
        """Put what was left where it belongs, before anybody asks for it, or names change."""
        if self._pending:
            last = {one[:2]: one for one in self._pending}
            for one in last.values():
                self._put(*one)
            self._pending.clear()

    def _put(self, task: int, location: int, sign: int, watched: bool, restless: bool) -> None:
        whole_of = self._tracker.footprints.whole_of
        whole = location
        while whole in whole_of:
            whole = whole_of[whole]
        name = whole >> 8
        made = made_in_run(whole)
        if made and name not in self._handed_on:
            tally = self._objects.get(name)
            if tally is None:
                tally = self._objects[name] = _Tally()
        else:
            tally = self._world.get(task)
            if tally is None:
                tally = self._world[task] = _Tally()
        silent = whole >= FIRST_MADE and self._tracker.places.is_silent(whole)
        tally.put(location, sign, watched=watched, silent=silent)
        if restless:
            self._restless.setdefault(task, set()).add(location)

    def _look_again(self, task: int) -> dict[int, frozenset[int]]:
        """At what changes without a word. Where values of one task are among that, and their
        ids."""
        self._catch_up()
        tracker = self._tracker
        held = tracker.contents.held
        changing: dict[int, frozenset[int]] = {}
        for location in self._restless.get(task, ()):
            held.clear()
            sign = _sign(location, tracker.content_of(location))
            self._put(task, location, sign, tracker.watched[location], True)
            if held:
                changing[location] = frozenset(held)
        return changing

    def look(self, task: int) -> Own | None:
        """All of it; None where some of it cannot be told."""
        changing = self._look_again(task)
        lasting = self._lasting.get(task, 0)
        objects = self._tracker.names.objects
        alive = tuple(
            [name for name in self._alone.get(task, ()) if getrefcount(objects[name]) > NOBODYS]
        )
        told = [self._objects[name] for name in alive if name in self._objects]
        if task in self._world:
            told.append(self._world[task])
        total = lasting + sum([spread(hash((name,))) for name in alive])
        shown = silent = 0
        contents: dict[int, int] = {}
        for some in told:
            if some.nr_unknown:
                return None
            total += some.total
            shown += some.shown
            silent += some.silent
            contents.update(some.by_location)
        return Own(contents, (total, shown, lasting, silent), alive, changing)


def _sign(location: int, content: int | None) -> int:
    """What stands for a content at a location, where sums are made of such."""
    return UNKNOWN if content is None else sign_of(location, content)
