"""`python -m septum` is the `septum` command."""

from septum.cli.main import run_and_exit

run_and_exit()
