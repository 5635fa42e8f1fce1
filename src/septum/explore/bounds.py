"""Bounds and budgets as a user writes them: what cannot be meant is refused in one sentence."""

from __future__ import annotations

from septum.errors import InputError
from septum.explore.subject import UNBOUNDED
from septum.words import plural

WORKERS_MAX = 96
"""A search is cut into at most so many parts, so that more processes would find nothing to do."""
NUMBER_MAX = (1 << 63) - 1
"""Larger numbers fit into no message and no report."""


def check_bounds(
    *,
    preemptions: int | None,
    failures: int,
    schedules: int | None,
    time_s: float | None,
    workers: int,
    seed: int,
) -> None:
    """Raises InputError for what no search can be given. None is no bound; so are preemptions
    of -1."""
    if workers < 1:
        raise InputError(f"--workers {workers}: there must be at least one")
    if workers > WORKERS_MAX:
        raise InputError(
            f"--workers {workers}: a search has work for {WORKERS_MAX} at most; give as many as"
            " there are cores"
        )
    if preemptions is not None and preemptions < -1:
        raise InputError(f"--preemptions {preemptions}: give a bound, or -1 for none")
    if failures < 0:
        raise InputError(f"--failures {failures}: there cannot be fewer than none")
    if schedules is not None and schedules < 1:
        raise InputError(f"--schedules {schedules}: there must be at least one")
    if time_s is not None and not time_s > 0:  # what is no number at all, too
        raise InputError(f"--time {time_s:g}: give it some seconds")
    for name, value in (("failures", failures), ("schedules", schedules), ("seed", seed)):
        if value is not None and abs(value) > NUMBER_MAX:
            raise InputError(f"--{name} {value}: give a number of at most {NUMBER_MAX}")


def searched_text(preemptions: int, failures: int) -> str:
    """`all with 2 preemptions, 1 failure`: what one search within bounds goes through."""
    most = plural(preemptions, "preemption")
    some = "all schedules" if preemptions == UNBOUNDED else f"all with {most}"
    return f"{some}, {plural(failures, 'failure')}"
