"""Shows how far a run is while it goes on, from a thread that only reads counters."""

from __future__ import annotations

import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from septum.report.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Iterator

    from septum.scenarios.boot import Boot

LOOK_EVERY_S = 0.5


@contextmanager
def watched(boot: Boot) -> Iterator[None]:
    """A status line with SEAMCALLs made and their rate, while the block runs on a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    counts = boot.world.module.counts
    done = threading.Event()
    with Progress("boot", "SEAMCALLs") as progress:

        def look() -> None:
            while not done.wait(LOOK_EVERY_S):
                progress.nr_done = sum(list(counts.values()))
                progress.say("up, going down" if boot.up else "booting")

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
