"""docs/designs.md tells of every ablation and proposal, and of none that is not there."""

import re
from pathlib import Path

from septum.checks import PROMISES
from septum.designs import KINDS, designs
from septum.scenarios.run import load_scenario, scenario_names

TEXT = (Path(__file__).parents[2] / "docs" / "designs.md").read_text()
TOLD = ("ablation", "proposal")


def told(text: str) -> set[str]:
    """The designs that a page names."""
    names = set(designs())
    words = set(re.findall(r"[a-z0-9]+(?:-[a-z0-9]+)*", text))
    return words & names


def missing(text: str) -> list[str]:
    return [d.name for d in designs().values() if d.kind in TOLD and d.name not in told(text)]


def test_every_ablation_and_proposal_is_told_of() -> None:
    assert missing(TEXT) == []


def test_a_design_that_is_left_out_is_noticed() -> None:
    some = next(d.name for d in designs().values() if d.kind == "ablation")
    assert missing(re.sub(rf"\b{some}\b(?!-)", "", TEXT)) == [some]


def test_every_ablation_that_is_told_of_exists() -> None:
    named = set(re.findall(r"\bv3-without-[0-9]+(?:-[a-z]+)*", TEXT))
    assert named <= set(designs())


def test_what_a_design_says_of_itself_exists() -> None:
    """Its kind, its scenarios, the promises that it breaks."""
    for design in designs().values():
        assert design.kind in KINDS, design.name
        assert design.origin and design.summary, design.name
        assert (design.patch > 0) == (design.kind == "ablation"), design.name
        assert set(design.breaks) <= {*PROMISES, "expectation"}, design.name
        for scenario in design.scenarios:
            load_scenario(scenario)


def test_origins_can_be_looked_up() -> None:
    """Patches, mails, commits, functions: no number of a list that readers do not have."""
    origins = {design.name: design.origin for design in designs().values()}
    origins |= {name: load_scenario(name).document.source for name in scenario_names()}
    assert [name for name, origin in origins.items() if re.search(r"\bJ-[0-9]", origin)] == []
