"""Searches every scenario of the library against v3 and writes what came of it: docs/verdicts.md,
and what was reached: docs/coverage.md.

    python tools/verdicts.py [--time SECONDS] [--again SECONDS]... [--write] [SCENARIO...]

Two preemptions, and one failure where the scenario allows any, with the promises looked at after
every operation. A scenario whose search does not get through in its time is undetermined; how far
it came is said. With `--again` it is searched once more, by all workers and for so long; given
twice, a third time. Where scenarios are named, `--write` puts their rows into the page that is
there, and leaves docs/coverage.md alone.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import reached_page

from septum.explore import Options, explore
from septum.explore.scenario import ScenarioSubject
from septum.scenarios.run import scenario_names

if TYPE_CHECKING:
    from collections.abc import Iterable

    from septum.explore.verdict import Verdict

PAGE = Path(__file__).parent.parent / "docs" / "verdicts.md"
PREEMPTIONS = 2
BROKEN = "\n## What breaks\n"
_ROW = re.compile(r"\| [a-z0-9-]+ \| [a-z ]+ \| .* \| [\d.]+ \|$")
PATIENCE = 8
"""So many times its budget a search may take, which shrinks what it found after it."""

HEAD = """# Verdicts

What `septum explore` says of v3 in every scenario of the library: {preemptions} preemptions, one
failure where the scenario allows any, promises looked at after every operation (`--check quiet`),
{time}. A row with more seconds was
searched once more, alone. `make verdicts` makes this page; where time decides, another machine
comes further or less far.

*held*: complete within these bounds. *as foreseen*: complete, and nothing but what the scenario
says of v3 (see [findings.md](findings.md)). *broken*: a promise breaks that the scenario does not
foresee. *undetermined*: time ran out; nothing was found in what was searched.

{counts}

| scenario | verdict | how far | s |
| --- | --- | --- | ---: |
"""


class Row(msgspec.Struct, frozen=True):
    """One scenario's verdict."""

    name: str
    verdict: str
    why: str
    seconds: float
    findings: list[str]
    tokens: list[str]
    reached: list[str] = []
    unbroken: list[str] = []


def search(task: tuple[str, float], workers: int = 1) -> Row:
    """The verdict on one scenario, in a process of its own."""
    name, time_s = task
    subject = ScenarioSubject(name, "v3", "quiet")
    options = Options(
        preemptions=PREEMPTIONS,
        failures=int(subject.may_fail),
        time_s=time_s,
        keep_going=True,
        workers=workers,
    )
    try:
        verdict = explore(subject, options)
    except Exception as error:  # a defect of Septum in one scenario must not hide the others
        why = f"{type(error).__name__}: {error}"
        return Row(name, "defect", why, 0.0, [], [])
    return Row(
        name,
        word_of(verdict),
        verdict.why,
        round(verdict.seconds, 1),
        [f"{c.finding.promise}: {c.finding.text}" for c in verdict.counterexamples],
        [c.token for c in verdict.counterexamples],
        list(verdict.coverage),
        verdict.unbroken,
    )


def word_of(verdict: Verdict) -> str:
    """What the page calls it."""
    if verdict.counterexamples:
        return "broken"
    if verdict.outcome == "held":
        return "as foreseen" if verdict.foreseen else "held"
    return "undetermined"


def counted(words: Iterable[str]) -> str:
    """How many scenarios have which verdict."""
    counts = Counter(words)
    each = ", ".join(f"{counts[word]} {word}" for word in sorted(counts))
    return f"{counts.total()} scenarios: {each}."


def line(row: Row) -> str:
    """One row of the page's table."""
    return f"| {row.name} | {row.verdict} | {row.why} | {row.seconds} |\n"


def page(rows: list[Row], time: str) -> str:
    """The page as Markdown. `time`: how long each was searched, in words."""
    counts = counted(row.verdict for row in rows)
    text = HEAD.format(preemptions=PREEMPTIONS, time=time, counts=counts)
    text += "".join(map(line, rows))
    broken = [row for row in rows if row.findings]
    if broken:
        text += BROKEN
    for row in broken:
        text += f"\n**{row.name}**\n\n"
        for finding, token in zip(row.findings, row.tokens, strict=True):
            text += f"- {finding}\n  `septum replay {token}`\n"
    return text


def renewed(text: str, rows: list[Row]) -> str:
    """The page `text` with new rows of some scenarios.

    Raises ValueError when a scenario has no row yet, or the list of what breaks would change.
    """
    if BROKEN in text or any(row.findings for row in rows):
        raise ValueError("something breaks that no scenario foresees: make the whole page anew")
    new = {row.name: line(row) for row in rows}
    lines = text.splitlines(keepends=True)
    verdicts = []
    for at, old in enumerate(lines):
        if _ROW.match(old):
            lines[at] = new.pop(old.split(" ")[1], old)
            verdicts.append(lines[at].split(" | ")[1])
    if new:
        raise ValueError(f"no row yet: {', '.join(sorted(new))}; make the whole page anew")
    return re.sub(r"^\d+ scenarios: .*$", counted(verdicts), "".join(lines), flags=re.MULTILINE)


def tell(row: Row) -> None:
    """Print a verdict."""
    print(f"{row.name:45} {row.verdict:13} {row.seconds:6} s  {row.why}", flush=True)
    for finding in row.findings:
        print(f"    {finding}", flush=True)
    for entry in row.unbroken:
        print(f"    did not break, though the scenario says so: {entry}", flush=True)


def main() -> int:
    """Search, print, and write when asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--time", type=float, default=20.0)
    parser.add_argument("--again", type=float, action="append", default=[])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("scenario", nargs="*")
    given = parser.parse_args()
    names = given.scenario or scenario_names()
    tasks = [(name, given.time) for name in names]
    rows: list[Row] = []
    with multiprocessing.Pool(given.workers, maxtasksperchild=1) as pool:
        waiting = [(task, pool.apply_async(search, (task,))) for task in tasks]
        for (name, time_s), coming in waiting:
            try:
                row = coming.get(PATIENCE * time_s)
            except multiprocessing.TimeoutError:
                why = f"did not come back within {PATIENCE * time_s:.0f} s"
                row = Row(name, "undetermined", why, PATIENCE * time_s, [], [])
            rows.append(row)
            tell(row)
    time = f"{given.time:.0f} s of one core each"
    for again in given.again:
        time += f", {again:.0f} s of {given.workers} where that is too little"
        for at, row in enumerate(rows):
            if row.verdict == "undetermined":
                rows[at] = search((row.name, again), given.workers)
                tell(rows[at])
    if given.write and given.scenario:
        try:
            text = renewed(PAGE.read_text(encoding="utf-8"), rows)
        except ValueError as error:
            sys.exit(str(error))
        PAGE.write_text(text, encoding="utf-8")
    elif given.write:
        PAGE.write_text(page(rows, time), encoding="utf-8")
        reached = {row.name: row.reached for row in rows}
        reached_page.PAGE.write_text(reached_page.page(reached), encoding="utf-8")
    print("\n" + counted(row.verdict for row in rows))
    words = {row.verdict for row in rows}
    return 70 if "defect" in words else int("broken" in words)


if __name__ == "__main__":
    sys.exit(main())
