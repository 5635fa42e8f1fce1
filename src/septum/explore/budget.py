"""The clock that ends searches. Nothing else in a search looks at a clock.

A search that does not come to its time answers the same for the same seed; one that does says so.
"""

from __future__ import annotations

import time

SHRINK_LEAST_S = 20.0
SHRINK_MOST_S = 60.0


def now() -> float:
    """Seconds, the same in all processes of this machine."""
    return time.monotonic()


def after(seconds: float | None) -> float:
    """When that many seconds from now have passed; 0.0, which is never, for None."""
    return now() + seconds if seconds is not None else 0.0


def passed(until: float) -> bool:
    """Whether that time has come."""
    return bool(until) and now() > until


def shrinking_s(search_s: float | None) -> float | None:
    """Seconds for shrinking all that a search of `search_s` found, after it: as long again, within
    SHRINK_LEAST_S and SHRINK_MOST_S."""
    if search_s is None:
        return None
    return min(SHRINK_MOST_S, max(SHRINK_LEAST_S, search_s))
