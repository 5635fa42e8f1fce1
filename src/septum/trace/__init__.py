"""One typed event stream of a run, and its renderings: ladder text, ftrace text, Perfetto, Mermaid.

A trace is written while the run goes on (`TraceWriter`) and read back one event at a time
(`TraceReader`). Nothing here decides anything about a run.
"""

from septum.trace.header import TraceEnd, TraceHeader
from septum.trace.reader import TraceError, TraceReader, read_trace
from septum.trace.registry import event_types
from septum.trace.writer import TraceWriter

__all__ = [
    "TraceEnd",
    "TraceError",
    "TraceHeader",
    "TraceReader",
    "TraceWriter",
    "event_types",
    "read_trace",
]
