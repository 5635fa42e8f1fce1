"""Every seeded bug is found by a search with the default settings; v3 holds where it was.

The budget is in schedules, so that it is the same on any machine: `make bugs` tells the time.
"""

import re
from pathlib import Path

import pytest

from septum.checks import PROMISES
from septum.designs import Design, designs
from septum.explore import Options, Outcome, explore
from septum.explore.replay import find_subject
from septum.explore.scenario import EXPECTATION
from septum.explore.verdict import Verdict
from septum.scenarios.run import scenario_names

SCHEDULES = 8000
ROOT = Path(__file__).resolve().parents[2]
BUGS = [design for design in designs().values() if design.kind == "seeded-bug"]
held: dict[str, int] = {}
"""How many schedules v3 is known to hold in a scenario."""


def search(scenario: str, design: str, schedules: int, shrink: bool = False) -> Verdict:
    subject = find_subject(scenario, design)
    failures = int(subject.may_fail)
    return explore(subject, Options(failures=failures, schedules=schedules, shrink=shrink))


@pytest.mark.parametrize("design", BUGS, ids=lambda design: design.name)
def test_is_found_and_v3_holds(design: Design) -> None:
    """The bug breaks what it says it breaks; v3 breaks nothing under as many schedules."""
    (scenario,) = design.scenarios
    verdict = search(scenario, design.name, SCHEDULES)
    assert verdict.outcome is Outcome.BROKEN
    assert verdict.counterexamples[0].finding.promise in design.breaks
    if held.get(scenario, 0) < verdict.schedules:
        assert search(scenario, "v3", verdict.schedules).counterexamples == []
        held[scenario] = verdict.schedules


@pytest.mark.parametrize(
    "name,preemptions,failures",
    [
        ("bug-stale-after-lock", 1, 0),
        ("bug-host-fault-unlocked", 1, 0),
        ("bug-no-kick", 1, 0),
        ("bug-frozen-for-ever", 0, 1),
    ],
)
def test_the_story_is_as_short_as_the_cause(name: str, preemptions: int, failures: int) -> None:
    """A race of one window is told with one preemption, a failure with no race beside it."""
    (scenario,) = designs()[name].scenarios
    (example,) = search(scenario, name, SCHEDULES, shrink=True).counterexamples
    assert (example.preemptions, example.failures) == (preemptions, failures)


def test_each_says_what_it_is() -> None:
    """Enough of them, in host and module, each with a scenario of the library."""
    names = scenario_names()
    assert len(BUGS) >= 26
    assert sum(design.module is not None for design in BUGS) >= 6
    for design in BUGS:
        assert design.name.startswith("bug-") and design.origin.startswith("seeded: ")
        assert len(design.scenarios) == 1 and design.scenarios[0] in names
        assert design.breaks and set(design.breaks) <= {*PROMISES, EXPECTATION}


def test_each_is_small() -> None:
    """A design is a class with an override or two, and reads like a patch."""
    for path in (ROOT / "src" / "septum" / "designs" / "bugs").glob("*.py"):
        for body in re.split(r"^class ", path.read_text(), flags=re.M)[1:]:
            text = re.split(r"^\S", body[body.index("\n") :].lstrip("\n"), maxsplit=1, flags=re.M)
            assert len(text[0].splitlines()) <= 30, f"{path.name}: {body.splitlines()[0]}"
