"""`septum explore` on a terminal: what the search is at, while it goes on.

On stderr, from a thread that only reads counters. The clock is the wall's: it decides what is
drawn, and nothing else.
"""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

from septum.report.lines import make_console
from septum.words import count_text, plural

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from septum.explore.progress import Progress

WIDTH = 80
BARS = "▁▂▃▄▅▆▇█"
SPARKS = 24
SPARK_EVERY_S = 1.0
DRAWS_PER_S = 4
LABEL = 10


class View:
    """Five lines: how much and how fast, what is searched, what is left, what was reached, what was
    found."""

    __slots__ = ("_clock", "_growth", "_progress", "_seen_at_s", "_started_s")

    def __init__(self, progress: Progress, clock: Callable[[], float] = time.monotonic) -> None:
        self._progress = progress
        self._clock = clock
        self._started_s = clock()
        self._seen_at_s = self._started_s
        self._growth: list[int] = [0]  # items reached at the end of each of the latest seconds

    def lines(self) -> list[str]:
        """The lines, at most 80 columns each."""
        progress = self._progress
        elapsed_s = self._clock() - self._started_s
        runs = max(progress.running(), progress.schedules)
        rate = int(runs / elapsed_s) if elapsed_s > 0 else 0
        states = f", {plural(progress.states, 'state')}" if progress.states else ""
        rows = [
            ("", f"{progress.subject}: {plural(runs, 'schedule')}, {count_text(rate)}/s{states}"),
            ("now", self._now()),
            ("left", self._left(elapsed_s, runs)),
            ("reached", f"{plural(len(progress.reached), 'outcome')}  {self._sparkline()}"),
            ("best", self._best()),
        ]
        return [_fit(label, text) for label, text in rows]

    def _now(self) -> str:
        progress = self._progress
        if not progress.parts:
            return progress.phase
        at = min(progress.parts_done + 1, progress.parts)
        return f"{progress.phase}, part {at} of {progress.parts}"

    def _left(self, elapsed_s: float, runs: int) -> str:
        options = self._progress.options
        words = []
        if options.time_s is not None:
            words.append(f"{max(0, round(options.time_s - elapsed_s))} s")
        if options.schedules is not None:
            words.append(plural(max(0, options.schedules - runs), "schedule"))
        left = ", ".join(words) if words else "no limit"
        return f"{left}; Ctrl-C keeps what is found"

    def _sparkline(self) -> str:
        """What each of the latest seconds added to what was reached."""
        now_s = self._clock()
        while now_s - self._seen_at_s >= SPARK_EVERY_S:
            self._seen_at_s += SPARK_EVERY_S
            self._growth.append(len(self._progress.reached))
        del self._growth[: -SPARKS - 1]
        steps = [b - a for a, b in zip(self._growth, self._growth[1:], strict=False)]
        top = max(steps, default=0)
        if not top:
            return BARS[0] * len(steps)
        return "".join(BARS[-(-step * (len(BARS) - 1) // top)] for step in steps)

    def _best(self) -> str:
        best = self._progress.best
        if best is None:
            return "nothing is broken so far"
        finding = best.finding
        return (
            f"{finding.promise} ({plural(best.preemptions, 'preemption')},"
            f" {plural(best.failures, 'failure')}, {plural(best.steps, 'point')}): {finding.text}"
        )


def _fit(label: str, text: str) -> str:
    line = f"  {label:<{LABEL}}{text}" if label else text
    return line if len(line) <= WIDTH else line[: WIDTH - 3] + "..."


@contextmanager
def watching(progress: Progress, *, wanted: bool, stream: IO[str] | None = None) -> Iterator[None]:
    """The view, while the block runs; nothing when it is not wanted or there is no terminal."""
    stream = stream if stream is not None else sys.stderr
    console = make_console(stream)
    if not wanted or not console.is_terminal or console.is_dumb_terminal:
        yield
        return
    from rich.live import Live
    from rich.text import Text

    view = View(progress)

    def draw() -> Text:
        return Text("\n".join(view.lines()), no_wrap=True, overflow="crop")

    with Live(get_renderable=draw, console=console, refresh_per_second=DRAWS_PER_S, transient=True):
        yield
