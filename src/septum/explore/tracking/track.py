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
from sys import getrefcount
from typing import TYPE_CHECKING, Any

from septum.explore.states.stacks import Stacks
from septum.explore.states.stand import Stand
from septum.explore.states.values import Contents, is_private
from septum.explore.tracking.adopt import (
    CONTAINERS,
    NotTrackable,
    apart,
    arguments_of,
    classes_of,
    exchange,
    of_sim,
    ours,
    trackable,
    twin_of,
)
from septum.explore.tracking.footprint import Footprints
from septum.explore.tracking.locations import EVERYWHERE, PART_LOCATION, class_of_made
from septum.explore.tracking.making import Making
from septum.explore.tracking.mix import of_int
from septum.explore.tracking.names import Names
from septum.explore.tracking.own import OWN_REFERENCES, OwnState
from septum.explore.tracking.patches import Changed, Patches
from septum.explore.tracking.places import Places
from septum.explore.tracking.private import LOCK_KINDS, LOCKS, PRIVATE
from septum.explore.tracking.slots import logging_slot
from septum.explore.tracking.special import (
    AS_ONE,
    COUNTING_WORDS,
    HUSHABLE,
    KEYED,
    is_statistic,
    specials,
)
from septum.explore.tracking.steps import Steps
from septum.explore.tracking.tracked import PLAIN, container_types
from septum.explore.tracking.watched import Watched
from septum.machine.mem import FrameBlock, PhysMem
from septum.machine.tables import TablePage
from septum.sim import Sim, WaitQueue
from septum.sim.locks import _Lock
from septum.sim.state import Snapshot, forget_slots, slots_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from septum.explore.covering.coverage import Coverage
    from septum.explore.states.stand import Own
    from septum.sim import Task
    from septum.sim.state import Part


class Tracker:
    """Installed for one world at a time; `uninstall` puts the classes back."""

    __slots__ = (
        "_as_built",
        "_ordered",
        "_parts",
        "_sim_parts",
        "_twins",
        "_wholes",
        "building",
        "changed",
        "contents",
        "coverage",
        "footprints",
        "leaks",
        "lock_of",
        "log",
        "logged",
        "making",
        "members",
        "names",
        "own",
        "patches",
        "places",
        "running",
        "sim",
        "stacks",
        "steps",
        "touched",
        "unseen",
        "waiting_at",
        "watched",
    )

    def __init__(self, sim: Sim, coverage: Coverage) -> None:
        self.sim = sim
        self.steps = Steps(self)
        self.log = self.steps.log
        self.coverage = coverage  # is told what runs reach
        self.changed = Changed()
        self.footprints = Footprints()
        self.running = False
        self.unseen = False  # what happens is no access of a step
        self.names = Names(self)
        self.building = [0]  # id of the object whose __init__ runs
        self._parts: dict[tuple[int, object], int] = {}
        self.patches = Patches()
        self.members: dict[tuple[type, str], types.MemberDescriptorType] = {}
        self.logged: set[tuple[type, str]] = set()
        # By id: locks and wait queues of the built world that the run used.
        self.touched: dict[int, object] = {}
        self.lock_of: dict[int, object] = {}  # id of a list of waiters -> whose it is
        self.leaks: set[type] = set(PLAIN)  # who gets hold of one may change it without a word
        self.waiting_at: set[int] = set()
        # Location of a part -> (its whole, or the name of one that the run made; its key).
        self._wholes: dict[int, tuple[Any, object]] = {}
        self._as_built: dict[int, int | None] = {}  # contents before any run
        self.contents = Contents(self.names.name_of)
        self._ordered: set[int] = set()  # kinds of dicts that runs make whose order counts
        self.own = OwnState(self)
        self.watched = Watched(self)
        self.making = Making(self)
        self.stacks = Stacks(sim, self.contents)
        self._twins: dict[type, type] = {}
        self.places = Places(self)
        # By id of a lock or wait queue: what a run changes of it and its containers.
        self._sim_parts: dict[int, list[Part]] = {}

    # Installation

    def adopt(self, snapshot: Snapshot) -> None:
        """Replace the world's containers by tracked twins. The snapshot must be taken again."""
        for part in snapshot.parts:
            known = type(part.obj) in CONTAINERS or type(part.obj) in self._twins.values()
            if not known and not trackable(part) and not apart(part):
                raise NotTrackable(f"{part.path} is a {type(part.obj).__name__}")
        self._twins = container_types(self)
        exchange(snapshot, self._twins)

    def release(self, snapshot: Snapshot) -> None:
        """Give the world plain containers again. The snapshot must be taken again."""
        exchange(snapshot, {kind: kind for kind in CONTAINERS})
        forget_slots(self._twins.values())

    def install(self, snapshot: Snapshot) -> None:
        """Begin to watch. `snapshot` is of the adopted world."""
        self.names.install(snapshot)
        # Who took the snapshot looked at elements before anybody knew of what they are elements.
        self._parts.clear()
        self._wholes.clear()
        self._find_locks(snapshot)
        self._watch_classes(snapshot)
        self._log_values(snapshot)
        self._tell_by_hand()

    def _find_locks(self, snapshot: Snapshot) -> None:
        """Who waits for what, and what a run changes of it: all state of the scheduler's kind."""
        self.lock_of = {
            id(part.obj.waiters): part.obj
            for part in snapshot.parts
            if isinstance(part.obj, _Lock | WaitQueue)
        }
        # Who waits is written by waiting, which is told as a look at what is waited for.
        self.waiting_at = {oid << 8 for oid in self.lock_of}
        self.footprints.always = self.waiting_at
        for part in snapshot.parts:
            if of_sim(part):
                owner = part
                while isinstance(owner.obj, list | dict | set) and owner.owner is not None:
                    owner = owner.owner
                self._sim_parts.setdefault(id(owner.obj), []).append(part)

    def _watch_classes(self, snapshot: Snapshot) -> None:
        """Exchange the slots of all of the model's classes."""
        modules = {type(part.obj).__module__ for part in snapshot.parts} | {
            name for name in sys.modules if name.startswith("septum.")
        }
        own = [name for name in sorted(modules) if ours(name)]
        kinds = [kind for name in own for kind in classes_of(name)]
        self.leaks.update(kind for name in own for kind in arguments_of(name))
        for kind in kinds:
            slots_of(kind)  # remembered: a patched class does not show its slots any more
        for kind in kinds:
            # Numbers that are the same in every worker, whoever makes one first.
            self.names.number_of(kind)
            for _, member in slots_of(kind):
                self.names.number_of(member)
        numbers = {self.names.number_of(kind): kind for kind in LOCK_KINDS}
        self.places.locks = {nr for nr, kind in numbers.items() if issubclass(kind, _Lock)}
        for kind in kinds:
            self._watch_class(kind)
            if kind.__name__ in PRIVATE:
                self.leaks.add(kind)

    def _tell_by_hand(self) -> None:
        """Exchange the methods that tell better than slots what they touch."""
        by_hand = specials(self)
        self.places.told_by_hand = {kind for kind, _, _ in by_hand}
        self.places.told_by_hand.update(self._twins.values())
        for kind, method, make in by_hand:
            plain = vars(kind)[method]
            logging = make(plain)
            self.patches.put(kind, method, logging)
            if (kind.__name__, method) in HUSHABLE:
                self.patches.hushable.append((kind, method, logging, plain))

    def _log_values(self, snapshot: Snapshot) -> None:
        """Who gets hold of a value of one task by nature that the built world has changes it: what
        it holds is the task's own from then on."""
        for part in snapshot.parts:
            kind = type(part.obj)
            for name, member in slots_of(kind):
                try:
                    leads = is_private(member.__get__(part.obj))
                except AttributeError:
                    continue
                if leads and (member.__objclass__, name) in self.members:
                    self.log_slot(member.__objclass__, name)

    def uninstall(self) -> None:
        """Put every class back as it was."""
        self.patches.undo()

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
            self.members[kind, name] = member
            self.patches.put(kind, name, property(member.__get__, self._first_write(kind, name)))
        if kind is FrameBlock:
            return  # memory is told by frame
        if own and isinstance(vars(kind).get("__init__"), types.FunctionType):
            self.patches.put(kind, "__init__", self._construct(kind, vars(kind)["__init__"]))

    def _construct(self, kind: type, init: Callable[..., None]) -> Callable[..., None]:
        building = self.building
        names = self.names
        key = KEYED.get(kind.__name__)

        def construct(obj: object, *args: object, **named: object) -> None:
            outer = building[0]
            oid = id(obj)
            new = outer != oid and not self.unseen
            if new and key is None:
                names.give(obj, kind)
            building[0] = oid
            try:
                init(obj, *args, **named)
            finally:
                building[0] = outer
            if new and key is not None:
                names.give_by(obj, kind, getattr(obj, key))
            if new and self.running:
                self._track_containers(obj)

        return construct

    def _track_containers(self, obj: object) -> None:
        """An object of this run was made: give it tracked containers where it alone has them, and
        have the others logged whenever they are got hold of."""
        kind = type(obj)
        if kind.__name__ in AS_ONE:
            return  # what is done to them is told as done to the whole
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
                self.names.give(twin, member)
                if self.names.number_of(member) in self._ordered:
                    twin.in_order = True
            elif (owner, name) in self.members and (owner, name) not in self.logged:
                self.log_slot(owner, name)

    # Slots

    def _first_write(self, kind: type, name: str) -> Callable[[object, object], None]:
        """The setter of a slot that nobody has written after construction so far."""
        member = self.members[kind, name]
        put = member.__set__
        get = member.__get__
        building = self.building

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
            self.log_slot(kind, name)
            setattr(obj, name, value)

        return first_write

    def log_slot(self, kind: type, name: str) -> None:
        """From now on the slot's reads and writes are logged, if they are not. What ran before
        lacks them."""
        if (kind, name) in self.logged:
            return
        member = self.members[kind, name]
        k = [m for _, m in slots_of(kind)].index(member)
        special = kind.__name__ in AS_ONE
        if special:
            k = 0
        counting = (kind.__name__, name) in COUNTING_WORDS
        logging = logging_slot(self, member, k, counting=counting, special=special)
        setattr(kind, name, logging)
        self.patches.hushable.append((kind, name, logging, member))
        self.logged.add((kind, name))
        self.places.forget()
        self.footprints.news.add(EVERYWHERE)
        self.footprints.opened.add(("slot", kind, name))

    def order_counts(self, of: object) -> None:
        """The order of the keys of a dict is looked at: from now on it is part of its content. What
        is learned of a dict that a run made goes for all that are made alike."""
        if id(of) in self.names.base:
            self.footprints.news.add(EVERYWHERE)
            self.footprints.opened.add(("order", id(of), ""))
        else:
            self.orders_count(class_of_made(self.names.made[id(of)]))

    def orders_count(self, kind: int) -> None:
        """The order of the keys of all dicts of a kind that runs make is looked at."""
        if kind not in self._ordered:
            self._ordered.add(kind)
            self.footprints.news.add(EVERYWHERE)
            self.footprints.opened.add(("orders", kind, ""))

    def part_location(self, whole: object, key: object) -> int:
        """The location of one element of a container or table."""
        oid = id(whole)
        name = (self.names.made.get(oid, oid), key)
        found = self._parts.get(name)
        if found is None:
            # The same in every worker, whoever comes to it first. (Block 0 is -1, block 1 is -2.)
            at = hash((name[0], of_int(key) if isinstance(key, int) else key))
            found = self._parts[name] = PART_LOCATION | at & PART_LOCATION - 1
            within = (name[0] << 8) if oid in self.names.base or name[0] != oid else 0
            if isinstance(whole, PhysMem) and isinstance(key, int) and key >= 0:
                within = self.part_location(whole, ~(key >> 9))
            self.footprints.add_part(within, found)
        self._wholes[found] = (whole if name[0] == oid else name[0], key)
        return found

    def touch(self, lock: object) -> None:
        """A run uses a lock or a wait queue, which must be put back if the built world has it."""
        oid = id(lock)
        if oid in self.names.base:
            self.touched[oid] = lock

    # Contents

    def content_of(self, location: int) -> int | None:
        """The content of a location now; None where it cannot be told."""
        place = self._wholes.get(location)
        if place is not None:
            whole, key = place
            if whole.__class__ is int:
                whole = self.names.objects.get(whole)
            return None if whole is None else self.contents.of_part(whole, key)
        name = location >> 8
        obj = self.names.of_base.get(name)
        if obj is None:
            obj = self.names.objects.get(name)
            if obj is None:
                return None
            if isinstance(obj, LOCKS):
                return self.contents.of_lock(obj)
        lock = self.lock_of.get(id(obj))
        if lock is not None:
            return self.contents.of_lock(lock)
        if isinstance(obj, CONTAINERS):
            return self.contents.of_container(obj)
        return self.contents.of_slot(obj, location & 255)

    def may_have_parts(self, location: int) -> bool:
        """Whether a location is of a whole whose elements have locations of their own."""
        if location in self.footprints.parts:
            return True
        name = location >> 8
        obj = self.names.of_base.get(name)
        if obj is None:
            obj = self.names.objects.get(name)
        return isinstance(obj, dict | TablePage | PhysMem)

    def is_as_built(self, location: int, content: int) -> bool:
        """Whether a content is the one that the location was built with."""
        return content == self._as_built.get(location)

    def learn_as_built(self, news: Iterable[int]) -> None:
        """The contents of the locations `news` (EVERYWHERE: of all that tasks share) are as built
        now. Call where runs begin, before the first step.

        Fingerprints of what is in them that were made before do not compare with later ones.
        """
        if EVERYWHERE in news:
            self._as_built = {}
            news = self.footprints.bits
        for location in news:
            place = self._wholes.get(location)
            if (location >> 8 if place is None else id(place[0])) in self.names.base:
                self._as_built[location] = self.content_of(location)

    def stands(self, task: Task, observed: int) -> Stand | None:
        """Where a task stands that made a step and stops. None where some of it cannot be told.
        `observed`: all that it saw."""
        self.stacks.passed(task, observed)
        own = self.own.look(task.index)
        frames = self.stacks.frames(task) if own is not None else None
        if own is None or frames is None:
            return None
        return Stand(frames, own, in_guest=self.stacks.in_guest)

    def left_behind(self, task: int) -> Own | None:
        """What a task that has ended has left that no other ever touches. None where some of it
        cannot be told."""
        self.stacks.forget(task)
        return self.own.look(task)

    # Runs

    def sees(self) -> bool:
        """Whether what happens now is done by a step."""
        return self.running and not self.unseen and self.sim.hub is not None

    def begin(self) -> None:
        """A run begins, in the world as it was built."""
        self.steps.begin()
        self.names.begin()
        self.own.begin()
        self.stacks.begin()
        self.running = True

    def restore(self) -> None:
        """Put back all that runs have written into the built world."""
        self.running = False
        self.stacks.begin()
        self.changed.put_back()
        self.steps.forget()
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
