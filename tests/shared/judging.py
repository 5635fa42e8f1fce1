"""Two judges of one scenario: how its runs end, and what breaks, by either search."""

from __future__ import annotations

import re
from typing import NamedTuple

from septum.explore.plain import plain_search
from septum.explore.run import Runner
from septum.explore.scenario import ScenarioSubject
from septum.explore.search import Job, Searcher
from septum.explore.subject import Options, Strategy

SPIN_POINTS = 6000
"""The plain search takes who has run for so long for one that goes round; the fast one knows."""


class Told(NamedTuple):
    """What a search says."""

    ends: frozenset[object]
    found: frozenset[tuple[str, str]]


class Ends(ScenarioSubject):
    """A scenario that notes how its runs end."""

    __slots__ = ("ends",)

    def finish(self, built) -> None:  # type: ignore[no-untyped-def]
        super().finish(built)
        self.ends.add((self.final(built), tuple(alike(f.text) for f in built.sim.findings)))


def alike(text: str) -> str:
    """How often a task had gone round when that was seen depends on what all tasks did."""
    return re.sub(r"the \d+th time", "the nth time", text)


def searched(name: str, options: Options, *, limit: int = 0) -> tuple[Told, int] | None:
    """What is within the bounds of `options`, and the number of states: by the fast search, or by
    the plain one within `limit` schedules (None where these are too few)."""
    subject = Ends(name, "v3", "end")
    subject.ends = set()
    if limit:
        runner = Runner(subject, options)
        plain = plain_search(subject, options, limit, runner)
        found, states = list(plain.findings), 0
        if not plain.complete:
            return None
    else:
        searcher = Searcher(subject, options)
        try:
            searcher.prepare()
            subject.ends.clear()  # of the runs in which it got ready
            job = Job(
                1,
                Strategy.EXHAUSTIVE,
                preemptions=options.max_preemptions(),
                failures=options.failures,
            )
            result = searcher.do(job)
        finally:
            searcher.close()
        assert result.complete and not result.note, result.note
        found = [(one.finding.promise, one.finding.text) for one in result.found]
        states = result.states
    told = frozenset((promise, alike(text)) for promise, text in found)
    return Told(frozenset(subject.ends), told), states
