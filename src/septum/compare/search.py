"""One scenario on one design: all promises that break within the bounds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.compare.result import AS_EXPECTED, Bounds, Broken, Searched
from septum.explore.api import Search
from septum.explore.command import stories
from septum.explore.reproduce import command_lines
from septum.explore.scenario import ScenarioSubject
from septum.explore.subject import Options, Strategy
from septum.scenarios.outcome import EXPECTATION

if TYPE_CHECKING:
    from septum.sim import Finding

SAMPLES = 200
"""Random schedules of a scenario that is too large to be searched to the end."""


class Watched(ScenarioSubject):
    """A scenario that remembers what broke as it says; such runs go on."""

    __slots__ = ("known",)

    def __init__(self, scenario: str, design: str, bounds: Bounds) -> None:
        # The command has checked that it is one of the modes.
        super().__init__(scenario, design, bounds.check)  # type: ignore[arg-type]
        self.known: dict[str, str] = {}

    def expects(self, finding: Finding) -> bool:
        """The scenario says that this promise breaks; remember it."""
        foreseen = super().expects(finding)
        if foreseen:
            self.known.setdefault(finding.promise, finding.text)
        return foreseen


def search(design: str, scenario: str, bounds: Bounds) -> Searched:
    """Try every schedule within the bounds, then random ones if they were too many.

    A run ends with the first promise that it breaks, so that one which would break later in the
    same run is seen only if another run shows it. Raises InputError for unknown names.
    """
    subject = Watched(scenario, design, bounds)
    first = _run(subject, bounds, Strategy.EXHAUSTIVE, bounds.schedules)
    if first.complete or first.broken or first.interrupted:
        return first
    second = _run(subject, bounds, Strategy.PCT, SAMPLES)
    return Searched(
        design,
        scenario,
        complete=False,
        level=first.level,
        why=f"{first.why}; then {second.why}",
        schedules=first.schedules + second.schedules,
        states=first.states,
        steps=first.steps + second.steps,
        seconds=first.seconds + second.seconds,
        out_of_time=first.out_of_time or second.out_of_time,
        broken=second.broken,
        known=dict(sorted(subject.known.items())),
        interrupted=second.interrupted,
    )


def _run(subject: Watched, bounds: Bounds, strategy: Strategy, schedules: int) -> Searched:
    options = Options(
        strategy=strategy,
        preemptions=None if bounds.preemptions < 0 else bounds.preemptions,
        failures=bounds.failures,
        schedules=schedules,
        time_s=bounds.time_s,
        seed=bounds.seed,
        keep_going=True,
        per_promise=True,
    )
    running = Search(subject, options)
    running.start()
    verdict = running.run()
    how = command_lines(subject.name, subject.design, bounds.check, options)
    told = stories(verdict, running.runner_searcher.runner, how)
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
                story,
            )
            for x, story in zip(verdict.counterexamples, told, strict=True)
        ],
        known=dict(sorted(subject.known.items())),
        interrupted=verdict.interrupted,
    )
