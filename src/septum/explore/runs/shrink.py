"""From a run that breaks a promise to the least such run, and to the nearest one that does not.

All of it works on the answers of a run: 0 is undisturbed, the end of the list is all zeros. A
candidate counts when it breaks the same promise in the same words (numbers aside) and is smaller:
fewer failures, then fewer preemptions, then fewer steps, then fewer disturbed answers. It never has
more failures or preemptions than the run that was found, nor more switches that cost nothing
because a task goes round or runs for long; and more steps only with fewer failures or preemptions.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from septum.explore.runs.plan import Planning
from septum.explore.runs.rounds import Repeating, Rounds, Trying, TryingPlan
from septum.explore.runs.run import OutOfTime, Run, Runner, StateMissed
from septum.explore.runs.steering import Steering

if TYPE_CHECKING:
    from collections.abc import Iterable

    from septum.sim import Finding

Size = tuple[int, int, int, int]
TRIES_MAX = 600
TRIES_MIN = 20
STEPS_MAX = 800_000
"""Tries stop after about so many scheduling points: runs that do not end are long."""
LONG_MAX = 400_000
"""The same, where there is no time for shrinking."""
FIRST_MAX = 4
"""So many tasks are tried as the one that begins."""


class Shrunk:
    """The least run found, the answers that make it, and those of the nearest passing one. `late`:
    there was no time for all, as it was over or the user `interrupted`."""

    __slots__ = ("answers", "interrupted", "late", "passing", "run", "tries")

    def __init__(self, run: Run, answers: list[int]) -> None:
        self.run = run
        self.answers = answers
        self.passing: list[int] | None = None
        self.tries = 0
        self.late = False
        self.interrupted = False


def kind_of(finding: Finding) -> tuple[str, str]:
    """What makes two findings the same: promise and words, without numbers."""
    return words_of(finding.promise, finding.text)


def words_of(promise: str, text: str) -> tuple[str, str]:
    """A promise, and what is said of how it broke, without numbers."""
    return promise, re.sub(r"0x[0-9a-f]+|\d+", "#", text)


def size_of(run: Run) -> Size:
    """What is made least, in this order."""
    return (run.failures, run.preemptions, run.steps, sum(1 for a in told(run) if a))


def told(run: Run) -> list[int]:
    """The answers that a run was given: not those by which tasks then took turns."""
    return run.answers[: run.fair_from]


class Shrinker:
    """Tries smaller answers on one world, until the runner's time has come."""

    __slots__ = (
        "_best",
        "_kind",
        "_rounds",
        "_runner",
        "_seen",
        "first",
        "interrupted",
        "late",
        "tries",
        "tries_max",
    )

    def __init__(self, runner: Runner, first: Run, rounds: Rounds) -> None:
        assert first.finding is not None
        self._runner = runner
        self.first = self._best = first
        self._rounds = rounds
        self._kind = kind_of(first.finding)
        self._seen: set[tuple[int, ...]] = set()
        self.late = False
        self.interrupted = False
        self.tries = 0
        self.tries_max = max(TRIES_MIN, min(TRIES_MAX, STEPS_MAX // max(1, first.steps)))

    def _replay(self, answers: list[int]) -> Run | None:
        key = tuple(trim(answers))
        if key in self._seen or self._over():
            return None
        self._seen.add(key)
        self.tries += 1
        return self._run(Trying(list(key), self._rounds))

    def _over(self) -> bool:
        return self.late or self.tries >= self.tries_max

    def _try(self, answers: list[int]) -> bool:
        run = self._replay(answers)
        return run is not None and self._accept(run)

    def _accept(self, run: Run) -> bool:
        if run.finding is None or kind_of(run.finding) != self._kind:
            return False
        first = self.first
        if run.preemptions > first.preemptions or len(run.free) > len(first.free):
            return False
        if size_of(run) >= size_of(self._best):
            return False
        self._best = run
        return True

    def shrink(self) -> Shrunk:
        """The least run that a fixed point of all passes finds."""
        first = self._replay(self._answers())
        # What the zeros at its end say is as it was, unless a task went round there.
        same = first is not None and (first.finding, size_of(first)) == (
            self.first.finding,
            size_of(self.first),
        )
        if first is not None and not same:
            self._accept(first)
        self._undisturbed()
        better = True
        while better and not self._over():
            better = self._replan() | self._quieten() | self._delete() | self._move()
            better = better or self._preempt_once()
        whole = self._best is self.first and not same
        return Shrunk(self._best, told(self._best) if whole else self._answers())

    def _undisturbed(self) -> None:
        """Who begins is all that may matter. Tasks then go round where they do by themselves: at
        the places that a random run shows there may be many more rounds than it had."""
        for task in range(FIRST_MAX):
            if self._over():
                return
            self.tries += 1
            run = self._run(Trying([task], Rounds()))
            if run is not None:
                self._accept(run)

    def _replan(self) -> bool:
        """Take the plan of the schedule apart, as long as that helps."""
        any_better = False
        better = True
        while better:
            better = False
            planning = Planning(self._answers())
            self._run(planning)
            for plan in planning.plan().variants():
                if self._over():
                    return any_better
                self.tries += 1
                run = self._run(TryingPlan(plan, self._rounds))
                if run is not None and self._accept(run):
                    any_better = better = True
                    break
        return any_better

    def _preempt_once(self) -> bool:
        """One preemption in place of several, wherever it may be: small changes may not lead there,
        as who was preempted twice may have to wait where it is preempted once."""
        any_better = False
        if self._best.preemptions < 2:
            return any_better
        planning = Planning(self._answers())
        self._run(planning)
        for order in planning.plan().preempted_once():
            for plan in order:
                if self._over():
                    return any_better
                self.tries += 1
                run = self._run(TryingPlan(plan, self._rounds))
                if run is None or not run.preemptions:
                    break  # the task has ended, or waits, before it would be preempted
                any_better |= self._accept(run)
        return any_better

    def _run(self, steering: Steering) -> Run | None:
        for _ in range(3):
            try:
                return self._runner.run(steering)
            except StateMissed:
                continue
            except OutOfTime:
                self.late = True
                break
            except KeyboardInterrupt:
                # What was found is told as far as it was shrunk.
                self.late = self.interrupted = True
                break
        return None

    def _answers(self) -> list[int]:
        return trim(told(self._best))

    def _disturbed(self) -> list[int]:
        return [at for at, answer in enumerate(told(self._best)) if answer]

    def _quieten(self) -> bool:
        """Let one disturbed answer, or half of them, be undisturbed."""
        any_better = False
        chunk = max(1, len(self._disturbed()) // 2)
        while chunk:
            at = 0
            while at < len(spots := self._disturbed()):
                answers = told(self._best)
                for spot in spots[at : at + chunk]:
                    answers[spot] = 0
                if self._try(answers):
                    any_better = True
                else:
                    at += chunk
            chunk //= 2
        return any_better

    def _delete(self) -> bool:
        """Leave answers out, so that what follows comes earlier."""
        any_better = False
        for spot in reversed(self._disturbed()):
            for length in (1, 2, 4):
                answers = told(self._best)
                if spot < len(answers):
                    del answers[max(0, spot - length + 1) : spot + 1]
                    any_better |= self._try(answers)
        return any_better

    def _move(self) -> bool:
        """Take a lower alternative; preempt a little later or earlier."""
        any_better = False
        for spot in self._disturbed():
            lower = told(self._best)
            if spot >= len(lower) or not lower[spot]:
                continue
            lower[spot] -= 1
            any_better |= self._try(lower)
            for shift in (1, -1):
                answers = told(self._best)
                other = spot + shift
                if 0 <= other < len(answers) and not answers[other]:
                    answers[other], answers[spot] = answers[spot], 0
                    any_better |= self._try(answers)
        return any_better

    def nearest_passing(self) -> list[int] | None:
        """The answers of a run that breaks nothing and differs as late and as little as can be."""
        self._seen.clear()
        self.tries = 0
        for spot in reversed(self._disturbed()):
            answers = told(self._best)
            answers[spot] = 0
            run = self._replay(answers)
            if run is not None and run.finding is None:
                return trim(told(run))
        best = told(self._best)
        for spot in reversed(range(len(best))):
            if best[spot] == 0:
                run = self._replay([*best[:spot], 1, *best[spot + 1 :]])
                if run is not None and run.finding is None:
                    return trim(told(run))
            if self.late or self.tries > self.tries_max // 4:
                break
        return None


def trim(answers: list[int]) -> list[int]:
    """Without the zeros at the end, which say nothing."""
    end = len(answers)
    while end and not answers[end - 1]:
        end -= 1
    return answers[:end]


def _shrinker(runner: Runner, answers: list[int], free: Iterable[int]) -> Shrinker | None:
    """Of the run of `answers`; None when it does not break anything again."""
    runner.clean()
    rounds = Rounds()
    first = runner.run(Repeating(answers, free, rounds))
    return Shrinker(runner, first, rounds) if first.finding is not None else None


def nearest_passing(
    runner: Runner, answers: list[int], free: Iterable[int] = ()
) -> list[int] | None:
    """The answers of the nearest run to that of `answers` that breaks nothing; None when none was
    found near it, or it breaks nothing itself. `free` as for `shrink`.

    No clock ends it: of runs that have no end few are tried.
    """
    shrinker = _shrinker(runner, answers, free)
    if shrinker is None:
        return None
    shrinker.tries_max = min(shrinker.tries_max, max(1, LONG_MAX // max(1, shrinker.first.steps)))
    return shrinker.nearest_passing()


def shrink(
    runner: Runner, answers: list[int], free: Iterable[int] = (), until: float = 0.0
) -> Shrunk | None:
    """Shrink the run of `answers`; None when it does not break anything again.

    `free`: the numbers of those that let others run because a task went round. `until`, by
    `budget.now`: when to be content with what there is; 0: never.
    """
    shrinker = _shrinker(runner, answers, free)
    if shrinker is None:
        return None
    runner.until = until
    try:
        shrunk = shrinker.shrink()
        shrunk.tries = shrinker.tries
        shrunk.passing = shrinker.nearest_passing()
    finally:
        runner.until = 0.0
    shrunk.late = shrinker.late
    shrunk.interrupted = shrinker.interrupted
    return shrunk
