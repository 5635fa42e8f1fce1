"""Perfetto's two formats: JSON by its rules, protocol buffers by Perfetto's own package."""

import json
from collections import Counter
from pathlib import Path

import pytest

from septum.cli.report import trace_of
from septum.errors import InputError
from septum.sim.events import Event, LockEvent
from septum.trace import TraceReader, read_trace
from septum.trace.command import render, trace
from septum.trace.perfetto import perfetto_chunks
from septum.trace.pftrace import pftrace_chunks

trace_pb2 = pytest.importorskip(
    "perfetto.protos.perfetto.trace.perfetto_trace_pb2",
    reason="the perfetto package is not installed: pip install perfetto",
)
TrackEvent = trace_pb2.TrackEvent


def perfetto(events: list[Event], timed: bool = True) -> list[dict[str, object]]:
    body = json.loads(b"".join(perfetto_chunks(events, timed)))
    made = body["traceEvents"]
    assert isinstance(made, list)
    return made


def test_perfetto_slices_are_balanced(story: list[Event]) -> None:
    made = perfetto(story)
    depth: Counter[object] = Counter()
    for event in made:
        if event["ph"] == "B":
            depth[event["tid"]] += 1
        elif event["ph"] == "E":
            depth[event["tid"]] -= 1
            # A trace may begin with a vCPU inside the TD, never leave it more often than enter.
            assert depth[event["tid"]] >= 0
    opened = Counter(event["id"] for event in made if event["ph"] == "b")
    closed = Counter(event["id"] for event in made if event["ph"] == "e")
    assert opened == closed
    assert all(float(str(event["dur"])) >= 0 for event in made if event["ph"] == "X")


def test_perfetto_names_tracks_calls_and_kicks(story: list[Event]) -> None:
    made = perfetto(story)
    names = {
        event["tid"]: event["args"]["name"]  # type: ignore[index]
        for event in made
        if event.get("name") == "thread_name"
    }
    assert sorted(names.values()) == ["vmm0", "vmm0.vcpu0", "vmm0.vcpu1"]
    calls = Counter(event["name"] for event in made if event["ph"] == "X")
    assert calls["TDH.MEM.PAGE.AUG"] == 6
    flows = [event for event in made if event.get("cat") == "kick"]
    assert [event["ph"] for event in flows] == ["s", "f"]
    assert [names[event["tid"]] for event in flows] == ["vmm0", "vmm0.vcpu1"]


def test_perfetto_without_virtual_time_counts_events() -> None:
    events: list[Event] = [LockEvent(0, "t", 0, op, "l", "ex") for op in ("lock", "unlock")]
    assert [event["ts"] for event in perfetto(events, timed=False)[2:]] == [1, 2]


# Protocol buffers


def packets(data: bytes) -> list:  # type: ignore[type-arg]
    """The packets as Perfetto's own package reads them."""
    found = list(trace_pb2.Trace.FromString(data).packet)
    assert all(packet.trusted_packet_sequence_id for packet in found)
    return found


def unknown_fields(message: object) -> list[int]:
    """Numbers of fields that Perfetto's schema does not have, at any depth."""
    unknown_fields_of = pytest.importorskip("google.protobuf.unknown_fields").UnknownFieldSet
    found = [field.field_number for field in unknown_fields_of(message)]
    for field, value in message.ListFields():  # type: ignore[attr-defined]
        if field.message_type is not None:
            for item in value if field.is_repeated else [value]:
                found += unknown_fields(item)
    return found


def test_packets_have_no_field_that_perfetto_does_not_know(story: list[Event]) -> None:
    data = b"".join(pftrace_chunks(story, True))
    trace = trace_pb2.Trace.FromString(data)
    assert unknown_fields(trace) == []
    assert len(trace.SerializeToString()) == len(data)
    assert unknown_fields(trace_pb2.Trace.FromString(data + b"\x98\x06\x01")) == [99]


@pytest.mark.parametrize("scenario", ["convert-against-fault", "accept-level-b"])
def test_packets_of_a_run_make_sense(tmp_path: Path, scenario: str) -> None:
    """Every track is described before it is used, slices nest and are closed in order of time."""
    path = trace_of(scenario, tmp_path / "t.jsonl")
    header, events = read_trace(path)
    described: dict[int, int] = {}
    opened: Counter[int] = Counter()
    locks: Counter[str] = Counter()
    for packet in packets(b"".join(render(iter(events), header, "pftrace"))):
        if packet.HasField("track_descriptor"):
            track = packet.track_descriptor
            assert not track.parent_uuid or track.parent_uuid in described
            described[track.uuid] = track.parent_uuid
            continue
        event = packet.track_event
        assert event.track_uuid in described
        if event.type == TrackEvent.TYPE_SLICE_BEGIN:
            opened[event.track_uuid] += 1
            locks[event.name] += "lock" in event.categories
        elif event.type == TrackEvent.TYPE_SLICE_END:
            opened[event.track_uuid] -= 1
            assert opened[event.track_uuid] >= 0
    # What is still open at the end of a trace is what the run still held.
    assert all(count <= 1 for count in opened.values())
    shown = {
        f"{e.lock} (shared)" if e.mode == "sh" else e.lock
        for e in events
        if isinstance(e, LockEvent) and e.op == "lock"
    }
    assert shown == set(+locks)


def test_packets_say_the_same_as_the_json(story: list[Event]) -> None:
    """Calls with their arguments, kicks from one task to another: in both formats."""
    made = packets(b"".join(pftrace_chunks(story, True)))
    tracks = {p.track_descriptor.uuid: p.track_descriptor.thread.thread_name for p in made}
    events = [p.track_event for p in made if p.HasField("track_event")]
    calls = [e for e in events if "seamcall" in e.categories]
    assert Counter(e.name for e in calls)["TDH.MEM.PAGE.AUG"] == 6
    assert {a.name for e in calls for a in e.debug_annotations} >= {"gpa_or_hpa", "status"}
    (out,) = [e for e in events if e.flow_ids]
    (to,) = [e for e in events if e.terminating_flow_ids]
    assert list(out.flow_ids) == list(to.terminating_flow_ids)
    assert (tracks[out.track_uuid], tracks[to.track_uuid]) == ("vmm0", "vmm0.vcpu1")


def test_reader_is_streamed_into_both(tmp_path: Path) -> None:
    """A trace is never held as a whole: the first piece comes before the last event is read."""
    path = trace_of("accept-level-b", tmp_path / "t.jsonl")
    for fmt in ("perfetto", "pftrace"):
        with TraceReader(path) as reader:
            assert next(iter(render(reader, reader.header, fmt)))
            assert not reader.complete


def test_packets_are_not_for_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = trace_of("accept-level-b", tmp_path / "t.jsonl")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    with pytest.raises(InputError, match="--output"):
        trace(path, "pftrace")
    trace(path, "pftrace", output=tmp_path / "t.pftrace")
    assert packets((tmp_path / "t.pftrace").read_bytes())
