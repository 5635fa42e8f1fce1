"""The subcommands about what was recorded, and the module by itself: `trace`, `conform`, `module`.
Each imports what it needs when it runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from septum.cli.app import app, module_app
from septum.cli.options import JsonReport, Only


@app.command(short_help="Show a recorded trace: ladder, ftrace, Perfetto, Mermaid.")
def trace(
    file: Annotated[Path, typer.Argument(help="A trace: JSON Lines, plain or gzip.")],
    fmt: Annotated[
        str,
        typer.Option(
            "--as",
            metavar="FORMAT",
            help="ladder, ftrace, perfetto (JSON), pftrace, mermaid or jsonl.",
        ),
    ] = "ladder",
    only: Only = "",
    task: Annotated[str, typer.Option(help="Only tasks whose name contains this.")] = "",
    every_step: Annotated[
        bool, typer.Option("--every-step", help="Fold nothing in a ladder.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write here, not to stdout.")
    ] = None,
) -> None:
    """Show a recorded trace: a ladder, ftrace text, Perfetto (JSON, pftrace), or Mermaid."""
    from septum.trace import command

    command.trace(file, fmt, only, task, every_step, output)


@app.command(short_help="Hold the module to recorded SEAMCALL transcripts.")
def conform(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Transcripts, plain or gzip JSON Lines.")
    ],
    json: JsonReport = False,
    profile: Annotated[str, typer.Option(help="Module version to replay against.")] = "1.5.25",
) -> None:
    """Replay recorded SEAMCALL transcripts against the module; 1 on any divergence."""
    from septum.conform import command

    command.conform(files, json, profile)


@module_app.command("table", short_help="Every state of an S-EPT entry, call and answer.")
def module_table(
    dynamic_pamt: Annotated[
        bool, typer.Option("--dynamic-pamt", help="With Dynamic PAMT.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="The rows as JSON on stdout.")] = False,
) -> None:
    """Print every reachable state of an S-EPT entry, every call, every answer."""
    from septum.conform import command

    command.module_table(dynamic_pamt, json)


@module_app.command("fuzz", short_help="Make any calls, and watch the module's invariants.")
def module_fuzz(
    calls: Annotated[int, typer.Option(help="How many calls to make.")] = 1_000_000,
    seed: Annotated[int, typer.Option(help="The run is a function of this and of --calls.")] = 0,
    json: JsonReport = False,
) -> None:
    """Make any calls with any operands, and watch the module's invariants; 1 when one breaks."""
    from septum.conform import command

    command.fuzz_module(calls, seed, json)
