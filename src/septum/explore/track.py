"""Tells what each step of a run touches, and undoes the run, without the model's help.

While a tracker is installed, the slots of the model's classes are properties that log, the
world's containers are tracked twins, and locks say how they are used. Whatever cannot be tracked
is refused (`NotTrackable`), and the search then runs every schedule, one by one.

Three things make it affordable. Slots that no run ever writes after construction are only
watched, not logged. Objects that are being constructed belong to nobody else yet. And classes
that are values of one task by their nature (`PRIVATE`) are left alone.
"""

from __future__ import annotations

import sys
import types
from array import array
from sys import getrefcount
from typing import TYPE_CHECKING, Any

from septum.explore.adopt import (
    CONTAINERS,
    NotTrackable,
    apart,
    classes_of,
    exchange,
    of_sim,
    ours,
    trackable,
    twin_of,
)
from septum.explore.footprint import IS, IX, Context, Footprints, S, X
from septum.explore.private import PRIVATE
from septum.explore.special import COUNTING_WORDS, is_statistic, specials
from septum.explore.tracked import PLAIN, container_types, put_back
from septum.explore.values import Contents
from septum.machine.mem import PhysMem
from septum.sim import Sim, WaitQueue
from septum.sim.locks import _Lock
from septum.sim.state import Snapshot, slots_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from septum.sim.state import Part

Patch = tuple[type, str, object]
_MISSING = object()
OWN_REFERENCES = 3
"""References to a container that one slot alone refers to: its, a local name, an argument."""

PART_LOCATION = 1 << 62
NEW_LOCATION = 1 << 63


class Tracker:
    """Installed for one world at a time; `uninstall` puts the classes back."""

    __slots__ = (
        "_as_built",
        "_base",
        "_building",
        "_contents",
        "_contexts",
        "_counts",
        "_installed",
        "_kinds",
        "_logged",
        "_members",
        "_names",
        "_objects",
        "_of_base",
        "_parts",
        "_patches",
        "_segments",
        "_sim_parts",
        "_twins",
        "_wholes",
        "footprints",
        "lock_of",
        "log",
        "looked",
        "reach",
        "results",
        "running",
        "sim",
        "touched",
        "undo",
        "waiting_at",
    )

    def __init__(self, sim: Sim) -> None:
        self.sim = sim
        self.log: list[int] = []
        self.results: dict[int, int] = {}  # by task: the results of its operations so far
        self.reach: Callable[[str], None] = lambda item: None  # is told what runs reach
        self.looked = False  # the step had the promises look at everything
        self.undo: dict[object, tuple[object, Callable[..., None] | None, object]] = {}
        self.footprints = Footprints()
        self.running = False
        self._base: set[int] = set()  # ids of the objects of the built world
        self._names: dict[int, int] = {}  # id of an object made in this run -> its stable number
        self._counts: dict[int, int] = {}  # objects made, by task and kind
        self._building = [0]  # id of the object whose __init__ runs
        self._parts: dict[tuple[int, object], int] = {}
        self._patches: list[Patch] = []
        self._members: dict[tuple[type, str], types.MemberDescriptorType] = {}
        self._logged: set[tuple[type, str]] = set()
        self._installed = False
        # Locks and wait queues that the run used, and all of the scheduler's state by owner.
        self.touched: dict[int, object] = {}
        self._contexts: dict[int, Context] = {}  # by task: the locks that it holds
        # What the step did before the running task last took or gave back a lock.
        self._segments: list[tuple[Context, list[int]]] = []
        # What stands where: objects of the built world by id, those that this run made by name.
        self._of_base: dict[int, object] = {}
        self._objects: dict[int, object] = {}
        self.lock_of: dict[int, object] = {}  # id of a list of waiters -> whose it is
        self.waiting_at: set[int] = set()
        self._wholes: dict[int, tuple[object, object]] = {}  # location of a part -> its place
        self._as_built: dict[int, int | None] = {}  # contents before any run
        self._contents = Contents(self._known_name)
        self._kinds: dict[object, int] = {}
        self._twins: dict[type, type] = {}
        self._sim_parts: dict[int, list[Part]] = {}

    # Installation

    def adopt(self, snapshot: Snapshot) -> None:
        """Replace the world's containers by tracked twins. The snapshot must be taken again."""
        for part in snapshot.parts:
            if not isinstance(part.obj, CONTAINERS) and not trackable(part) and not apart(part):
                raise NotTrackable(f"{part.path} is a {type(part.obj).__name__}")
        self._twins = container_types(self)
        exchange(snapshot, self._twins)

    def release(self, snapshot: Snapshot) -> None:
        """Give the world plain containers again. The snapshot must be taken again."""
        exchange(snapshot, {kind: kind for kind in CONTAINERS})

    def install(self, snapshot: Snapshot) -> None:
        """Begin to watch. `snapshot` is of the adopted world."""
        self._of_base = {id(part.obj): part.obj for part in snapshot.parts}
        self._base = set(self._of_base)
        self.lock_of = {
            id(part.obj.waiters): part.obj
            for part in snapshot.parts
            if isinstance(part.obj, _Lock | WaitQueue)
        }
        # Who waits is written by waiting, which is told as a look at what is waited for.
        self.waiting_at = {oid << 8 for oid in self.lock_of}
        for part in snapshot.parts:
            if of_sim(part):
                owner = part
                while isinstance(owner.obj, list | dict | set) and owner.owner is not None:
                    owner = owner.owner
                self._sim_parts.setdefault(id(owner.obj), []).append(part)
        modules = {type(part.obj).__module__ for part in snapshot.parts} | {
            name for name in sys.modules if name.startswith("septum.")
        }
        kinds = [kind for name in sorted(modules) if ours(name) for kind in classes_of(name)]
        for kind in kinds:
            slots_of(kind)  # remembered: a patched class does not show its slots any more
        for kind in kinds:
            self._watch_class(kind)
        for kind, method, make in specials(self):
            self._patch(kind, method, make(vars(kind)[method]))
        self._installed = True

    def uninstall(self) -> None:
        """Put every class back as it was."""
        for kind, name, original in reversed(self._patches):
            setattr(kind, name, original)
        self._patches.clear()
        self._installed = False

    def _patch(self, kind: type, name: str, value: object) -> None:
        self._patches.append((kind, name, vars(kind)[name]))
        setattr(kind, name, value)

    def _watch_class(self, kind: type) -> None:
        if kind.__name__ in PRIVATE:
            return
        own = [
            (k, name, member)
            for k, (name, member) in enumerate(slots_of(kind))
            if member.__objclass__ is kind
        ]
        for _, name, member in own:
            if is_statistic(kind, name):
                continue
            self._members[kind, name] = member
            self._patch(kind, name, property(member.__get__, self._first_write(kind, name)))
        if own and isinstance(vars(kind).get("__init__"), types.FunctionType):
            self._patch(kind, "__init__", self._construct(kind, vars(kind)["__init__"]))

    def _construct(self, kind: type, init: Callable[..., None]) -> Callable[..., None]:
        building = self._building
        name = self._name

        def construct(obj: object, *args: object, **named: object) -> None:
            outer = building[0]
            oid = id(obj)
            if outer != oid:
                name(obj, kind)
            building[0] = oid
            try:
                init(obj, *args, **named)
            finally:
                building[0] = outer
            if outer != oid and self.running:
                self._track_containers(obj)

        return construct

    def _name(self, obj: object, kind: object) -> None:
        """Give an object of this run a name: by its kind, counted for each task, so that what
        others made in between does not matter."""
        number = self._kinds.get(kind)
        if number is None:
            number = self._kinds[kind] = len(self._kinds) + 1
        first = NEW_LOCATION | self.sim.current.index << 40 | number << 24
        count = self._counts[first] = self._counts.get(first, 0) + 1
        self._names[id(obj)] = first + count
        self._objects[first + count] = obj

    def _track_containers(self, obj: object) -> None:
        """An object of this run was made: give it tracked containers where it alone has them, and
        have the others logged whenever they are got hold of."""
        kind = type(obj)
        for name, member in slots_of(kind):
            try:
                value = member.__get__(obj)
            except AttributeError:
                continue
            if value.__class__ not in PLAIN or is_statistic(kind, name):
                continue
            owner = member.__objclass__
            if value.__class__ in self._twins and getrefcount(value) == OWN_REFERENCES:
                twin = twin_of(self._twins[value.__class__], value)
                member.__set__(obj, twin)
                self._name(twin, member)
            elif (owner, name) in self._members and (owner, name) not in self._logged:
                self._log_slot(owner, name)

    # Slots

    def _first_write(self, kind: type, name: str) -> Callable[[object, object], None]:
        """The setter of a slot that nobody has written after construction so far."""
        member = self._members[kind, name]
        put = member.__set__
        get = member.__get__
        building = self._building

        def first_write(obj: object, value: object) -> None:
            if id(obj) == building[0]:
                put(obj, value)
                return
            try:
                get(obj)
            except AttributeError:
                if not self.running:
                    put(obj, value)
                    return
            self._log_slot(kind, name)
            setattr(obj, name, value)

        return first_write

    def _log_slot(self, kind: type, name: str) -> None:
        """From now on the slot's reads and writes are logged. What ran before lacks them."""
        member = self._members[kind, name]
        k = [m for _, m in slots_of(kind)].index(member)
        special = kind.__name__ in ("TablePage", "FrameBlock")
        if special:
            k = 0
        counting = (kind.__name__, name) in COUNTING_WORDS
        prop = property(
            self._getter(member, k, IS if counting else S, special),
            self._setter(member, k, counting),
        )
        setattr(kind, name, prop)
        self._logged.add((kind, name))
        self.footprints.grown = True

    def _getter(
        self, member: types.MemberDescriptorType, k: int, kind: int, special: bool
    ) -> Callable[[object], object]:
        append = self.log.append
        get = member.__get__
        read = k << 2 | kind
        leak = k << 2 | (kind if special else X)

        def logged_get(obj: object) -> object:
            value = get(obj)
            append(id(obj) << 10 | (leak if value.__class__ in PLAIN else read))
            return value

        return logged_get

    def _setter(
        self, member: types.MemberDescriptorType, k: int, counting: bool
    ) -> Callable[[object, object], None]:
        append = self.log.append
        undo = self.undo
        get: Callable[[object], Any] = member.__get__
        put = member.__set__
        building = self._building
        base = self._base
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
                old = _MISSING
            if oid in base and (key, put) not in undo:
                undo[key, put] = (obj, put, old)
            if counting and old is not _MISSING and not (old | value) & 3 and abs(value - old) == 4:
                append(key | IX)
            elif value is old and isinstance(value, list | dict | set | array):
                append(key | S)
            else:
                append(key | X)
            put(obj, value)

        return logged_set

    def part_location(self, whole: object, key: object) -> int:
        """The location of one element of a container or table."""
        oid = id(whole)
        name = (self._names.get(oid, oid), key)
        found = self._parts.get(name)
        if found is None:
            found = self._parts[name] = PART_LOCATION | len(self._parts)
            within = (name[0] << 8) if oid in self._base or oid in self._names else 0
            if isinstance(whole, PhysMem) and isinstance(key, int) and key >= 0:
                within = self.part_location(whole, ~(key >> 9))
            self.footprints.add_part(within, found)
        self._wholes[found] = (whole, key)
        return found

    # Contents

    def _known_name(self, oid: int) -> int:
        """The stable name of an object by its id; 0 where it has none."""
        return oid if oid in self._base else self._names.get(oid, 0)

    def content_of(self, location: int) -> int | None:
        """The content of a location now; None where it cannot be told."""
        place = self._wholes.get(location)
        if place is not None:
            return self._contents.of_part(*place)
        name = location >> 8
        obj = self._of_base.get(name)
        if obj is None:
            obj = self._objects.get(name)
            if obj is None:
                return None
        lock = self.lock_of.get(id(obj))
        if lock is not None:
            return self._contents.of_lock(lock)
        if isinstance(obj, CONTAINERS):
            return self._contents.of_container(obj)
        return self._contents.of_slot(obj, location & 255)

    def is_as_built(self, location: int, content: int) -> bool:
        """Whether a content is the one that the location was built with."""
        return content == self._as_built.get(location)

    def learn_as_built(self) -> None:
        """The contents of all that tasks share are as built now. Call when runs have been undone.

        Fingerprints made before do not compare with those made from now on.
        """
        self._as_built = {}
        for location in self.footprints.shared():
            place = self._wholes.get(location)
            if (location >> 8 if place is None else id(place[0])) in self._base:
                self._as_built[location] = self.content_of(location)

    def left_behind(self, task: int) -> int | None:
        """All that a task has left that no other ever touches, as one number; None where some of it
        cannot be told. What a task that has ended did matters by this, and by what it shared."""
        footprints = self.footprints
        total = 0
        locations = {_access_of(key) >> 2 for key in self.undo}
        for name, obj in self._objects.items():
            if name >> 40 & 0x3FFFFF == task and getrefcount(obj) > OWN_REFERENCES:
                locations.update(name << 8 | k for k in range(max(1, len(slots_of(type(obj))))))
        for location in locations:
            if not footprints.only_of(location, task):
                continue
            content = self.content_of(location)
            if content is None:
                return None
            total += hash((location, content))
        return hash((total, self.results.get(task, 0)))

    # Runs

    def begin(self) -> None:
        """A run begins, in the world as it was built."""
        self.forget_step()
        self._contexts.clear()
        self.results.clear()
        self._names.clear()
        self._objects.clear()
        self._counts.clear()
        self.running = True

    def restore(self) -> None:
        """Put back all that the run wrote into the built world."""
        self.running = False
        for obj, put, old in self.undo.values():
            if put is None:
                put_back(obj, old)
            elif old is not _MISSING:
                put(obj, old)
            else:
                # A slot's setter is a bound method of its descriptor; its type says less.
                put.__self__.__delete__(obj)  # type: ignore[attr-defined]
        self.undo.clear()
        self.forget_step()
        for oid in self.touched:
            for part in self._sim_parts.get(oid, ()):
                part.restore()
        self.touched.clear()

    def check_missed(self, parts: Iterable[Part]) -> None:
        """What was not undone must be the scheduler's, a value of one task, or a statistic.

        Raises NotTrackable otherwise.
        """
        for part in parts:
            if not apart(part):
                raise NotTrackable(f"{part.path} was changed unseen")

    # Steps

    def forget_step(self) -> None:
        """What was logged since the last step is of no interest."""
        self.looked = False
        self.log.clear()
        self._segments.clear()

    def _context(self, task: int) -> Context:
        found = self._contexts.get(task)
        if found is None:
            nothing: frozenset[int] = frozenset()
            found = self._contexts[task] = self.footprints.context(task, nothing, nothing)
        return found

    def _segment(self, task: int) -> Context:
        """The locks of the running task are about to change."""
        context = self._context(task)
        if self.log:
            self._segments.append((context, self.log.copy()))
            self.log.clear()
        return context

    def took(self, lock: object, exclusive: bool) -> None:
        """The running task has a lock now."""
        task = self.sim.current.index
        context = self._segment(task)
        one = frozenset((self._name_of(id(lock)),))
        self._contexts[task] = self.footprints.context(
            task, context.held | one, context.exclusive | one if exclusive else context.exclusive
        )

    def drops(self, lock: object) -> None:
        """The running task gives a lock back."""
        task = self.sim.current.index
        context = self._segment(task)
        one = frozenset((self._name_of(id(lock)),))
        self._contexts[task] = self.footprints.context(
            task, context.held - one, context.exclusive - one
        )

    def _name_of(self, oid: int) -> int:
        return oid if oid in self._base else self._names.get(oid, NEW_LOCATION)

    def take_step(self, task: int) -> tuple[set[int], set[int]]:
        """(kept, shared) of the accesses since the last call, as those of a step of `task`."""
        log = self.log
        kept: set[int] = set()
        shared: set[int] = set()
        if self._segments:
            for context, part in self._segments:
                accesses = self._named(context, set(part))
                kept |= accesses & context.kept
                shared |= accesses & context.shared
            self._segments.clear()
        if log:
            context = self._context(task)
            accesses = self._named(context, set(log))
            kept |= accesses & context.kept
            shared |= accesses & context.shared
            log.clear()
        return kept, shared

    def _named(self, context: Context, accesses: set[int]) -> set[int]:
        """The accesses made in `context`, those of objects of this run by stable names."""
        fresh = accesses - context.known
        if fresh:
            known: set[int] = set()
            for access in fresh:
                oid = access >> 10
                if access >= PART_LOCATION << 2 or oid in self._base:
                    known.add(access)
                    continue
                name = self._names.get(oid)
                if name is not None:
                    renamed = (name << 8 | access >> 2 & 255) << 2 | access & 3
                else:
                    renamed = (NEW_LOCATION << 40 | access >> 2 & 255) << 2 | access & 3
                accesses.discard(access)
                accesses.add(renamed)
                if renamed not in context.known:
                    known.add(renamed)
            if known:
                self.footprints.register(context, known)
        return accesses


def _access_of(key: object) -> int:
    """The access that an undo entry was made for."""
    access = key[0] if isinstance(key, tuple) else key
    assert isinstance(access, int)
    return access


__all__ = ["IS", "IX", "NotTrackable", "S", "Tracker", "X"]
