"""Renews the tokens in docs/designs.md: rows of `| DESIGN | SCENARIO | promises | TOKEN |`.

python tools/design_tokens.py            write the file
python tools/design_tokens.py --check    exit 1 when a token is not that of today's run

A token stands for a run of this version of the model under the round-robin schedule, or where
nothing breaks under that, under the first random one that breaks something.
"""

import re
import sys
from pathlib import Path

from septum.scenarios.run import RandomRun, run_scenario

TARGET = Path(__file__).resolve().parent.parent / "docs" / "designs.md"
SEEDS = 100
ROW = re.compile(
    r"^\| (?P<design>[\w-]+) \| (?P<scenario>[\w-]+) \| [^|]*\| `(?:septum1\.[\w-]+|TOKEN)` \|$",
    re.MULTILINE,
)


def renewed(row: re.Match[str]) -> str:
    """The row as it is today."""
    outcome = run_scenario(row["scenario"], row["design"])
    seed = 0
    while outcome.held and seed < SEEDS:
        outcome = run_scenario(row["scenario"], row["design"], RandomRun(seed))
        seed += 1
    broken = ", ".join(name for name, what in outcome.promises.items() if what == "broken")
    return f"| {row['design']} | {row['scenario']} | {broken} | `{outcome.token}` |"


def main() -> int:
    """0, or 1 when --check finds the file out of date."""
    text = TARGET.read_text(encoding="utf-8")
    new = ROW.sub(renewed, text)
    if "--check" in sys.argv[1:]:
        if new != text:
            print(
                "docs/designs.md is out of date; run: python tools/design_tokens.py",
                file=sys.stderr,
            )
        return int(new != text)
    TARGET.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
