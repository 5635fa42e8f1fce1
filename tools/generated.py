"""A document that a program writes: to a file, or compared with it."""

import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"


def keep(name: str, text: str) -> int:
    """Write docs/NAME; with --check, 1 when it is not what it should be. Returns the exit code."""
    target = DOCS / name
    if "--check" not in sys.argv[1:]:
        target.write_text(text)
        return 0
    if target.exists() and target.read_text() == text:
        return 0
    print(f"docs/{name} is out of date; run: python {sys.argv[0]}", file=sys.stderr)
    return 1
