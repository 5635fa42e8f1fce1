"""What a long run shows while it goes on: how far, how fast, and what stops it.

On stderr, and only on a terminal. The clock that it reads is the wall's: the rate is by it, and
nothing else.
"""

from __future__ import annotations

import sys
import time
from typing import IO, TYPE_CHECKING

from septum.report.lines import make_console
from septum.words import count_text

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from rich.status import Status

STOP = "Ctrl-C stops it"


class Progress:
    """A status line. `nr_done` is how many units of work were done; `say` tells what is being done,
    and draws.

    `total` (0: unknown) is the number of units that end it. Use as a context manager.
    """

    __slots__ = (
        "_clock",
        "_started_s",
        "_status",
        "_stream",
        "detail",
        "nr_done",
        "stop",
        "total",
        "unit",
        "what",
    )

    def __init__(
        self,
        what: str,
        unit: str,
        *,
        total: int = 0,
        stop: str = STOP,
        stream: IO[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.what = what
        self.unit = unit
        self.total = total
        self.stop = stop
        self.detail = ""
        self.nr_done = 0
        self._stream = stream if stream is not None else sys.stderr
        self._clock = clock
        self._started_s = clock()
        self._status: Status | None = None

    def say(self, detail: str) -> None:
        """What is being done from here on."""
        self.detail = detail
        self.draw()

    def text(self) -> str:
        """The line: what, how much, how fast, what stops it."""
        elapsed_s = self._clock() - self._started_s
        done = count_text(self.nr_done)
        if self.total:
            done += f" of {count_text(self.total)} ({100 * self.nr_done // self.total} %)"
        parts = [f"{self.what}: {done} {self.unit}"]
        if elapsed_s > 0:
            parts.append(f"{count_text(int(self.nr_done / elapsed_s))}/s")
        if self.detail:
            parts.append(self.detail)
        parts.append(self.stop)
        return "  ".join(parts)

    def draw(self) -> None:
        """Draw the line as it is now; nothing when there is no terminal."""
        if self._status is not None:
            self._status.update(self.text())

    def __enter__(self) -> Progress:
        if self._stream.isatty():
            console = make_console(self._stream)
            self._status = console.status(self.text(), refresh_per_second=4)
            self._status.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None
