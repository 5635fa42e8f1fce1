"""Which Septum a run is of: its version, and the state of the sources that decide how a run goes.

Between two versions the model changes with every commit. A token carries this stamp, so that
whoever replays it learns when the model is not the one that made it.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from septum import __version__

ROOMS = (
    "abi",
    "sim",
    "machine",
    "module",
    "linux",
    "guest",
    "vmm",
    "designs",
    "scenarios",
)
"""The packages that a run is a function of. Checks and reports only look at it; what a search does
is in its answers; a user's own design and a scenario have digests of their own in the recipe."""
DIGITS = 8


@cache
def stamp() -> str:
    """`0.1.0+4f1d09ab`: the version, and the digest of the sources in ROOMS. Read once, when the
    first token is made or read."""
    return f"{__version__}+{digest_of(Path(__file__).parent)}"


def digest_of(root: Path) -> str:
    """The digest of the Python files of ROOMS below `root`, by name and content."""
    digest = hashlib.sha256()
    for room in ROOMS:
        for path in sorted((root / room).rglob("*.py")):
            content = path.read_bytes()
            name = path.relative_to(root).as_posix()
            digest.update(f"{name} {len(content)}\n".encode())
            digest.update(content)
    return digest.hexdigest()[:DIGITS]


def version_of(stamped: str) -> str:
    """The version in a stamp; tokens from before there were any have a version alone."""
    return stamped.partition("+")[0]


def differs(stamped: str) -> str:
    """What to say of a token with that stamp, of this version; "" when it is of this state of the
    model, or does not say of which."""
    digest = stamped.partition("+")[2]
    mine = stamp().partition("+")[2]
    if digest in ("", mine):
        return ""
    return (
        f"the token was made on another state of the model ({digest}, this is {mine}), so that this"
        " run may be another; the commit that made it replays it for sure"
    )
