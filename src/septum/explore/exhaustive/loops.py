"""Tasks that go round a loop without change: seen, put aside, and woken by what they look at.

A task goes round when it comes to a state in which it was before, and no other one has run in
between. It need not run again until another task changes something that it looks at. When all that
are ready go round like that, nobody will ever change anything.

A task that counts its rounds is in another state after each: it may come out of its loop by itself,
and so it is followed until it does. That it sees the same again and again says nothing. But where
the model says that a task tries again what came to nothing (`Sim.retry`), no other has run since it
said so at the same place, and the numbers in its variables are the same, it goes round, whatever it
makes anew in each round.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from septum.explore.exhaustive.known import Step
    from septum.explore.states.fingerprint import Fingerprint

Spinning = dict[int, tuple[tuple[int, int], ...]]
"""Tasks that go round: what they look at, and its content."""


class Row:
    """The last steps of a task that no other one came between, each with the state after it.
    `start`: the state that it began in."""

    __slots__ = ("_been", "_start", "_states", "_steps")

    def __init__(self, start: int) -> None:
        self._start = start
        self._steps: list[Step] = []
        self._states: list[int] = []
        self._been = {start}  # all states again

    def __len__(self) -> int:
        return len(self._states)

    def cut(self, length: int) -> None:
        """Go back to the first `length` steps."""
        if length < len(self._states):
            self._been.difference_update(self._states[length:])
            del self._states[length:]
            del self._steps[length:]

    def add(self, step: Step, state: int) -> list[Step]:
        """Another step, unless it closes a loop: the steps of that are returned then."""
        if state == self._start:
            return [*self._steps, step]
        if state in self._been:
            return [*self._steps[self._states.index(state) + 1 :], step]
        if step.retries:
            for at in range(len(self._steps) - 1, -1, -1):
                before = self._steps[at]
                if before.retries == step.retries and before.place == step.place:
                    return [*self._steps[at + 1 :], step]
        self._steps.append(step)
        self._states.append(state)
        self._been.add(state)
        return []

    def extend(self, steps: list[Step], states: list[int]) -> bool:
        """More steps that retry nothing, unless one of them closes a loop: whether they were
        added."""
        if not self._been.isdisjoint(states):
            return False
        self._steps += steps
        self._states += states
        self._been.update(states)
        return True


def looks_at(loop: list[Step], state: Fingerprint) -> tuple[tuple[int, int], ...]:
    """What a task looks at in a loop, and how it is now."""
    locations = sorted({location for step in loop for location in step.looks_at})
    return tuple([(location, state.content(location)) for location in locations])


def still_spinning(spinning: Spinning, state: Fingerprint) -> Spinning:
    """Those that would see what they saw."""
    return {
        task: saw
        for task, saw in spinning.items()
        if all(state.content(location) == content for location, content in saw)
    }
