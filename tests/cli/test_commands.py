"""Whole runs through the command line: what a user types, what comes out, which exit code."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from processes import septum

from septum.abi.tdvf_build import synthetic_tdvf
from septum.cli import exits
from septum.cli.main import app, run_command
from septum.cli.scenario import list_lines
from septum.errors import InputError

SMALLEST = ["--memory", "384M", "--vcpus", "2"]


def started(*args: str, cwd: Path, hash_seed: str) -> "subprocess.CompletedProcess[str]":
    """Start the command as its own process, with nothing of this machine's terminal."""
    env = {**os.environ, "PYTHONHASHSEED": hash_seed, "NO_COLOR": "1", "COLUMNS": "80"}
    return subprocess.run(
        [sys.executable, "-m", "septum", *args],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )


def written_image(folder: Path) -> str:
    """Septum's own TDVF image as a file."""
    path = folder / "own.fd"
    path.write_bytes(synthetic_tdvf())
    return str(path)


@pytest.fixture
def image(tmp_path: Path) -> str:
    return written_image(tmp_path)


class Boots(NamedTuple):
    """A boot that is looked at in the end, told in words, and the replay of its token, which is
    looked at all along: each in a process with hashes of its own. `reports`: from the boot's
    folder, which is in `folder`, and the replay's JSON."""

    folder: Path
    told: str
    reports: tuple[dict[str, Any], dict[str, Any]]
    traces: tuple[bytes, bytes]


@pytest.fixture(scope="module")
def boots(tmp_path_factory: pytest.TempPathFactory) -> Boots:
    folder = tmp_path_factory.mktemp("boots")
    firmware = ("--firmware", written_image(folder))
    words = ("run", *firmware, *SMALLEST, "--check", "end", "--trace", "1.jsonl")
    first = started(*words, cwd=folder, hash_seed="1")
    assert first.returncode == 0, first.stderr
    report = json.loads((folder / "septum-report" / "report.json").read_text())
    words = ("replay", report["token"], *firmware, "--trace", "2.jsonl", "--json")
    again = started(*words, "--report", "other", cwd=folder, hash_seed="2")
    assert again.returncode == 0, again.stderr
    traces = ((folder / "1.jsonl").read_bytes(), (folder / "2.jsonl").read_bytes())
    for name in ("1.jsonl", "2.jsonl"):
        (folder / name).unlink()
    return Boots(folder, first.stdout, (report, json.loads(again.stdout)), traces)


def test_a_boot_ends_well_and_says_so(boots: Boots) -> None:
    assert boots.told.startswith("HELD: boot of a TD with 384 MiB and 2 vCPUs")
    assert max(len(line) for line in boots.told.splitlines()) <= 80
    for name in ("report.txt", "report.json", "memory-login.svg"):
        assert (boots.folder / "septum-report" / name).stat().st_size > 500


def test_the_same_boot_twice_is_the_same_trace_byte_for_byte(boots: Boots) -> None:
    """Whatever the hashes, and whenever promises are looked at."""
    first, second = boots.traces
    assert first == second
    for word in (
        b"TDH.MEM.PAGE.DEMOTE",
        b"tdx_sept_split_private_spte",
        b"kvm_mmu_split_huge_page",
    ):
        assert word in first


def test_another_seed_is_another_interleaving(tmp_path: Path) -> None:
    """Another vCPU faults first."""

    def calls(seed: str) -> tuple[tuple[int, str], ...]:
        words = ("--schedule", "random", "--seed", seed, "--trace", f"{seed}.jsonl")
        done = septum("run", "fault-against-fault", *words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        lines = (tmp_path / f"{seed}.jsonl").read_text().splitlines()
        events = [json.loads(line) for line in lines]
        return tuple((e["cpu"], e["name"]) for e in events if e["type"] == "seamcall")

    assert calls("1") != calls("3")


def test_json_is_the_report_and_its_token_replays(boots: Boots) -> None:
    report, replayed = boots.reports
    assert report["schema"] == "septum.report"
    assert report["stats"]["pages_2m"] > 100
    assert {p["name"] for p in report["promises"]} >= {"mirror", "teardown", "guest-data"}
    assert json.loads((boots.folder / "other" / "report.json").read_text()) == replayed
    for key in ("stats", "seamcalls", "time_ns", "mrtd", "snapshots", "token"):
        assert replayed[key] == report[key]


def test_mrtd_counts_adds_and_extends_and_orders_differ(tmp_path: Path, image: str) -> None:
    single = septum("mrtd", image, cwd=tmp_path)
    double = septum("mrtd", image, "--two-pass", cwd=tmp_path)
    assert (single.returncode, double.returncode) == (0, 0)
    first, second = single.stdout.splitlines(), double.stdout.splitlines()
    assert len(first[0]) == 96
    assert first[0] != second[0]
    assert first[1].removeprefix("single_pass") == second[1].removeprefix("two_pass")


def bad_images(folder: Path) -> dict[str, list[str]]:
    """Files that no TD can be built from."""
    good = synthetic_tdvf()
    files = {
        "empty.fd": b"",
        "text.fd": b"this is no firmware\n" * 40,
        "zeros.fd": bytes(1 << 20),
        "cut.fd": good[: len(good) // 2],
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return {name: ["firmware", name] for name in files}


BAD_OPTIONS = [
    ["run", "--memory", "0"],
    ["run", "--memory", "3"],
    ["run", "--memory", "lots"],
    ["run", "--memory", "4097"],
    ["run", "--memory", "16M"],
    ["run", "--memory", "9999T"],
    ["run", "--vcpus", "0"],
    ["run", "--vcpus", "many"],
    ["run", "--design", "v99"],
    ["run", "--schedule", "fair"],
    ["run", "--check", "sometimes"],
    ["run", "--firmware", "/nowhere/OVMF.fd"],
    ["replay", "nonsense"],
    ["replay", "septum1.AAAA"],
    ["mrtd", "/nowhere/OVMF.fd"],
    ["conform", "/nowhere/set.jsonl"],
    ["module", "fuzz", "--calls", "0"],
    ["no-such-command"],
]


@pytest.fixture
def said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """The command as its process runs it: its exit code, and what it says on stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*args: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["septum", *args])
        code = run_command()
        return code, capfd.readouterr().err

    return run


@pytest.mark.parametrize("args", BAD_OPTIONS, ids=" ".join)
def test_a_users_mistake_is_one_sentence_and_2(
    args: list[str], tmp_path: Path, image: str, said: Callable[..., tuple[int, str]]
) -> None:
    if args[0] == "run" and "--firmware" not in args:
        args = [*args, "--firmware", image]
    code, told = said(*args)
    assert code == 2, told
    assert "Traceback" not in told
    assert len(told.strip()) > 20
    assert not (tmp_path / "septum-report").exists()


def test_files_that_are_no_firmware_say_what_would_be(
    tmp_path: Path, said: Callable[..., tuple[int, str]]
) -> None:
    for name, args in bad_images(tmp_path).items():
        code, told = said(*args)
        assert code == 2, name
        lines = told.strip().splitlines()
        assert len(lines) == 1, lines
        assert name in lines[0]


def test_a_report_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path, image: str) -> None:
    (tmp_path / "file").write_text("in the way")
    done = septum("run", "--firmware", image, *SMALLEST, "--report", "file", cwd=tmp_path)
    assert done.returncode == 2
    assert "--report" in done.stderr


def test_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(error: BaseException) -> None:
        raise error

    assert exits.guarded(lambda: None) == 0
    assert exits.guarded(lambda: fail(InputError("no such thing; try another"))) == 2
    assert exits.guarded(lambda: fail(KeyboardInterrupt())) == 130
    assert exits.guarded(lambda: fail(SystemExit(3))) == 3
    capsys.readouterr()
    assert exits.guarded(lambda: fail(RuntimeError("broken inside"))) == 70
    assert "defect of Septum" in capsys.readouterr().err


@pytest.mark.parametrize("group", [[], ["module"]], ids=["septum", "module"])
def test_the_list_of_commands_breaks_no_sentence_off(
    group: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """In 80 columns, each command on a line of its own."""
    assert exits.guarded(lambda: app([*group, "--help"], standalone_mode=True)) == 0
    commands = capsys.readouterr().out.partition("Commands:\n")[2].splitlines()
    assert (
        commands
        and [line for line in commands if not re.fullmatch(r"  [a-z-]+ +.*[.?]", line)] == []
    )
    assert [line for line in commands if line.endswith("...")] == []


def test_a_narrow_terminal_gets_the_list_folded_and_a_file_a_line_each() -> None:
    names = {"short": "A word.", "a-longer-name": "Two words and some more, to fill a line."}
    assert list_lines(names, 0) == [
        "short          A word.",
        "a-longer-name  Two words and some more, to fill a line.",
    ]
    assert list_lines(names, 200) == list_lines(names, 0)
    assert list_lines(names, 30) == [
        "short",
        "    A word.",
        "a-longer-name",
        "    Two words and some more,",
        "    to fill a line.",
    ]
    assert list_lines(names, 1)


@pytest.mark.parametrize("command", ["scenarios", "designs"])
def test_who_reads_no_further_is_no_broken_promise(command: str) -> None:
    """Whether what is printed is more than a pipe's buffer, or less."""
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, "-m", "septum", command]
    done = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk without room is of Linux")
@pytest.mark.parametrize("command", ["scenarios", "designs"])
def test_a_disk_without_room_is_a_sentence(command: str) -> None:
    words = [sys.executable, "-m", "septum", command]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("septum: The output could not be written: ")
    assert done.stderr.count("\n") == 1
