"""`--fail`: choice points that a scenario's file does not allow to fail, asked for by the user."""

import runpy
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from septum.cli.main import app
from septum.explore.reproduce import explore_words
from septum.explore.subject import Options
from septum.explore.testing import search_for_test
from septum.scenarios.run import LIBRARY

SPLIT = "alloc:gmem_split_entries"
"""Fails when the folio is split, after the guest's page was zapped (F3)."""
BOUNDS = ["--preemptions", "0"]


def septum(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def broken(name: str, tmp_path: Path) -> tuple[str, Path]:
    """(story, test) of the scenario where that allocation fails."""
    test = tmp_path / "test_it.py"
    result = septum("explore", name, *BOUNDS, "--fail", SPLIT, "--emit-test", str(test))
    assert result.exit_code == 1
    return result.output, test


def test_without_it_nothing_fails() -> None:
    result = septum("explore", "convert-one-page", *BOUNDS)
    assert result.exit_code == 0 and "0 failures" in result.output


@pytest.mark.parametrize("own", [False, True])
def test_what_was_found_comes_again(tmp_path: Path, own: bool) -> None:
    """By token, by test and by the commands of the story; of a file, wherever that is then."""
    name = "convert-one-page"
    if own:
        path = tmp_path / "mine.toml"
        path.write_text((LIBRARY / f"{name}.toml").read_text() + "\n# mine\n")
        name = str(path)
    story, test = broken(name, tmp_path)
    assert f"--fail {SPLIT}" in story and "all-or-nothing" in story
    token = "".join(
        line.strip() for line in story.partition("token:")[2].partition("\n\n")[0].splitlines()
    )
    if own:
        test_text = test.read_text()
        again = septum("replay", token)
        path.unlink()
        assert septum("replay", token).output == again.output
        path.write_text((LIBRARY / "convert-one-page.toml").read_text() + "\n# mine\n")
        assert SPLIT in test_text
    replayed = septum("replay", token)
    assert replayed.exit_code == 1 and "all-or-nothing" in replayed.output
    functions = runpy.run_path(str(test))
    [test_function] = [f for key, f in functions.items() if key.startswith("test_")]
    with pytest.raises(AssertionError, match="all-or-nothing"):
        test_function()


def test_the_command_of_a_search_has_it() -> None:
    words = explore_words("s", "v3", "end", Options(failures=1, fail=("alloc:*", "need_resched")))
    assert shlex.split(words)[-6:-2] == ["--fail", "alloc:*", "--fail", "need_resched"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ("convert-one-page", "--fail", "alloc:gmem_split_entry"),
            (
                "--fail 'alloc:gmem_split_entry' is no choice point of the model; did you mean"
                " 'alloc:gmem_split_entries'?"
            ),
        ),
        (
            ("convert-one-page", "--fail", "aloc:*"),
            "--fail 'aloc:*' matches no choice point of the model",
        ),
        (("toy:rare", "--fail", "alloc:*"), "toy:rare has no choice points of the model"),
    ],
)
def test_mistakes(
    words: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from septum.cli.exits import guarded

    assert guarded(lambda: app(["explore", *words], standalone_mode=True)) == 2
    said = capsys.readouterr().err
    assert sentence in " ".join(said.split()) and "Traceback" not in said


def test_a_test_may_ask_for_it() -> None:
    """So a pytest marker may, too."""
    verdict, story = search_for_test("convert-one-page", preemptions=0, failures=1, fail=[SPLIT])
    assert verdict.counterexamples and "all-or-nothing" in story
