"""`septum conform`: the command behind the transcripts, ready for the command line."""

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
