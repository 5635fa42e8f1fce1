"""One schedule again: for regression tests, and for tokens that a search made."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from septum.checks.modes import check_mode
from septum.designs.registry import V3
from septum.errors import InputError
from septum.explore.reproduce import explore_words, misfit_text
from septum.explore.runs.run import Runner
from septum.explore.runs.steering import Replaying
from septum.explore.subject import Options
from septum.explore.toybox import find_toy
from septum.scenarios.failures import Failures
from septum.scenarios.run import load_scenario
from septum.scenarios.source import shown
from septum.sim.schedule import SEARCHED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from septum.explore.subject import Subject
    from septum.sim import Finding, Sim


class Again(Replaying):
    """The answers of a token that a search made, in a world that was built for this one run.

    Where the search's run ended this one goes on undisturbed, as far as a search would let it: what
    has no end ends where it ended there, with the same finding.
    """

    __slots__ = ()

    def attach(self, sim: Sim) -> None:
        """The run begins."""
        self.reset()
        self.lasts = True
        self.watch(sim, Options(), Failures.is_failure)

    def given(self) -> list[int]:
        return self.answers

    def for_nothing(self) -> list[int]:
        return sorted(self._for_nothing)

    def spec(self) -> tuple[str, int]:
        return ("list", SEARCHED)


def find_subject(
    name: str,
    design: str = "v3",
    check: str = "end",
    fail: Sequence[str] = (),
    ignore: Sequence[str] = (),
) -> Subject:
    """The scenario called `name`, or the toy `toy:NAME`. `fail`: choice points that may fail beside
    those that the scenario allows; `ignore`: parts of findings, as `promise: text`, that do not
    count. Raises InputError."""
    from septum.explore.scenario import ScenarioSubject

    mode = check_mode(check)
    if name.startswith("toy:"):
        if fail:
            raise InputError(f"--fail {fail[0]!r}: {name} has no choice points of the model")
        if design not in ("", V3.name):
            raise InputError(f"--design {shown(design)}: {name} has no host, and so no design")
        try:
            return find_toy(name.removeprefix("toy:"))
        except (KeyError, ValueError):
            raise InputError(f"no toy is called {name.removeprefix('toy:')!r}") from None
    return ScenarioSubject(load_scenario(name).asked(fail, ignore), design, mode)


def replay_answers(
    name: str,
    design: str,
    answers: list[int],
    check: str = "end",
    again: str = "",
    fail: Sequence[str] = (),
    ignore: Sequence[str] = (),
) -> Finding | None:
    """The first finding of the run of `answers` that the scenario does not expect, or None.

    `fail` and `ignore` are those of `find_subject`; `again` is the command that searches for
    another such run. Raises InputError when nothing is found, but the run could not follow the
    answers: it says nothing then.
    """
    replaying = Replaying(list(answers))
    subject = find_subject(name, design, check, fail, ignore)
    with closing(Runner(subject, Options())) as runner:
        finding = runner.run(replaying).finding
    if finding is None and not replaying.fits():
        options = Options(failures=int(subject.may_fail), fail=tuple(fail), ignore=tuple(ignore))
        raise InputError(misfit_text(again or explore_words(name, design, check, options)))
    return finding
