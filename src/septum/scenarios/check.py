"""Every scenario of the library under many schedules: `make scenarios`.

Each scenario runs round-robin and under random schedules, in one world that is put back before
each run. Some of the runs are made again in a new world, and must be the same to the last event.
Where a scenario leaves nothing to a schedule, one run stands for all.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from septum.checks.modes import MODES, Mode
from septum.codes import BROKEN, INTERRUPTED, OK, USAGE
from septum.designs import find_design
from septum.errors import InputError
from septum.scenarios.bench import ScenarioBench
from septum.scenarios.names import check_names
from septum.scenarios.run import RandomRun, load_scenario, run_scenario, scenario_names
from septum.sim import RoundRobin, Schedule

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from septum.scenarios.outcome import ScenarioOutcome
    from septum.scenarios.scenario import Scenario
    from septum.sim import Event

SEEDS = 200
FAILING = 50
FAILURE_ODDS = 6
"""Of failing runs: an allowed failure comes one time in so many."""
AGAIN_EVERY = 50
"""One run of so many is made again in a new world."""


class Bounds(msgspec.Struct, frozen=True):
    """Which schedules: seeds [first, first + seeds), and as many more in which failures that the
    scenario allows come about as `failing` says."""

    seeds: int = SEEDS
    failing: int = 0
    first: int = 0
    check: Mode = "quiet"
    again: bool = True
    """Whether some of the runs are made again in a new world."""


class Verdict(msgspec.Struct, frozen=True):
    """Of one scenario: runs made, and what was not as expected, one text for each kind."""

    name: str
    nr_runs: int
    problems: tuple[str, ...]
    only_one: bool
    """There is but one order: any schedule makes the same run."""


def schedules(bounds: Bounds, scenario: Scenario) -> Iterator[Schedule]:
    """Round-robin by one and by many scheduling points, then random ones."""
    yield RoundRobin()
    yield RoundRobin(50)
    for seed in range(bounds.first, bounds.first + bounds.seeds):
        yield RandomRun(seed)
    if scenario.may_fail:
        for seed in range(bounds.first, bounds.first + bounds.failing):
            yield RandomRun(seed, FAILURE_ODDS)


def run_recorded(
    scenario: Scenario | str, schedule: Schedule, check: Mode = "quiet"
) -> tuple[ScenarioOutcome, list[Event]]:
    """One run in a new world, and its events from the beginning of the programs on."""
    events: list[Event] = []
    return run_scenario(scenario, schedule=schedule, check=check, sink=events.append), events


def fresh(schedule: Schedule) -> Schedule:
    """The same schedule, at its beginning."""
    kind, seed = schedule.spec()
    if isinstance(schedule, RandomRun):
        return RandomRun(seed, schedule.failure_odds)
    assert kind == "round-robin"
    return RoundRobin(seed)


def _words(schedule: Schedule) -> str:
    kind, seed = schedule.spec()
    failing = isinstance(schedule, RandomRun) and schedule.failure_odds
    return f"{kind} {seed}{' with failures' if failing else ''}"


def judge(name: str, bounds: Bounds) -> Verdict:
    """All runs of one scenario."""
    scenario = load_scenario(name)
    found: dict[str, str] = {}
    nr_runs = 0
    with closing(ScenarioBench(scenario, check=bounds.check)) as bench:
        for number, schedule in enumerate(schedules(bounds, scenario)):
            # Round-robin, the first seed.
            twice = bounds.again and (number == 2 or number % AGAIN_EVERY == 0)
            events: list[Event] = []
            outcome = bench.run(schedule, events.append if twice else None)
            nr_runs += 1
            where = f"{name}, {_words(schedule)}"
            reproduce = f"septum replay {outcome.token}"
            if twice and run_recorded(scenario, fresh(schedule), bounds.check) != (outcome, events):
                found.setdefault("twice", f"{where}: made again, it is another run\n{reproduce}")
            for text in outcome.unmet:
                found.setdefault(text, f"{where}: {text}\n{reproduce}")
            if not bench.was_asked:
                break
    return Verdict(name, nr_runs, tuple(found.values()), not bench.was_asked)


def _leave_interrupts() -> None:
    """Control-C is the parent's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _verdicts(names: Sequence[str], bounds: Bounds, workers: int) -> Iterable[Verdict]:
    job = partial(judge, bounds=bounds)
    if workers <= 1:
        yield from map(job, names)
        return
    with multiprocessing.get_context("fork").Pool(workers, _leave_interrupts) as pool:
        yield from pool.imap(job, names)


def _arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m septum.scenarios.check",
        description="Hold every scenario of the library to its expected result.",
    )
    parser.add_argument("scenario", nargs="*", help="names; default: all of the library")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="random schedules for each")
    parser.add_argument("--failing", type=int, default=FAILING, help="and so many with failures")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--check", choices=MODES, default="quiet")
    return parser.parse_args(list(arguments))


def _tell(verdict: Verdict, counter: str, width: int) -> None:
    word = "NOT as expected" if verdict.problems else "as expected"
    runs = "the only order" if verdict.only_one else f"{verdict.nr_runs} schedules"
    print(f"[{counter}] {verdict.name:<{width}}  {word}, {runs}", flush=True)
    for text in verdict.problems:
        print("  " + text.replace("\n", "\n    "), flush=True)


def main(arguments: Sequence[str]) -> int:
    """0 when all is as the scenarios say, 1 when something is not, 2 for a wrong name."""
    asked = _arguments(arguments)
    bounds = Bounds(asked.seeds, asked.failing, asked.first, asked.check)
    try:
        names = asked.scenario or list(scenario_names())
        for name in names:
            check_names(load_scenario(name), find_design("v3"))
    except InputError as error:
        print(error, file=sys.stderr)
        return USAGE
    done: list[Verdict] = []
    interrupted = False
    width = max(len(name) for name in names)
    try:
        for verdict in _verdicts(names, bounds, asked.workers):
            done.append(verdict)
            _tell(verdict, f"{len(done):{len(str(len(names)))}}/{len(names)}", width)
    except KeyboardInterrupt:
        interrupted = True
    good = sum(not verdict.problems for verdict in done)
    nr_runs = sum(verdict.nr_runs for verdict in done)
    print(
        f"{good} of {len(done)} scenarios as expected: round-robin, {bounds.seeds} seeds from"
        f" {bounds.first} on, {bounds.failing} with failures; {nr_runs} runs"
    )
    if interrupted:
        print(f"interrupted: {len(names) - len(done)} scenarios were not judged", file=sys.stderr)
        return INTERRUPTED
    return OK if good == len(done) else BROKEN


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
