"""What is explored, and within which bounds."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

import msgspec

from septum.words import begins

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from septum.sim import Finding, Sim

UNBOUNDED = 1 << 20
"""A bound that no run reaches."""


class Witness(msgspec.Struct, frozen=True):
    """Something that a scenario says must be reached, or its silence means nothing.

    It counts as reached when a coverage item begins with one of `prefixes`, such as
    "call:TDH.MEM.PAGE.DEMOTE:" or "choice:seamcall:TDH.MEM.RANGE.BLOCK=1", and with whole words.
    """

    name: str
    prefixes: tuple[str, ...]

    def is_in(self, coverage: Iterable[str]) -> bool:
        """Whether it was reached."""
        return any(begins(item, prefix) for item in coverage for prefix in self.prefixes)


class Built:
    """A world that is ready to run, before any task exists.

    `roots` lead to all of its mutable state (the simulator's is found by itself). `is_over`: what
    follows takes the world down, and is no part of the run. `unready`: why it is not ready after
    all, which is among the simulator's findings; "" where it is. `wrong`: what came to something
    else on the way than the subject expects, one sentence each, which the end of every run says.
    """

    __slots__ = ("is_over", "roots", "sim", "unready", "world", "wrong")

    def __init__(
        self,
        sim: Sim,
        roots: Sequence[object],
        world: object = None,
        unready: str = "",
        wrong: Sequence[str] = (),
    ) -> None:
        self.sim = sim
        self.roots = [sim, *roots]
        self.world = world
        self.unready = unready
        self.wrong = wrong
        self.is_over = False


class Subject(Protocol):
    """A scenario, as the explorer sees it. All of it is deterministic."""

    @property
    def name(self) -> str:
        """What the command line calls it."""

    @property
    def design(self) -> str:
        """The design of the host that runs it; "" for toys."""

    @property
    def recipe(self) -> bytes:
        """What a replay token carries to build it again."""

    @property
    def witnesses(self) -> Sequence[Witness]:
        """What must be reached."""

    @property
    def may_fail(self) -> bool:
        """Whether there is a failure that a search may inject."""

    @property
    def forgets(self) -> bool:
        """Whether an end is judged by the state and by results of operations that are not right
        alone, and not by what was counted on the way."""

    @property
    def goes_on(self) -> bool:
        """Whether the model goes on after its tasks have ended: all that they left behind matters
        then, and not only what those look at who judge the end."""

    def expects(self, finding: Finding) -> bool:
        """Whether a finding is as the scenario says, and no news."""

    def unbroken(self, broke: Iterable[tuple[str, str]]) -> list[str]:
        """What the scenario says breaks and is none of these (promise, text), in its own words."""

    @property
    def must_break(self) -> Sequence[str]:
        """Those of them without which something is not as the scenario says."""

    def build(self) -> Built:
        """A new world. Called once for a process; its state is put back before every run."""

    def start(self, built: Built) -> None:
        """Spawn the tasks."""

    def finish(self, built: Built) -> None:
        """Judge the end of a run that broke nothing: report with `Sim.find`."""

    def is_failure(self, choice: str) -> bool:
        """Whether a choice point injects a failure (counts against the bound on failures);
        others are the scenario's own alternatives, all of which are tried."""

    def final(self, built: Built) -> object:
        """What two searches must agree on about the end of a run: a hashable value."""

    def came_out(self, built: Built) -> object:
        """How a run came out, where a search wants to see as many ways as it can: a hashable
        value."""


class Strategy(StrEnum):
    """How schedules are chosen."""

    AUTO = "auto"
    EXHAUSTIVE = "exhaustive"
    PCT = "pct"
    RANDOM = "random"
    PLAIN = "plain"


class Options(msgspec.Struct, frozen=True):
    """Bounds and means of a search.

    `preemptions`, `failures`: at most so many in one run; None is no bound. `schedules`, `time_s`
    (seconds): budgets; None is none. `workers`: processes. `seed`: of random schedules. `depth`: of
    PCT, how many constraints of order a bug may take. `shrink`: make what is found as short as it
    can be. `max_points`: in a run with more decisions tasks
    take turns from there on; if even so it has no end, that is a finding of `progress`.
    `spin_points`: a task that ran so many scheduling points in a row lets others go first, which
    costs no preemption. `keep_going`: collect findings of different kinds instead of stopping at
    the first; with `per_promise`, one for each promise. `fail`: choice points that may fail beside
    those that the scenario allows (the subject was made so). `ignore`: texts; a finding whose
    "promise: text" has one of them does not count.
    """

    strategy: Strategy = Strategy.AUTO
    preemptions: int | None = 2
    failures: int = 0
    schedules: int | None = None
    time_s: float | None = None
    workers: int = 1
    seed: int = 0
    depth: int = 3
    max_points: int = 20_000
    spin_points: int = 400
    keep_going: bool = False
    per_promise: bool = False
    shrink: bool = True
    ignore: tuple[str, ...] = ()
    fail: tuple[str, ...] = ()

    def max_preemptions(self) -> int:
        """The bound as a number."""
        return UNBOUNDED if self.preemptions is None else self.preemptions

    def ignores(self, finding: Finding) -> bool:
        """Whether the user knows of it already."""
        text = f"{finding.promise}: {finding.text}"
        return any(known in text for known in self.ignore)
