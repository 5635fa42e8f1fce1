"""What a file of the user's does beside its class: it leaves the model and the output alone."""

import json
import re
import sys
from pathlib import Path

import pytest

from septum.cli.main import run_command
from septum.designs import find_design
from septum.errors import InputError
from septum.linux.kvm import tdx_sept
from septum.linux.kvm.tdx import KvmTdxUnit

MINE = """\
from septum.linux.kvm import tdx_sept
from septum.linux.kvm.tdx import KvmTdxUnit


def nothing(self, kvm):
    return


{line}


class A(KvmTdxUnit):
    __slots__ = ()

    def tdx_track(self, kvm):
        {body}
        super().tdx_track(kvm)
"""
PART = next(kind for kind in KvmTdxUnit.__mro__ if "tdx_track" in vars(kind))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to be in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("KvmTdxUnit.tdx_track = nothing", "KvmTdxUnit.tdx_track"),
        (f"tdx_sept.{PART.__name__}.tdx_track = nothing", f"{PART.__name__}.tdx_track"),
        (f"tdx_sept.{PART.__name__} = None", f"{tdx_sept.__name__}.{PART.__name__}"),
    ],
)
def test_a_file_that_changes_the_model_itself_is_refused(
    line: str, what: str, folder: Path
) -> None:
    """v3 beside it would have the change, too, and nothing would tell the two apart."""
    was = vars(PART)["tdx_track"]
    (folder / "mine.py").write_text(MINE.format(line=line, body="pass"))
    try:
        with pytest.raises(InputError, match=f"^mine.py replaces {what} of the model itself, "):
            find_design("mine.py:A")
    finally:
        setattr(tdx_sept, PART.__name__, PART)
        PART.tdx_track = was
        if "tdx_track" in vars(KvmTdxUnit):
            del KvmTdxUnit.tdx_track
    (folder / "mine.py").write_text(MINE.format(line="", body="pass"))
    assert find_design("mine.py:A").units().tdx.__name__ == "A"


def test_what_a_design_prints_is_no_part_of_the_verdict(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "mine.py").write_text(MINE.format(line="", body="print('tracks', kvm.id, sep='=')"))
    words = "explore convert-one-page --design mine.py:A --workers 1 --schedules 2 --json"
    monkeypatch.setattr(sys, "argv", ["septum", *words.split()])
    run_command()
    told = capfd.readouterr()
    assert json.loads(told.out)["schema"] == "septum-explore-1"
    assert "tracks=1\n" in told.err
    assert "tracks" not in told.out


def test_an_output_that_a_design_has_closed_is_no_verdict(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """1 would say that a promise is broken."""
    (folder / "mine.py").write_text(
        "import sys\n" + MINE.format(line="", body="sys.stdout.close()")
    )
    monkeypatch.setattr(sys, "argv", ["septum", "run", "convert-one-page", "--design", "mine.py:A"])
    with Path("out").open("w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert run_command() == 70
    # Files that other tests have loaded are told, too.
    told = re.search(
        r"a design of your own was loaded \((.*)\), so look there first", capfd.readouterr().err
    )
    assert told is not None and "mine.py" in told[1]
