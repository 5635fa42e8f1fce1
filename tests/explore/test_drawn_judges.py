"""Two judges on scenarios from dice, with all that a host does to VMs that come and go."""

import pytest
from drawn import SMALL, drawn_scenario
from judging import SPIN_POINTS, searched

from septum.explore.graph import GraphSearch
from septum.explore.subject import Options

SEEDS = range(24)
SCHEDULES = 150
"""Scenarios that have more are left to others."""
FEW = 12


def agreed(tmp_path, seed: int) -> bool:  # type: ignore[no-untyped-def]
    """Whether there was something to compare; raises AssertionError where the judges disagree."""
    path = tmp_path / f"drawn-{seed}.toml"
    text = drawn_scenario(seed, SMALL)
    path.write_text(text, encoding="utf-8")
    compared = False
    for preemptions in (0, 1):
        options = Options(
            keep_going=True,
            preemptions=preemptions,
            failures=int("[failures]" in text),
            spin_points=SPIN_POINTS,
        )
        plain = searched(str(path), options, limit=SCHEDULES)
        if plain is None:
            break
        fast = searched(str(path), options)
        assert fast is not None and fast[0] == plain[0]
        compared = True
    return compared


@pytest.mark.parametrize("seed", SEEDS)
def test_the_judges_agree(tmp_path, seed: int) -> None:  # type: ignore[no-untyped-def]
    if not agreed(tmp_path, seed):
        pytest.skip("too many schedules for the plain judge")
