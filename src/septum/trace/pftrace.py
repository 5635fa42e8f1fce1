"""The trace in Perfetto's own format: a stream of TracePacket protocol buffers with track events.

Made from the same trace events as the JSON: a track for each task, one below it for each lock that
it takes, kicks as flows. The few messages are encoded here by hand; their field numbers are
Perfetto's public ones (protos/perfetto/trace/trace_packet.proto, track_event/*.proto).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, cast

from septum.trace.perfetto import PID, PerfettoBuilder

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from septum.sim.events import Event

    Json = dict[str, object]

SEQUENCE = 1
PROCESS_UUID = 1
VARINT, FIXED64, BYTES = 0, 1, 2  # wire types

# Trace, TracePacket
PACKET, TIMESTAMP, SEQUENCE_ID, TRACK_EVENT, SEQUENCE_FLAGS, TRACK_DESCRIPTOR = 1, 8, 10, 11, 13, 60
INCREMENTAL_STATE_CLEARED = 1
# TrackDescriptor, ProcessDescriptor, ThreadDescriptor
UUID, NAME, PROCESS, THREAD, PARENT_UUID = 1, 2, 3, 4, 5
PROCESS_PID, PROCESS_NAME = 1, 6
THREAD_PID, THREAD_TID, THREAD_NAME = 1, 2, 5
# TrackEvent, DebugAnnotation
DEBUG_ANNOTATIONS, TYPE, TRACK_UUID, CATEGORIES, EVENT_NAME = 4, 9, 11, 22, 23
FLOW_IDS, TERMINATING_FLOW_IDS = 47, 48
SLICE_BEGIN, SLICE_END, INSTANT = 1, 2, 3
ANNOTATION_STRING, ANNOTATION_NAME = 6, 10

_TYPES = {"B": SLICE_BEGIN, "b": SLICE_BEGIN, "E": SLICE_END, "e": SLICE_END}


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3 | VARINT) + _varint(value)


def _fixed64(field: int, value: int) -> bytes:
    return _varint(field << 3 | FIXED64) + struct.pack("<Q", value)


def _message(field: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return _varint(field << 3 | BYTES) + _varint(len(body)) + body


def _text(field: int, text: str) -> bytes:
    return _message(field, text.encode())


class PftraceEncoder:
    """Turns trace events (the JSON's) into packets. Tracks are described when first used."""

    __slots__ = ("_first", "_locks")

    def __init__(self) -> None:
        self._first = True
        self._locks: dict[tuple[int, str], int] = {}  # (tid, lock) -> uuid of its track

    def start(self) -> bytes:
        """The process's track."""
        process = _message(PROCESS, _number(PROCESS_PID, PID), _text(PROCESS_NAME, "septum"))
        return self._packet(_message(TRACK_DESCRIPTOR, _number(UUID, PROCESS_UUID), process))

    def add(self, event: Json) -> Iterator[bytes]:
        """The packets of one trace event."""
        phase = str(event["ph"])
        tid = cast("int", event["tid"])
        if phase == "M":
            yield self._thread(tid, cast("dict[str, str]", event["args"])["name"])
            return
        track = _thread_uuid(tid)
        if phase in "be":
            name = str(event["name"])
            if (tid, name) not in self._locks:
                yield self._lock(tid, name)
            track = self._locks[tid, name]
        start_ns = _ns(event["ts"])
        if phase == "X":
            end_ns = start_ns + _ns(event["dur"])
            yield self._event(start_ns, SLICE_BEGIN, track, event)
            yield self._event(end_ns, SLICE_END, track, {})
        elif phase in "sf":
            field = FLOW_IDS if phase == "s" else TERMINATING_FLOW_IDS
            yield self._event(
                start_ns, INSTANT, track, event, _fixed64(field, cast("int", event["id"]))
            )
        else:
            yield self._event(start_ns, _TYPES.get(phase, INSTANT), track, event)

    def _packet(self, *parts: bytes) -> bytes:
        flags = _number(SEQUENCE_FLAGS, INCREMENTAL_STATE_CLEARED) if self._first else b""
        self._first = False
        return _message(PACKET, *parts, _number(SEQUENCE_ID, SEQUENCE), flags)

    def _thread(self, tid: int, name: str) -> bytes:
        thread = _message(
            THREAD, _number(THREAD_PID, PID), _number(THREAD_TID, tid), _text(THREAD_NAME, name)
        )
        uuid = _number(UUID, _thread_uuid(tid))
        parent = _number(PARENT_UUID, PROCESS_UUID)
        return self._packet(_message(TRACK_DESCRIPTOR, uuid, parent, thread))

    def _lock(self, tid: int, name: str) -> bytes:
        uuid = self._locks[tid, name] = (len(self._locks) + 1) << 32
        parent = _number(PARENT_UUID, _thread_uuid(tid))
        return self._packet(
            _message(TRACK_DESCRIPTOR, _number(UUID, uuid), parent, _text(NAME, name))
        )

    def _event(self, time_ns: int, kind: int, track: int, event: Json, extra: bytes = b"") -> bytes:
        parts = [_number(TYPE, kind), _number(TRACK_UUID, track), extra]
        if "cat" in event:
            parts.append(_text(CATEGORIES, str(event["cat"])))
        if "name" in event:
            parts.append(_text(EVENT_NAME, str(event["name"])))
        for key, value in cast("Json", event.get("args", {})).items():
            annotation = (_text(ANNOTATION_NAME, key), _text(ANNOTATION_STRING, str(value)))
            parts.append(_message(DEBUG_ANNOTATIONS, *annotation))
        return self._packet(_number(TIMESTAMP, time_ns), _message(TRACK_EVENT, *parts))


def _thread_uuid(tid: int) -> int:
    return PROCESS_UUID + tid


def _ns(time_us: object) -> int:
    return round(cast("float", time_us) * 1000)


def pftrace_chunks(events: Iterable[Event], timed: bool) -> Iterator[bytes]:
    """The file in pieces. `timed`: whether the events carry virtual time."""
    builder = PerfettoBuilder(timed)
    encoder = PftraceEncoder()
    yield encoder.start()
    for event in events:
        for made in builder.add(event):
            yield from encoder.add(made)
