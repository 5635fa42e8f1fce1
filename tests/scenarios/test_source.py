"""A scenario comes from a plain file of UTF-8; what is none is told in one sentence."""

import os
from pathlib import Path

import pytest

from septum.cli.exits import USAGE, guarded
from septum.cli.main import app
from septum.errors import InputError
from septum.scenarios.reader import read_scenario
from septum.scenarios.run import load_scenario

TEXT = 'summary = "é"\n[guest]\nvcpu0 = ["accept page 0"]\n'
DIGITS = "9" * 4400


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_an_editors_mark_is_no_text(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(TEXT, encoding=encoding)
    assert load_scenario(str(path)).summary == "é"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "latin-1"])
def test_other_encodings(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(TEXT, encoding=encoding)
    with pytest.raises(InputError, match=r"byte \d+ is not UTF-8 .+; save it as UTF-8$"):
        load_scenario(str(path))


def test_what_is_no_file(tmp_path: Path) -> None:
    folder = tmp_path / "folder.toml"
    folder.mkdir()
    with pytest.raises(InputError, match=r"folder.toml is a folder; name a TOML file"):
        load_scenario(str(folder))
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(InputError, match=r"fifo is no regular file; name a TOML file"):
        load_scenario(str(fifo))


@pytest.mark.parametrize("command", ["run", "explore", "report"])
@pytest.mark.parametrize("name", ["x" * 300, "eN" * 3000, "x/" * 3000])
def test_names_that_no_file_can_have(
    command: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guarded(lambda: app([command, name], standalone_mode=True)) == USAGE
    err = capsys.readouterr().err
    assert "no scenario is called" in err and err.count("\n") == 1 and len(err) < 300


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("convert-one-pag", "did you mean 'convert-one-page'? `septum scenarios` lists them"),
        ("mine", "did you mean 'mine.toml'?"),
        ("zzz", "there is no such file; `septum scenarios` lists them"),
    ],
)
def test_what_may_be_meant(
    name: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text(TEXT)
    assert guarded(lambda: app(["run", name], standalone_mode=True)) == USAGE
    assert capsys.readouterr().err.endswith(f"{said}\n")


def test_a_name_with_an_end_in_it() -> None:
    with pytest.raises(InputError, match="no scenario is called"):
        load_scenario("a\0b")


def test_a_file_whose_name_is_nearly_too_long(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 253)
    path.write_text(TEXT)
    assert guarded(lambda: app(["run", str(path)], standalone_mode=True)) == 0


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (f"[vm]\nvcpus = {DIGITS}\n", "f.toml: this is not TOML .a number in it has more than 4"),
        ("x = " + "[" * 20_000, "f.toml: this is not TOML .its brackets are nested too deeply"),
        ("[vm]\nve = " + "[" * 300 + "]" * 300, r"line 3: vm.ve: expected `bool`, got `array`"),
        ('notes = "a\\tb\\nc"\nsource = "\\u001b[31m"\n', "line 3: source has the control chara"),
        ('notes = "\\u009b"\n', r"line 2: notes has the control character U\+009B in a text; leav"),
        ('[host]\n"a\\u0007" = ["hlt"]\n', r"f.toml, line 2: host has the control character U\+0"),
    ],
)
def test_what_no_reader_can_take(body: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as info:
        read_scenario("f", 'summary = "s"\n' + body, "f.toml")
    assert "\n" not in str(info.value)
