"""Writes a run's events as JSON Lines: a header, one event a line, an end line.

Events are collected and encoded in batches, so that memory stays bounded and an event costs about
a microsecond. The file is a function of the header and the events: no clock, no file name in it.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import IO, TYPE_CHECKING

import msgspec

from septum.errors import InputError
from septum.trace.header import TraceEnd
from septum.trace.via import named

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from septum.sim.events import Event
    from septum.trace.header import TraceHeader

BATCH = 2048
GZIP_LEVEL = 3


class TraceWriter:
    """A sink for `Sim.set_sink(writer.write)`. Use as a context manager, or call `close`.

    A path that ends in .gz is compressed. `only` decides which events are kept (see
    `septum.trace.filters`). Raises InputError when the file cannot be opened, or written to.
    """

    __slots__ = ("_batch", "_closed", "_encoder", "_files", "_out", "nr_events", "only", "path")

    def __init__(
        self, path: Path, header: TraceHeader, only: Callable[[Event], bool] | None = None
    ) -> None:
        self.path = path
        self.only = only
        self.nr_events = 0
        self._encoder = msgspec.json.Encoder()
        self._batch: list[Event | msgspec.Raw] = []
        self._closed = False
        try:
            file = path.open("wb")
        except OSError as error:
            raise self._refused(error) from None
        self._files: list[IO[bytes]] = [file]
        self._out: IO[bytes] = file
        if path.suffix == ".gz":
            # No name and no time of day in the gzip header: the same run is the same file.
            zipped = gzip.GzipFile("", "wb", GZIP_LEVEL, file, mtime=0)
            # A GzipFile writes bytes as any file does; its type is not IO[bytes].
            self._out = zipped  # type: ignore[assignment]
            self._files.insert(0, self._out)
        self._write(self._encoder.encode(header) + b"\n")

    def write(self, event: Event) -> None:
        """Add one event."""
        if self.only is not None and not self.only(event):
            return
        batch = self._batch
        batch.append(named(event, self._encoder))
        if len(batch) >= BATCH:
            self.flush()

    def write_line(self, line: bytes) -> None:
        """Add an event as another trace has it, whatever `only` says."""
        self._batch.append(msgspec.Raw(line.rstrip()))
        if len(self._batch) >= BATCH:
            self.flush()

    def flush(self) -> None:
        """Encode and hand over what was collected."""
        if self._batch:
            self.nr_events += len(self._batch)
            batch, self._batch = self._batch, []
            self._write(self._encoder.encode_lines(batch))

    def _write(self, data: bytes) -> None:
        try:
            self._out.write(data)
        except OSError as error:
            raise self._refused(error) from None

    def _refused(self, error: OSError) -> InputError:
        return InputError(
            f"the trace file {self.path} cannot be written ({error.strerror}); name another one"
        )

    def close(self) -> None:
        """Write the end line and close. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        try:
            self.flush()
            self._write(self._encoder.encode(TraceEnd(self.nr_events)) + b"\n")
        finally:
            self._close_files()

    def _close_files(self) -> None:
        """All of them, also when one has something left to write and cannot."""
        failed = None
        for file in self._files:
            try:
                file.close()
            except OSError as error:
                failed = error
        if failed is not None:
            raise self._refused(failed)

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()
