"""`septum trace`: a recorded trace as text or picture, ready for the command line."""

from __future__ import annotations

import sys
from itertools import chain
from typing import IO, TYPE_CHECKING

from septum.errors import InputError
from septum.outputs import check_outputs
from septum.trace.filters import make_filter, parse_only
from septum.trace.ftrace import ftrace_lines
from septum.trace.ladder import ladder_lines
from septum.trace.mermaid import mermaid_lines
from septum.trace.opening import without_opening
from septum.trace.perfetto import perfetto_chunks
from septum.trace.pftrace import pftrace_chunks
from septum.trace.reader import TraceReader
from septum.trace.writer import TraceWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from septum.sim.events import Event
    from septum.trace.header import TraceHeader

FORMATS = ("ladder", "ftrace", "perfetto", "pftrace", "mermaid", "jsonl")
LADDER_MAX = 20_000


def render(
    events: Iterable[Event],
    header: TraceHeader,
    fmt: str,
    *,
    every_step: bool = False,
    via: Callable[[], str] = str,
) -> Iterator[bytes]:
    """The trace in a format of FORMATS but jsonl, in pieces. `via` is `TraceReader.via`.

    Raises InputError when the format is not for so many events.
    """
    events = without_opening(events)
    if fmt == "ftrace":
        yield from (line.encode() for line in ftrace_lines(events, via))
    elif fmt in ("perfetto", "pftrace"):
        head, rest, timed = _until_time(iter(events))
        chunks = perfetto_chunks if fmt == "perfetto" else pftrace_chunks
        yield from chunks(chain(head, rest), timed)
    elif fmt == "mermaid":
        yield from (f"{line}\n".encode() for line in mermaid_lines(list(events)))
    elif fmt == "ladder":
        yield from _ladder(events, header, every_step)
    else:
        raise InputError(f"--as {fmt!r} is no format; choose from {', '.join(FORMATS)}")


def _until_time(events: Iterator[Event]) -> tuple[list[Event], Iterator[Event], bool]:
    """(events up to the first that is later than 0, the rest, whether there is one)."""
    head = []
    for event in events:
        head.append(event)
        if event.time_ns:
            return head, events, True
    return head, events, False


def _ladder(events: Iterable[Event], header: TraceHeader, every_step: bool) -> Iterator[bytes]:
    chosen: list[Event] = []
    more = 0
    for event in events:
        if len(chosen) < LADDER_MAX:
            chosen.append(event)
        else:
            more += 1
    what = (header.scenario, header.design, header.schedule, f"seed {header.seed}")
    yield f"{', '.join(word for word in what if word)}\n\n".encode()
    yield from (f"{line}\n".encode() for line in ladder_lines(chosen, every_step))
    if more:
        yield f"\nand {more:,} more events; choose some with --only\n".encode()


def trace(
    file: Path,
    fmt: str,
    only: str = "",
    task: str = "",
    every_step: bool = False,
    output: Path | None = None,
) -> None:
    """Show a recorded trace in a format of FORMATS, on stdout or in the file `output`. `only`:
    kinds of events, with commas; `task`: a part of the names of tasks; `every_step`: fold nothing.

    Raises InputError for an unknown format or kind, and for a file that cannot be written.
    """
    words = parse_only(only)
    wanted = make_filter(words)
    if fmt == "pftrace" and output is None and sys.stdout.isatty():
        raise InputError("--as pftrace is no text; name a file with --output")
    check_outputs([("--output", output)], [file])
    with TraceReader(file) as reader:
        events = (e for e in reader if wanted(e) and task in e.task)
        if fmt == "jsonl":
            if output is None:
                raise InputError("--as jsonl writes a file; name it with --output")
            with TraceWriter(output, reader.header) as writer:
                for _ in events:
                    writer.write_line(reader.line)
        else:
            pieces = render(events, reader.header, fmt, every_step=every_step, via=reader.via)
            write_pieces(pieces, output)
        if not reader.complete:
            print(f"septum: {file} has no end line: the run was stopped", file=sys.stderr)


def _copy(pieces: Iterable[bytes], out: IO[bytes]) -> None:
    for piece in pieces:
        out.write(piece)
    out.flush()


def write_pieces(pieces: Iterable[bytes], output: Path | None) -> None:
    """Write a rendering to a file, or to stdout (None). Raises InputError when that fails."""
    if output is None:
        _copy(pieces, sys.stdout.buffer)
        return
    try:
        with output.open("wb") as out:
            _copy(pieces, out)
    except OSError as error:
        raise InputError(
            f"{output} cannot be written ({error.strerror}); name another file"
        ) from None
