"""The commands of this room, ready for the command line: `septum conform`, `septum module fuzz`,
`septum module table`. Each prints its report, as JSON where that is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.codes import BROKEN
from septum.errors import InputError
from septum.module import PROFILES
from septum.stdout import read_or_not

if TYPE_CHECKING:
    from pathlib import Path


def conform(files: list[Path], json: bool, profile: str) -> None:
    """Replay recorded SEAMCALL transcripts against the module; 1 on any divergence."""
    from septum.conform.report import render_conform
    from septum.conform.run import run_conform

    if profile not in PROFILES:
        raise InputError(f"--profile {profile}: no such module; choose from {', '.join(PROFILES)}")
    report = run_conform(files, PROFILES[profile])
    with read_or_not():
        print(report.to_json() if json else render_conform(report), end="\n" if json else "")
    if not report.agrees:
        raise SystemExit(BROKEN)


def fuzz_module(calls: int, seed: int, json: bool) -> None:
    """Make any calls with any operands, and watch the module's invariants; 1 when one breaks."""
    from septum.conform import fuzz

    if calls < 1:
        raise InputError(f"--calls {calls}: at least one call is needed")
    report = fuzz.fuzz_module(calls, seed)
    with read_or_not():
        print(report.to_json() if json else fuzz.render_fuzz(report), end="\n" if json else "")
    if not report.holds:
        raise SystemExit(BROKEN)


def module_table(dynamic_pamt: bool, json: bool) -> None:
    """Print every reachable state of an S-EPT entry, every call, every answer."""
    from septum.conform.automaton import explore, facts_that_differ
    from septum.conform.automaton_text import render_table, rows_to_json

    rows = explore(dynamic_pamt)
    with read_or_not():
        print(rows_to_json(rows) if json else render_table(rows), end="\n" if json else "")
    if facts_that_differ(rows):
        raise SystemExit(BROKEN)
