"""The slow judge by itself: every schedule within the bounds, and all that comes of them."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from septum.explore.exhaustive.plain import PlainSteering
from septum.explore.runs.run import Runner

if TYPE_CHECKING:
    from septum.explore.subject import Options, Subject
    from septum.sim import Finding


class PlainResult:
    """What the slow judge saw: all findings, by (promise, text), and all final states."""

    __slots__ = ("answers", "complete", "finals", "findings", "schedules", "steps")

    def __init__(self) -> None:
        self.findings: dict[tuple[str, str], Finding] = {}
        self.answers: dict[tuple[str, str], list[int]] = {}
        self.finals: set[object] = set()
        self.schedules = 0
        self.steps = 0
        self.complete = False


def plain_search(subject: Subject, options: Options, limit: int = 1_000_000) -> PlainResult:
    """Every schedule within the bounds, at most `limit`."""
    steering = PlainSteering(options)
    result = PlainResult()
    with closing(Runner(subject, options)) as runner:
        runner.verify_every = 1
        while result.schedules < limit:
            run = runner.run(steering)
            result.schedules += 1
            if run.finding is not None:
                key = (run.finding.promise, run.finding.text)
                result.findings.setdefault(key, run.finding)
                result.answers.setdefault(key, run.answers)
            elif not run.cut:
                result.finals.add(subject.final(runner.built))
            if not steering.advance():
                result.complete = True
                break
        result.steps = runner.nr_steps
    return result
