"""Every scenario of the library under many schedules, each run twice: `make scenarios`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from septum.scenarios.run import RandomRun, run_scenario, scenario_names
from septum.sim import RoundRobin, Schedule

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from septum.checks.checker import Mode
    from septum.scenarios.outcome import ScenarioOutcome
    from septum.scenarios.scenario import Scenario
    from septum.sim import Event

SCHEDULES = 200


def schedules(nr_random: int) -> Iterator[Schedule]:
    """Round-robin by one and by many scheduling points, then random ones."""
    yield RoundRobin()
    yield RoundRobin(50)
    for seed in range(nr_random):
        yield RandomRun(seed)


def run_recorded(
    scenario: Scenario | str, schedule: Schedule, check: Mode = "quiet"
) -> tuple[ScenarioOutcome, list[Event]]:
    """One run and its events from the beginning of the programs on."""
    events: list[Event] = []
    return run_scenario(scenario, schedule=schedule, check=check, sink=events.append), events


def fresh(schedule: Schedule) -> Schedule:
    """The same schedule, at its beginning."""
    kind, seed = schedule.spec()
    return RandomRun(seed) if kind == "random" else RoundRobin(seed)


def problems(name: str, nr_random: int, check: Mode = "quiet") -> list[str]:
    """What is not as the scenario says under any of the schedules, and runs that differ when they
    are made again. One sentence each; the first of each kind."""
    found: dict[str, str] = {}
    for schedule in schedules(nr_random):
        outcome, events = run_recorded(name, schedule, check)
        where = " ".join(str(part) for part in schedule.spec())
        again, events_again = run_recorded(name, fresh(schedule), check)
        if events != events_again or outcome != again:
            found.setdefault("twice", f"{name}, {where}: the same schedule made two different runs")
        for text in outcome.unmet:
            found.setdefault(text, f"{name}, {where}: {text}\n  septum replay {outcome.token}")
    return list(found.values())


def main(arguments: Sequence[str]) -> int:
    """`python -m septum.scenarios.check [SCHEDULES] [SCENARIO...]`: 0, or 1 when one is not so."""
    nr_random = int(arguments[0]) if arguments else SCHEDULES
    names = list(arguments[1:]) or list(scenario_names())
    failed = 0
    for number, name in enumerate(names, 1):
        found = problems(name, nr_random)
        failed += bool(found)
        print(f"[{number}/{len(names)}] {name}: {'NOT as expected' if found else 'as expected'}")
        for text in found:
            print(f"  {text}", file=sys.stderr)
    print(f"{len(names) - failed} of {len(names)} scenarios as expected, {nr_random + 2} schedules")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
