"""The trace file: what is written is read back, equal runs are equal files, damage is told."""

import gc
import gzip
import json
import os
import re
import subprocess
import sys
import typing
import warnings
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import septum
from septum.errors import InputError
from septum.sim.events import Event, LockEvent, SwitchEvent
from septum.trace import TraceError, TraceHeader, TraceReader, TraceWriter, event_types, read_trace
from septum.trace.registry import event_tag, fields_of
from septum.trace.writer import BATCH

SUFFIXES = ("trace.jsonl", "trace.jsonl.gz")
SOURCE = Path(septum.__file__).parent
U64 = st.integers(0, (1 << 64) - 1)


def write(path: Path, header: TraceHeader, events: list[Event]) -> None:
    with TraceWriter(path, header) as writer:
        for event in events:
            writer.write(event)


@pytest.mark.parametrize("name", SUFFIXES)
def test_round_trip(tmp_path: Path, header: TraceHeader, story: list[Event], name: str) -> None:
    path = tmp_path / name
    write(path, header, story)
    assert read_trace(path) == (header, story)
    with TraceReader(path) as reader:
        assert not reader.complete
        assert len(list(reader)) == len(story)
        assert reader.complete


@pytest.mark.parametrize("name", SUFFIXES)
def test_a_file_that_was_read_or_refused_is_closed(
    tmp_path: Path, header: TraceHeader, story: list[Event], name: str
) -> None:
    path = tmp_path / name
    write(path, header, story)
    bad = tmp_path / f"bad-{name}"
    data = b"{}\n"
    bad.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        unclosed: list[object] = []
        hook, sys.unraisablehook = sys.unraisablehook, unclosed.append
        try:
            read_trace(path)
            with pytest.raises(TraceError):
                TraceReader(bad)
            gc.collect()
        finally:
            sys.unraisablehook = hook
    assert not unclosed


def values(hint: object) -> st.SearchStrategy[object]:
    """Values of a field by its type."""
    by_type = {int: U64, str: st.text(max_size=20), bool: st.booleans()}
    return by_type[typing.cast(type, hint)]


@st.composite
def any_event(draw: st.DrawFn) -> Event:
    """An event of any class that there is, with any values."""
    cls = draw(st.sampled_from(list(event_types().values())))
    hints = typing.get_type_hints(cls)
    return cls(**{name: draw(values(hints[name])) for name in fields_of(cls)})


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(event=any_event())
def test_every_event_with_any_values_comes_back(
    tmp_path: Path, header: TraceHeader, event: Event
) -> None:
    path = tmp_path / "one.jsonl"
    write(path, header, [event])
    assert read_trace(path)[1] == [event]


def test_registry_has_the_events_of_every_room() -> None:
    types = event_types()
    assert {"lock", "seamcall", "kvm_exit", "guest_phase", "conversion"} <= types.keys()
    assert all(event_tag(cls) == tag for tag, cls in types.items())
    assert list(types) == sorted(types)


def test_every_event_of_the_format_is_told_by_somebody() -> None:
    """What a trace can hold and no code of Septum makes is promised for nothing."""
    source = "\n".join(path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.py"))
    made = set(re.findall(r"(?<!class )\b([A-Z]\w+)\(", source))
    assert {cls.__name__ for cls in event_types().values()} <= made


@pytest.mark.parametrize("name", SUFFIXES)
def test_same_run_same_bytes(
    tmp_path: Path, header: TraceHeader, story: list[Event], name: str
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    write(tmp_path / "a" / name, header, story)
    write(tmp_path / "b" / name, header, story)
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_bytes_do_not_depend_on_the_hash_seed(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from septum.sim.events import LockEvent\n"
        "from septum.trace import TraceHeader, TraceWriter\n"
        "with TraceWriter(Path(sys.argv[1]), TraceHeader(septum_version='0')) as w:\n"
        "    w.write(LockEvent(1, 't', 0, 'lock', 'mmu_lock', 'ex'))\n"
    )
    written = []
    for seed in ("1", "2"):
        path = tmp_path / f"{seed}.jsonl"
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", program, str(path)], check=True, env=environment)
        written.append(path.read_bytes())
    assert written[0] == written[1]


def test_events_stream_to_the_file_in_batches(tmp_path: Path, header: TraceHeader) -> None:
    path = tmp_path / "trace.jsonl"
    with TraceWriter(path, header) as writer:
        for at in range(5 * BATCH):
            writer.write(SwitchEvent(at, "t", 0, "u", "lock"))
        writer._out.flush()
        assert path.read_bytes().count(b"\n") == 1 + 5 * BATCH
    assert writer.nr_events == 5 * BATCH
    writer.close()
    assert path.read_bytes().count(b"\n") == 2 + 5 * BATCH


def test_a_run_that_dies_leaves_what_it_did(tmp_path: Path, header: TraceHeader) -> None:
    path = tmp_path / "trace.jsonl"
    with pytest.raises(ZeroDivisionError), TraceWriter(path, header) as writer:
        writer.write(LockEvent(0, "t", 0, "lock", "l", "ex"))
        raise ZeroDivisionError
    assert len(read_trace(path)[1]) == 1


def test_the_header_names_leaves_for_readers_without_septum(
    tmp_path: Path, header: TraceHeader
) -> None:
    path = tmp_path / "trace.jsonl"
    write(path, header, [])
    first = json.loads(path.read_text().splitlines()[0])
    assert first["type"] == "header"
    assert first["schema"] == "septum.trace"
    assert first["seamcall_leaves"]["6"] == "TDH.MEM.PAGE.AUG"
    assert first["recipe"]["memory_bytes"] == 4 << 30


GOOD = msgspec.json.encode(TraceHeader(septum_version="0.1.0"))
LOCK = b'{"type":"lock","time_ns":1,"task":"t","cpu":0,"op":"lock","lock":"l","mode":"ex"}'


@pytest.mark.parametrize(
    ("data", "line", "told"),
    [
        (b"", 1, "not a Septum trace"),
        (b"hello\n", 1, "not a Septum trace"),
        (b'{"schema":"other"}\n', 1, "not a Septum trace"),
        (GOOD.replace(b'"schema_version":1', b'"schema_version":9') + b"\n", 1, "version 9"),
        (GOOD.replace(b'"seed":0', b'"seed":"x"') + b"\n", 1, "header is damaged"),
        (GOOD + b"\n" + LOCK + b'\n{"type":"lock","ti', 3, "cut short"),
        (GOOD + b"\n" + LOCK + b"\nnonsense\n", 3, "not JSON"),
        (GOOD + b'\n{"type":"new_event","time_ns":1}\n', 2, "no event that this Septum knows"),
        (GOOD + b"\n" + LOCK.replace(b'"cpu":0,', b"") + b"\n", 2, "cpu"),
        (GOOD + b"\n" + LOCK + b'\n{"type":"end","nr_events":2}\n', 3, "counts 2 events"),
        (gzip.compress(GOOD + b"\n" + LOCK * 9)[:-9], 2, ""),
    ],
)
def test_damage_is_told_with_its_line(tmp_path: Path, data: bytes, line: int, told: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_bytes(data)
    with pytest.raises(TraceError) as caught:
        read_trace(path)
    assert caught.value.line == line
    assert told in str(caught.value)
    assert f"{path}, line {line}: " in str(caught.value)
    assert "; " in str(caught.value)  # the remedy


def test_a_trace_without_end_line_is_read_and_not_complete(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_bytes(GOOD + b"\n" + LOCK + b"\n")
    with TraceReader(path) as reader:
        assert len(list(reader)) == 1
        assert not reader.complete


def test_files_that_cannot_be_opened(tmp_path: Path, header: TraceHeader) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_trace(tmp_path / "missing")
    with pytest.raises(InputError, match="cannot be written"):
        TraceWriter(tmp_path / "no" / "such" / "folder", header)


def test_the_path_of_an_event_has_kernel_functions_alone(tmp_path: Path) -> None:
    """Joints of the model, which begin with `_`, are passed over; the function around is named."""
    path = tmp_path / "trace.jsonl"
    command = f"run dpamt-convert --trace {path} --report {tmp_path}"
    subprocess.run([sys.executable, "-m", "septum", *command.split()], cwd=tmp_path, check=True)
    events = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    names = {name for event in events for name in event.get("via", "").split(" < ")}
    assert not {name for name in names if name.startswith("_")}
    (demote,) = {e["via"] for e in events if e.get("name") == "TDH.MEM.PAGE.DEMOTE"}
    assert demote.startswith("tdh_mem_page_demote < tdx_sept_split_private_spte < ")
