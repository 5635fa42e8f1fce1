"""Nothing that a user wrote is written over: a file to be written is none of those that are read,
no two of them are one, and what Septum never writes it leaves alone."""

from __future__ import annotations

import tempfile
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from septum.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable

SOURCES = {".toml": "a scenario", ".py": "a source of Python"}
"""What is written by hand, by how its name ends."""
EMIT_TEST = "--emit-test"
"""The option whose file is Python; who made the one that is there, its first line says."""
ANOTHER = "name another file"


class ReportFolder(NamedTuple):
    """A folder that a command fills by itself; None where it was not given. `names` are patterns of
    the files that it writes there, as a shell has them."""

    path: Path | None
    names: Iterable[str]

    def has(self, path: Path) -> bool:
        """Whether one of its files may lie there."""
        if self.path is None or self.path.resolve() != path.resolve().parent:
            return False
        return any(fnmatchcase(path.resolve().name, name) for name in self.names)


def check_outputs(
    outputs: Iterable[tuple[str, Path | None]],
    inputs: Iterable[str | Path | None] = (),
    folder: ReportFolder | None = None,
) -> None:
    """`outputs` are (option, file), None where it was not given; `inputs` what may be files that
    are read; `folder` is that of --report. Called before anything runs. Raises InputError, which
    names the option and the file.
    """
    read = [Path(each) for each in inputs if each is not None and _is_file(each)]
    for given in read:
        if folder is not None and folder.has(given):
            raise InputError(
                f"--report {folder.path}: {given} is read, and would be written over; name another"
                " folder"
            )
    before: list[tuple[str, Path]] = []
    for option, path in outputs:
        if path is None:
            continue
        if any(_same(path, other) for other in read):
            raise InputError(
                f"{option} {path}: that file is read, and would be written over; {ANOTHER}"
            )
        clash = next((by for by, other in before if _same(path, other)), "")
        if folder is not None and folder.has(path):
            clash = "--report"
        if clash:
            raise InputError(f"{option} {path}: {clash} is written to the same file; {ANOTHER}")
        before.append((option, path))
        what = SOURCES.get(path.resolve().suffix, "") if option != EMIT_TEST else ""
        if what and _is_file(path) and path.stat().st_size:
            raise InputError(f"{option} {path}: {what} is there, and would be lost; {ANOTHER}")


def try_folder(folder: Path) -> None:
    """Make the folder of --report, before what takes long. Raises InputError where nothing can be
    written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"--report {folder}: the folder cannot be written ({error.strerror}); name another one"
        ) from None


def _is_file(name: str | Path) -> bool:
    try:
        return Path(name).is_file()
    except (OSError, ValueError):  # a token is too long for a name
        return False


def _same(one: Path, other: Path) -> bool:
    """Whether both are one file, now or once it is written. A device may be given twice."""
    if one.exists() and other.exists():
        return one.is_file() and one.samefile(other)
    return one.resolve() == other.resolve()
