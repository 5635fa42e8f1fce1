"""The trace for ui.perfetto.dev and chrome://tracing: the JSON trace event format.

One track for each task: the time inside the TD and SEAMCALLs as slices, splits, conversions and
findings as instants. Locks are slices on tracks of their own. A kick is an arrow from the
TDH.MEM.TRACK that was waited for to the external-interrupt exit that it caused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from septum.abi.leaves import TDH_MEM_TRACK, TDH_VP_ENTER
from septum.linux.kvm.events import KvmEntry, KvmExit
from septum.module.events import SeamcallEvent
from septum.sim.events import FindingEvent, LockEvent
from septum.trace.describe import describe
from septum.trace.filters import tag_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from septum.sim.events import Event

    Json = dict[str, object]

PID = 1
STEP_SLICE = 0.8
"""Length in steps of a SEAMCALL's slice where the run has no virtual time."""
NOT_SHOWN = frozenset(("switch", "td_exit", "kvm_mmu_spte_requested", "kvm_mmu_set_spte"))


class PerfettoBuilder:
    """Turns events into trace events. `timed` is false for a run without virtual time: then
    time counts events, one microsecond each."""

    __slots__ = ("_last_us", "_nr", "_nr_kicks", "_tids", "_track", "timed")

    def __init__(self, timed: bool) -> None:
        self.timed = timed
        self._nr = 0
        self._nr_kicks = 0
        self._tids: dict[str, int] = {}
        self._last_us: dict[int, float] = {}
        self._track: tuple[int, float] | None = None  # (tid, end) of the latest TDH.MEM.TRACK

    def add(self, event: Event) -> Iterator[Json]:
        """The trace events of one event; a task's first is preceded by its name."""
        self._nr += 1
        tid = self._tids.get(event.task)
        if tid is None:
            tid = self._tids[event.task] = len(self._tids) + 1
            yield _thread_name(tid, event.task)
        now = event.time_ns / 1000 if self.timed else float(self._nr)
        base: Json = {"pid": PID, "tid": tid, "ts": now}
        if isinstance(event, LockEvent):
            yield from _lock(event, base)
        elif isinstance(event, SeamcallEvent):
            yield from self._seamcall(event, base, tid, now)
        elif isinstance(event, KvmEntry):
            yield {**base, "ph": "B", "name": "TD", "cat": "guest"}
        elif isinstance(event, KvmExit):
            yield {**base, "ph": "E", "args": {"reason": event.exit_reason}}
            yield from self._kicked(event, base)
        elif tag_of(type(event)) not in NOT_SHOWN:
            yield _instant(event, base)
        self._last_us[tid] = now

    def _seamcall(self, event: SeamcallEvent, base: Json, tid: int, now: float) -> Iterator[Json]:
        if event.leaf == TDH_VP_ENTER:
            return  # the slice "TD" is it
        # MODEL: an event tells when the call ended; it began no earlier than the task's last one.
        start = self._last_us.get(tid, now) if self.timed else now - STEP_SLICE
        step = describe(event)
        args = {
            "gpa_or_hpa": f"{event.rcx:#x}",
            "rdx": f"{event.rdx:#x}",
            "r8": f"{event.r8:#x}",
            "status": f"{event.status:#x}",
        }
        yield {
            **base,
            "ph": "X",
            "ts": start,
            "dur": now - start,
            "name": step.verb,
            "cat": "seamcall",
            "args": args,
        }
        if event.leaf == TDH_MEM_TRACK:
            self._track = (tid, start)

    def _kicked(self, event: KvmExit, base: Json) -> Iterator[Json]:
        if event.exit_reason != "EXTERNAL_INTERRUPT" or self._track is None:
            return
        tid, start = self._track
        if tid == base["tid"]:
            return
        self._nr_kicks += 1
        flow: Json = {"name": "kick", "cat": "kick", "id": self._nr_kicks, "pid": PID}
        yield {**flow, "ph": "s", "tid": tid, "ts": start}
        yield {**flow, "ph": "f", "bp": "e", "tid": base["tid"], "ts": base["ts"]}


def _thread_name(tid: int, task: str) -> Json:
    return {"ph": "M", "pid": PID, "tid": tid, "name": "thread_name", "args": {"name": task}}


def _lock(event: LockEvent, base: Json) -> Iterator[Json]:
    mode = " (shared)" if event.mode == "sh" else ""
    if event.op == "wait":
        yield {**base, "ph": "i", "s": "t", "cat": "lock", "name": f"waits for {event.lock}{mode}"}
        return
    yield {
        **base,
        "ph": "b" if event.op == "lock" else "e",
        "cat": "lock",
        "id": f"{event.task}:{event.lock}:{event.mode}",
        "name": f"{event.lock}{mode}",
    }


def _instant(event: Event, base: Json) -> Json:
    step = describe(event)
    return {
        **base,
        "ph": "i",
        "s": "g" if isinstance(event, FindingEvent) else "t",
        "cat": tag_of(type(event)),
        "name": step.verb,
        "args": {"detail": step.detail, "result": step.result, "where": step.where},
    }


def perfetto_chunks(events: Iterable[Event], timed: bool) -> Iterator[bytes]:
    """The file in pieces. `timed`: whether the events carry virtual time."""
    encode = msgspec.json.Encoder().encode
    builder = PerfettoBuilder(timed)
    yield b'{"displayTimeUnit":"ns","traceEvents":[\n'
    yield encode({"ph": "M", "pid": PID, "name": "process_name", "args": {"name": "septum"}})
    for event in events:
        for made in builder.add(event):
            yield b",\n"
            yield encode(made)
    clock = "virtual time" if timed else "one event is one microsecond: the run has no virtual time"
    yield b'\n],"otherData":' + encode({"clock": clock}) + b"}\n"
