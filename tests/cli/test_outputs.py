"""What a user wrote is not written over: by no option of any command, whatever it is called."""

import gc
import io
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from septum.cli import report, scenario
from septum.cli.main import run_command
from septum.errors import InputError
from septum.explore.emit import HEAD
from septum.outputs import check_outputs
from septum.scenarios import boot
from septum.scenarios.boot import BootRecipe
from septum.scenarios.run import run_scenario
from septum.sim import RoundRobin, encode_token
from septum.stamp import stamp

SCENARIO = """\
summary = "A thread touches a page."
[host]
a = ["touch page 0"]
"""
BROKEN = """\
summary = "A guest uses what it has not accepted."
[guest]
vcpu0 = ["touch page 0 => any"]
"""
DESIGN = """\
from septum.linux.kvm.tdx import KvmTdxUnit


class D(KvmTdxUnit):
    __slots__ = ()

    def tdx_track(self, kvm):
        super().tdx_track(kvm)
"""
TEST = "def test_mine() -> None:\n    assert True\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to be in: a scenario, a link to it, a design, a test, a trace."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "late.toml").write_text(SCENARIO)
    (tmp_path / "link").symlink_to("late.toml")
    (tmp_path / "dd.py").write_text(DESIGN)
    (tmp_path / "test_late_1.py").write_text(DESIGN)
    (tmp_path / "test_mine.py").write_text(TEST)
    return tmp_path


def septum(words: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """The command in this process."""
    monkeypatch.setattr(sys, "argv", ["septum", *shlex.split(words)])
    return run_command()


OVER = [
    ("run late.toml --trace late.toml", "--trace late.toml: that file is read"),
    ("run late.toml --trace ./link", "--trace link: that file is read"),
    ("run late.toml --trace out/late.html --report out", "out/late.html: --report is written to"),
    ("run late.toml --trace out/late.txt --report ./out", "out/late.txt: --report is written to"),
    ("run --trace out/report.json --report out", "--trace out/report.json: --report is written"),
    ("run --trace septum-report/memory-x.svg", "memory-x.svg: --report is written to the same"),
    ("explore late.toml --report o --emit-test o/late.json", "o/late.json: --report is written to"),
    ("explore late.toml --report . --emit-test late-1.txt", "late-1.txt: --report is written to"),
    ("explore late.toml --report o --emit-test o/test_late_1.py", "test_late_1.py: --report is"),
    (
        "explore late.toml --design test_late_1.py:D --report .",
        "--report .: test_late_1.py is read",
    ),
    ("compare v3 --html o/compare.json --report o", "--html o/compare.json: --report is written"),
    ("compare v3 --html septum-compare/compare.txt", "compare.txt: --report is written to the"),
    ("compare v3 --html ./compare.html --report .", "--html compare.html: --report is written to"),
    ("compare v3 --html o/01-v3-no-bug.txt --report o", "01-v3-no-bug.txt: --report is written"),
    ("run late.toml --design dd.py:D --trace dd.py", "--trace dd.py: that file is read"),
    ("run --firmware r.jsonl --trace r.jsonl", "--trace r.jsonl: that file is read"),
    ("replay TOKEN --trace late.toml", "--trace late.toml: a scenario is there"),
    ("replay TOKEN --trace dd.py", "--trace dd.py: a source of Python is there"),
    ("replay TOKEN --emit-test test_mine.py", "test_mine.py: a file is there that Septum has not"),
    ("replay TOKEN --trace t --emit-test t", "--emit-test t: --trace is written to the same file"),
    ("replay BOOT --trace o/report.txt --report o", "o/report.txt: --report is written to the"),
    ("replay BOOT --trace septum-report/report.json", "report.json: --report is written to the"),
    ("report late.toml --html late.toml", "--html late.toml: that file is read"),
    ("report late.toml --itf late.toml", "--itf late.toml: that file is read"),
    ("report late.toml --ftrace link", "--ftrace link: that file is read"),
    ("report TOKEN --ftrace late.toml", "--ftrace late.toml: a scenario is there"),
    ("report r.jsonl --html r.jsonl", "--html r.jsonl: that file is read"),
    ("report r.jsonl --mermaid same --html same", "--html same: --mermaid is written to the same"),
    ("trace r.jsonl -o r.jsonl", "--output r.jsonl: that file is read"),
    ("trace r.jsonl --as jsonl -o r.jsonl", "--output r.jsonl: that file is read"),
    ("explore late.toml --emit-test late.toml", "--emit-test late.toml: that file is read"),
    ("explore late.toml --design dd.py:D --emit-test dd.py", "--emit-test dd.py: that file is"),
    ("explore late.toml --emit-test test_mine.py", "test_mine.py: a file is there that Septum"),
    ("compare dd.py:D --html dd.py --no-cost", "--html dd.py: that file is read"),
    ("compare v3 --scenarios late.toml --html link --no-cost", "--html link: that file is read"),
]


@pytest.mark.parametrize(("words", "said"), OVER, ids=[words for words, _ in OVER])
def test_a_file_that_is_read_is_not_written(
    words: str,
    said: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert septum("run late.toml --trace r.jsonl", monkeypatch) == 0
    capfd.readouterr()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    token = run_scenario("late.toml").token
    boot_recipe = msgspec.msgpack.encode(BootRecipe(384 << 20, 1, "0" * 64))
    boot_token = encode_token(stamp(), boot_recipe, RoundRobin())
    words = words.replace("TOKEN", token).replace("BOOT", boot_token)
    assert septum(words, monkeypatch) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("septum: -") and said in line
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_what_septum_has_made_is_made_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A trace, a test, an empty file, a device that takes all."""
    for _ in range(2):
        assert septum("run late.toml --trace r.jsonl", monkeypatch) == 0
    both = "report r.jsonl --mermaid /dev/null --ftrace /dev/null"
    assert septum(both, monkeypatch) == 0
    for text in (HEAD, "", None):
        if text is not None:
            (folder / "test_made.py").write_text(text)
        assert septum("explore late.toml --emit-test test_made.py", monkeypatch) == 0


def test_a_pipe_that_nobody_reads_is_not_waited_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Who reads it, reads the whole test, and not an end before it."""
    (folder / "late.toml").write_text(BROKEN)
    os.mkfifo("pipe")
    token = run_scenario("late.toml").token
    for words in ("explore late.toml --no-watch", f"replay {token}"):
        assert septum(f"{words} --emit-test pipe", monkeypatch) == 2
        said = capfd.readouterr().err.splitlines()[-1]
        assert said == (
            "septum: --emit-test pipe: nobody reads that pipe; start its reader first, or name"
            " another file"
        )
        with subprocess.Popen(["cat", "pipe"], stdout=subprocess.PIPE, text=True) as reader:
            assert septum(f"{words} --emit-test pipe", monkeypatch) == 1
            gc.collect()  # nobody else has the pipe open now
            assert reader.communicate(timeout=20)[0].startswith(HEAD)


def test_a_hard_link_is_the_file_too(folder: Path) -> None:
    (folder / "hard").hardlink_to(folder / "late.toml")
    with pytest.raises(InputError, match="--html hard: that file is read"):
        check_outputs([("--html", Path("hard"))], ["late.toml"])
    check_outputs([("--html", None), ("--itf", Path("new"))], ["late.toml", None, "x" * 9999])


@pytest.mark.parametrize("name", ["full", "full.gz"])
def test_a_trace_that_has_no_room_is_a_sentence(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / name).symlink_to("/dev/full")
    assert septum(f"run convert-one-page --trace {name}", monkeypatch) == 2
    said = f"septum: the trace file {name} cannot be written (No space left on device); name"
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(said)


def test_a_page_that_has_no_room_loses_no_table(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "full").symlink_to("/dev/full")
    words = "compare v3 --scenarios late.toml --no-cost --workers 1 --html full"
    assert septum(words, monkeypatch) == 2
    told = capfd.readouterr()
    assert told.err.splitlines()[-1].startswith("septum: full cannot be written (No space left on")
    assert told.out == (folder / "septum-compare" / "compare.txt").read_text()


LONG = "x" * 300
FOLDERS = [
    "run --memory 384M --vcpus 1 --report late.toml",
    "run late.toml --report late.toml",
    f"run late.toml --report {LONG}",
    "explore late.toml --report late.toml",
]


@pytest.mark.parametrize("words", FOLDERS)
def test_a_folder_that_cannot_be_made_is_told_before_anything_runs(
    words: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A boot takes half a minute, and would be lost."""

    def runs(*_: object, **__: object) -> None:
        raise AssertionError("it runs")

    monkeypatch.setattr(boot.Boot, "run", runs)
    monkeypatch.setattr(scenario, "record_scenario", runs)
    assert septum(words, monkeypatch) == 2
    told = capsys.readouterr().err
    assert f"septum: --report {words.split()[-1]}: the folder cannot be written" in told
    assert (folder / "late.toml").read_text() == SCENARIO


NAMES = [
    f"explore late.toml --emit-test {LONG}",
    f"compare v3 --scenarios late.toml --report {LONG}",
    f"compare v3 --scenarios late.toml --html {LONG}",
    f"trace late.toml -o {LONG}",
    f"replay septum1.x --emit-test {LONG}",
]


@pytest.mark.parametrize("words", NAMES)
def test_a_name_that_is_too_long_is_a_sentence(
    words: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert septum(words, monkeypatch) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and told.startswith("septum: ")


class Gone(io.StringIO):
    """Whoever read it has gone."""

    @property
    def buffer(self) -> "Gone":
        return self

    def write(self, text: str) -> int:
        raise BrokenPipeError


def test_what_was_found_is_kept_where_nobody_reads(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`septum explore ... --report o | head -1`: the search may have taken an hour. And the exit
    code is not that of a promise that held, whether the story fits into a pipe or not."""
    (folder / "broken.toml").write_text(BROKEN)
    monkeypatch.setattr(sys, "stdout", Gone())
    words = "explore broken.toml --workers 1 --schedules 20 --report o --emit-test t.py"
    assert septum(words, monkeypatch) == 1
    assert {"broken-1.txt", "broken-1.html", "broken.json"} <= {x.name for x in Path("o").iterdir()}
    token = json.loads(Path("o/broken.json").read_text())["counterexamples"][0]["token"]
    assert Path("t.py").is_file()
    assert septum(f"replay {token} --emit-test again.py", monkeypatch) == 1
    assert Path("again.py").is_file()
    for command in (
        f"report {token}",
        "run finding-private-again --ktap",
        "run broken.toml --json",
        "explore broken.toml --workers 1 --schedules 20 --json",
        "explore convert-one-page broken.toml --workers 1 --schedules 20 --preemptions 0",
        "compare v3-without-08 --scenarios convert-one-page --no-cost --preemptions 0",
    ):
        assert septum(command, monkeypatch) == (0 if "finding" in command else 1), command
    assert septum("scenarios", monkeypatch) == 0


def test_who_interrupts_a_page_has_the_story_and_the_test(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A page takes the longest, and others take it for the end of the search."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "write_token_page", interrupted)
    (folder / "broken.toml").write_text(BROKEN)
    words = "explore broken.toml --workers 1 --schedules 20 --report o --emit-test t.py"
    assert septum(words, monkeypatch) == 1
    assert "septum: interrupted" in capsys.readouterr().err
    assert Path("t.py").is_file()
    assert Path("o/broken-1.txt").is_file()
