"""What a step touches, as sets of small integers, and when two steps depend on each other.

An access is a location with a kind. Besides reading and writing there are the intentions of
multi-granularity locking: whoever writes one element of a container "changes a part of it", and
whoever reads one "reads a part of it".

               S     X     IX    IS       S  reads all of it      IX  changes a part of it
        S      -     dep   dep   -        X  writes all of it     IS  reads a part of it
        X      dep   dep   dep   dep
        IX     dep   dep   -     -
        IS     -     dep   -     -

IX also stands for changes that commute, such as two readers that take a shared lock.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from septum.explore.tracking.locations import CLASS_AND_SLOT, VIEW, made_in_run

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

S = 0
X = 1
IX = 2
IS = 3

NO_NUMBERS = array("I")

Masks = tuple[int, int, int, int]
"""Locations as bits: any access, written, read as a whole, changed in part."""

NOTHING: Masks = (0, 0, 0, 0)
Summary = dict[int, Masks]
"""What each task (by index) touches in a part of the search."""


def depend(a: Masks, b: Masks) -> bool:
    """Whether two steps (or sets of steps) touch something in kinds that do not commute."""
    return bool(a[1] & b[0] or b[1] & a[0] or a[2] & b[3] or a[3] & b[2])


def join(a: Masks, b: Masks) -> Masks:
    """The accesses of both."""
    return (a[0] | b[0], a[1] | b[1], a[2] | b[2], a[3] | b[3])


def join_into(total: Summary, more: Summary) -> None:
    """Add the accesses of `more` to `total`."""
    for task, masks in more.items():
        have = total.get(task)
        total[task] = masks if have is None or have == masks else join(have, masks)


def add_to(total: Summary, task: int, masks: Masks) -> None:
    """Add one step of `task` to `total`."""
    if masks is not NOTHING:
        have = total.get(task)
        total[task] = masks if have is None else join(have, masks)


Held = frozenset[int]
"""Locks that a task holds."""


class Context:
    """The locks that a task holds while it touches something, and what it touched so before.

    `shared` are the accesses of locations that tasks share. `kept` are those of them that make
    steps depend on each other: not where a lock that every access of the location is made under
    is held exclusively. Nobody can get at it then, before the lock has gone from hand to hand,
    and that is an access of the lock.
    """

    __slots__ = ("exclusive", "held", "kept", "known", "shared", "task")

    def __init__(self, task: int, held: Held, exclusive: Held) -> None:
        self.task = task
        self.held = held
        self.exclusive = exclusive
        self.known: set[int] = set()
        self.shared: set[int] = set()
        self.kept: set[int] = set()


class Footprints:
    """Numbers the locations that tasks share, and turns accesses into masks.

    An access is an int (`locations`). Locations that only one task ever touches, or that all only
    read, do not count. When accesses of a location begin to count, it is in `news`
    (EVERYWHERE: no one can say which): what was computed before then lacks them, and a search that
    used it starts over. So that this is rare, what is learned of one object that a run made goes
    for all of its kind (objects of one class, containers in one slot of a class), what is learned
    of one part for all parts of the same whole, and locks count always.
    """

    __slots__ = (
        "_bits",
        "_contexts",
        "_guards",
        "_kinds",
        "_masks",
        "_numbers",
        "_users",
        "always",
        "disowned",
        "news",
        "opened",
        "parts",
        "whole_of",
    )

    def __init__(self) -> None:
        self._users: dict[int, list[int]] = {}  # location -> tasks that touched it, by kind
        self._guards: dict[int, Held] = {}  # location -> locks held at every access so far
        self._bits: dict[int, int] = {}
        self._masks: dict[int, Masks] = {}
        self._contexts: dict[tuple[int, Held, Held], Context] = {}
        self._kinds: dict[int, _Kind] = {}
        self._numbers: dict[int, int] = {}
        self.always: set[int] = set()  # locations that count as soon as anybody touches them
        self.news: set[int] = set()
        # Why news are EVERYWHERE, for other workers: what is watched from now on.
        self.opened: set[Opened] = set()
        self.disowned = 0  # tasks (as bits) that news took something from that was theirs alone
        # Locations of parts by that of their whole, and the other way round. Where a whole counts,
        # its parts do.
        self.parts: dict[int, list[int]] = {}
        self.whole_of: dict[int, int] = {}

    def add_part(self, whole: int, part: int) -> None:
        """`part` is the location of an element of what is at `whole`."""
        if part in self.whole_of:
            return
        if whole not in self.parts:
            kind = self._kinds.get(self._kind_of(whole))
            if kind is not None:
                kind.divided = True
            for at in (whole, *(() if kind is None else kind.locations)):
                self._divide(at)
        self.parts[whole].append(part)
        self.whole_of[part] = whole

    def _divide(self, whole: int) -> None:
        """A location has parts, or those that are like it have."""
        if whole not in self.parts:
            self.parts[whole] = []
            if whole in self._bits:
                self.news.add(whole)  # it was taken for something without parts

    def forget_news(self) -> None:
        """What was computed without it is computed anew."""
        self.news.clear()
        self.disowned = 0

    @property
    def bits(self) -> Mapping[int, int]:
        """The locations that count, each with its bit in masks, lowest first."""
        return self._bits

    def numbers_of(self, locations: Iterable[int]) -> array[int]:
        """Locations as small numbers, whether they count or not."""
        numbers = self._numbers
        return array("I", [numbers.setdefault(at, len(numbers)) for at in locations])

    def context(self, task: int, held: Held, exclusive: Held) -> Context:
        """What `task` touches while it holds `held`, of those `exclusive` exclusively."""
        key = (task, held, exclusive)
        found = self._contexts.get(key)
        if found is None:
            found = self._contexts[key] = Context(task, held, exclusive)
        return found

    def views(self, task: int, looked: bool) -> tuple[Context, set[int]]:
        """The accesses by which a step of `task` depends on others that changed something that
        promises can see, or (then they `looked`) had them look.

        Whoever looks holds no lock, so that none guards what is seen.
        """
        nothing: Held = frozenset()
        context = self.context(task, nothing, nothing)
        accesses = {VIEW << 2 | S, VIEW << 2 | IX} if looked else {VIEW << 2 | IX}
        self.register(context, sorted(accesses - context.known))
        return context, accesses

    def register(self, context: Context, accesses: Iterable[int]) -> None:
        """Accesses that were not made in `context` before."""
        bit = 1 << context.task
        for access in accesses:
            location = access >> 2
            users = self._users_of(location)
            self._guard(location, context.held)
            context.known.add(access)
            if access & 3 in (X, IX):
                self._changes(location, users, bit)
            users[access & 3] |= bit
            if location in self._bits:
                self._keep(context, access)  # the first of its kind: nothing lacks it
            elif _clash(users) or self.whole_of.get(location) in self._bits:
                self._share(location)

    def make(self, location: int, bit: int) -> None:
        """A task (as a bit) has made what is at a location."""
        users = self._users_of(location)
        if not users[X] & bit:
            self._changes(location, users, bit)
            users[X] |= bit
            if location not in self._bits and _clash(users):
                self._share(location)

    def _users_of(self, location: int) -> list[int]:
        users = self._users.get(location)
        if users is None:
            users = self._users[location] = [0, 0, 0, 0]
            number = self._kind_of(location)
            if number:
                kind = self._kinds.setdefault(number, _Kind())
                kind.locations.append(location)
                if kind.divided:
                    self._divide(location)
            if location == VIEW or location in self.always or (number and kind.shared):
                self._count(location)
                self.news.discard(location)  # nothing lacks what was never touched
        return users

    def _changes(self, location: int, users: list[int], bit: int) -> None:
        """A task changes a location for the first time in its context."""
        changers = users[X] | users[IX]
        if location in self._bits:
            return
        if changers and not changers & bit and changers & -changers == changers:
            self.news.add(location)  # it was of one task alone, and is no more
            self.disowned |= changers

    def _guard(self, location: int, held: Held) -> None:
        """An access was made with `held`: no other locks were held at every access."""
        kind = self._kinds.get(self._kind_of(location))
        before = self._guards.get(location)
        if before is None:
            before = held if kind is None or kind.guards is None else kind.guards
            self._guards[location] = before
            if kind is not None:
                kind.guards = before
        if before <= held:
            return
        guards = before & held
        alike = [location]
        if kind is not None:
            kind.guards = guards
            alike = [at for at in kind.locations if at in self._guards]
        for at in alike:
            self._guards[at] = guards
            if at in self._bits:
                self._keep_everywhere(at)

    def _kind_of(self, location: int) -> int:
        """The kind of a location; 0: it is of the built world. Parts have negative ones."""
        if made_in_run(location):
            return location & CLASS_AND_SLOT
        whole = self.whole_of.get(location, 0)
        return -(whole & CLASS_AND_SLOT if made_in_run(whole) else whole)

    def _share(self, location: int) -> None:
        """A location turns out to be shared."""
        kind = self._kinds.get(self._kind_of(location))
        if kind is not None:
            kind.shared = True
        for at in (location,) if kind is None else kind.locations:
            if at not in self._bits:
                self._count(at)

    def _count(self, location: int) -> None:
        self.disowned |= self.owner_of(location)
        number = 1 << len(self._bits)
        self._bits[location] = number
        at = location << 2
        self._masks[at | S] = (number, 0, number, 0)
        self._masks[at | X] = (number, number, 0, 0)
        self._masks[at | IX] = (number, 0, 0, number)
        self._masks[at | IS] = (number, 0, 0, 0)
        self.news.add(location)
        self._keep_everywhere(location)
        for part in self.parts.get(location, ()):
            if part in self._users and part not in self._bits:
                self._count(part)

    def _keep_everywhere(self, location: int) -> None:
        at = location << 2
        for context in self._contexts.values():
            for access in (at | S, at | X, at | IX, at | IS):
                if access in context.known and self._keep(context, access):
                    self.news.add(location)

    def _keep(self, context: Context, access: int) -> bool:
        """Make an access count where it does. Returns whether it did not before."""
        news = access not in context.shared
        context.shared.add(access)
        if access not in context.kept and not self._guards[access >> 2] & context.exclusive:
            context.kept.add(access)
            news = True
        return news

    def is_shared(self, location: int) -> bool:
        """Whether a location counts."""
        return location in self._bits

    def unshared(self, locations: Iterable[int]) -> set[int]:
        """Those of `locations` that do not count."""
        return set(locations).difference(self._bits)

    def owner_of(self, location: int) -> int:
        """The one task (as a bit) that changes a location that does not count; 0: there is none."""
        if location in self._bits:
            return 0
        users = self._users.get(location)
        changers = users[X] | users[IX] if users is not None else 0
        return changers if changers & -changers == changers else 0

    def masks(self, accesses: Iterable[int]) -> Masks:
        """The masks of accesses that are all kept."""
        every = written = read = changed = 0
        table = self._masks
        for access in accesses:
            a, w, r, c = table[access]
            every |= a
            written |= w
            read |= r
            changed |= c
        return (every, written, read, changed) if every else NOTHING


class _Kind:
    """Locations that are alike: of one slot of all objects of one class that runs made, or of the
    parts of one whole. `divided`: they have parts. `guards`: the locks held at every access; None:
    there was none."""

    __slots__ = ("divided", "guards", "locations", "shared")

    def __init__(self) -> None:
        self.divided = False
        self.guards: Held | None = None
        self.locations: list[int] = []
        self.shared = False


Opened = tuple[str, object, str]
"""What turned out to be looked at: a slot ("slot", its class, its name), the order of the keys of a
dict of the built world ("order", its id, "") or of all dicts of a kind that runs make ("orders",
the kind, ""), slots of a kind that promises read ("read", the kind, ""); that they look before the
end ("views", 0, "")."""


def _clash(users: list[int]) -> bool:
    """Whether two tasks touch a location in kinds that depend on each other."""
    readers, writers, changers, part_readers = users
    everybody = readers | writers | changers | part_readers
    for writer in _bits_of(writers):
        if everybody & ~writer:
            return True
    return any(changers & ~reader for reader in _bits_of(readers)) or any(
        readers & ~changer for changer in _bits_of(changers)
    )


def _bits_of(value: int) -> Iterable[int]:
    while value:
        bit = value & -value
        yield bit
        value ^= bit
