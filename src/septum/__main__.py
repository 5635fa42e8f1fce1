"""`python -m septum`, and the `septum` command."""

import sys

from septum.codes import INTERRUPTED


def run() -> None:
    """Run the command, and exit. Ctrl-C while what it needs is imported is an interrupt, too."""
    try:
        from septum.cli.main import run_and_exit
    except KeyboardInterrupt:
        print("septum: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    run_and_exit()


if __name__ == "__main__":
    run()
