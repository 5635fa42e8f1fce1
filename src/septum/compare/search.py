"""One scenario on one design: all promises that break within the bounds."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import msgspec

from septum.compare.result import AS_EXPECTED, Bounds, Broken, Searched
from septum.errors import NotBegun
from septum.explore.api import Search
from septum.explore.command import stories
from septum.explore.reproduce import command_lines
from septum.explore.scenario import ScenarioSubject
from septum.explore.subject import Options, Strategy
from septum.scenarios.blamed import left_behind
from septum.scenarios.outcome import EXPECTATION
from septum.scenarios.run import undisturbed

if TYPE_CHECKING:
    from septum.sim import Finding

ROUNDS_MAX = 6
STORY_LINES = 160
SAMPLES = 200
"""Random schedules of a scenario that is too large to be searched to the end."""


def _fold(story: list[str]) -> list[str]:
    """The beginning and the end of a long story; `septum replay --trace` has all of it."""
    left_out = len(story) - STORY_LINES
    if left_out <= 0:
        return story
    half = STORY_LINES // 2
    return [*story[:half], "", f"        ... {left_out} lines ...", "", *story[-half:]]


class Watched(ScenarioSubject):
    """A scenario that remembers in `known` which foreseen promises broke; those runs go on."""

    __slots__ = ("known",)

    def __init__(self, scenario: str, design: str, bounds: Bounds) -> None:
        super().__init__(scenario, design, bounds.check)
        self.known: dict[str, str] = {}

    def expects(self, finding: Finding) -> bool:
        """The scenario says that this promise breaks; remember it."""
        foreseen = super().expects(finding)
        if foreseen:
            self.known.setdefault(finding.promise, finding.text)
        return foreseen


def search(design: str, scenario: str, bounds: Bounds) -> Searched:
    """Try every schedule within the bounds, then random ones if they were too many.

    A run ends with the first promise that it breaks. So another round ignores what was found, and
    sees what breaks later in the same runs; and so on until a round finds nothing more.
    Raises InputError for unknown names, and for a user's design that leaves what the model cannot
    read.
    """
    with left_behind(design, undisturbed(scenario, bounds.check)):
        return _search(design, scenario, bounds)


def _search(design: str, scenario: str, bounds: Bounds) -> Searched:
    found = last = _round(design, scenario, bounds, ())
    for _ in range(ROUNDS_MAX):
        left_s = bounds.time_s - found.seconds
        if not _promises(last) or found.interrupted or left_s <= 0:
            break
        past = tuple(f"{promise}: " for promise in _promises(found))
        try:
            last = _round(design, scenario, msgspec.structs.replace(bounds, time_s=left_s), past)
        except NotBegun:
            break  # the setup never ends, so no run gets further
        found = _together(found, last)
    if _promises(last):
        # What it found was not ignored in a further round.
        return msgspec.structs.replace(found, complete=False, level=-1)
    return found


def _promises(searched: Searched) -> list[str]:
    """The promises that ended a run early. A scenario's expectations are no such promise: they are
    compared when the run is over."""
    return [broken.promise for broken in searched.broken if broken.promise != AS_EXPECTED]


def _round(design: str, scenario: str, bounds: Bounds, past: tuple[str, ...]) -> Searched:
    """One search that ignores findings which begin with one of `past`."""
    first = _run(Watched(scenario, design, bounds), bounds, Strategy.EXHAUSTIVE, past)
    if first.complete or first.broken or first.interrupted:
        return first
    sampled = msgspec.structs.replace(bounds, schedules=SAMPLES)
    second = _run(Watched(scenario, design, bounds), sampled, Strategy.PCT, past)
    return _together(first, second)


def _together(first: Searched, second: Searched) -> Searched:
    """Two searches of one subject as one result. How far every schedule was tried is that of the
    second search if it ignored what the first had found, else that of the first."""
    exhaustive = second if first.broken else first
    promises = {broken.promise for broken in first.broken}
    return Searched(
        first.design,
        first.scenario,
        complete=exhaustive.complete,
        level=exhaustive.level,
        why=f"{first.why}; then {second.why}",
        schedules=first.schedules + second.schedules,
        states=first.states + second.states,
        steps=first.steps + second.steps,
        seconds=first.seconds + second.seconds,
        out_of_time=exhaustive.out_of_time,
        broken=[*first.broken, *(b for b in second.broken if b.promise not in promises)],
        known=dict(sorted((first.known | second.known).items())),
        interrupted=first.interrupted or second.interrupted,
    )


def _run(subject: Watched, bounds: Bounds, strategy: Strategy, past: tuple[str, ...]) -> Searched:
    options = Options(
        strategy=strategy,
        preemptions=None if bounds.preemptions < 0 else bounds.preemptions,
        failures=bounds.failures,
        schedules=bounds.schedules,
        time_s=bounds.time_s,
        seed=bounds.seed,
        # Random runs are for what is too large: one that breaks something is enough for a round.
        keep_going=strategy is Strategy.EXHAUSTIVE,
        per_promise=True,
        ignore=past,
    )
    with closing(Search(subject, options)) as running:
        running.start()
        verdict = running.run()
        how = command_lines(subject.name, subject.design, bounds.check, options)
        told = stories(verdict, running.runner, how)
    return Searched(
        subject.design,
        subject.name,
        complete=verdict.complete and not verdict.missing_witnesses,
        level=verdict.level,
        why=verdict.why,
        schedules=verdict.schedules,
        states=verdict.states,
        steps=verdict.steps,
        seconds=verdict.seconds,
        out_of_time=verdict.timed_out,
        broken=[
            Broken(
                AS_EXPECTED if x.finding.promise == EXPECTATION else x.finding.promise,
                x.finding.text,
                x.token,
                x.steps,
                x.preemptions,
                x.failures,
                _fold(story),
            )
            for x, story in zip(verdict.counterexamples, told, strict=True)
        ],
        known=dict(sorted(subject.known.items())),
        interrupted=verdict.interrupted,
    )
