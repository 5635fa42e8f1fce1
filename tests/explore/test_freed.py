"""A process that makes many runs and searches does not keep their worlds: a run of tests makes
thousands, and a full-size one has millions of entries."""

from __future__ import annotations

import gc
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from septum.abi.tdvf import parse_tdvf
from septum.abi.tdvf_build import synthetic_tdvf
from septum.explore.api import explore
from septum.explore.replay import replay_answers
from septum.explore.scenario import ScenarioSubject
from septum.explore.steady import check_steady
from septum.explore.stories.retell import retell
from septum.explore.subject import Options, Strategy
from septum.explore.testing import search_for_test
from septum.scenarios.bench import ScenarioBench
from septum.scenarios.boot import Boot, BootRecipe
from septum.scenarios.check import Bounds, judge
from septum.scenarios.run import RandomRun, load_scenario, run_scenario
from septum.scenarios.states import scenario_states
from septum.sim import RoundRobin, Sim

if TYPE_CHECKING:
    from collections.abc import Callable

NAME = "convert-against-accept"
BUG = "bug-no-track"


def run_bench() -> None:
    bench = ScenarioBench(load_scenario(NAME))
    with closing(bench):
        for seed in range(3):
            bench.run(RandomRun(seed))


def boot() -> None:
    image = parse_tdvf(synthetic_tdvf(), "Septum's own image")
    Boot(BootRecipe(384 << 20, 1, image.sha256), image, check="end").run()


USES: dict[str, Callable[[], object]] = {
    "run": lambda: run_scenario(NAME),
    "run that breaks": lambda: run_scenario(NAME, BUG, RandomRun(1)),
    "runs in one world": run_bench,
    "check of the library": lambda: judge(NAME, Bounds(seeds=2)),
    "states": lambda: scenario_states(load_scenario(NAME), "v3", RoundRobin(), "quiet"),
    "boot": boot,
    "search": lambda: explore(
        ScenarioSubject(NAME, "v3", "end"), Options(preemptions=1, workers=1)
    ),
    "random search": lambda: explore(
        ScenarioSubject(NAME, "v3", "end"),
        Options(strategy=Strategy.RANDOM, schedules=20, workers=1),
    ),
    "search of pytest": lambda: search_for_test(NAME, BUG),
    "replay": lambda: replay_answers(NAME, "v3", []),
    "story": lambda: retell(load_scenario(NAME), BUG, RandomRun(1), "quiet"),
    "steadiness": lambda: check_steady(ScenarioSubject(NAME, "v3", "end"), Options()),
}


@pytest.mark.parametrize("use", USES)
def test_no_world_is_left(use: str) -> None:
    """Each has its scheduler, which more leads to than to anything else."""
    gc.freeze()  # what there is already is not looked at
    try:
        USES[use]()
        gc.collect()
        left = [obj for obj in gc.get_objects() if isinstance(obj, Sim)]
    finally:
        gc.unfreeze()
    assert not left
