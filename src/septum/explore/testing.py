"""A search as a test asks for it: the verdict, and the text of a failure."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from septum.explore.api import Search
from septum.explore.command import stories, verdict_lines
from septum.explore.replay import find_subject
from septum.explore.reproduce import command_lines
from septum.explore.verdict import Outcome, Verdict
from septum.explore.wanted import Wanted
from septum.scenarios.blamed import left_behind
from septum.scenarios.run import undisturbed

if TYPE_CHECKING:
    from collections.abc import Sequence


def search_for_test(
    scenario: str,
    design: str = "v3",
    *,
    preemptions: int | None = 2,
    failures: int = 0,
    time_s: float | None = 60.0,
    schedules: int | None = None,
    strategy: str = "auto",
    seed: int = 0,
    check: str = "end",
    fail: Sequence[str] = (),
) -> tuple[Verdict, str]:
    """(verdict, "" when it held, else the story of what broke or why there is no answer).

    Raises InputError for unknown names and values.
    """
    subject = find_subject(scenario, design, check, fail)
    options = Wanted(
        strategy=strategy,
        preemptions=preemptions,
        failures=failures,
        time_s=time_s,
        schedules=schedules,
        seed=seed,
        fail=fail,
    ).options(subject)
    left = left_behind(design, undisturbed(scenario, check))
    with left, closing(Search(subject, options)) as search:
        search.start()
        verdict = search.run()
        if verdict.outcome is Outcome.HELD:
            return verdict, ""
        how = command_lines(scenario, verdict.design, check, options)
        told = stories(verdict, search.runner, how)
    lines = ["\n".join(story) for story in told] or ["\n".join(verdict_lines(verdict, check))]
    return verdict, "\n\n".join(lines)
