"""The live view: what it says at a moment, and that it is silent where there is no terminal."""

import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from septum.explore.api import Search
from septum.explore.command import explore_command
from septum.explore.progress import Progress
from septum.explore.replay import find_subject
from septum.explore.subject import Options
from septum.explore.wanted import Wanted
from septum.explore.watch import BARS, WIDTH, View, watching
from septum.explore.workers.search import Found, JobResult
from septum.sim import Finding


class Clock:
    """The time that a test says it is."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def result(number: int, reached: int = 0, found: list[Found] | None = None) -> JobResult:
    coverage = {f"call:{n}": 1 for n in range(reached)}
    return JobResult(number, True, 100, 1000, 10, found or [], coverage=coverage)


def finding(preemptions: int, steps: int) -> Found:
    broken = Finding("tlb", "cpu1 can still use its translation", "", "vcpu1", 0)
    return Found(broken, [], 0, steps, preemptions, 0)


def test_golden_view() -> None:
    """Every line, at three moments of a search."""
    clock = Clock()
    progress = Progress("late on v3", Options(time_s=60.0, schedules=5000))
    view = View(progress, clock)
    assert view.lines() == [
        "late on v3: 0 schedules, 0/s",
        "  now       getting ready",
        "  left      60 s, 5,000 schedules; Ctrl-C keeps what is found",
        "  reached   0 outcomes  ",
        "  best      nothing is broken so far",
    ]
    progress.begin("all with 1 preemption", 8)
    progress.told(result(1, reached=8))
    clock.now_s = 1.0
    view.lines()
    progress.told(result(2, reached=12, found=[finding(2, 60)]))
    clock.now_s = 2.0
    progress.running = lambda: 250
    assert view.lines() == [
        "late on v3: 250 schedules, 125/s, 20 states",
        "  now       all with 1 preemption, part 3 of 8",
        "  left      58 s, 4,750 schedules; Ctrl-C keeps what is found",
        f"  reached   12 outcomes  {BARS[7]}{BARS[4]}",
        "  best      tlb (2 preemptions, 0 failures, 60 points): cpu1 can still use it...",
    ]


def test_the_best_finding_is_the_least_disturbed() -> None:
    progress = Progress("x", Options())
    for preemptions, steps in ((2, 10), (1, 90), (1, 80), (2, 5)):
        progress.told(result(1, found=[finding(preemptions, steps)]))
    assert progress.best is not None
    assert (progress.best.preemptions, progress.best.steps) == (1, 80)


@pytest.mark.parametrize("text", ["x" * 300, "é" * 90, ""])
def test_lines_are_never_wider_than_a_terminal(text: str) -> None:
    clock = Clock()
    progress = Progress(text, Options())
    view = View(progress, clock)
    for second in range(100):
        clock.now_s = float(second)
        progress.told(result(second, reached=second % 7))
        assert all(len(line) <= WIDTH for line in view.lines())


def test_nothing_without_a_terminal() -> None:
    stream = io.StringIO()
    with watching(Progress("x", Options()), wanted=True, stream=stream):
        pass
    assert stream.getvalue() == ""


def test_a_search_tells_how_far_it_is() -> None:
    for workers in (1, 2):
        toy = find_subject("toy:rare")
        search = Search(toy, Wanted(preemptions=1, workers=workers).options(toy))
        search.start()
        verdict = search.run()
        progress = search.progress
        assert progress.schedules >= verdict.schedules > 0
        assert progress.best is not None


def test_json_is_all_there_is_on_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    explore_command(["toy:rare"], Wanted(as_json=True))
    shown = capfd.readouterr()
    assert shown.out.startswith("{")
    assert shown.err == ""


def test_on_a_terminal(tmp_path: Path) -> None:
    """A real pseudo-terminal: the view is drawn on stderr, goes away, and has no colour at all."""
    main, side = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "NO_COLOR": ""}
    command = [sys.executable, "-m", "septum", "explore", "toy:rare", "--preemptions", "1"]
    done = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=side)
    os.close(side)
    drawn = b""
    try:
        while chunk := os.read(main, 65536):
            drawn += chunk
    except OSError:  # the other side is closed
        pass
    out, _ = done.communicate(timeout=60)
    assert b"BROKEN" in out
    text = drawn.decode()
    assert "schedules" in text and "Ctrl-C keeps what is found" in text
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", text)
    assert text.rstrip().endswith(("\x1b[2K", "\x1b[?25h"))
