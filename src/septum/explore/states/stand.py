"""Where a task stands, in its parts: every frame of its stacks, and what it alone has.

As one number it says that a task goes on as it did elsewhere. In parts it says what a step need not
have looked at to come out as it did (`exhaustive.alike`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from septum.explore.tracking.mix import spread

if TYPE_CHECKING:
    from collections.abc import Mapping

PLACE_DEPTH = 14
"""So many frames of a stack say where it stands."""

NOTHING_HELD: frozenset[int] = frozenset()


class FrameAt(NamedTuple):
    """A frame of a task's stack, as it is when the task stops.

    `value` stands for all of it; `told` for where it is and what its variables hold, `hidden` for
    what no variable names (0: nothing). `place`: its code, and where it is in it. `holds`: the ids
    of what its variables hold that can change while the frame waits: of values of one task by
    nature, of containers that have no name. `counts`: for the numbers in its variables.
    """

    value: int
    told: int
    hidden: int
    place: tuple[int, int]
    holds: frozenset[int]
    counts: int

    def observing(self, hidden: int) -> FrameAt:
        """The same frame, its task having observed something else when it last ran."""
        return frame_at(self.told, hidden, self.place, self.holds, self.counts)


def frame_at(
    told: int, hidden: int, place: tuple[int, int], holds: frozenset[int], counts: int = 0
) -> FrameAt:
    """A frame, with the number that stands for it."""
    value = hash((told, hidden)) if hidden else told
    return FrameAt(value, told, hidden, place, holds, counts)


Frames = tuple[FrameAt, ...]
"""A stack, outermost frame first."""


def place_in(frames: Frames) -> int:
    """Where a stack stands in the model's code, as a number: its innermost frames."""
    places: list[int] = []
    for frame in frames[: -PLACE_DEPTH - 1 : -1]:
        places += frame.place
    return hash(tuple(places))


class Own:
    """What a task alone has changed, and the objects that it alone has.

    `contents`: what stands for them, by location; `total`: for all of it, as a sum; `shown`: for
    what promises can see of it; `silent`: for what is looked at without a word. `alive`: the names
    of objects that only it ever had, `lasting`: of those that are never given again, as a sum.
    `changing`: where values of one task by nature are, and their ids.
    """

    __slots__ = ("alive", "changing", "contents", "lasting", "shown", "silent", "total")

    def __init__(
        self,
        contents: Mapping[int, int],
        sums: tuple[int, int, int, int],
        alive: tuple[int, ...],
        changing: Mapping[int, frozenset[int]],
    ) -> None:
        """`sums`: total, shown, lasting, silent."""
        self.contents = contents
        self.total, self.shown, self.lasting, self.silent = sums
        self.alive = alive
        self.changing = changing


class Stand:
    """Where a task stands: the stacks of its thread and of the guest that it runs, and its own.
    `in_guest`: the guest's runs."""

    __slots__ = ("in_guest", "own", "stacks", "values")

    def __init__(self, stacks: tuple[Frames, Frames], own: Own, *, in_guest: bool) -> None:
        self.stacks = stacks
        self.own = own
        self.in_guest = in_guest
        self.values = tuple([tuple([frame.value for frame in frames]) for frames in stacks])

    def digest(self) -> int:
        """All of it, as one number."""
        return hash((self.values, hash(self.own.total)))

    def place(self) -> int:
        """Where it stands in the model's code, as a number."""
        return place_in(self.stacks[self.in_guest])

    def counted(self) -> int:
        """What stands for the numbers in its thread's variables: one that counts its rounds has
        another one after each. Not 0. A guest that tries again a hundred times is not one of those:
        it is taken to be let on before (see `ScenarioGuest`)."""
        return hash(tuple([frame.counts for frame in self.stacks[0]])) or 1


def sign_of(location: int, content: int) -> int:
    """What stands for a content at a location, where sums are made of such."""
    return spread(hash((location, content))) or 1
