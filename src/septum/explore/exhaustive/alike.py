"""Steps that come out alike, wherever their task stands: what a step did not look at passes by.

A step is kept by all that stands for its task: all frames of its stacks, all that it alone has.
But it looks at little of that. The frames that wait further out do not run in it; of what the task
alone has it touches a few locations. Where all that it did look at is the same, it comes out the
same, and what it did not look at is afterwards what it was before. So one step that the model made
is known in many places; what it leads to there is worked out here.

What a step may look at without a word must be the same as well. Objects that the task made have
slots that nobody writes to. And values of one task by nature (registers, iterators) may be had in
several places, by frames that wait, or from what the task alone has; the step may get at them in
another way, and change them. So such a place counts, unless it has nothing in common with the
frames that run, or with another that counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.explore.states.stand import Frames, Own, Stand
from septum.explore.tracking.footprint import IS, IX, S, X

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from septum.explore.exhaustive.known import Step
    from septum.explore.states.stacks import Moved
    from septum.explore.states.stand import FrameAt
    from septum.explore.tracking.track import Tracker

Counts = tuple[int, int]
"""How many of the innermost frames of each stack ran."""

Inner = tuple[tuple[int, ...], tuple[int, ...]]
"""Those frames of each stack, by value."""

Innermost = tuple[int, bool, int, int]
"""Of which task, whether it is alone, and the innermost frame of each stack, by value (0: none)."""

Waiting = tuple[tuple[int, int, "FrameAt"], ...]
"""Frames that do not run: (of which stack, how far out from those that run, the frame)."""


class OwnSeen:
    """What a step looked at of what its task alone has: locations with their contents, those that
    were as built, and wholes of which it looked at all, with the number of their parts. What it
    only wrote to it did not look at (`written`)."""

    __slots__ = ("_divided", "_nr_wholes", "_told", "_untold", "_wholes", "changing", "written")

    def __init__(
        self,
        seen: set[int],
        written: set[int],
        own: Own,
        parts: dict[int, list[int]],
        wholes: dict[int, int],
    ) -> None:
        contents = own.contents
        self._told = frozenset([(at, contents[at]) for at in seen & contents.keys()])
        self._untold = frozenset(seen.difference(contents))
        self.written = frozenset(written)
        self._wholes = tuple(wholes.items())
        self._divided = frozenset(seen & parts.keys())
        self._nr_wholes = len(parts)
        self.changing = frozenset(seen & own.changing.keys())

    def fits(self, own: Own, tracker: Tracker) -> bool:
        """Whether a step would see the same of `own`."""
        contents = own.contents
        parts = tracker.footprints.parts
        return (
            contents.items() >= self._told
            and contents.keys().isdisjoint(self._untold)
            and (len(parts) == self._nr_wholes or self._are_undivided(parts))
            and all(len(parts[whole]) == count for whole, count in self._wholes)
            and self.written.isdisjoint(tracker.own.refers)
        )

    def _are_undivided(self, parts: dict[int, list[int]]) -> bool:
        """Whether nothing has parts that had none, so that some may have been missed."""
        seen = (*self._untold, *[at for at, _ in self._told])
        if any(at in parts and at not in self._divided for at in seen):
            return False
        self._nr_wholes = len(parts)
        return True


def own_seen(
    touched: Iterable[int],
    accesses: Collection[set[int]],
    before: Own,
    after: Own,
    tracker: Tracker,
) -> OwnSeen | None:
    """What a step saw of what its task alone had `before`, that `touched` these locations, by
    `accesses`; None where that cannot be told."""
    footprints = tracker.footprints
    parts = footprints.parts
    seen = footprints.unshared(touched)
    # Who overwrites what led to an object may have ended it.
    refers = tracker.own.refers
    written = {
        at
        for at in seen & after.contents.keys()
        if at not in refers
        and at not in parts
        and tracker.places.is_slot(at)
        and not any(
            at << 2 | S in some or at << 2 | IX in some or at << 2 | IS in some for some in accesses
        )
    }
    seen -= written
    wholes: dict[int, int] = {}
    pending = [
        at
        for at in seen & parts.keys()
        if any(at << 2 | S in some or at << 2 | X in some for some in accesses)
    ]
    while pending:
        whole = pending.pop()
        inside = parts[whole]
        if whole not in wholes:
            wholes[whole] = len(inside)
            seen.update(inside)
            pending += [part for part in inside if part in parts]
            if len(footprints.unshared(inside)) < len(inside):
                return None  # parts of it are not the task's own
    return OwnSeen(seen, written, before, parts, wholes)


class Like:
    """A step by what it looked at, and what it did.

    It looks at the innermost frames, `counts` of each stack, as they are in `inner`; at what it may
    change by way of them (`_others`); and at what the task alone has: `_seen`, `_alive`, `_silent`,
    and `_lasting`, if it gives names or hands on what has one.
    """

    __slots__ = (
        "_alive",
        "_changed",
        "_depths",
        "_frames",
        "_gone",
        "_in_guest",
        "_lasting",
        "_left",
        "_others",
        "_seen",
        "_silent",
        "_sums",
        "_written",
        "counts",
        "inner",
        "step",
    )

    def __init__(
        self,
        step: Step,
        before: Stand,
        after: Stand | Own,
        seen: OwnSeen,
        watched: Mapping[int, bool],
    ) -> None:
        """`after`: where the task stands now; if it has ended, what it left behind. `watched`:
        whether promises read a location."""
        self.step = step
        self.counts = counts = _counts(step, before, after)
        self.inner = inner_of(before, counts)
        self._depths = [len(frames) for frames in before.stacks]
        self._others = Others(before, counts, seen.changing)
        self._seen = seen
        had = before.own
        self._alive = had.alive
        self._silent = had.silent
        self._lasting = had.lasting if step.makes or step.handed_on else None
        has = after.own if isinstance(after, Stand) else after
        self._frames: tuple[Frames, Frames] = ((), ())
        self._in_guest = False
        if isinstance(after, Stand):
            thread, guest = after.stacks
            kept = [len(frames) - n for frames, n in zip(before.stacks, counts, strict=True)]
            self._frames = thread[kept[0] :], guest[kept[1] :]
            self._in_guest = after.in_guest
        self._left = Own({}, (0, 0, 0, 0), has.alive, has.changing)
        # One by one: the difference of two views of items makes and hashes a pair for each.
        content_before = had.contents.get
        self._changed = {at: now for at, now in has.contents.items() if content_before(at) != now}
        self._gone = tuple(had.contents.keys() - has.contents.keys())
        self._written = [(at, has.contents[at], watched[at]) for at in sorted(seen.written)]
        total, shown = has.total - had.total, has.shown - had.shown
        for at, now, is_watched in self._written:
            # What it does to the sums depends on what was there.
            more = now - had.contents.get(at, 0)
            total -= more
            shown -= more if is_watched else 0
        self._sums = total, shown, has.lasting - had.lasting, has.silent - had.silent

    def others_at(self, stand: Stand, tracker: Tracker) -> Others | None:
        """What else counts at `stand`, whose innermost frames are `inner`, if the task sees the
        same there."""
        own = stand.own
        if not (
            own.alive == self._alive
            and own.silent == self._silent
            and self._lasting in (None, own.lasting)
            and self._seen.fits(own, tracker)
        ):
            return None
        others = Others(stand, self.counts, self._seen.changing)
        return others if others.values == self._others.values else None

    def own_after(self, own: Own, others: Others) -> Own:
        """What a task alone has after the step that had `own` before."""
        contents = own.contents
        sums = (own.total, own.shown, own.lasting, own.silent)
        total, shown, lasting, silent = map(sum, zip(sums, self._sums, strict=True))
        if self._changed or self._gone or self._written:
            contents = {**contents, **self._changed}
            for at in self._gone:
                contents.pop(at, None)
            for at, now, is_watched in self._written:
                more = now - own.contents.get(at, 0)
                total += more
                shown += more if is_watched else 0
                contents[at] = now
        changing = self._left.changing
        if others.apart:
            changing = {
                **{at: held for at, held in changing.items() if at not in self._others.apart},
                **{at: own.changing[at] for at in others.apart},
            }
        return Own(contents, (total, shown, lasting, silent), self._left.alive, changing)

    def moved_at(self, stand: Stand) -> Moved:
        """What the step does to the stacks of a task that stands at `stand`."""
        thread, guest = [
            None if moved is None else (moved[0] + len(frames) - depth, moved[1])
            for moved, frames, depth in zip(
                self.step.moved, stand.stacks, self._depths, strict=True
            )
        ]
        return thread, guest

    def stand_after(self, stand: Stand, others: Others, observed: int) -> Stand:
        """Where a task stands after the step that stood at `stand` before. `observed`: all that it
        has observed now."""
        ran = self.step.raw
        stacks: list[list[FrameAt]] = []
        for frames, count, fresh in zip(stand.stacks, self.counts, self._frames, strict=True):
            waiting = list(frames[: len(frames) - count])
            waiting += [
                frame.observing(observed) if frame.hidden and frame.hidden == ran else frame
                for frame in fresh
            ]
            stacks.append(waiting)
        # Ids of what frames hold are those of one run, wherever frames have something in common.
        for stack, out, frame in self._others.frames:
            stacks[stack][len(stand.stacks[stack]) - self.counts[stack] - out] = frame
        thread, guest = stacks
        own = self.own_after(stand.own, others)
        return Stand((tuple(thread), tuple(guest)), own, in_guest=self._in_guest)


class Alike:
    """All steps by what they looked at, and where tasks stand, by chain."""

    __slots__ = ("_likes", "_tracker", "stands")

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self.stands: dict[int, Stand] = {}
        # By task, whether it is alone, and the innermost frames; by how many frames ran; by these.
        self._likes: dict[Innermost, dict[Counts, dict[Inner, list[Like]]]] = {}

    def clear(self) -> None:
        """Forget all."""
        self.stands.clear()
        self._likes.clear()

    def add(self, task: int, alone: bool, like: Like) -> None:
        """Another step is known, of `task`."""
        thread, guest = like.inner
        innermost = (task, alone, thread[-1] if thread else 0, guest[-1] if guest else 0)
        by_counts = self._likes.setdefault(innermost, {})
        by_counts.setdefault(like.counts, {}).setdefault(like.inner, []).append(like)

    def find(
        self, task: int, alone: bool, stand: Stand, comes_out: Callable[[Step], bool]
    ) -> tuple[Like, Others] | None:
        """A step of `task` that is made at `stand` like elsewhere, and that `comes_out`; and what
        counts there besides the frames that run."""
        thread, guest = [values[-1] if values else 0 for values in stand.values]
        for innermost in {(thread, guest), (thread, 0), (0, guest)}:
            for counts, by_inner in self._likes.get((task, alone, *innermost), {}).items():
                for like in by_inner.get(inner_of(stand, counts), ()):
                    if comes_out(like.step):
                        others = like.others_at(stand, self._tracker)
                        if others is not None:
                            return like, others
        return None


def inner_of(stand: Stand, counts: Counts) -> Inner:
    """The innermost frames of each stack, by value."""
    thread, guest = stand.values
    ran, guests = counts
    return thread[-ran:] if ran else (), guest[-guests:] if guests else ()


def _counts(step: Step, before: Stand, after: Stand | Own) -> Counts:
    """How many frames of each stack a step looked at: those that ran, and those outside of them up
    to the outermost that is not what it was."""
    if not isinstance(after, Stand) or step.numbers:
        thread, guest = before.values
        return len(thread), len(guest)
    counts: list[int] = []
    for was, now, moved in zip(before.values, after.values, step.moved, strict=True):
        most = min(len(was), len(now)) if moved is None else moved[0]
        same = 0
        while same < most and was[same] == now[same]:
            same += 1
        counts.append(len(was) - same)
    thread_ran, guest_ran = counts
    return thread_ran, guest_ran


class Others:
    """What a step that runs the innermost frames may change by way of them: `frames` that wait and
    have something in common with them, or with what the task alone has at `looked_at`; other
    locations where it has values of its own, in common with those. `values`: what all of that
    holds. `apart`: the locations where it has values of its own and that have nothing in common."""

    __slots__ = ("apart", "frames", "values")

    def __init__(self, stand: Stand, counts: Counts, looked_at: frozenset[int]) -> None:
        changing = stand.own.changing
        reached: set[int] = set()
        frames: list[tuple[int, int, FrameAt]] = []
        for stack, (all_of, count) in enumerate(zip(stand.stacks, counts, strict=True)):
            kept = len(all_of) - count
            for depth, frame in enumerate(all_of):
                if frame.holds:
                    if depth >= kept:
                        reached |= frame.holds
                    else:
                        frames.append((stack, kept - depth, frame))
        for location in looked_at & changing.keys():
            reached |= changing[location]
        found: list[tuple[int, int, FrameAt]] = []
        at: list[int] = []
        places = [location for location in changing if location not in looked_at]
        while True:
            met = [one for one in frames if not reached.isdisjoint(one[2].holds)]
            met_at = [location for location in places if not reached.isdisjoint(changing[location])]
            if not met and not met_at:
                break
            for one in met:
                reached |= one[2].holds
                frames.remove(one)
            for location in met_at:
                reached |= changing[location]
                places.remove(location)
            found += met
            at += met_at
        self.frames: Waiting = tuple(sorted(found, key=lambda one: one[:2]))
        self.apart = frozenset(places)
        contents = stand.own.contents
        self.values = (
            tuple([(stack, out, frame.value) for stack, out, frame in self.frames]),
            tuple([(location, contents.get(location)) for location in sorted(at)]),
        )
