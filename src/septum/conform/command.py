"""The commands of this room, ready for the command line: `septum conform`, `septum fuzz-module`,
`septum module table`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from septum.errors import InputError
from septum.module import PROFILES

OK = 0
BROKEN = 1


def conform(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Transcripts, plain or gzip JSON Lines.")
    ],
    json: Annotated[bool, typer.Option("--json", help="The report as JSON on stdout.")] = False,
    profile: Annotated[str, typer.Option(help="Module version to replay against.")] = "1.5.25",
) -> None:
    """Replay recorded SEAMCALL transcripts against the module; 1 on any divergence."""
    from septum.conform.report import render_conform
    from septum.conform.run import run_conform

    if profile not in PROFILES:
        raise InputError(f"--profile {profile}: no such module; choose from {', '.join(PROFILES)}")
    report = run_conform(files, PROFILES[profile])
    print(report.to_json() if json else render_conform(report), end="\n" if json else "")
    if not report.agrees:
        raise SystemExit(BROKEN)


def fuzz_module(
    calls: Annotated[int, typer.Option(help="How many calls to make.")] = 1_000_000,
    seed: Annotated[int, typer.Option(help="The run is a function of this and of --calls.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="The report as JSON on stdout.")] = False,
) -> None:
    """Make any calls with any operands, and watch the module's invariants; 1 when one breaks."""
    from septum.conform import fuzz

    if calls < 1:
        raise InputError(f"--calls {calls}: at least one call is needed")
    report = fuzz.fuzz_module(calls, seed)
    print(report.to_json() if json else fuzz.render_fuzz(report), end="\n" if json else "")
    if not report.holds:
        raise SystemExit(BROKEN)


def module_table(
    dynamic_pamt: Annotated[
        bool, typer.Option("--dynamic-pamt", help="With Dynamic PAMT.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="The rows as JSON on stdout.")] = False,
) -> None:
    """Print every reachable state of an S-EPT entry, every call, every answer."""
    from septum.conform.automaton import explore, facts_that_differ
    from septum.conform.automaton_text import render_table, rows_to_json

    rows = explore(dynamic_pamt)
    print(rows_to_json(rows) if json else render_table(rows), end="\n" if json else "")
    if facts_that_differ(rows):
        raise SystemExit(BROKEN)
