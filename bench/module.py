"""SEAMCALLs per second of the TDX module on one core, without tracing.

A fixed mix: AUG, BLOCK, TRACK, REMOVE of 2 MB pages; AUG, BLOCK, TRACK, DEMOTE of others; BLOCK,
TRACK, REMOVE, AUG of two of the 4 KB pages that each of those became. Every call must succeed. The
result is also given relative to a loop of plain Python in the same run, which is what compares
between machines.

    python bench/module.py [--rounds N] [--json] [--profile]
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import statistics
import sys
from time import process_time
from typing import TYPE_CHECKING

from septum.abi.leaves import SEAMCALL_LEAVES
from septum.abi.regs import Regs
from septum.abi.status import status_name
from septum.conform.scene import GPA, LARGE, TDR, Scene, runnable_scene
from septum.module import PROFILES

if TYPE_CHECKING:
    from collections.abc import Callable

RANGES = 64
CHILDREN = 2
TARGET_PER_S = 60_000
MB2 = 1 << 21
CALIBRATION_STEPS = 100_000


def mix(scene: Scene) -> list[Regs]:
    """The registers of one round of calls, in order."""
    calls: list[Regs] = []

    def add(name: str, rcx: int, **more: int) -> None:
        calls.append(Regs(SEAMCALL_LEAVES[name], rcx, TDR, **more))

    def track() -> None:
        calls.append(Regs(SEAMCALL_LEAVES["TDH.MEM.TRACK"], TDR))

    for index in range(RANGES):
        gpa, hpa = GPA + index * MB2, LARGE + index * MB2
        add("TDH.MEM.PAGE.AUG", gpa | 1, r8=hpa)
        add("TDH.MEM.RANGE.BLOCK", gpa | 1)
        track()
        add("TDH.MEM.PAGE.REMOVE", gpa | 1)
    for index in range(RANGES):
        gpa, hpa = GPA + index * MB2, LARGE + index * MB2
        r12, r13 = scene.pamt_pair()
        add("TDH.MEM.PAGE.AUG", gpa | 1, r8=hpa)
        add("TDH.MEM.RANGE.BLOCK", gpa | 1)
        track()
        add("TDH.MEM.PAGE.DEMOTE", gpa | 1, r8=scene.control_page(), r12=r12, r13=r13)
        for child in range(CHILDREN):
            small = child * 0x1000
            add("TDH.MEM.RANGE.BLOCK", gpa + small)
            track()
            add("TDH.MEM.PAGE.REMOVE", gpa + small)
            add("TDH.MEM.PAGE.AUG", gpa + small, r8=hpa + small)
    return calls


def prepare(dynamic_pamt: bool) -> tuple[Callable[[int, Regs], None], list[Regs]]:
    """A fresh running TD: its machine's SEAMCALL instruction, and a round of calls."""
    scene = runnable_scene(dynamic_pamt, profile=PROFILES["1.5.28"])
    return scene.machine.seamcall, mix(scene)


def run_round(seamcall: Callable[[int, Regs], None], calls: list[Regs]) -> float:
    """Seconds of processor time that a round takes (so other load on the machine counts less)."""
    start = process_time()
    for regs in calls:
        seamcall(0, regs)
    return process_time() - start


class _Calibration:
    """Attribute, dictionary, integer and call costs in about the module's proportions."""

    __slots__ = ("table", "word")

    def __init__(self) -> None:
        self.word = 0
        self.table = {index: index for index in range(64)}

    def step(self, value: int) -> int:
        word = self.word
        if word & 1 << 40:
            return 0
        self.word = word + 4 & 0xFFFF
        found = self.table.get(value & 63)
        return 0 if found is None else found ^ word


def calibrate() -> float:
    """Steps of plain Python per second."""
    step = _Calibration().step
    start = process_time()
    for value in range(CALIBRATION_STEPS):
        step(value)
    return CALIBRATION_STEPS / (process_time() - start)


def measure(dynamic_pamt: bool, rounds: int) -> dict[str, float]:
    """Calls per second over `rounds` rounds, alternating with calibration."""
    rates, ratios = [], []
    for _ in range(rounds):
        steps_per_s = calibrate()
        seamcall, calls = prepare(dynamic_pamt)
        rate = len(calls) / run_round(seamcall, calls)
        for regs in calls:
            if regs.rax:
                sys.exit(f"bench: a call of the mix failed: {status_name(regs.rax)}")
        rates.append(rate)
        ratios.append(steps_per_s / rate)
    return {
        "calls_per_s": round(statistics.median(rates)),
        "calls_per_s_best": round(max(rates)),
        "steps_per_call": round(statistics.median(ratios), 2),
    }


def profile(dynamic_pamt: bool, rounds: int) -> None:
    """Print where the time goes, by function."""
    profiler = cProfile.Profile()
    for _ in range(rounds):
        seamcall, calls = prepare(dynamic_pamt)
        profiler.enable()
        for regs in calls:
            seamcall(0, regs)
        profiler.disable()
    pstats.Stats(profiler, stream=sys.stdout).sort_stats("tottime").print_stats(18)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench/module.py", description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--profile", action="store_true", help="say which functions take the time")
    options = parser.parse_args()
    results = {
        name: measure(dynamic, options.rounds)
        for name, dynamic in (("dynamic PAMT", True), ("static PAMT", False))
    }
    if options.json:
        print(json.dumps({"version": 1, "bench": "module", "results": results}, indent=2))
    else:
        per_round = RANGES * (8 + 4 * CHILDREN)
        print(
            f"module: {per_round} SEAMCALLs a round, {options.rounds} rounds, one core, no tracing"
        )
        for name, result in results.items():
            verdict = "reached" if result["calls_per_s"] >= TARGET_PER_S else "MISSED"
            print(
                f"  {name:13} {result['calls_per_s']:>8,.0f} calls/s "
                f"(best {result['calls_per_s_best']:,.0f}), "
                f"{result['steps_per_call']:.1f} calibration steps a call"
            )
            print(f"  {'':13} target {TARGET_PER_S:,} a second: {verdict}")
    if options.profile:
        profile(True, options.rounds)


if __name__ == "__main__":
    main()
