"""The real runs that a search makes: to learn steps, to judge where runs end and whether what goes
round ever ends, and to repeat what they found."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.explore.exhaustive.learn import Recording
from septum.explore.exhaustive.transitions import Unfaithful
from septum.explore.runs.run import Abandoned
from septum.explore.runs.steering import Lasting, Replaying

if TYPE_CHECKING:
    from collections.abc import Callable

    from septum.explore.exhaustive.ahead import Move
    from septum.explore.exhaustive.known import Step
    from septum.explore.exhaustive.transitions import Transitions
    from septum.explore.runs.run import Run
    from septum.explore.runs.steering import Steering
    from septum.explore.states.fingerprint import Fingerprint
    from septum.explore.tracking.track import Tracker
    from septum.sim import Finding

LASTING_MAX = 200_000
"""Decisions in real runs that see whether what goes round ever ends. A search that needs more of
them is not complete."""

THOROUGH_EVERY = 8
"""Of so many real runs one makes sure that known steps that it meets come out as they are known;
of those after the first THOROUGH_MANY, one in six times as many, and so on."""
THOROUGH_MANY = 400


class Restart(Abandoned):
    """A location turned out to be shared: what was computed without it does not count."""


class Making(Recording):
    """Takes moves, and says which answers are those that let others run where a task goes round."""

    __slots__ = ("_is_free", "free_answers")

    def __init__(
        self,
        moves: list[Move],
        free: list[bool],
        state: Fingerprint,
        tracker: Tracker,
        transitions: Transitions,
    ) -> None:
        self._is_free = free
        super().__init__(moves, [], state, tracker, transitions)
        self.silent = True

    def reset(self) -> None:
        super().reset()
        self.free_answers: list[int] = []

    def pick_task(self, n: int, forced: bool, spins: bool) -> int:
        answer = super().pick_task(n, forced, spins)
        if answer and self._is_free[self._at]:
            self.free_answers.append(len(self.sim.answers))
        return answer


class RealRuns:
    """Makes them by `run`. `found` is called with every run that broke a promise for the first time
    in its kind; it says whether to go on, or the search is `stopped`. `all_judged`: no run was left
    out."""

    __slots__ = (
        "_found",
        "_kinds",
        "_lasted",
        "_nr_lasting",
        "_tracker",
        "_transitions",
        "all_judged",
        "run",
        "stopped",
    )

    def __init__(
        self,
        tracker: Tracker,
        transitions: Transitions,
        run: Callable[[Steering], Run],
        found: Callable[[Run], bool],
    ) -> None:
        self._tracker = tracker
        self._transitions = transitions
        self.run = run
        self._found = found
        self._kinds: set[tuple[str, str]] = set()
        self._lasted: set[int] = set()  # states that were seen not to go round for ever
        self._nr_lasting = 0
        self.all_judged = True
        self.stopped = False

    def real(
        self, moves: list[Move], known: list[Step], state: Fingerprint, first: int | None
    ) -> Recording:
        """A run that makes `moves`, of which all but the last are `known`, the last of them (or the
        one of number `first`) from `state`, and goes on.

        Raises Restart when it showed that more is shared than was known.
        """
        number = self._transitions.nr_learning = self._transitions.nr_learning + 1
        recording = Recording(moves, known, state.copy(), self._tracker, self._transitions)
        if first is not None:
            recording.first = first
        often, many = THOROUGH_EVERY, THOROUGH_MANY
        while number > many:
            often, many = often * 6, many * 6
        recording.thorough = number % often == 1
        news = self._tracker.footprints.news
        try:
            run = self.run(recording)
        except Unfaithful:
            if not news:
                raise
            # It is no wonder: what was known of its steps lacks something.
        if news:
            raise Restart
        exchange = self._transitions.exchange
        looks = self._transitions.looks
        for look in recording.looks:
            if look not in looks:
                looks[look] = None
                if exchange is not None:
                    exchange.tell_look(look)
        if recording.end is not None and recording.steps[-1].finding is None:
            value = recording.end.value
            failed = run.failures > 0
            ends = self._transitions.ends
            if recording.thorough or not ends.knows(value, failed):
                end = ends.add(value, failed, run.finding)
                if exchange is not None:
                    exchange.tell_end(end, run.finding)
        if exchange is not None:
            exchange.flush()
        return recording

    def lasting(self, moves: list[Move], free: list[bool], state: Fingerprint) -> None:
        """Whether what goes round in `state`, where `moves` led, ever ends."""
        if ("progress", "lasting") in self._kinds or state.value in self._lasted:
            return
        if self._nr_lasting >= LASTING_MAX:
            self.all_judged = False
            return
        self._lasted.add(state.value)
        judging = Lasting(*self._answers(moves, free, state))
        run = self.run(judging)
        self._nr_lasting += judging.decisions
        if run.finding is not None:
            self._kinds.add(("progress", "lasting"))
            self._tell(run)

    def report(
        self, moves: list[Move], free: list[bool], finding: Finding, state: Fingerprint
    ) -> None:
        """`moves` break a promise: so they must in a run that nobody looks at. `free`: which of
        them let another task run because one went round."""
        kind = (finding.promise, finding.text)
        if kind in self._kinds:
            return
        run = self.run(Replaying(*self._answers(moves, free, state)))
        if run.finding is None:
            raise Unfaithful(f"a finding did not repeat: {finding.promise}: {finding.text}")
        self._kinds.add(kind)
        self._tell(run)

    def _tell(self, run: Run) -> None:
        assert run.finding is not None
        self._kinds.add((run.finding.promise, run.finding.text))
        if not self._found(run):
            self.stopped = True

    def _answers(
        self, moves: list[Move], free: list[bool], state: Fingerprint
    ) -> tuple[list[int], list[int]]:
        """What a schedule answers that makes `moves`, and the numbers of the answers of those that
        are `free`."""
        making = Making(moves, free, state, self._tracker, self._transitions)
        return list(self.run(making).answers), making.free_answers
