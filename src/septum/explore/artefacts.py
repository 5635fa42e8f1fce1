"""The files that `septum explore` leaves: verdicts, stories and pages in a folder, and tests."""

from __future__ import annotations

import errno
import os
import sys
from glob import escape
from typing import TYPE_CHECKING

from septum.errors import InputError
from septum.explore.covering.covered import coverage_lines
from septum.explore.emit import Emitted, check_made, regression_tests
from septum.json_text import json_text
from septum.outputs import try_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from septum.explore.subject import Options
    from septum.explore.verdict import Verdict


class Artefacts:
    """`report` is a folder, `emit_test` a file; None: not wanted. `page` writes the page of a
    token's run to a file.

    What cannot be written is known before anything is searched; what goes wrong later does not
    end the command: `failed` says it.
    """

    __slots__ = ("_emit_test", "_emitted", "_page", "_report", "_stems", "failed")

    def __init__(
        self,
        report: Path | None,
        emit_test: Path | None,
        page: Callable[[str, Path], None] | None,
    ) -> None:
        """Raises InputError for a place that cannot be written to."""
        self._report = report
        self._emit_test = EmittedFile(emit_test) if emit_test is not None else None
        self._page = page
        self._emitted: list[Emitted] = []
        self._stems: dict[str, int] = {}
        self.failed = ""
        if report is not None:
            try_folder(report)

    def add(
        self,
        verdict: Verdict,
        stories: Sequence[list[str]],
        name: str,
        check: str,
        options: Options,
    ) -> None:
        """Another verdict; `name` is the scenario as the user gave it."""
        emitted = [
            Emitted(verdict.subject, verdict.design, x, name, check, options)
            for x in verdict.counterexamples
        ]
        self._emitted += emitted
        stem = self._stem(verdict)
        try:
            if self._report is not None:
                _fill(self._report, stem, verdict, stories, emitted)
            if self._emit_test is not None and emitted:
                self._emit_test.write(self._emitted)
            if self._report is not None:
                # Last, as they take the longest: who interrupts them has all the rest.
                self._draw(self._report, stem, verdict)
                print(f"septum: the report is in {self._report}", file=sys.stderr)
        except (OSError, InputError) as error:
            said = error.strerror if isinstance(error, OSError) else str(error)
            self.failed = self.failed or f"not all that was found could be written ({said})"

    def _draw(self, folder: Path, stem: str, verdict: Verdict) -> None:
        """A page for each story."""
        if self._page is None or not verdict.design:
            return
        for number, example in enumerate(verdict.counterexamples, 1):
            self._page(example.token, folder / f"{stem}-{number}.html")

    def _stem(self, verdict: Verdict) -> str:
        """Two files of scenarios may have one name."""
        stem = stem_of(verdict.subject)
        nr = self._stems[stem] = self._stems.get(stem, 0) + 1
        return stem if nr == 1 else f"{stem}-again-{nr}"


def _fill(
    folder: Path,
    stem: str,
    verdict: Verdict,
    stories: Sequence[list[str]],
    emitted: Sequence[Emitted],
) -> None:
    """All of a verdict but pages."""
    _write(folder / f"{stem}.json", json_text(verdict))
    if verdict.coverage and not stories:
        _write(folder / f"{stem}-coverage.txt", "\n".join(coverage_lines(verdict)) + "\n")
    for number, (story, test) in enumerate(zip(stories, emitted, strict=True), 1):
        _write(folder / f"{stem}-{number}.txt", "\n".join(story) + "\n")
        name = f"test_{_identifier(stem)}_{number}.py"
        _write(folder / name, regression_tests([test], folder))


def stem_of(subject: str) -> str:
    """What the names of a subject's files begin with."""
    return subject.replace(":", "-").replace("/", "-")


def names_of(stem: str) -> list[str]:
    """Patterns of the files in the folder whose names begin with it."""
    begins, test = escape(stem), escape(_identifier(stem))
    ends = (".json", "-coverage.txt", "-[0-9]*.txt", "-[0-9]*.html", "-again-*")
    tests = (f"test_{test}_[0-9]*.py", f"test_{test}_again_*.py")
    return [*(f"{begins}{end}" for end in ends), *tests]


def _identifier(stem: str) -> str:
    return stem.replace("-", "_")


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


class EmittedFile:
    """The file of --emit-test. One that is there keeps what is in it until it is written."""

    __slots__ = ("_fd", "path")

    def __init__(self, path: Path) -> None:
        """Raises InputError for one that cannot be written, or is somebody's own."""
        self.path = path
        self._fd = -1  # of a pipe: whoever reads it comes to its end when nobody has it open
        try:
            check_made(path)
            if path.is_fifo():
                self._fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
                os.set_blocking(self._fd, True)
                return
            there = path.exists()
            with path.open("a"):
                pass
            if not there:
                path.unlink()
        except OSError as error:
            if error.errno == errno.ENXIO:
                raise InputError(
                    f"--emit-test {path}: nobody reads that pipe; start its reader first, or name"
                    " another file"
                ) from None
            raise InputError(
                f"--emit-test {path}: the file cannot be written ({error.strerror}); name another"
                " one, in a folder that is there"
            ) from None

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def write(self, emitted: Sequence[Emitted]) -> None:
        """The tests of these, instead of what is there. Raises OSError."""
        text = regression_tests(emitted, self.path.parent)
        if self._fd < 0:
            _write(self.path, text)
        else:
            with os.fdopen(os.dup(self._fd), "w", encoding="utf-8") as file:
                file.write(text)
        print(f"septum: the test is in {self.path}", file=sys.stderr)
