"""The `septum` command, with its subcommands in the order of the help."""

from __future__ import annotations

import sys

from septum.cli.app import app as app
from septum.cli.exits import guarded
from septum.cli.start import check_python, open_streams

# Each puts its subcommands into `app`.
from septum.cli import runs as runs  # isort: skip
from septum.cli import searches as searches  # isort: skip
from septum.cli import records as records  # isort: skip


def run_command() -> int:
    """Run the command line; returns the exit code."""
    open_streams()
    return guarded(_checked)


def _checked() -> None:
    check_python()
    app(standalone_mode=True)


def run_and_exit() -> None:
    """The console script."""
    sys.exit(run_command())
