"""An end for runs of scenarios that have none."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from septum.sim import RunStopped

if TYPE_CHECKING:
    from collections.abc import Iterator

    from septum.sim import Sim

POINTS_MAX = 2_000_000
"""So many scheduling points no scenario comes to: that of the library with most has some 90,000."""


def limit(sim: Sim) -> None:
    """From now on, what has no end after POINTS_MAX scheduling points is a finding of `progress`,
    and the run is stopped."""

    def alarm() -> None:
        running = ", ".join(task.name for task in sim.tasks if not task.done and not task.daemon)
        sim.find(
            "progress",
            f"no end after {POINTS_MAX} scheduling points; still running: {running}",
            where="scheduler",
        )
        raise RunStopped

    sim.set_alarm(alarm, sim.nr_points + POINTS_MAX)


@contextmanager
def limited(sim: Sim) -> Iterator[None]:
    """`limit` of what is done in here, which no schedule has a part in: RunStopped. Nothing is
    counted of it."""
    counted = sim.nr_points
    limit(sim)
    try:
        yield
    finally:
        sim.set_alarm(None)
        sim.nr_points = counted
