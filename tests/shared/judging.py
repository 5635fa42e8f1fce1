"""Two judges of one scenario: how its runs end, and what breaks, by either search."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from plainly import plain_search

from septum.explore.scenario import ScenarioSubject
from septum.explore.subject import Options, Strategy
from septum.explore.workers.search import Job, Searcher

if TYPE_CHECKING:
    from septum.checks.modes import Mode

SPIN_POINTS = 15_000
"""The plain search takes who has run for so long for one that goes round; the fast one knows. More
than it takes to close a file of 512 small pages, and less than a run may have."""

REFERENCE = """
summary = "The reference, with half of what its vCPUs may choose."
source = "the reference scenario of the explorer"
setup = ["host: allocate frame 0"]

[vm]
ve = true

[guest]
vcpu0 = ["choose: accept 2M frame 0 => any | accept 4K page 0 => any | touch page 1 => any"]
vcpu1 = ["choose: accept 2M frame 0 => any | accept 4K page 0 => any | touch page 1 => any"]

[kernel]
attributes = "vm"

[host]
convert = ["set-attributes page 1 to shared"]
"""
"""Text of a scenario in which all meets that is in `reference-per-vm`, in half of its states."""


class Told(NamedTuple):
    """What a search says, by the results and the pages of each end, and by promise and text."""

    ends: frozenset[object]
    found: frozenset[tuple[str, str]]


class Searched(NamedTuple):
    """`told`, and through how many states (of the plain search: 0)."""

    told: Told
    states: int


class Ends(ScenarioSubject):
    """A scenario that notes how its runs end, with `results`, or without those of operations."""

    __slots__ = ("ends", "results")

    def finish(self, built) -> None:  # type: ignore[no-untyped-def]
        super().finish(built)
        results, *state = self.final(built)
        end = (results if self.results else (), *state)
        self.ends.add((end, tuple(alike(f.text) for f in built.sim.findings)))


def alike(text: str) -> str:
    """How often a task had gone round when that was seen depends on what all tasks did, and what
    was asked last on who came last of those that do not depend on each other."""
    text = re.sub(r"\(asked last: [^)]*\)+", "(asked)", text)
    return re.sub(r"the \d+(st|nd|rd|th) time", "the nth time", text)


def searched(
    name: str,
    preemptions: int,
    failures: int = 0,
    *,
    limit: int = 0,
    design: str = "v3",
    check: Mode = "end",
    results: bool = True,
) -> Searched | None:
    """All within the bounds, by the fast search; with a `limit`, by the plain one within so many
    schedules (None: there are more). Without `results` the fast one tells states apart by what
    operations came to only where that is not right, as the command does, and neither tells of it.
    Raises AssertionError when the fast one was not through, or gave up its reduction."""
    subject = Ends(name, design, check)
    subject.ends = set()
    subject.results = results
    options = Options(
        keep_going=True, preemptions=preemptions, failures=failures, spin_points=SPIN_POINTS
    )
    if limit:
        plain = plain_search(subject, options, limit)
        return Searched(_told(subject, list(plain.findings)), 0) if plain.complete else None
    searcher = Searcher(subject, options)
    try:
        searcher.prepare()
        assert searcher.tracker is not None
        searcher.tracker.steps.all_results = results
        subject.ends.clear()  # of the runs in which it got ready
        job = Job(1, Strategy.EXHAUSTIVE, preemptions=preemptions, failures=failures)
        result = searcher.do(job)
        setup = list(filter(searcher.runner.is_news, searcher.runner.before))
    finally:
        searcher.close()
    assert result.complete and not result.note, result.note
    # What the setup breaks ends every run: the command asks for it before it searches.
    findings = setup[:1] or [one.finding for one in result.found]
    found = [(finding.promise, finding.text) for finding in findings]
    return Searched(_told(subject, found), result.states)


def without_results(told: Told) -> Told:
    """The same, told without what operations came to."""
    ends = [(((), *end[1:]), texts) for end, texts in told.ends]  # type: ignore[misc]
    return Told(frozenset(ends), told.found)


def _told(subject: Ends, found: list[tuple[str, str]]) -> Told:
    return Told(frozenset(subject.ends), frozenset((name, alike(text)) for name, text in found))


def judges_agree(path: str, limit: int, design: str = "v3", check: Mode = "end") -> bool:
    """Whether there was something to compare, within no preemption and within one, and a failure
    where the scenario allows any: not where the plain judge has more than `limit` schedules. Raises
    AssertionError where they do not agree; on v3 with all results of operations told apart, too."""
    failures = int("[failures]" in Path(path).read_text(encoding="utf-8"))
    for preemptions in (0, 1):
        plain = searched(path, preemptions, failures, limit=limit, design=design, check=check)
        if plain is None:
            return preemptions > 0
        for results in (True, False) if design == "v3" else (False,):
            fast = searched(
                path, preemptions, failures, design=design, check=check, results=results
            )
            right = plain.told if results else without_results(plain.told)
            assert fast is not None and fast.told == right, f"within {preemptions} preemptions"
    return True
