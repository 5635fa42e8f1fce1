"""What each step of a run touches: the log of accesses, cut by locks and by steps.

Accesses are logged by the ids of objects; here they get the names that say the same in all runs,
and are told to the footprints with the locks that were held.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from septum.explore.tracking.footprint import Context, X
from septum.explore.tracking.locations import PART_LOCATION, UNNAMED

if TYPE_CHECKING:
    from septum.explore.tracking.own import Noted
    from septum.explore.tracking.track import Tracker


class Taken(NamedTuple):
    """The accesses of a step. `kept`: those that make it depend on others; `shared`: those of what
    tasks share, by which it saw and changed what counts; `made`: the locations of that which it
    made; `touched`: all locations."""

    kept: set[int]
    shared: set[int]
    made: set[int]
    touched: set[int]


Segment = tuple[Context, list[int]]
"""Accesses made while a task held the locks of a context."""


class Steps:
    """The accesses of the step under way, and of known steps that were made again."""

    __slots__ = (
        "_contexts",
        "_passed",
        "_segments",
        "_tracker",
        "accesses",
        "all_results",
        "fresh",
        "log",
        "looked",
        "makes",
        "nr_results",
        "results",
        "viewed",
    )

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self.log: list[int] = []
        self.looked = False  # the step had the promises look at everything
        self.viewed = False  # or remember what they can see
        self.fresh: list[int] = []  # names of objects made in the step
        # Of operations: (of which, what); None: what comes of it is as the scenario says.
        self.results: list[tuple[int, int | None]] = []
        # What comes of an operation counts although it is right: two searches are compared by it.
        self.all_results = False
        self.nr_results: dict[int, int] = {}  # by task
        self._contexts: dict[int, Context] = {}  # by task: the locks that it holds
        # What the step did before the running task last took or gave back a lock.
        self._segments: list[Segment] = []
        # Known steps that were made again: the task, its accesses, the names of what it made.
        self._passed: list[tuple[int, set[int], list[int]]] = []
        # For whoever wants to tell of the step taken last: what it touched, by names, what it made.
        self.accesses: list[tuple[Context, set[int]]] = []
        self.makes: list[int] = []

    def begin(self) -> None:
        """A run begins."""
        self.forget()
        self._passed.clear()
        self._contexts.clear()
        self.nr_results.clear()

    def forget(self) -> None:
        """What was logged since the last step is of no interest."""
        self.looked = self.viewed = False
        self.log.clear()
        self._segments.clear()
        self.fresh.clear()
        self.results.clear()

    def _context(self, task: int) -> Context:
        found = self._contexts.get(task)
        if found is None:
            nothing: frozenset[int] = frozenset()
            found = self._contexts[task] = self._tracker.footprints.context(task, nothing, nothing)
        return found

    def _segment(self, task: int) -> Context:
        """The locks of the running task are about to change."""
        context = self._context(task)
        if self.log:
            self._segments.append((context, self.log.copy()))
            self.log.clear()
        return context

    def _named_lock(self, lock: object) -> frozenset[int]:
        """A lock by its name. One that a run made guards nothing: another may have its name when
        it is gone."""
        oid = id(lock)
        return frozenset((oid,)) if oid in self._tracker.names.base else frozenset()

    def took(self, lock: object, exclusive: bool) -> None:
        """The running task has a lock now."""
        task = self._tracker.sim.current.index
        context = self._segment(task)
        one = self._named_lock(lock)
        self._contexts[task] = self._tracker.footprints.context(
            task, context.held | one, context.exclusive | one if exclusive else context.exclusive
        )

    def drops(self, lock: object) -> None:
        """The running task gives a lock back."""
        task = self._tracker.sim.current.index
        context = self._segment(task)
        one = self._named_lock(lock)
        self._contexts[task] = self._tracker.footprints.context(
            task, context.held - one, context.exclusive - one
        )

    def take(self, task: int) -> Taken:
        """The accesses since the last call, of a step of `task`."""
        kept: set[int] = set()
        shared: set[int] = set()
        touched: set[int] = set()
        if self._passed:
            self._catch_up()
        self._tracker.own.noted.clear()
        self._segment(task)
        self.accesses.clear()
        for context, part in self._segments:
            accesses = self._named(context, set(part))
            self.accesses.append((context, accesses))
            kept |= accesses & context.kept
            shared |= accesses & context.shared
            touched.update([access >> 2 for access in accesses])
            self._tracker.own.note(accesses - context.shared)
        self._segments.clear()
        self.looked = self.viewed = False
        made: set[int] = set()
        self.makes = new = self._make(task) if self.fresh else []
        if new:
            made = {
                access >> 2 for access in new if self._tracker.footprints.is_shared(access >> 2)
            }
            touched.update([access >> 2 for access in new])
        return Taken(kept, shared, made, touched)

    def _make(self, task: int) -> list[int]:
        """What the running task has made since the last step, as accesses: it is written to, but
        nobody else can get at it before the task puts it where all can, and that is an access."""
        made: list[int] = []
        for name in dict.fromkeys(self.fresh):
            obj = self._tracker.names.objects.get(name)
            if obj is not None:
                made += [(name << 8 | k) << 2 | X for k in self._tracker.places.in_class(type(obj))]
                self._tracker.making.look(name, obj)
        self.fresh.clear()
        for access in made:
            self._tracker.footprints.make(access >> 2, 1 << task)
        self._tracker.own.note(made)
        return made

    def passes(self, task: int) -> None:
        """A step of `task` that is known was made again."""
        self._segment(task)
        accesses = {access for _, part in self._segments for access in part}
        self._passed.append((task, self._renamed(accesses), self.fresh.copy()))
        self.forget()

    def follows(self, task: int, noted: tuple[Noted, ...] | None) -> None:
        """A step of `task` that is known was made again; what it left is known, too, or None."""
        if noted is None:
            self.passes(task)
        else:
            self._tracker.own.follow(noted)
            self.forget()

    def _catch_up(self) -> None:
        """What was written and made in the steps that were passed still counts, but for what is
        gone: later steps gave its names again."""
        fresh = self.fresh.copy()
        later = set(fresh)
        own = self._tracker.own
        whole_of = self._tracker.footprints.whole_of
        for task, accesses, made in reversed(self._passed):
            own.note(
                access
                for access in accesses
                if whole_of.get(access >> 2, access >> 2) >> 8 not in later
            )
            self.fresh[:] = [name for name in made if name not in later]
            self._make(task)
            later.update(made)
        self._passed.clear()
        self.fresh[:] = fresh

    def _named(self, context: Context, accesses: set[int]) -> set[int]:
        """The accesses made in `context`, by names."""
        fresh = self._renamed(accesses - context.known)
        known = (accesses & context.known) | fresh
        fresh -= context.known
        if fresh:
            self._tracker.footprints.register(context, fresh)
        return known

    def _renamed(self, accesses: set[int]) -> set[int]:
        """Accesses of objects of this run by their names. Of what is gone nobody asks."""
        renamed: set[int] = set()
        names = self._tracker.names
        for access in accesses:
            oid = access >> 10
            if access >= PART_LOCATION << 2:
                renamed.add(access)
                continue
            name = names.name_of(oid)
            if name == oid:
                renamed.add(access)
            elif name or not names.is_gone(oid):
                renamed.add(((name or UNNAMED) << 8 | access >> 2 & 255) << 2 | access & 3)
        return renamed
