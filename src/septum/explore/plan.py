"""A schedule as a plan: which task runs for how many decisions, and how its choices come out.

Answers mean something else when an earlier one changes; a plan does not. So it is plans that the
shrinker takes apart: without a segment, with two of them merged, with one that runs on until its
task must wait.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.explore.run import Replaying, Steering

if TYPE_CHECKING:
    from collections.abc import Iterator

FOREVER = 1 << 30
Segment = tuple[int, int]
"""A task by index, and at how many decisions it is the one to run."""


class Plan:
    """`choices` are by (task, how manieth choice of that task); those absent are 0."""

    __slots__ = ("choices", "segments")

    def __init__(self, segments: list[Segment], choices: dict[tuple[int, int], int]) -> None:
        self.segments = segments
        self.choices = choices

    def variants(self) -> Iterator[Plan]:
        """Plans that are simpler, the boldest first."""
        segments, choices = self.segments, self.choices
        for at in range(len(segments) - 1, 0, -1):
            yield Plan(segments[:at], choices)
        for at in range(len(segments)):
            yield Plan([*segments[:at], *segments[at + 1 :]], choices)
        for at, (task, count) in enumerate(segments):
            if count != FOREVER:
                yield Plan([*segments[:at], (task, FOREVER), *segments[at + 1 :]], choices)
        for at in range(len(segments) - 1):
            swapped = [segments[at + 1], segments[at]]
            yield Plan([*segments[:at], *swapped, *segments[at + 2 :]], choices)
        for at, (task, _) in enumerate(segments):
            later = next((k for k in range(at + 1, len(segments)) if segments[k][0] == task), None)
            if later is not None:
                count = min(FOREVER, segments[at][1] + segments[later][1])
                yield Plan(
                    [
                        *segments[:at],
                        (task, count),
                        *segments[at + 1 : later],
                        *segments[later + 1 :],
                    ],
                    choices,
                )
        for key in choices:
            yield Plan(segments, {k: v for k, v in choices.items() if k != key})
        for at, (task, count) in enumerate(segments):
            for other in (count // 2, count - 1, count + 1):
                if 0 < other < FOREVER // 2 and count < FOREVER:
                    yield Plan([*segments[:at], (task, other), *segments[at + 1 :]], choices)


class Planning(Replaying):
    """Replays answers and writes down the plan that they amount to."""

    __slots__ = ("_choices", "_nr_choices", "_segments")

    def reset(self) -> None:
        super().reset()
        self._segments: list[list[int]] = []
        self._choices: dict[tuple[int, int], int] = {}
        self._nr_choices: dict[int, int] = {}

    def pick_task(self, n: int, forced: bool, spins: bool) -> int:
        answer = super().pick_task(n, forced, spins)
        task = self.sim.ready_ring(forced)[answer].index
        if self._segments and self._segments[-1][0] == task:
            self._segments[-1][1] += 1
        else:
            self._segments.append([task, 1])
        return answer

    def choose_value(self, name: str, n: int) -> int:
        value = super().choose_value(name, n)
        task = self.sim.current.index
        number = self._nr_choices.get(task, 0)
        self._nr_choices[task] = number + 1
        if value:
            self._choices[task, number] = value
        return value

    def plan(self) -> Plan:
        """The plan of the run that was replayed."""
        return Plan([(task, count) for task, count in self._segments], dict(self._choices))


class Following(Steering):
    """Runs a plan as far as it fits: a segment is over when its task goes round or is not ready."""

    __slots__ = ("_at", "_left", "_nr_choices", "plan")

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        super().__init__()

    def reset(self) -> None:
        super().reset()
        self._at = -1
        self._left = 0
        self._nr_choices: dict[int, int] = {}

    def pick_task(self, n: int, forced: bool, spins: bool) -> int:
        ring = [task.index for task in self.sim.ready_ring(forced)]
        segments = self.plan.segments
        while self._at < len(segments):
            if self._left > 0 and segments[self._at][0] in ring[1 if spins else 0 :]:
                self._left -= 1
                return ring.index(segments[self._at][0])
            self._at += 1
            if self._at < len(segments):
                self._left = segments[self._at][1]
        return 1 if spins else 0

    def choose_value(self, name: str, n: int) -> int:
        task = self.sim.current.index
        number = self._nr_choices.get(task, 0)
        self._nr_choices[task] = number + 1
        return self.plan.choices.get((task, number), 0) % n
