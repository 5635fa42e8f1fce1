"""Whatever a scenario asks for, runs of it come to an end, and a verdict."""

import pytest
from drawn import drawn_scenario

from septum.checks.modes import Mode
from septum.scenarios.bench import ScenarioBench
from septum.scenarios.run import RandomRun, load_scenario

SEEDS = range(20)
RUNS = 2
MODES: tuple[Mode, ...] = ("end", "quiet", "every-step")
LONG = (2, 14)
"""Of several thousand steps, each of which would be looked at."""


@pytest.mark.parametrize("seed", SEEDS)
def test_runs_of_a_drawn_scenario_come_to_an_end(tmp_path, seed: int) -> None:  # type: ignore[no-untyped-def]
    """With and without looks on the way, and the same twice."""
    path = tmp_path / f"drawn-{seed}.toml"
    path.write_text(drawn_scenario(seed), encoding="utf-8")
    scenario = load_scenario(str(path))
    for mode in MODES[:2] if seed in LONG else MODES:
        bench = ScenarioBench(scenario, check=mode)
        told = [bench.run(RandomRun(number)) for number in (*range(RUNS), 0)]
        assert told[0] == told[-1]
