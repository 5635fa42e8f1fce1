"""Tasks that go round a loop without change: seen, put aside, and woken by what they look at.

A task goes round when it comes to a state in which it was before, and no other one has run in
between. It need not run again until another task changes something that it looks at. When all that
are ready go round like that, nobody will ever change anything.

A task that counts its rounds is in another state after each: it may come out of its loop by itself,
and so it is followed until it does. That it sees the same again and again says nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from septum.explore.fingerprint import Fingerprint

Looks = tuple[int, ...]
"""The locations that a step looks at."""

Spinning = dict[int, tuple[tuple[int, int], ...]]
"""Tasks that go round: what they look at, and its content."""


class Row:
    """The last steps of a task that no other one came between: what each looked at, and the state
    after it."""

    __slots__ = ("_been", "_looks", "_states")

    def __init__(self) -> None:
        self._looks: list[Looks] = []
        self._states: list[int] = []
        self._been: set[int] = set()  # the states again

    def __len__(self) -> int:
        return len(self._states)

    def cut(self, length: int) -> None:
        """Go back to the first `length` steps."""
        if length < len(self._states):
            self._been.difference_update(self._states[length:])
            del self._states[length:]
            del self._looks[length:]

    def add(self, looks: Looks, state: int) -> bool:
        """Another step, unless it leads to a state that came before: whether it was added."""
        if state in self._been:
            return False
        self._looks.append(looks)
        self._states.append(state)
        self._been.add(state)
        return True

    def extend(self, looks: list[Looks], states: list[int]) -> bool:
        """More steps, unless one of them leads to a state that came before: whether they were
        added."""
        if not self._been.isdisjoint(states):
            return False
        self._looks += looks
        self._states += states
        self._been.update(states)
        return True

    def looks_at(
        self, looks: Looks, state: int, contents: Fingerprint
    ) -> tuple[tuple[int, int], ...]:
        """What the task looks at in the loop that a step which looks at `looks` has closed by
        coming to `state` again, and how it is now."""
        since = self._looks[self._states.index(state) + 1 :]
        locations = {location for some in (*since, looks) for location in some}
        return tuple([(location, contents.content(location)) for location in sorted(locations)])


def still_spinning(spinning: Spinning, state: Fingerprint) -> Spinning:
    """Those that would see what they saw."""
    return {
        task: saw
        for task, saw in spinning.items()
        if all(state.content(location) == content for location, content in saw)
    }
