"""What a search answers."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from septum.codes import BROKEN, INTERRUPTED, OK, UNDETERMINED
from septum.sim import Finding
from septum.words import plural


class Outcome(StrEnum):
    """The verdict's first word."""

    HELD = "held"
    BROKEN = "broken"
    UNDETERMINED = "undetermined"

    def exit_code(self) -> int:
        """0 held, 1 broken, 3 undetermined."""
        return {"held": OK, "broken": BROKEN, "undetermined": UNDETERMINED}[self.value]


class Counterexample(msgspec.Struct, frozen=True):
    """A run that broke a promise, as the answers of its schedule.

    `first_*` is the run as found, the rest as shrunk. `passing` are the answers of the nearest
    run that breaks nothing, if one was found. `late`: the time for shrinking ended before that.
    Of a run that has no end `answers` are those up to where tasks begin to take turns. Those of the
    numbers `free` let others run where a task goes round, which is no preemption.
    """

    finding: Finding
    answers: list[int]
    steps: int
    preemptions: int
    failures: int
    first_steps: int
    first_preemptions: int
    first_failures: int
    token: str
    free: list[int] = []
    passing: list[int] | None = None
    late: bool = False


class Verdict(msgspec.Struct, frozen=True):
    """The answer of a search, and what stands behind it.

    `level` is the largest number of preemptions of which all schedules were tried; -1 none.
    `foreseen`: what broke as the scenario says of v3, as "promise: text"; a search goes on then.
    `unbroken`: what should have, in the scenario's words, where all was searched.
    `ignored`: what broke and does not count as the user said so.
    `drawn`: how many random schedules of which kind a search of several kinds has drawn.
    `timed_out`: the clock ended the search, not another budget.
    """

    outcome: Outcome
    subject: str
    design: str
    strategy: str
    seed: int
    preemptions: int | None
    failures: int
    complete: bool
    why: str  # what the outcome rests on, or what stopped the search
    schedules: int
    states: int
    steps: int
    seconds: float
    counterexamples: list[Counterexample] = []
    coverage: dict[str, int] = {}
    missing_witnesses: list[str] = []
    foreseen: list[str] = []
    unbroken: list[str] = []
    ignored: list[str] = []
    drawn: dict[str, int] = {}
    interrupted: bool = False
    level: int = -1
    timed_out: bool = False

    def exit_code(self) -> int:
        """0 held, 1 broken, 3 undetermined, 130 interrupted with nothing found."""
        if self.interrupted and self.outcome is not Outcome.BROKEN:
            return INTERRUPTED
        return self.outcome.exit_code()


def bounds_text(verdict: Verdict) -> str:
    """What a run of the search could have at most."""
    most = "any number of preemptions"
    if verdict.preemptions is not None:
        most = f"at most {plural(verdict.preemptions, 'preemption')}"
    return f"{most}, at most {plural(verdict.failures, 'failure')}"
