"""A search as KTAP: a test for each scenario, a subtest for each promise, the story beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.checks import PROMISES
from septum.explore.verdict import Outcome, bounds_text
from septum.report.ktap import Case

if TYPE_CHECKING:
    from septum.explore.verdict import Verdict


NOT_LOOKED_AT = "not looked at after that"
"""Of a promise that was not seen to break in a search that ended with what broke."""


def verdict_case(verdict: Verdict, stories: list[list[str]]) -> Case:
    """The search as a test. One that a budget ended is TIMEOUT, and not ok."""
    name = f"{verdict.subject}:{verdict.design}" if verdict.design else verdict.subject
    said = [f"{verdict.why}; {bounds_text(verdict)}"]
    if verdict.outcome is Outcome.UNDETERMINED:
        return Case(name, ok=False, directive="TIMEOUT", data=verdict.why, diagnostics=said)
    # By promise: what broke first, and the stories of all that broke.
    broken: dict[str, tuple[str, list[str]]] = {}
    for example, story in zip(verdict.counterexamples, stories, strict=True):
        _, told = broken.setdefault(example.finding.promise, (example.finding.text, []))
        told += ["", *story] if told else story
    foreseen = dict(text.split(": ", 1) for text in reversed(verdict.foreseen))
    subtests = []
    for promise in dict.fromkeys((*(PROMISES if verdict.design else ()), *broken)):
        if promise in foreseen and promise not in broken:
            subtests.append(Case(promise, directive="XFAIL", data=foreseen[promise]))
        elif promise in broken or verdict.complete:
            text, story = broken.get(promise, ("", []))
            subtests.append(Case(promise, ok=promise not in broken, data=text, diagnostics=story))
        else:
            subtests.append(Case(promise, directive="SKIP", data=NOT_LOOKED_AT))
    if verdict.unbroken:
        said.append(f"did not break, as the scenario says of v3: {'; '.join(verdict.unbroken)}")
    return Case(name, ok=verdict.outcome is Outcome.HELD, diagnostics=said, subtests=subtests)
