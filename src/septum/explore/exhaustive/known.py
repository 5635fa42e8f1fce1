"""A step as it is kept once it was made: what it saw, how it came out, what it did."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.explore.states.fingerprint import NO_CHANGE, Seen
from septum.explore.tracking.footprint import NO_NUMBERS

if TYPE_CHECKING:
    from septum.explore.exhaustive.alike import Like
    from septum.explore.states.stacks import Moved
    from septum.explore.tracking.footprint import Masks
    from septum.explore.tracking.own import Noted
    from septum.sim import Finding, Task

POINT, BLOCKED, DONE = range(3)
"""How a step ends: the task could go on, it waits, it has ended."""


class Choice:
    """A choice point that a step met."""

    __slots__ = ("failure", "n", "value")

    def __init__(self, failure: bool, n: int, value: int) -> None:
        self.failure = failure
        self.n = n
        self.value = value


class Step:
    """What a step did. `seen`: on what that rests. `looked`: promises looked in it, whose
    judgement rests on all that they read. `finding` ends the run."""

    __slots__ = (
        "answers",
        "chain",
        "change",
        "choices",
        "end",
        "finding",
        "handed_on",
        "hearsay",
        "left",
        "like",
        "looked",
        "looks_at",
        "makes",
        "masks",
        "moved",
        "numbers",
        "observed",
        "place",
        "raw",
        "relies",
        "retries",
        "seen",
        "touched",
        "woken",
        "wrote",
    )

    def __init__(self, seen: Seen, observed: int, choices: tuple[Choice, ...]) -> None:
        self.seen = seen
        self.observed = observed
        self.choices = choices
        self.answers = tuple([choice.value for choice in choices])  # how they came out
        self.chain = 0
        self.raw = 0  # all that the task had observed after it; its chain may tell less
        # Its chain tells what the task alone has, and the one before it does not.
        self.relies = False
        self.end = POINT
        self.finding: Finding | None = None
        self.looked = False
        self.looks_at: tuple[int, ...] = ()
        self.makes = False  # objects that have names
        # Not 0 where it ends where its task tries again what came to nothing: what it has counted.
        self.retries = 0
        self.numbers = False  # results of operations, which are counted by task
        self.masks: Masks = (0, 0, 0, 0)
        # What it did to its task's stacks, and what it left of what one task alone has; None: it is
        # no function of what the step saw.
        self.moved: Moved = (None, None)
        self.left: tuple[Noted, ...] | None = None
        self.handed_on: tuple[int, ...] = ()  # objects that others can get at from then on
        # Another worker told of it, and no run of this one has logged it yet: nobody would put back
        # what it changes.
        self.hearsay = False
        self.like: Like | None = None  # what of its task it looked at, if that can be told
        self.place = 0
        self.touched = NO_NUMBERS
        self.woken: tuple[int, ...] = ()
        self.change = NO_CHANGE
        self.wrote: frozenset[int] = frozenset()  # what it wrote to, and all that is part of

    def __getstate__(self) -> tuple[object, ...]:
        """For other workers, who work out anew what goes by numbers of their own."""
        return tuple([getattr(self, name) for name in _TOLD])

    def __setstate__(self, state: tuple[object, ...]) -> None:
        for name, value in zip(_TOLD, state, strict=True):
            setattr(self, name, value)

    def comes_out(self, choices: tuple[int, ...]) -> bool:
        """Whether its choice points come out as `choices`, and 0 after."""
        made = self.answers
        length = len(choices)
        return made == choices or (
            made[:length] == choices and len(made) >= length and not any(made[length:])
        )

    def copy(self) -> Step:
        """Another like it."""
        twin = Step(self.seen, self.observed, self.choices)
        for name in Step.__slots__:
            setattr(twin, name, getattr(self, name))
        return twin

    def effect(self) -> tuple[object, ...]:
        """What another step that saw the same must have done, too."""
        return (self.chain, self.raw, self.end, self.woken, self.change.effect(), self.place)


_TOLD = tuple(name for name in Step.__slots__ if name not in ("masks", "touched"))

Look = tuple[int, int]
"""A step in which promises looked: what they could see before it, and its `raw`. The same in all
workers."""


class Ends:
    """How a real step ended, as the scheduler saw it."""

    __slots__ = ("end", "finding", "place", "task", "woken")

    def __init__(self, end: int, woken: tuple[int, ...], task: Task | None = None) -> None:
        """`task`: who made it and stopped somewhere."""
        self.task = task
        self.end = end
        self.woken = woken
        self.place = 0
        self.finding: Finding | None = None
