"""Worlds of the library as a search watches them."""

import pytest

from septum.explore.covering.coverage import Coverage
from septum.explore.runs.run import Runner
from septum.explore.scenario import ScenarioSubject
from septum.explore.subject import Options
from septum.scenarios.run import LIBRARY

SET_UP = sorted(
    path.stem for path in LIBRARY.glob("*.toml") if '"host: ' in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("name", SET_UP)
def test_what_a_setup_leaves_can_be_watched(name: str) -> None:
    """Also what the promises remember of it; else the search would go without reduction."""
    runner = Runner(ScenarioSubject(name, "v3", "quiet"), Options())
    runner.track(Coverage(runner.built))
    runner.untrack()
