"""Cuts the tree of schedules into subtrees for jobs, always in the same way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.explore.run import Replaying, StateMissed

if TYPE_CHECKING:
    from septum.explore.run import Runner
    from septum.explore.subject import Options


class _Probe(Replaying):
    """Follows a prefix and stops at the decision after it, to see the alternatives."""

    __slots__ = ("_failures_max", "_preemptions_max", "alternatives")

    def __init__(self, prefix: list[int], preemptions_max: int, failures_max: int) -> None:
        super().__init__(prefix)
        self._preemptions_max = preemptions_max
        self._failures_max = failures_max
        self.alternatives: list[int] = []

    def pick_task(self, n: int, forced: bool, spins: bool) -> int:
        if self._at >= len(self.answers):
            if spins:
                self.alternatives = list(range(1, n))
            elif forced or self.preemptions < self._preemptions_max:
                self.alternatives = list(range(n))
            else:
                self.alternatives = [0]
            self.stop()
        return super().pick_task(n, forced, spins)

    def choose_value(self, name: str, n: int) -> int:
        if self._at >= len(self.answers):
            limited = self.is_failure(name) and self.failures >= self._failures_max
            self.alternatives = [0] if limited else list(range(n))
            self.stop()
        return super().choose_value(name, n)


def split(runner: Runner, options: Options, preemptions: int, target: int) -> list[list[int]]:
    """At least `target` prefixes (if there are so many) that together cover all schedules.

    The one with the fewest disturbances is cut first, as it has the most below it. Raises
    OutOfTime.
    """
    leaves: list[list[int]] = [[]]
    ended: list[list[int]] = []
    while leaves and len(leaves) + len(ended) < target:
        leaves.sort(key=lambda prefix: (sum(1 for a in prefix if a), len(prefix), prefix))
        prefix = leaves.pop(0)
        probe = _Probe(prefix, preemptions, options.failures)
        try:
            runner.run(probe)
        except StateMissed:
            leaves.append(prefix)
            continue
        if probe.alternatives:
            leaves += [[*prefix, answer] for answer in probe.alternatives]
        else:
            ended.append(prefix)
    return sorted([*leaves, *ended])
