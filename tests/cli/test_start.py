"""What a shell may do to a command before it begins: streams, arguments, Python's switches."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCENARIO = 'summary = "Über Gäste."\n[guest]\nvcpu0 = ["accept page 0"]\n'


def test_an_interrupt_while_the_command_is_imported_is_one() -> None:
    """No traceback of somebody else's import."""
    code = (
        "import builtins, runpy\n"
        "known = builtins.__import__\n"
        "def pressed(name, *rest, **more):\n"
        "    if name == 'septum.cli.main':\n"
        "        raise KeyboardInterrupt\n"
        "    return known(name, *rest, **more)\n"
        "builtins.__import__ = pressed\n"
        "runpy.run_module('septum', run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (130, "septum: interrupted\n")


def septum(
    *args: str | bytes, cwd: Path, closed: int | None = None, **env: str
) -> "subprocess.CompletedProcess[bytes]":
    """The command in a process of its own; `closed`: a file descriptor that is not there."""
    shell = [] if closed is None else ["sh", "-c", f'exec "$@" {closed}>&-', "sh"]
    return subprocess.run(
        [*shell, sys.executable, "-m", "septum", *args],
        cwd=cwd,
        env={**os.environ, "NO_COLOR": "1", **env},
        capture_output=True,
        check=False,
        timeout=300,
    )


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["run", b"bad\xff.toml"], "the argument 'bad\\udcff.toml' is not UTF-8; name it otherwi"),
        (["run", "busy-once", "--design", b"dd\xff.py:D"], "'dd\\udcff.py:D' is not UTF-8"),
        (["explore", "busy-once", "--ignore", b"v\xff"], "'v\\udcff' is not UTF-8"),
        (["run", "\x1b[31mred.toml"], "the argument '\\x1b[31mred.toml' has the control charact"),
        (["run", "busy-once", "--report", ""], "--report '': name a folder; this one here"),
        (["explore", "busy-once", "--report="], "--report '': name a folder"),
    ],
)
def test_arguments_that_are_no_text(args: list[str | bytes], sentence: str, tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"bad\xff.toml")).write_text(SCENARIO)
    done = septum(*args, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert sentence in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_a_python_without_docstrings(tmp_path: Path) -> None:
    done = septum("explore", "busy-once", cwd=tmp_path, PYTHONOPTIMIZE="2")
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"run it without PYTHONOPTIMIZE=2" in done.stderr and done.stderr.count(b"\n") == 1


def test_a_stream_that_has_fewer_letters(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(SCENARIO, encoding="utf-8")
    done = septum("run", "mine.toml", cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert b"?ber G?ste." in done.stdout


def test_what_stderr_would_say_is_not_in_the_json(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(SCENARIO, encoding="utf-8")
    args = ("run", "mine.toml", "--json", "--report", "d", "--trace", "t.jsonl")
    done = septum(*args, cwd=tmp_path, closed=2)
    assert done.returncode == 0
    assert json.loads(done.stdout)["summary"] == "Über Gäste."
    assert b"report is in" not in (tmp_path / "t.jsonl").read_bytes()


def test_without_a_stdout(tmp_path: Path) -> None:
    assert septum("scenarios", "--json", cwd=tmp_path, closed=1).returncode == 0
