"""When the checks look at everything, and when at what something named: a full look costs in
proportion to the guest, so that large or mixed guests are looked at as a whole more rarely.

All of it is a function of the run alone: the same run is looked at in the same places.
"""

from __future__ import annotations

STEPS_PER_ACTIVE_LOOK = 64
VIOLATIONS_PER_WIDE_LOOK = 64
OPERATIONS_PER_THOROUGH_LOOK = 64
FRAME = 512
NEAR = 8


class Pace:
    """Counts what happens between looks. Each quiet point earns one; a full look takes as many as
    it costs. `rarely`: full looks, and those at what a fault mapped, so many times less often."""

    __slots__ = ("_cost", "_earned", "_nr_operations", "_nr_steps", "_nr_violations", "_rarely")

    def __init__(self, rarely: int = 1) -> None:
        self._rarely = rarely
        self._earned = 0
        self._cost = 0
        self._nr_operations = 0
        self._nr_steps = 0
        self._nr_violations = 0

    def earn(self) -> None:
        """A quiet point."""
        self._earned += 1

    def is_time_for_all(self) -> bool:
        """Whether a full look may be made."""
        return self._earned >= self._cost

    def spend(self) -> None:
        """One is made for what was earned."""
        self._earned = 0

    def looked_at_all(self, nr_runs: int) -> None:
        """One was made, which found so many runs of alike leaves."""
        self._cost = self._rarely * nr_runs * nr_runs // 16

    def operation_is_wide(self) -> bool:
        """An operation has ended. Whether all promises look at the whole frames that it named, and
        not those that take their time only at the pages near by."""
        self._nr_operations += 1
        return self._nr_operations % OPERATIONS_PER_THOROUGH_LOOK == 0

    def around_violation(self) -> int:
        """An EPT violation was handled. How many pages around it are looked at: most of them map
        one page, and the frame of 2 MB is looked at every so often; 0: this one is passed over."""
        self._nr_violations += 1
        if self._nr_violations % self._rarely:
            return 0
        return FRAME if self._nr_violations % VIOLATIONS_PER_WIDE_LOOK == 0 else NEAR

    def step_is_active(self) -> bool:
        """A scheduling point. Whether what tasks are at is looked at, changed or not."""
        self._nr_steps += 1
        return self._nr_steps % STEPS_PER_ACTIVE_LOOK == 0
