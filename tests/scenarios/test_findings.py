"""The findings that docs/findings.md describes are still what its tokens replay to."""

import re
from pathlib import Path

import msgspec
import pytest
from replaying import replay_scenario

from septum.errors import InputError
from septum.explore.stories.retell import retell_outcome
from septum.scenarios.findings import FINDINGS, Finding, shown, token_of
from septum.scenarios.run import ScenarioRecipe, load_scenario, scenario_of_recipe
from septum.sim import decode_token

TEXT = (Path(__file__).parents[2] / "docs" / "findings.md").read_text(encoding="utf-8")
TOKENS = re.findall(r"septum replay (septum1\.\S+)`", TEXT)


@pytest.mark.parametrize(("finding", "token"), list(zip(FINDINGS, TOKENS, strict=True)))
def test_tokens_replay(finding: Finding, token: str) -> None:
    """Each token still shows its finding, and nothing that its scenario does not say; and its story
    is of the finding, and not of what else the run breaks, and short of preemptions."""
    _, packed, schedule = decode_token(token)
    recipe = msgspec.msgpack.decode(packed, type=ScenarioRecipe)
    outcome = replay_scenario(recipe, schedule)
    assert outcome.scenario == finding.scenario
    assert any(finding.shows in text for text in shown(outcome))
    assert outcome.ok, outcome.unmet
    if outcome.held:
        return
    scenario = scenario_of_recipe(recipe)
    told = " ".join(" ".join(retell_outcome(scenario, "v3", outcome, "quiet")).split())
    verdict, run, _ = told.partition(" The run: ")
    assert finding.shows in verdict
    assert re.search(r"^[\d,]+ scheduling points, [0-2] preemptions?, ", told[len(verdict + run) :])


def test_every_scenario_named_there_exists() -> None:
    names = set(
        re.findall(r"`?((?:finding|folio-1g|hugetlb|odd|memory-failure)-[a-z0-9-]+)`?", TEXT)
    )
    assert len(names) >= 8
    for name in sorted(names):
        assert load_scenario(name).summary


def test_every_finding_has_a_token() -> None:
    sections = set(re.findall(r"^## (F\d+):", TEXT, flags=re.MULTILINE))
    assert sections == {finding.id for finding in FINDINGS}
    assert len(TOKENS) == len(FINDINGS)


def test_a_finding_that_is_gone_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("septum.scenarios.findings.PREEMPT_WITHIN", 1)
    with pytest.raises(InputError, match="F0: no simple schedule of convert-one-page shows it"):
        token_of(Finding("F0", "convert-one-page", "fire"))
    assert token_of(FINDINGS[1]).startswith("septum1.")
