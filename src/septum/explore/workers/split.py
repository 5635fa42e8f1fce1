"""Cuts the tree of schedules into subtrees for jobs, always in the same way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.explore.runs.run import LEFT_BEHIND, REDONE_MAX, StateMissed
from septum.explore.runs.steering import Replaying

if TYPE_CHECKING:
    from septum.explore.runs.run import Runner
    from septum.explore.subject import Options


class _Probe(Replaying):
    """Follows a prefix and stops at the decision after it, to see the alternatives."""

    __slots__ = ("_failures_max", "_preemptions_max", "alternatives", "disturbs")

    def __init__(self, prefix: list[int], preemptions_max: int, failures_max: int) -> None:
        super().__init__(prefix)
        self._preemptions_max = preemptions_max
        self._failures_max = failures_max
        self.alternatives: list[int] = []
        self.disturbs = False  # all but the first of them are preemptions, or failures

    def pick_task(self, n: int, forced: bool, spins: bool) -> int:
        if self._at >= len(self.answers):
            if spins:
                self.alternatives = list(range(1, n))
            elif forced or self.preemptions < self._preemptions_max:
                self.alternatives = list(range(n))
                self.disturbs = not forced
            else:
                self.alternatives = [0]
            self.stop()
        return super().pick_task(n, forced, spins)

    def choose_value(self, name: str, n: int) -> int:
        if self._at >= len(self.answers):
            limited = self.is_failure(name) and self.failures >= self._failures_max
            self.alternatives = [0] if limited else list(range(n))
            self.disturbs = self.is_failure(name)
            self.stop()
        return super().choose_value(name, n)


def split(runner: Runner, options: Options, preemptions: int, target: int) -> list[list[int]]:
    """At least `target` prefixes (if there are so many) that together cover all schedules.

    The one with the fewest preemptions and failures is cut first, as it has the most below it, and
    of such the shortest. Raises OutOfTime.
    """
    leaves: list[tuple[int, int, list[int]]] = [(0, 0, [])]  # (disturbances, length, prefix)
    ended: list[list[int]] = []
    nr_missed = 0
    while leaves and len(leaves) + len(ended) < target:
        leaves.sort()
        disturbed, length, prefix = leaves.pop(0)
        probe = _Probe(prefix, preemptions, options.failures)
        try:
            runner.run(probe)
        except StateMissed:
            nr_missed += 1
            if nr_missed > REDONE_MAX:
                raise RuntimeError(LEFT_BEHIND) from None
            leaves.append((disturbed, length, prefix))
            continue
        if probe.alternatives:
            leaves += [
                (disturbed + (answer > 0 and probe.disturbs), length + 1, [*prefix, answer])
                for answer in probe.alternatives
            ]
        else:
            ended.append(prefix)
    return sorted([*(prefix for _, _, prefix in leaves), *ended])
