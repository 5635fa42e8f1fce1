"""Mermaid diagrams, judged by Mermaid itself where npm has put it (make npm)."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from septum.cli.report import trace_of
from septum.errors import InputError
from septum.sim.events import Event, FindingEvent
from septum.trace import read_trace
from septum.trace.command import render
from septum.trace.mermaid import MAX_STEPS, mermaid_lines

Golden = Callable[[str, str], None]
NPM = Path(__file__).resolve().parents[1] / "npm"
NEEDS_MERMAID = pytest.mark.skipif(
    shutil.which("node") is None or not (NPM / "node_modules" / "mermaid").is_dir(),
    reason="needs node, and mermaid from npm: make npm",
)


def mermaid_says(*files: Path) -> "subprocess.CompletedProcess[str]":
    """What Mermaid's own parser says: a line for each file, exit code 1 when it refuses one."""
    return subprocess.run(
        ["node", str(NPM / "mermaid_parse.mjs"), *map(str, files)],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


@NEEDS_MERMAID
def test_mermaid_takes_whole_runs_and_any_text(tmp_path: Path, story: list[Event]) -> None:
    nasty = 'a;b #5 %% <x> -->> end note: "q" `c` {d} [e] (f) opt loop :- + →'
    odd: list[Event] = [FindingEvent(0, "t:a sk; x", 0, nasty, nasty), *story]
    files = []
    for name in ("accept-level-b", "convert-against-fault", "convert-one-page"):
        header, events = read_trace(trace_of(name, tmp_path / f"{name}.jsonl"))
        files.append(tmp_path / f"{name}.mmd")
        files[-1].write_bytes(b"".join(render(iter(events), header, "mermaid")))
    for name, events in (("story", story), ("odd", odd)):
        files.append(tmp_path / f"{name}.mmd")
        files[-1].write_text("\n".join(mermaid_lines(events)))
    done = mermaid_says(*files)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("sequence") == len(files)


@NEEDS_MERMAID
def test_mermaid_refuses_what_is_no_diagram(tmp_path: Path, story: list[Event]) -> None:
    """The judge can say no: without the escapes it does."""
    bad = tmp_path / "bad.mmd"
    bad.write_text("\n".join(mermaid_lines(story)).replace("->>", "-)>>"))
    assert mermaid_says(bad).returncode == 1


def test_golden_mermaid(story: list[Event], golden: Golden) -> None:
    golden("story.mmd", "\n".join(mermaid_lines(story)) + "\n")


def test_mermaid_text_cannot_end_a_statement(story: list[Event]) -> None:
    lines = list(mermaid_lines(story))
    finding = next(line for line in lines if "FINDING" in line)
    assert "page #35;5 lost#59; vCPU 1" in finding
    assert finding.count("->") == 0
    assert all(len(re.findall("--?>>", line)) <= 1 for line in lines)


def test_mermaid_refuses_what_nobody_could_read(story: list[Event]) -> None:
    with pytest.raises(InputError, match="--only"):
        mermaid_lines(_unlike(MAX_STEPS + 1))


def _unlike(count: int) -> list[Event]:
    """So many events that no fold makes one of them."""
    return [FindingEvent(n, f"task{n.bit_count()}", 0, "p", "t") for n in range(count)]


def test_alike_rounds_are_folded(tmp_path: Path) -> None:
    """512 pages that are removed one by one are two rounds and a count."""
    header, events = read_trace(trace_of("convert-one-page", tmp_path / "t.jsonl"))
    text = b"".join(render(iter(events), header, "mermaid")).decode()
    assert "more rounds of these" in text
    assert len(text.splitlines()) < MAX_STEPS < len(events)
