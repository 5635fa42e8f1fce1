"""Draws more scenarios from dice than the tests do, and shows those whose runs raise.

python tools/dice.py --seconds 600           from seed 0 on
python tools/dice.py --seconds 600 --judges  small ones, of which the two judges must say the same
python tools/dice.py --seconds 600 --bugs    and on hosts with seeded bugs
python tools/dice.py --seconds 0 --first 7   that of seed 7
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "shared"))

from drawn import LARGE, SMALL, drawn_scenario
from judging import judges_agree

from septum.designs import designs
from septum.errors import InputError
from septum.scenarios.bench import ScenarioBench
from septum.scenarios.run import RandomRun, load_scenario

RUNS = 4
SCHEDULES = 400


def make_runs(path: str) -> None:
    """Random runs in each mode."""
    for mode in ("end", "quiet", "every-step"):
        with closing(ScenarioBench(load_scenario(path), check=mode)) as bench:
            for number in range(RUNS):
                bench.run(RandomRun(number))


def hold_to_each_other(path: str, seed: int, *, bugs: bool) -> None:
    """Both judges, with promises looked at at the end, or after every operation."""
    named = sorted(name for name in designs() if name.startswith("bug-")) if bugs else ["v3"]
    for check in ("end", "quiet"):
        judges_agree(path, SCHEDULES, named[seed % len(named)], check)


def main() -> int:
    """Draws scenarios until the time is over. Returns 1 when any was bad."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--judges", action="store_true")
    parser.add_argument("--bugs", action="store_true")
    args = parser.parse_args()
    bad = 0
    seed = args.first
    until = time.monotonic() + args.seconds
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "drawn.toml"
        while True:
            small = args.judges or args.bugs
            # Of every other one operations must come to `ok`.
            text = drawn_scenario(seed, SMALL if small else LARGE, expects=bool(seed & 1))
            path.write_text(text, encoding="utf-8")
            try:
                if small:
                    hold_to_each_other(str(path), seed, bugs=args.bugs)
                else:
                    make_runs(str(path))
            except Exception as error:  # whatever it is, it is what is looked for
                # Except that a broken host may never come to where the programs begin.
                if not (args.bugs and isinstance(error, InputError)):
                    bad += 1
                    print(f"seed {seed}: {type(error).__name__}: {error}")
                    print(path.read_text(encoding="utf-8"))
            seed += 1
            if time.monotonic() >= until:
                break
    print(f"{seed - args.first} scenarios from seed {args.first} on, {bad} bad")
    return min(bad, 1)


if __name__ == "__main__":
    sys.exit(main())
