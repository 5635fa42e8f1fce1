"""Scenarios by name, and runs of them: what the command line calls."""

from __future__ import annotations

import hashlib
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from septum.checks.modes import Mode, check_mode
from septum.designs import find_design
from septum.errors import InputError
from septum.scenarios.blamed import left_behind
from septum.scenarios.failures import Failures
from septum.scenarios.opening import tell_memory
from septum.scenarios.outcome import (
    EXPECTATION,
    ScenarioOutcome,
    beside_promises,
    outcome_of,
)
from septum.scenarios.reader import read_scenario
from septum.scenarios.source import is_file, no_file_text, read_text, shown
from septum.scenarios.spelling import meant
from septum.scenarios.world import ScenarioWorld
from septum.sim import ListSchedule, RandomSchedule, RoundRobin, Schedule, encode_token
from septum.sim.events import FindingEvent
from septum.stamp import stamp

if TYPE_CHECKING:
    from collections.abc import Callable

    from septum.scenarios.scenario import Document, Scenario
    from septum.sim import Event

LIBRARY = Path(__file__).parent / "library"
SUFFIX = ".toml"


class ScenarioRecipe(msgspec.Struct, frozen=True, tag="scenario", omit_defaults=True):
    """What a replay token carries of a scenario. Of one in the library `digest` is that of what it
    does; of another, `text` is all of it, so that the file need not be there. `fail`: choice points
    that could fail beside those that the scenario allows, `ignore`: findings that did not count."""

    name: str
    design: str = "v3"
    check: Mode = "quiet"
    digest: bytes = b""
    text: str = ""
    fail: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()


def recipe_for_token(scenario: Scenario, design: str, check: Mode) -> ScenarioRecipe:
    """The recipe of a scenario's run."""
    design = find_design(design).reference
    path = LIBRARY / f"{scenario.name}{SUFFIX}"
    if is_file(path) and path.read_text(encoding="utf-8") == scenario.text:
        told = ScenarioRecipe(scenario.name, design, check, digest=_digest(scenario.document))
    else:
        told = ScenarioRecipe(scenario.name, design, check, text=scenario.text)
    return msgspec.structs.replace(told, fail=scenario.also_fail, ignore=scenario.ignored)


def scenario_of_recipe(recipe: ScenarioRecipe) -> Scenario:
    """The scenario that a token names. Raises InputError when it is not what it was."""
    if recipe.text:
        return read_scenario(recipe.name, recipe.text, recipe.name).asked(
            recipe.fail, recipe.ignore
        )
    scenario = load_scenario(recipe.name)
    if _digest(scenario.document) != recipe.digest:
        raise InputError(
            f"scenario {recipe.name} is not the one that the token was made with;"
            " a run replays on the version that made it"
        )
    return scenario.asked(recipe.fail, recipe.ignore)


def _digest(document: Document) -> bytes:
    """Of all that a run, and what is said of it, is a function of: not of what the file says to
    readers, and of what a search must have reached."""
    replace = msgspec.structs.replace
    expect = replace(document.expect, witnesses=[])
    plain = replace(document, summary="", source="", notes="", expect=expect)
    return hashlib.sha256(msgspec.msgpack.encode(plain)).digest()[:12]


class RandomRun(RandomSchedule):
    """Any ready task at every point, any alternative; each allowed failure one time in
    `failure_odds` (0: none)."""

    __slots__ = ("failure_odds",)

    def __init__(self, seed: int, failure_odds: int = 0) -> None:
        super().__init__(seed)
        self.failure_odds = failure_odds

    def choose(self, name: str, n: int) -> int:
        if self.failure_odds and Failures.is_failure(name):
            return 0 if self.below(self.failure_odds) else 1 + self.below(n - 1)
        return super().choose(name, n)


def scenario_names() -> dict[str, str]:
    """Name and line of every scenario in the library, by name."""
    return {
        path.stem: load_scenario(path.stem).summary for path in sorted(LIBRARY.glob(f"*{SUFFIX}"))
    }


def scenario_file(name: str) -> Path | None:
    """The file that the user means by `name`; None when it names a scenario of the library, which
    goes before a file, or nothing."""
    path = Path(name)
    return path if not is_file(LIBRARY / f"{name}{SUFFIX}") and is_file(path) else None


def load_scenario(name: str) -> Scenario:
    """The scenario called `name`, or the one in the file at that path.

    Raises InputError when there is none, or when its file is wrong.
    """
    path = scenario_file(name)
    if path is None:
        path = LIBRARY / f"{name}{SUFFIX}"
        if not is_file(path):
            raise InputError(
                no_file_text(Path(name))
                or f"no scenario is called {shown(name)}, and there is no such file; {_near(name)}"
            )
    where = path.name if path.parent == LIBRARY else str(path)
    return read_scenario(path.stem, read_text(path), where)


def _near(name: str) -> str:
    """What may have been meant by a name that nothing has."""
    lists = "`septum scenarios` lists them"
    if is_file(Path(f"{name}{SUFFIX}")):
        return f"did you mean '{name}{SUFFIX}'?"
    near = meant(name, (path.stem for path in LIBRARY.glob(f"*{SUFFIX}")), "")
    return f"{near} {lists}".lstrip()


def run_scenario(
    scenario: Scenario | str,
    design: str = "v3",
    schedule: Schedule | None = None,
    check: Mode = "quiet",
    sink: Callable[[Event], None] | None = None,
) -> ScenarioOutcome:
    """Run a scenario once and compare. `sink` is given the events from where the programs begin.

    Raises InputError for an unknown name or design.
    """
    if isinstance(scenario, str):
        scenario = load_scenario(scenario)
    with left_behind(design, undisturbed(scenario, check)):
        run = ScenarioWorld(scenario, design, check)
        with closing(run.world):
            return run_in(run, schedule, sink)


def undisturbed(scenario: Scenario | str, check: str) -> Callable[[str], object]:
    """A run of the scenario as it is on any design, for `left_behind`."""
    return lambda design: run_scenario(scenario, design, check=check_mode(check))


def run_in(
    run: ScenarioWorld,
    schedule: Schedule | None = None,
    sink: Callable[[Event], None] | None = None,
) -> ScenarioOutcome:
    """`run_scenario` in a world that is as it was built."""
    schedule = schedule if schedule is not None else RoundRobin()
    run.sim.set_sink(sink)
    if sink is not None:
        tell_memory(run.world)
        for known in run.sim.findings:  # of the setup, whose events nobody was given
            sink(FindingEvent(known.time_ns, known.task, 0, known.promise, known.text))
    run.run(schedule)
    recipe = recipe_for_token(run.scenario, run.design, run.checker.mode)
    kind, seed = schedule.spec()
    origin = seed if kind == "list" else 0
    made = ListSchedule(list(run.sim.answers), origin, schedule.for_nothing())
    token = encode_token(stamp(), msgspec.msgpack.encode(recipe), made)
    outcome = outcome_of(run, token, kind, seed)
    if sink is not None:
        # A trace is all that some readers have: it says what is not as the scenario says, too.
        main = run.sim.current
        for text in beside_promises(outcome.unmet):
            sink(FindingEvent(main.time_ns, main.name, main.cpu, EXPECTATION, text))
    return outcome
