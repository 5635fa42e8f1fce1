"""A scenario of the tree as something to explore."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from septum.designs import find_design
from septum.designs.registry import V3
from septum.explore.subject import Built, Witness
from septum.scenarios.failures import Failures
from septum.scenarios.names import check_names
from septum.scenarios.outcome import EXPECTATION, beside_promises, unmet_expectations
from septum.scenarios.run import load_scenario, recipe_for_token
from septum.scenarios.scenario import covers
from septum.scenarios.world import ScenarioWorld

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from septum.checks.modes import Mode
    from septum.scenarios.scenario import Scenario
    from septum.sim import Finding


class ScenarioSubject:
    """`scenario` on a host of `design`, with its promises checked as `check` says."""

    __slots__ = ("_changes_v3", "_design", "_torn_down", "check", "scenario", "witnesses")

    def __init__(self, scenario: Scenario | str, design: str = "v3", check: Mode = "quiet") -> None:
        """Raises InputError for an unknown scenario."""
        self.scenario = load_scenario(scenario) if isinstance(scenario, str) else scenario
        found = find_design(design)
        check_names(self.scenario, found)  # here, and not first where a worker builds a world
        self._design = found.name
        self._changes_v3 = found.base == V3.name
        self.check: Mode = check
        # Ends of which VMs were taken down, with what broke there as the scenario says.
        self._torn_down: dict[tuple[object, ...], list[Finding]] = {}
        self.witnesses: Sequence[Witness] = tuple(
            Witness(text, tuple(text.split(" or "))) for text in self.scenario.expect.witnesses
        )

    @property
    def name(self) -> str:
        """The scenario's."""
        return self.scenario.name

    @property
    def design(self) -> str:
        """The host's design."""
        return self._design

    @property
    def recipe(self) -> bytes:
        """What `septum replay` builds the world from."""
        return msgspec.msgpack.encode(recipe_for_token(self.scenario, self._design, self.check))

    @property
    def of_library(self) -> bool:
        """The scenario is one of the tree, and can be named."""
        return not recipe_for_token(self.scenario, self._design, self.check).text

    @property
    def may_fail(self) -> bool:
        """The scenario allows failures."""
        return bool(self.scenario.may_fail)

    @property
    def forgets(self) -> bool:
        """Not where the scenario expects counts."""
        return not self.scenario.expect.counts

    @property
    def goes_on(self) -> bool:
        """With the steps of `after`."""
        return bool(self.scenario.after)

    def expects(self, finding: Finding) -> bool:
        """The scenario says that this promise breaks, or the user does not want to hear of it."""
        text = f"{finding.promise}: {finding.text}"
        if any(known in text for known in self.scenario.ignored):
            return True
        return self.foresees(finding.promise, finding.text)

    def foresees(self, promise: str, text: str) -> bool:
        """The scenario says that this breaks. It speaks of v3: of a design that changes another one
        it foresees nothing."""
        return self._changes_v3 and self.scenario.expect.foresees(promise, text)

    def unbroken(self, broke: Iterable[tuple[str, str]]) -> list[str]:
        """Of v3 itself: a design may well mend what the scenario says of it."""
        if self._design != V3.name:
            return []
        expect = self.scenario.expect
        found = list(broke)
        return [
            entry
            for entry in (*expect.broken, *expect.may_break)
            if not any(covers(entry, promise, text) for promise, text in found)
        ]

    @property
    def must_break(self) -> Sequence[str]:
        """What the scenario says that v3 breaks in every run. Who looks at promises when a run has
        ended may not see it."""
        return () if self.check == "end" else self.scenario.expect.broken

    def build(self) -> Built:
        """The world with its VMs up, before the programs begin."""
        world = ScenarioWorld(self.scenario, self._design, self.check)
        return Built(world.sim, [world], world, world.unready, world.record.unmet())

    def start(self, built: Built) -> None:
        """The programs."""
        _world(built).spawn()

    def finish(self, built: Built) -> None:
        """The steps after, the expectations, and the end of the VMs."""
        world = _world(built)
        world.finish(counting=bool(self.scenario.expect.counts))
        unmet = beside_promises(unmet_expectations(world))
        # Taking a VM down costs more than most runs: ends that are alike are taken down once in a
        # process.
        end = world.remains()
        broken = self._torn_down.get(end)
        if broken is None:
            before = len(world.sim.findings)
            built.is_over = True
            world.teardown()
            # Not before: an end that breaks a promise must break it again when it is replayed.
            self._torn_down[end] = world.sim.findings[before:]
        else:
            # Whoever met this end first may not have been one who tells.
            for finding in broken:
                world.sim.find(finding.promise, finding.text, where=finding.where)
        for text in unmet:
            world.sim.find(EXPECTATION, text, where="end")

    def is_failure(self, choice: str) -> bool:
        """All but the alternatives of the scenario's programs."""
        return Failures.is_failure(choice)

    def final(self, built: Built) -> object:
        """The results of all operations, by actor, and the pages' states."""
        world = _world(built)
        results = sorted((r.actor, r.text, r.result) for r in world.record.results)
        return (tuple(results), tuple(world.pages), tuple(world.dead))

    def came_out(self, built: Built) -> object:
        """Its end, and which calls of the module ended with which statuses on the way."""
        return (self.final(built), frozenset(_world(built).world.module.counts))


def _world(built: Built) -> ScenarioWorld:
    assert isinstance(built.world, ScenarioWorld)
    return built.world
