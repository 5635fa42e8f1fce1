"""The findings that docs/findings.md describes are still what its tokens replay to."""

import re
from pathlib import Path

import msgspec
import pytest

from septum.scenarios.run import ScenarioRecipe, load_scenario, replay_scenario
from septum.sim import decode_token

TEXT = (Path(__file__).parents[2] / "docs" / "findings.md").read_text(encoding="utf-8")
TOKENS = re.findall(r"septum replay (septum1\.\S+)`", TEXT)


@pytest.mark.parametrize("token", TOKENS)
def test_tokens_replay(token: str) -> None:
    """Each token still shows its finding, and nothing that its scenario does not say."""
    _, packed, schedule = decode_token(token)
    outcome = replay_scenario(msgspec.msgpack.decode(packed, type=ScenarioRecipe), schedule)
    assert outcome.findings or outcome.ended
    assert outcome.ok, outcome.unmet


def test_every_scenario_named_there_exists() -> None:
    names = set(re.findall(r"`?((?:finding|folio-1g|hugetlb|odd)-[a-z0-9-]+)`?", TEXT))
    assert len(names) >= 8
    for name in sorted(names):
        assert load_scenario(name).summary
