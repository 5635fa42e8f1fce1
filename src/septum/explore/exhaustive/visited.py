"""The states that were explored to the end: with how much to spend, without which sleepers.

A search keeps millions of them. What is kept of each is shared by all that are alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.explore.subject import UNBOUNDED

if TYPE_CHECKING:
    from septum.explore.exhaustive.node import Node
    from septum.explore.tracking.footprint import Masks, Summary

FOUND = -1
"""In the summary of what was touched below a state, among the tasks: something was found there."""

_How = tuple[int, int, int, frozenset[int], tuple[tuple[int, "Masks"], ...]]


class Visit:
    """How a state was explored."""

    __slots__ = ("below", "current", "failures_left", "preemptions_left", "sleep")

    def __init__(
        self,
        current: int,
        preemptions_left: int,
        failures_left: int,
        sleep: frozenset[int],
        below: Summary,
    ) -> None:
        self.current = current
        self.preemptions_left = preemptions_left
        self.failures_left = failures_left
        self.sleep = sleep
        self.below = below

    def covers(self, node: Node) -> bool:
        """Whether entering the state as `node` would find nothing new."""
        need = node.preemptions_left
        # Without a bound it does not matter who runs on.
        if self.current != node.current and need < UNBOUNDED:
            need += 1
        return (
            self.preemptions_left >= need
            and self.failures_left >= node.failures_left
            and self.sleep <= node.sleep.keys()
        )

    def holds(self, other: Visit) -> bool:
        """Whether this covers all that `other` does."""
        return (
            self.current == other.current
            and self.preemptions_left >= other.preemptions_left
            and self.failures_left >= other.failures_left
            and self.sleep <= other.sleep
        )


class Visited:
    """Visits by what stands for a state."""

    __slots__ = ("_alike", "_visits")

    def __init__(self) -> None:
        self._visits: dict[int, tuple[Visit, ...]] = {}
        self._alike: dict[_How, tuple[Visit]] = {}

    def __len__(self) -> int:
        return len(self._visits)

    def clear(self) -> None:
        """Nothing was explored."""
        self._visits.clear()
        self._alike.clear()

    def below(self, node: Node) -> Summary | None:
        """What was touched in what was explored from where `node` would have to be; None where
        entering it may find something new."""
        for visit in self._visits.get(node.key, ()):
            if visit.covers(node):
                return visit.below
        return None

    def add(self, node: Node) -> Visit:
        """A node was explored to the end. Returns how it was."""
        how = (
            node.current if node.preemptions_left < UNBOUNDED else -1,
            node.preemptions_left,
            node.failures_left,
            frozenset(node.asleep),
            tuple(sorted(node.below.items())),
        )
        visit = self._alike.get(how)
        if visit is None:
            visit = self._alike[how] = (Visit(*how[:4], node.below),)
        self._put(node.key, visit)
        return visit[0]

    def hear(self, key: int, visit: tuple[Visit]) -> None:
        """Another worker has explored a state to the end."""
        if not any(mine.holds(visit[0]) for mine in self._visits.get(key, ())):
            self._put(key, visit)

    def _put(self, key: int, visit: tuple[Visit]) -> None:
        before = self._visits.get(key)
        self._visits[key] = visit if before is None else before + visit
