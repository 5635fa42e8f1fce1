"""Reads a trace file back into typed events, one at a time.

Errors in a file are reported with the line and a remedy.
"""

from __future__ import annotations

import gzip
import zlib
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Union

import msgspec

from septum.errors import InputError
from septum.inputs import LINE_MAX_BYTES, lines_of, no_file
from septum.sim.events import Event
from septum.trace.header import SCHEMA, SCHEMA_VERSION, TraceEnd, TraceHeader
from septum.trace.registry import event_types

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

GZIP_MAGIC = b"\x1f\x8b"
MAKE_ONE = "`septum run --trace FILE` writes one"


class _Via(msgspec.Struct):
    via: str = ""


class TraceError(InputError):
    """A trace file that cannot be read: file, line (0: it has none), what is wrong, what would be
    right."""

    def __init__(self, path: Path, line: int, what: str, remedy: str) -> None:
        where = f"{path}, line {line}" if line else f"{path}"
        super().__init__(f"{where}: {what}; {remedy}")
        self.path = path
        self.line = line


@cache
def _decoder() -> msgspec.json.Decoder[Event | TraceEnd]:
    types = (*event_types().values(), TraceEnd)
    return msgspec.json.Decoder(Union[types])  # noqa: UP007 - built from a tuple


class TraceReader:
    """An open trace: `header`, then events by iteration. `complete` once the end line was read.

    `line` is the text of the latest event, with what only the file tells (`name`, `via`).
    """

    __slots__ = ("_file", "_files", "complete", "header", "line", "path")

    def __init__(self, path: Path) -> None:
        """Raises TraceError (an InputError) when this is no trace that Septum can read."""
        self.path = path
        self.complete = False
        self.line = b""
        with ExitStack() as files:
            self._file = self._open(files)
            self.header = self._read_header()
            self._files = files.pop_all()  # those of a file that is no trace are closed

    def _open(self, files: ExitStack) -> IO[bytes]:
        what = no_file(self.path)
        if what:
            raise TraceError(self.path, 0, f"this is {what}", MAKE_ONE)
        try:
            file = files.enter_context(self.path.open("rb"))
        except OSError as error:
            raise TraceError(
                self.path, 0, f"the file cannot be read ({error.strerror})", MAKE_ONE
            ) from None
        zipped = file.read(2) == GZIP_MAGIC
        file.seek(0)
        if not zipped:
            return file
        unzipped = gzip.GzipFile(fileobj=file)
        files.callback(unzipped.close)
        # A GzipFile reads bytes as any file does; its type is not IO[bytes].
        return unzipped  # type: ignore[return-value]

    def _read_header(self) -> TraceHeader:
        try:
            first = self._file.readline(LINE_MAX_BYTES)
            start = msgspec.json.decode(first, type=dict[str, object]) if first else {}
        except (msgspec.MsgspecError, OSError, EOFError, zlib.error):
            start = {}
        if start.get("schema") != SCHEMA:
            raise TraceError(self.path, 1, "this is not a Septum trace", MAKE_ONE)
        version = start.get("schema_version")
        if version != SCHEMA_VERSION:
            raise TraceError(
                self.path,
                1,
                f"the trace has version {version}, this Septum reads version {SCHEMA_VERSION}",
                "run its token again, with `septum replay`, to have it in this version",
            )
        try:
            return msgspec.json.decode(first, type=TraceHeader)
        except msgspec.MsgspecError as error:
            raise TraceError(
                self.path, 1, f"the header is damaged ({error})", "write the trace again"
            ) from None

    def __iter__(self) -> Iterator[Event]:
        decode = _decoder().decode
        number = 1
        nr_events = 0
        try:
            for line in lines_of(self._file):
                number += 1
                try:
                    event = decode(line)
                except msgspec.MsgspecError as error:
                    raise self._damaged(number, line, error) from None
                if isinstance(event, TraceEnd):
                    self._check_end(number, event, nr_events)
                    return
                nr_events += 1
                self.line = line
                yield event
        except (EOFError, zlib.error, OSError) as error:
            raise TraceError(
                self.path,
                number + 1,
                f"the compressed data ends or is damaged here ({error})",
                "write the trace again",
            ) from None

    def via(self) -> str:
        """The kernel functions, innermost first, that the latest event came from."""
        return msgspec.json.decode(self.line, type=_Via).via

    def _damaged(self, number: int, line: bytes, error: msgspec.MsgspecError) -> TraceError:
        if len(line) == LINE_MAX_BYTES:
            what, remedy = f"the line has more than {LINE_MAX_BYTES >> 20} MiB", MAKE_ONE
        elif not line.endswith(b"\n"):
            what, remedy = "the line is cut short", "the run was stopped while it wrote; run again"
        elif isinstance(error, msgspec.ValidationError):
            what = f"this is no event that this Septum knows ({error})"
            remedy = f"the trace is from Septum {self.header.septum_version}; read it with that"
        else:
            what, remedy = f"this is not JSON ({error})", "write the trace again"
        return TraceError(self.path, number, what, remedy)

    def _check_end(self, number: int, end: TraceEnd, nr_events: int) -> None:
        if end.nr_events != nr_events:
            raise TraceError(
                self.path,
                number,
                f"the end line counts {end.nr_events} events, but {nr_events} were read",
                "lines were lost or added; write the trace again",
            )
        self.complete = True

    def close(self) -> None:
        """Close the file."""
        self._files.close()

    def __enter__(self) -> TraceReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()


def read_trace(path: Path) -> tuple[TraceHeader, list[Event]]:
    """Header and all events of a trace file. Raises TraceError."""
    with TraceReader(path) as reader:
        return reader.header, list(reader)
