"""What a user asks of a search, before anything of it is known to make sense."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec

from septum.errors import InputError
from septum.explore.bounds import check_bounds
from septum.explore.subject import UNBOUNDED, Options, Strategy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from septum.explore.subject import Subject


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for, in the words of the command line.

    `preemptions`: None or -1 is no bound. `failures`: None is one where the scenario allows any,
    else none. `fail`: choice points that may fail beside those that it allows; `ignore`: parts of
    findings that do not count. `coverage`: print all that was reached, too. `page` writes the page
    of a token's run to a file: for counterexamples, beside their text.
    """

    design: str = "v3"
    strategy: str = "auto"
    preemptions: int | None = 2
    failures: int | None = None
    time_s: float | None = 60.0
    schedules: int | None = None
    workers: int = 1
    seed: int = 0
    check: str = "end"
    fail: Sequence[str] = ()
    ignore: Sequence[str] = ()
    keep_going: bool = False
    as_json: bool = False
    ktap: bool = False
    coverage: bool = False
    watch: bool = True
    report: Path | None = None
    emit_test: Path | None = None
    page: Callable[[str, Path], None] | None = None

    def options(self, subject: Subject) -> Options:
        """How to search `subject`. Raises InputError for a strategy or a number that cannot be."""
        try:
            strategy = Strategy(self.strategy)
        except ValueError:
            known = ", ".join(s.value for s in Strategy)
            raise InputError(f"--strategy {self.strategy!r}: choose from {known}") from None
        failures = int(subject.may_fail) if self.failures is None else self.failures
        check_bounds(
            preemptions=self.preemptions,
            failures=failures,
            schedules=self.schedules,
            time_s=self.time_s,
            workers=self.workers,
            seed=self.seed,
        )
        # No run comes to so many preemptions, and no search to the end of all time.
        preemptions, time_s = self.preemptions, self.time_s
        if preemptions is not None and not 0 <= preemptions < UNBOUNDED:
            preemptions = None
        if time_s is not None and math.isinf(time_s):
            time_s = None
        return Options(
            strategy=strategy,
            preemptions=preemptions,
            failures=failures,
            schedules=self.schedules,
            time_s=time_s,
            workers=self.workers,
            seed=self.seed,
            ignore=tuple(self.ignore),
            keep_going=self.keep_going,
            fail=tuple(self.fail),
        )
