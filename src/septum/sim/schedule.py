"""Who runs next and how named choices come out: one sequence of small integers per run.

A schedule answers two questions, both as an index where 0 is the undisturbed answer:
`pick(n)`: which of the n ready tasks runs (0: the current one, k: the k-th after it in the run
queue), and `choose(name, n)`: which outcome a named choice point has. Sim records the answers in
order, so that any run replays from its sequence. A search drives the model by being a Schedule.
"""

from __future__ import annotations

import base64
import random
import zlib
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from septum.sim.sim import Sim

TOKEN_PREFIX = "septum1."
SEARCHED = 1
"""The `origin` of a ListSchedule whose answers a search has found."""
ALTERNATIVE = "choose:"
"""Prefix of the names of choice points all of whose outcomes are ordinary: none is a failure."""


class Schedule(ABC):
    """A source of answers. It must be a function of what it was built from and asked before."""

    __slots__ = ()

    coarse: bool = False
    """Whether a series of similar steps that touch nothing shared may run without a task switch
    (`Sim.hold`)."""

    # Empty on purpose: most schedules need nothing but the questions.
    def attach(self, sim: Sim) -> None:  # noqa: B027
        """A run of `sim` that asks this schedule is about to begin."""

    def given(self) -> list[int]:
        """The recorded answers that it repeats; empty if it makes its own."""
        return []

    def for_nothing(self) -> list[int]:
        """Indexes of the answers of `given` whose task switch does not count as a preemption, since
        the task that was running was only repeating an attempt in vain (`Sim.retry`)."""
        return []

    def fits(self) -> bool:
        """After a run: whether every recorded answer was possible where it was asked for, and no
        answer other than 0 was left over."""
        return True

    @abstractmethod
    def pick(self, n: int, forced: bool) -> int:
        """Which of `n` > 1 tasks in the run queue runs next. `forced`: the current task cannot go
        on, so that index 0 is who has been ready longest."""

    def pick_woken(self, n: int, forced: bool, woken: int) -> int:
        """`pick` when the task at `woken` in the run queue was made ready since the last one."""
        return self.pick(n, forced)

    # Empty on purpose: most schedules do not care.
    def only_one(self) -> None:  # noqa: B027
        """Called instead of `pick` when the current task cannot go on and one task is ready."""

    def choose(self, name: str, n: int) -> int:
        """The outcome (0..n-1) of the choice point `name`; 0 unless the schedule injects."""
        return 0

    @abstractmethod
    def spec(self) -> tuple[str, int]:
        """(kind, seed) that rebuilds this schedule."""


class RoundRobin(Schedule):
    """Each task runs `quantum` scheduling points, then the next in the run queue.

    With a quantum above 1 a task that is woken runs at once, with a quantum of its own, as after a
    wake-up preemption: a task that waited for an acknowledgement runs before those that gave it.
    """

    __slots__ = ("_left", "coarse", "quantum")

    def __init__(self, quantum: int = 1) -> None:
        self.quantum = quantum
        self.coarse = quantum > 1
        self._left = quantum

    def pick(self, n: int, forced: bool) -> int:
        if forced:
            self._left = self.quantum
            return 0
        self._left -= 1
        if self._left > 0:
            return 0
        self._left = self.quantum
        return 1

    def pick_woken(self, n: int, forced: bool, woken: int) -> int:
        if self.quantum == 1:
            return self.pick(n, forced)
        self._left = self.quantum
        return woken

    def spec(self) -> tuple[str, int]:
        return ("round-robin", self.quantum)


class RandomSchedule(Schedule):
    """A uniform choice among the ready tasks at every scheduling point, and among the alternatives
    of ALTERNATIVE, from `seed`."""

    __slots__ = ("below", "seed")

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.below = random.Random(seed).randrange

    def pick(self, n: int, forced: bool) -> int:
        return self.below(n)

    def choose(self, name: str, n: int) -> int:
        return self.below(n) if name.startswith(ALTERNATIVE) else 0

    def spec(self) -> tuple[str, int]:
        return ("random", self.seed)


class ListSchedule(Schedule):
    """Answers from a recorded list, in order; 0 when the list is exhausted.

    An answer that does not fit its question (the model changed since the recording) is taken
    modulo the number of alternatives and counted in `misfits`. `origin` SEARCHED: a search made
    the answers, and they may stop where the run would go on for ever. `free` is `for_nothing`.
    """

    __slots__ = ("_at", "_free", "answers", "misfits", "origin")

    def __init__(self, answers: list[int], origin: int = 0, free: Iterable[int] = ()) -> None:
        self.answers = answers
        self.origin = origin
        self._free = sorted(free)
        self.misfits = 0
        self._at = 0

    def _next(self, n: int) -> int:
        if self._at >= len(self.answers):
            return 0
        answer = self.answers[self._at]
        self._at += 1
        if answer >= n:
            self.misfits += 1
            answer %= n
        return answer

    def pick(self, n: int, forced: bool) -> int:
        return self._next(n)

    def choose(self, name: str, n: int) -> int:
        return self._next(n)

    def given(self) -> list[int]:
        return self.answers

    def for_nothing(self) -> list[int]:
        return self._free

    def fits(self) -> bool:
        return not self.misfits and not any(self.answers[self._at :])

    def spec(self) -> tuple[str, int]:
        return ("list", self.origin)


class TokenBody(msgspec.Struct, array_like=True):
    """What a replay token carries; `free` is left out where it is empty."""

    version: str
    recipe: bytes
    kind: str
    seed: int
    answers: list[int] = []
    free: list[int] = []


def encode_token(version: str, recipe: bytes, schedule: Schedule) -> str:
    """The replay token of a run: everything that the run is a function of, as one word."""
    kind, seed = schedule.spec()
    parts = [version, recipe, kind, seed, schedule.given()]
    if free := schedule.for_nothing():
        parts.append(free)
    body = msgspec.msgpack.encode(parts)
    return TOKEN_PREFIX + base64.urlsafe_b64encode(zlib.compress(body, 9)).decode().rstrip("=")


def decode_token(token: str) -> tuple[str, bytes, Schedule]:
    """(version, recipe, schedule) of a replay token.

    Raises ValueError with one sentence when the text is not a token of this format.
    """
    if not token.startswith(TOKEN_PREFIX):
        raise ValueError(f"not a replay token: it should begin with {TOKEN_PREFIX!r}")
    text = token[len(TOKEN_PREFIX) :]
    try:
        raw = zlib.decompress(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        body = msgspec.msgpack.decode(raw, type=TokenBody)
    except (ValueError, zlib.error, msgspec.MsgspecError) as error:
        raise ValueError(
            f"the replay token is damaged ({error}); copy the whole word that the report printed"
        ) from None
    wrong = next((at for at, answer in enumerate(body.answers) if answer < 0), None)
    if wrong is not None:
        raise ValueError(
            f"the replay token is damaged (answer {wrong + 1} is {body.answers[wrong]}, which"
            " answers nothing); copy the whole word that the report printed"
        )
    return body.version, body.recipe, make_schedule(body.kind, body.seed, body.answers, body.free)


def make_schedule(
    kind: str, seed: int, answers: list[int] | None = None, free: Iterable[int] = ()
) -> Schedule:
    """A schedule by name: "round-robin" (seed is the quantum), "random" or "list" (the origin).

    Raises ValueError for another name.
    """
    if kind == "round-robin":
        return RoundRobin(max(1, seed))
    if kind == "random":
        return RandomSchedule(seed)
    if kind == "list":
        return ListSchedule(answers or [], seed, free)
    raise ValueError(f"no schedule is called {kind!r}; there are round-robin, random and list")
