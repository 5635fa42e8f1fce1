"""What has no end is not read: a device, a pipe, a folder or a line without an end is refused in
one sentence, whatever a command would have read it as."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import septum


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files that are none, under the names that commands take for files."""
    for suffix in ("jsonl", "toml", "py"):
        (tmp_path / f"zero.{suffix}").symlink_to("/dev/zero")
        os.mkfifo(tmp_path / f"pipe.{suffix}")
        (tmp_path / f"folder.{suffix}").mkdir()
        with (tmp_path / f"large.{suffix}").open("wb") as file:
            file.truncate(1 << 40)  # of which the disk has nothing
    return tmp_path


RECORDS = [
    f"{command} {kind}.jsonl" for command in ("trace", "conform") for kind in ("zero", "pipe")
]
NO_FILE = "is no regular file"


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        *((command, NO_FILE) for command in RECORDS),
        ("trace folder.jsonl", "septum: folder.jsonl: this is a folder"),
        ("trace none.jsonl", "septum: none.jsonl: the file cannot be read (No such file"),
        ("conform none.jsonl", "septum: none.jsonl: cannot be read (No such file"),
        ("replay large.toml", "'large.toml' is a file; give the token that stands in it"),
        ("trace large.jsonl", "this is not a Septum trace"),
        ("conform folder.jsonl", "folder.jsonl is a folder; give a JSON Lines file"),
        ("conform large.jsonl", "line 1: not JSON"),
        ("report zero.jsonl", NO_FILE),
        ("report pipe.jsonl", NO_FILE),
        ("report large.jsonl", "this is not a Septum trace"),
        ("mrtd zero.jsonl", NO_FILE),
        ("firmware pipe.jsonl", NO_FILE),
        ("run --firmware pipe.jsonl", NO_FILE),
        *((f"{command} zero.toml", NO_FILE) for command in ("run", "explore", "report")),
        ("run pipe.toml", "pipe.toml is no regular file; name a TOML file with the scenario"),
        ("run folder.toml", "folder.toml is a folder; name a TOML file"),
        ("run large.toml", "large.toml has more than 1 MiB; name a TOML file"),
        ("compare v3 --scenarios zero.toml", NO_FILE),
        ("run reference --design zero.py:A", NO_FILE),
        ("explore reference --design pipe.py:A", NO_FILE),
        ("run reference --design folder.py:A", "folder.py is a folder; name a Python file"),
        ("compare large.py:A", "large.py has more than 1 MiB; name a Python file with the design"),
    ],
)
def test_what_has_no_end_is_one_sentence(command: str, sentence: str, folder: Path) -> None:
    done = septum(*command.split(), cwd=folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert sentence in done.stderr and done.stderr.count("\n") == 1


def test_a_test_is_not_looked_for_in_a_pipe(folder: Path) -> None:
    """Whether a test is somebody's own is not asked of what gives no answer, such as our stdout."""
    words = ("explore", "toy:lost-update", "--workers", "1", "--emit-test", "/dev/stdout")
    command = [sys.executable, "-m", "septum", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "\ndef test_toy_lost_update" in done.stdout
