"""Where a task stands, as a number: its stack, frame by frame, with what its variables hold.

Two tasks that stand in the same place, whose variables and whose own objects hold the same, go on
alike, whatever they saw on their way. That is what makes runs meet again: a vCPU that was kicked
and came back is where one is that was not.

A frame that waits for a call may hold what no variable names (`bytecode`); then it
counts with all that the task had observed when it last ran. Variables that are not looked at any
more do not count. Where the content of one that is cannot be told, nothing is said of the stack.
"""

from __future__ import annotations

import sys
from inspect import CO_GENERATOR
from sys import getrefcount
from typing import TYPE_CHECKING

import greenlet

from septum.explore.states.bytecode import place
from septum.explore.states.stand import NOTHING_HELD, PLACE_DEPTH, FrameAt, Frames, frame_at
from septum.explore.states.values import Unknown, is_private
from septum.explore.tracking.mix import of_int
from septum.explore.tracking.special import OBSERVERS
from septum.sim import Schedule, Sim, Task

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import CodeType, FrameType

    from septum.explore.states.values import Contents
    from septum.sim import Coroutine

# The searcher's own frames, of the schedule and of wrapped methods, and those of the scheduler:
# nothing of theirs matters. Nor does anything of those who look on.
_OTHERS = ("septum.explore.", *(k.__module__ for k in (Sim, Task, Schedule)), *OBSERVERS)
_MODEL = "septum.explore.toys"
_ATOMS = frozenset((bool, str, bytes, type(None)))

LOOPED = 3
"""References to a list that is gone through, where nobody else has it: those of the variable and of
the iterator, and an argument. A copy of the variables has one more."""


class _Standing:
    """A frame of a task's stack, as it was when the task last stopped."""

    __slots__ = ("at", "frame", "lasti", "lasting", "observed")

    def __init__(self, frame: FrameType, observed: int) -> None:
        self.frame = frame
        self.lasti = frame.f_lasti
        self.at = place(frame.f_code, self.lasti)
        self.observed = observed  # by its task when it last ran
        # As it stays until it runs again; None: not looked at, or it may change by itself.
        self.lasting: FrameAt | None = None


Change = tuple[int, int]
"""What a step did to a stack: how many of the outermost frames did not run, how many others there
are now."""

Moved = tuple[Change | None, Change | None]
"""What a step did to the stacks of its task's thread and guest; None: it did not run on it."""


class _Stack:
    """One stack: of a task's thread, or of the guest that it runs."""

    __slots__ = ("_before", "frames", "places", "top")

    def __init__(self) -> None:
        self.top: FrameType | None = None
        self.frames: list[_Standing] = []  # outermost first
        self.places: dict[FrameType, int] = {}
        self._before: list[int] = []  # what the task had observed when each frame last ran

    def leave(self) -> None:
        """From now on steps are followed. Frames that return meanwhile must let go of what they
        hold: its names are free."""
        self._before = [standing.observed for standing in self.frames]
        self.top = None
        self.frames.clear()
        self.places.clear()

    def _observed(self, followed: list[tuple[Change, int]]) -> list[int]:
        """For each frame, what its task had observed when it last ran."""
        if not followed:
            return self._before
        parts: list[list[int]] = []
        (keep, count), _ = followed[-1]
        open_to = keep + count  # of frames from there on it is known
        for (keep, _), observed in reversed(followed):
            if keep < open_to:
                parts.append([observed] * (open_to - keep))
                open_to = keep
        parts.append(self._before[:open_to])
        return [observed for part in reversed(parts) for observed in part]

    def meet(self, top: FrameType | None, followed: list[tuple[Change, int]]) -> bool:
        """It stands at `top` after steps that were `followed`, each with what its task had observed
        then. Whether it may be so."""
        observed = self._observed(followed)
        self.top = top
        frames: list[FrameType] = []
        at = top
        while at is not None:
            if _matters(at):
                frames.append(at)
            at = at.f_back
        frames.reverse()
        if len(frames) != len(observed):
            return False
        self.frames = [_Standing(*pair) for pair in zip(frames, observed, strict=True)]
        self.places = {frame: depth for depth, frame in enumerate(frames)}
        return True

    def now(self, top: FrameType | None, observed: int) -> Change | None:
        """It stands at `top`; `observed` stands for all that its task saw so far."""
        if top is self.top:
            return None  # it did not run
        self.top = top
        places = self.places
        fresh: list[FrameType] = []
        at = top
        # A generator's frame lasts, but who asks it for the next value has run in between.
        while at is not None and (at not in places or at.f_code.co_flags & CO_GENERATOR):
            if _matters(at):
                fresh.append(at)
            at = at.f_back
        # The innermost frame that is still there has run.
        keep = places[at] if at is not None else 0
        if at is not None:
            fresh.append(at)
        for gone in self.frames[keep:]:
            del places[gone.frame]
        del self.frames[keep:]
        for frame in reversed(fresh):
            places[frame] = len(self.frames)
            self.frames.append(_Standing(frame, observed))
        return keep, len(fresh)


class Stacks:
    """The stacks of all tasks of a run. `passed` or `follow` must be told of every step of the run,
    and `meet` before `passed` is told after `follow`."""

    __slots__ = (
        "_contents",
        "_followed",
        "_guests",
        "_once",
        "_sim",
        "_threads",
        "in_guest",
        "moved",
        "resumed",
    )

    def __init__(self, sim: Sim, contents: Contents) -> None:
        self._sim = sim
        self._contents = contents
        self._threads: dict[int, _Stack] = {}
        self._guests: dict[int, _Stack] = {}
        # By task: known steps that were followed, each with what the task had observed then.
        self._followed: dict[int, list[tuple[Moved, int]]] = {}
        # Contents of objects by id, within one look, with the ids of what in them can change.
        self._once: dict[int, tuple[int, frozenset[int]]] = {}
        self.moved: Moved = (None, None)  # by the last step that `passed` was told of
        self.in_guest = False  # where the task stands that `passed` was last told of
        self.resumed: dict[int, Coroutine] = {}  # by task, the last one

    def begin(self) -> None:
        """A run begins, or is over."""
        self._threads.clear()
        self._guests.clear()
        self._followed.clear()
        self.resumed.clear()

    def passed(self, task: Task, observed: int) -> None:
        """`task` has made a step and stops; `observed` stands for all that it saw so far."""
        thread, guest = self._stacks_of(task.index)
        caller = sys._getframe(1)
        top, guests_top = self._tops(task, caller)
        self.in_guest = guests_top is caller
        self.moved = (
            thread.now(top, observed),
            None if guests_top is None else guest.now(guests_top, observed),
        )

    def follow(self, index: int, moved: Moved, observed: int) -> None:
        """A step was made that is known to do so: nobody looks."""
        followed = self._followed.get(index)
        if followed is None:
            followed = self._followed[index] = []
            for stack in self._stacks_of(index):
                stack.leave()
        followed.append((moved, observed))

    def meet(self) -> bool:
        """Look where all tasks stand whose steps were followed. Whether they may stand there."""
        caller = sys._getframe(1)
        for task in self._sim.tasks:
            followed = self._followed.pop(task.index, None)
            if followed is not None and not task.done:
                tops = self._tops(task, caller)
                for at, stack in enumerate(self._stacks_of(task.index)):
                    changes = [
                        (change, observed)
                        for moved, observed in followed
                        if (change := moved[at]) is not None
                    ]
                    if not stack.meet(tops[at], changes):
                        return False
        return True

    def _stacks_of(self, index: int) -> tuple[_Stack, _Stack]:
        thread = self._threads.get(index)
        if thread is None:
            thread = self._threads[index] = _Stack()
            self._guests[index] = _Stack()
        return thread, self._guests[index]

    def _tops(self, task: Task, caller: FrameType) -> tuple[FrameType | None, FrameType | None]:
        """The innermost frames of the task's thread and of the guest that it runs. `caller`: the
        one of the stack that runs, if it does. (No frame may hold itself: it would last.)"""
        here = greenlet.getcurrent()
        runs = task is self._sim.current and here is not self._sim.hub
        running = here if runs else task.glet
        top = caller if runs else running.gr_frame if running else None
        guest = self.resumed.get(task.index)
        if guest is None:
            return top, None
        if running is guest.glet:
            return running.parent.gr_frame, top
        return top, guest.glet.gr_frame

    def forget(self, index: int) -> None:
        """A task has ended: let go of what its frames hold."""
        self._threads.pop(index, None)
        self._guests.pop(index, None)
        self._followed.pop(index, None)
        self.resumed.pop(index, None)

    def frames(self, task: Task) -> tuple[Frames, Frames] | None:
        """Where `task` stands since it last `passed`, by thread and guest; None when that cannot be
        told."""
        self._once.clear()
        index = task.index
        try:
            return self._frames(self._threads[index]), self._frames(self._guests[index])
        except Unknown:
            return None

    def counted(self, task: Task) -> int:
        """As `Stand.counted`, where it cannot be told where `task` stands."""
        frames = self._threads[task.index].frames
        return hash(tuple([_numbers(standing) for standing in frames])) or 1

    def _frames(self, stack: _Stack) -> Frames:
        return tuple([standing.lasting or self._look(standing) for standing in stack.frames])

    def _look(self, standing: _Standing) -> FrameAt:
        """At the variables of a frame. Raises Unknown."""
        frame = standing.frame
        variables = frame.f_locals
        place = (id(frame.f_code), standing.lasti)
        values: list[object] = [place]
        numbers: list[int] = []
        name_of = self._contents.name_of
        live = standing.at.live
        holds = NOTHING_HELD
        hides = standing.at.hides
        loops = standing.at.loops
        try:
            if loops and not hides:
                hides = not all(self._tells_how_far(variables, of) for of, _ in loops)
                if not hides:
                    live = live.union(*loops)
            for name, value in variables.items():
                if name not in live:
                    continue  # it is set again before it is looked at, or never looked at
                values.append(name)
                if value.__class__ is int:
                    values.append(of_int(value))
                    numbers.append(value)
                    continue
                if value.__class__ in _ATOMS:
                    values.append(value)
                    continue
                known = 0 if is_private(value) else name_of(id(value))
                if not known:
                    known, held = self._content(value)
                    if held:
                        holds |= held
                values.append(known)
        finally:
            if variables.__class__ is dict:
                variables.clear()  # a copy, which would keep alive what it holds
        counts = hash(tuple(numbers))
        hidden = standing.observed if hides else 0
        found = frame_at(hash(tuple(values)), hidden, place, holds, counts)
        if not holds:
            standing.lasting = found
        return found

    def _tells_how_far(self, variables: Mapping[str, object], name: str) -> bool:
        """Whether each element of what a loop goes through, the variable `name`, is told from the
        others, and nobody else can change it."""
        # Before another variable names it.
        alone = getrefcount(variables[name]) <= LOOPED + (variables.__class__ is dict)
        through = variables[name]
        if isinstance(through, range):
            return True
        kind = through.__class__
        if not isinstance(through, list | tuple) or not (kind is tuple or (kind is list and alone)):
            return False
        try:
            return len({self._content(one)[0] for one in through}) == len(through)
        except Unknown:
            return False

    def _content(self, value: object) -> tuple[int, frozenset[int]]:
        """What a value holds now, and the ids of what in it can change."""
        known = self._once.get(id(value))
        if known is None:
            self._contents.held.clear()
            content = self._contents.of_value(value)
            known = self._once[id(value)] = content, frozenset(self._contents.held)
        return known


def _numbers(standing: _Standing) -> tuple[int, ...]:
    """Those that variables of a frame hold."""
    variables = standing.frame.f_locals
    live = standing.at.live
    numbers = [v for name, v in variables.items() if v.__class__ is int and name in live]
    if variables.__class__ is dict:
        variables.clear()  # a copy, which would keep alive what it holds
    return tuple(numbers)


def place_of(frame: FrameType) -> int:
    """Where a stack stands in the model's code, as a number: the innermost frames of the model,
    from `frame` outwards. How the scheduler came to ask who runs next does not count."""
    places: list[int] = []
    at: FrameType | None = frame
    depth = PLACE_DEPTH
    while at is not None and depth:
        if _matters(at):
            places += (id(at.f_code), at.f_lasti)
            depth -= 1
        at = at.f_back
    return hash(tuple(places))


_codes: dict[CodeType, bool] = {}


def _matters(frame: FrameType) -> bool:
    """Whether a frame is of the model."""
    code = frame.f_code
    known = _codes.get(code)
    if known is None:
        module = str(frame.f_globals.get("__name__", ""))
        known = module == _MODEL or not module.startswith(_OTHERS)
        _codes[code] = known
    return known
