"""What the explorer costs on its reference scenario, and where the time goes.

All numbers are of one run on one core; the ratios compare like with like within it.

    python bench/explore.py [--seconds N] [--search N] [--whole N] [--profile]
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import time
from typing import TYPE_CHECKING

from septum.explore import Options, Strategy, explore
from septum.explore.runs.run import StateMissed
from septum.explore.runs.sampling import Pct, RandomWalk
from septum.explore.scenario import ScenarioSubject
from septum.explore.subject import UNBOUNDED
from septum.explore.toybox import RARE
from septum.explore.workers.search import Job, Searcher, collecting_rarely

if TYPE_CHECKING:
    from septum.explore.subject import Subject

SCENARIO = "reference-per-vm"
TWO = "reference-two"
TARGETS = {"end": 2000, "every-step": 800}
"""Random schedules a second and core, by when promises are looked at."""
TURNS = 4_000_000
"""Of the loop that times are compared with."""
TARGET_SECONDS = 60
"""The search of all with two preemptions, on two cores."""


class WithoutEnd(ScenarioSubject):
    """The scenario up to where its programs end: what is left out is the look at everything, and
    at what the scenario expects."""

    __slots__ = ()

    # The base says the type.
    def finish(self, built) -> None:  # type: ignore[no-untyped-def]
        """Nothing."""


def turns_rate() -> float:
    """How many times a second this Python goes round a short loop, on this core, now. What takes
    so many turns takes them on a slower machine, and at another time of the day, too."""
    began = time.process_time()
    total = 0
    for number in range(TURNS):
        total += number & 3
    return TURNS / (time.process_time() - began)


def random_line(subject: Subject, seconds: float, label: str, target: int = 0) -> str:
    """What random runs of a subject cost, by the second and by turns of a loop."""
    before = turns_rate()
    rate, points = random_rate(subject, seconds)
    turns = (before + turns_rate()) / 2 / rate
    line = (
        f"{label}: {rate:.0f} random schedules/s, {points:.0f} points/s;"
        f" one takes as long as {turns:,.0f} turns of a loop"
    )
    return line + (f" (target {target:,}/s: {_word(rate >= target)})" if target else "")


def random_rate(subject: Subject, seconds: float) -> tuple[float, float]:
    """(schedules, scheduling points) in a second."""
    options = Options(preemptions=None)
    searcher = Searcher(subject, options)
    began = time.process_time()
    runs = steps = 0
    with collecting_rarely():
        while time.process_time() - began < seconds:
            # Both strategies tell two kinds of runs apart by whether a number is odd.
            make = Pct if runs & 2 else RandomWalk
            try:
                steps += searcher.runner.run(make(options, runs, searcher.length)).steps
            except StateMissed:
                continue
            runs += 1
    taken = time.process_time() - began
    return runs / taken, steps / taken


def exhaustive(name: str, preemptions: int, seconds: float) -> str:
    """One line about a search in one process. Seconds are of the processor."""
    searcher = Searcher(ScenarioSubject(name, "v3", "end"), Options(keep_going=True))
    began = time.process_time()
    try:
        job = Job(1, Strategy.EXHAUSTIVE, preemptions=preemptions, until=time.monotonic() + seconds)
        result = searcher.do(job)
        known = searcher.transitions.nr_known if searcher.transitions is not None else 0
        runs = searcher.runner.nr_runs
    finally:
        searcher.close()
    taken = time.process_time() - began
    word = "complete" if result.complete else "not complete"
    bound = "no bound on" if preemptions >= UNBOUNDED else str(preemptions)
    return (
        f"{name}, {bound} preemptions: {word} in {taken:.1f} s; {result.states} states,"
        f" {result.steps} steps taken, {known} of them by the model, in {runs} runs;"
        f" {result.schedules} schedules ({result.schedules / taken:.0f} a second)"
    )


def on_two_cores(seconds: float, preemptions: int | None = 2) -> str:
    """One line about the same in two processes, within so many preemptions, or (None) without a
    bound. Seconds are the clock's."""
    options = Options(
        strategy=Strategy.EXHAUSTIVE,
        preemptions=preemptions,
        workers=2,
        time_s=seconds,
        shrink=False,
    )
    verdict = explore(ScenarioSubject(SCENARIO, "v3", "end"), options)
    word = "complete" if verdict.complete else f"complete within {verdict.level}"
    bound = "no bound on" if preemptions is None else str(preemptions)
    line = (
        f"{SCENARIO}, {bound} preemptions on two cores: {word} in {verdict.seconds:.1f} s;"
        f" {verdict.states} states, {verdict.schedules} schedules"
    )
    if preemptions is None:
        return line
    reached = verdict.complete and verdict.seconds < TARGET_SECONDS
    return f"{line} (target {TARGET_SECONDS} s: {_word(reached)})"


def _word(reached: bool) -> str:
    return "reached" if reached else "MISSED"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--search", type=float, default=60.0, help="seconds for each search")
    parser.add_argument(
        "--whole", type=float, default=0.0, help="seconds for a search without a bound by two cores"
    )
    parser.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    # First, as forks of a process that keeps what it has searched would copy that.
    print(on_two_cores(given.search), flush=True)
    if given.whole:
        print(on_two_cores(given.whole, None), flush=True)
    toy_rate, _ = random_rate(RARE, 1.0)
    print(f"toy {RARE.name}: {toy_rate:.0f} random schedules/s (what the engine costs)")
    for check in ("end", "quiet", "every-step"):
        # `check` is one of the literals.
        subject = WithoutEnd(SCENARIO, "v3", check)  # type: ignore[arg-type]
        label = f"{SCENARIO}, checks {check}"
        print(random_line(subject, given.seconds, label, TARGETS.get(check, 0)), flush=True)
    whole = ScenarioSubject(SCENARIO, "v3", "end")
    print(random_line(whole, given.seconds, f"{SCENARIO}, with the look at their ends"), flush=True)
    for preemptions in (0, 1, 2, UNBOUNDED):
        print(exhaustive(SCENARIO, preemptions, given.search), flush=True)
    for preemptions in (0, 1):
        print(exhaustive(TWO, preemptions, given.search), flush=True)
    if given.profile:
        profile = cProfile.Profile()
        profile.runcall(random_rate, WithoutEnd(SCENARIO, "v3", "end"), given.seconds)
        pstats.Stats(profile).sort_stats("tottime").print_stats(20)


if __name__ == "__main__":
    main()
