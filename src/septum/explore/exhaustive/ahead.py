"""How a run would go on by itself, as far as its steps are known: so a run that has learned what it
was made for goes on only if there is more to learn, and nobody listens until then."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.explore.exhaustive.known import DONE, POINT

if TYPE_CHECKING:
    from septum.explore.exhaustive.known import Look, Step
    from septum.explore.exhaustive.transitions import Transitions
    from septum.explore.states.fingerprint import Fingerprint

Move = tuple[int, tuple[int, ...]]
"""A task, and how the choice points of its step come out."""

ALONG_MAX = 48
"""So many decisions in a row a task goes on by itself, or half as many as were made before; then a
run that learns is broken off. (It costs as much to come there again.)"""


def along_max(nr_made: int) -> int:
    """How many decisions in a row a task goes on by itself in a run that has made `nr_made` to come
    to what it is made for."""
    return max(ALONG_MAX, nr_made // 2)


class Ahead:
    """The known steps that follow in a state.

    `tires`: the run would be broken off. `ends`: with another known step, which is none of `steps`,
    the run ends in the state `end`. `looks`: those of promises that are not known, by the number of
    the step (of that one, too).
    """

    __slots__ = ("end", "ends", "looks", "moves", "steps", "tires")

    def __init__(self) -> None:
        self.moves: list[Move] = []
        self.steps: list[Step] = []
        self.looks: dict[int, Look] = {}
        self.ends = False
        self.end = 0
        self.tires = False


def look_ahead(
    state: Fingerprint, transitions: Transitions, ring: list[int], alive: set[int], most: int
) -> Ahead:
    """What is known to follow in `state`, which becomes what the steps lead to. `ring`: the ready
    tasks, who runs first; `alive`: who must have ended when the run has (both become what they are
    then); `most`: how many decisions in a row a task goes on by itself."""
    ahead = Ahead()
    in_a_row = 0
    while in_a_row <= most:
        task = ring[0]
        step = transitions.find(state, task, len(ring) == 1, ())
        if step is None or step.left is None or step.finding is not None:
            return ahead
        if step.looked:
            look = (state.shown, step.raw)
            if look not in transitions.looks:
                ahead.looks[len(ahead.steps)] = look
            elif transitions.looks[look] is not None:
                return ahead
        mark = state.mark()
        state.apply(step.change)
        if step.end != POINT:
            ring.remove(task)
        if step.end == DONE:
            alive.discard(task)
        ring.extend(step.woken)
        if not ring or not alive:
            ahead.ends = True
            ahead.end = state.value
            state.rewind(mark)
            return ahead
        ahead.moves.append((task, step.answers))
        ahead.steps.append(step)
        if len(step.woken) > 1:
            return ahead  # nobody knows who of them runs first
        in_a_row = in_a_row + 1 if step.end == POINT else 0
    ahead.tires = True
    return ahead
