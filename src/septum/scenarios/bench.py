"""A scenario's world that serves for many runs: built once, put back before each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.scenarios.run import run_in
from septum.scenarios.world import ScenarioWorld
from septum.sim import RoundRobin, Schedule
from septum.sim.state import Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable

    from septum.checks.modes import Mode
    from septum.scenarios.outcome import ScenarioOutcome
    from septum.scenarios.scenario import Scenario
    from septum.sim import Event


class ScenarioBench:
    """Runs of one scenario, each as `run_scenario` would make it in a world of its own.

    `was_asked`: the last run asked its schedule; if not, any other makes the same run.
    """

    __slots__ = ("_snapshot", "_world", "check", "design", "nr_built", "scenario", "was_asked")

    def __init__(self, scenario: Scenario, design: str = "v3", check: Mode = "quiet") -> None:
        self.scenario = scenario
        self.design = design
        self.check = check
        self.nr_built = 0
        self.was_asked = False
        self._world: ScenarioWorld | None = None
        self._snapshot = Snapshot(())

    def run(
        self, schedule: Schedule, sink: Callable[[Event], None] | None = None
    ) -> ScenarioOutcome:
        """One run from the beginning of the programs."""
        world = self._world
        if world is None:
            world = self._world = self._build()
        else:
            self._put_back(world)
        outcome = run_in(world, schedule, sink)
        self.was_asked = bool(world.sim.answers)
        if world.sim.tasks:
            self.close()  # the run was stopped: tasks stand in the middle of things
        return outcome

    def close(self) -> None:
        """The next run is made in a new world."""
        if self._world is not None:
            self._world.world.close()
        self._world = None

    def _build(self) -> ScenarioWorld:
        world = ScenarioWorld(self.scenario, self.design, self.check)
        world.sim.schedule = RoundRobin()
        self._snapshot = Snapshot([world], skip=[world.sim.schedule])
        self.nr_built += 1
        return world

    def _put_back(self, world: ScenarioWorld) -> None:
        # Guests end before memory is put back: what they unwind touches it.
        world.world.close()
        self._snapshot.verify()
