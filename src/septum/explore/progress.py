"""How far a search is: plain numbers, which somebody may look at from another thread."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from septum.explore.subject import Options
    from septum.explore.workers.search import Found, JobResult


class Progress:
    """`phase` says what is being searched, in `parts_done` of `parts` parts (0: not known);
    `schedules`, `states` and `reached` are of the parts that are done, `running` counts runs as
    they go on. `best` is the finding with the fewest disturbances so far."""

    __slots__ = (
        "best",
        "options",
        "parts",
        "parts_done",
        "phase",
        "reached",
        "running",
        "schedules",
        "states",
        "subject",
    )

    def __init__(self, subject: str, options: Options) -> None:
        self.subject = subject
        self.options = options
        self.phase = "getting ready"
        self.parts = 0
        self.parts_done = 0
        self.schedules = 0
        self.states = 0
        self.reached: set[str] = set()
        self.best: Found | None = None
        self.running: Callable[[], int] = lambda: self.schedules

    def begin(self, phase: str, parts: int = 0) -> None:
        """Another part of the search begins."""
        self.phase = phase
        self.parts = parts
        self.parts_done = 0

    def told(self, result: JobResult) -> None:
        """A job has ended."""
        self.parts_done += 1
        self.schedules += result.schedules
        self.states += result.states
        self.reached.update(result.coverage)
        for found in result.found:
            if self.best is None or _size(found) < _size(self.best):
                self.best = found


def _size(found: Found) -> tuple[int, int]:
    return found.failures + found.preemptions, found.steps
