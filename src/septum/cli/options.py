"""Options that several subcommands have, so that they say the same of each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

# What is run
Design = Annotated[str, typer.Option(help="The host's design, or your own: PATH.py:Class.")]
Memory = Annotated[str, typer.Option(help="Guest memory, such as 4G.")]
Vcpus = Annotated[int, typer.Option(help="Number of vCPUs.")]
Check = Annotated[str, typer.Option(help="When promises are checked: end, quiet or every-step.")]

# How far a search goes
Preemptions = Annotated[int, typer.Option(help="At most so many preemptions; -1 for no bound.")]
Workers = Annotated[int | None, typer.Option(help="Processes; without it, one for each core.")]
Seed = Annotated[int, typer.Option(help="Seed of what is drawn.")]

# What comes of it, and where
Json = Annotated[bool, typer.Option("--json", help="As JSON.")]
JsonReport = Annotated[bool, typer.Option("--json", help="The report as JSON on stdout.")]
Trace = Annotated[
    Path | None, typer.Option(help="Write the event stream here (JSON Lines; .gz compresses).")
]
Only = Annotated[
    str, typer.Option(help="Kinds of events, with commas: seamcall,split,conversion...")
]
