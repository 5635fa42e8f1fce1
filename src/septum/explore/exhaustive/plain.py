"""The slow judge: every schedule within the bounds, one after the other, without reduction.

It is the definition of what the fast search must find. Depth-first over the answers of a run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.explore.runs.steering import Steering

if TYPE_CHECKING:
    from collections.abc import Iterable

    from septum.explore.subject import Options


class PlainSteering(Steering):
    """Walks the tree of answers, or what begins with the answers `prefix`: `path` holds those still
    to be tried at each depth."""

    __slots__ = ("_at", "failures_max", "path", "preemptions_max")

    def __init__(self, options: Options, prefix: Iterable[int] = ()) -> None:
        self.path = [[answer] for answer in prefix]
        self.preemptions_max = options.max_preemptions()
        self.failures_max = options.failures
        super().__init__()

    def reset(self) -> None:
        super().reset()
        self._at = 0

    def _answer(self, alternatives: list[int]) -> int:
        at = self._at
        self._at = at + 1
        if at < len(self.path):
            return self.path[at][0]
        self.path.append(alternatives)
        return alternatives[0]

    def pick_task(self, n: int, forced: bool, spins: bool) -> int:
        if spins:
            return self._answer(list(range(1, n)))
        if forced or self.preemptions < self.preemptions_max:
            return self._answer(list(range(n)))
        return self._answer([0])

    def choose_value(self, name: str, n: int) -> int:
        if self.is_failure(name) and self.failures >= self.failures_max:
            return self._answer([0])
        return self._answer(list(range(n)))

    def advance(self) -> bool:
        """Go to the next schedule; False when there is none."""
        path = self.path
        while path:
            path[-1].pop(0)
            if path[-1]:
                return True
            path.pop()
        return False
