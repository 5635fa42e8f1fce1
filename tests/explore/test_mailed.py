"""`septum replay TOKEN --emit-test`: a token that came by mail becomes a test."""

import runpy
from pathlib import Path

import pytest

from septum.cli.exits import guarded
from septum.cli.main import app
from septum.explore import Options, explore
from septum.explore.replay import find_subject
from septum.scenarios.run import LIBRARY

NAME, DESIGN = "convert-against-write", "v3-without-08"


def cli(*words: str) -> int:
    return guarded(lambda: app(list(words), standalone_mode=True))


def token_of(name: str, design: str = DESIGN) -> str:
    """Of a counterexample of a search."""
    verdict = explore(find_subject(name, design), Options(shrink=False))
    return verdict.counterexamples[0].token


def fails(path: Path) -> bool:
    """Whether the only test of a file fails, for the promise and for nothing else."""
    functions = runpy.run_path(str(path))
    [function] = [function for key, function in functions.items() if key.startswith("test_")]
    try:
        function()
    except AssertionError as error:
        assert "no-bug: KVM_BUG_ON" in str(error)
        return True
    return False


def test_of_the_library(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The test fails on the design, as the run breaks its promise, and is alone in the folder."""
    path = tmp_path / "test_it.py"
    token = token_of(NAME)
    assert cli("replay", token, "--emit-test", str(path)) == 1
    assert f"the test is in {path}" in capsys.readouterr().err
    assert fails(path) and list(tmp_path.iterdir()) == [path]
    assert "septum replay" in path.read_text() and "Found by" not in path.read_text()
    path.write_text(path.read_text().replace(f'"{DESIGN}"', '"v3"'))
    assert not fails(path)


def test_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The scenario comes with the token, and is written beside the test; not over another."""
    mine = tmp_path / "there" / "mine.toml"
    mine.parent.mkdir()
    mine.write_text((LIBRARY / f"{NAME}.toml").read_text() + "# mine\n")
    token = token_of(str(mine))
    folder = tmp_path / "here"
    folder.mkdir()
    path = folder / "test_it.py"
    assert cli("replay", token, "--emit-test", str(path)) == 1
    assert (folder / "mine.toml").read_text() == mine.read_text() and fails(path)
    assert cli("replay", token, "--emit-test", str(path)) == 1  # it is the same one
    (folder / "mine.toml").write_text("another")
    path.unlink()
    capsys.readouterr()
    assert cli("replay", token, "--emit-test", str(path)) == 2
    assert "is not the token's scenario" in capsys.readouterr().err
    assert (folder / "mine.toml").read_text() == "another" and not path.exists()


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (NAME, "breaks nothing that its scenario does not foresee"),
        ("finding-attributes-late", "breaks nothing that its scenario does not foresee"),
    ],
)
def test_nothing_to_test(
    name: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli("run", name) == 0
    token = capsys.readouterr().out.partition("septum replay ")[2].split()[0]
    path = tmp_path / "test_it.py"
    assert cli("replay", token, "--emit-test", str(path)) == 2
    assert sentence in " ".join(capsys.readouterr().err.split()) and not path.exists()


def test_where_it_cannot_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("replay", token_of(NAME), "--emit-test", "/nonexist/test_it.py") == 2
    assert "--emit-test /nonexist/test_it.py: the file cannot be" in capsys.readouterr().err


def test_a_toy_has_no_tests(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("replay", token_of("toy:rare", ""), "--emit-test", "test_it.py") == 2
    assert "the token is of toy:rare" in capsys.readouterr().err
