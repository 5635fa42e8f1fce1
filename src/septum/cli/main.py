"""The `septum` command, with its subcommands in the order of the help."""

from __future__ import annotations

import sys

from septum.cli.app import app as app
from septum.cli.exits import guarded

# Each puts its subcommands into `app`.
from septum.cli import runs as runs  # isort: skip
from septum.cli import searches as searches  # isort: skip
from septum.cli import records as records  # isort: skip


def run_command() -> int:
    """Run the command line; returns the exit code."""
    return guarded(lambda: app(standalone_mode=True))


def run_and_exit() -> None:
    """The console script."""
    sys.exit(run_command())
