"""`--fail`, `--ignore` and `--keep-going`: what the user asks for beside what a file says."""

import json
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
BUSY = "seamcall:TDH.PHYMEM.PAGE.WBINVD=busy"
BOUNDS = ["--preemptions", "0"]


def septum(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def broken(name: str, tmp_path: Path) -> tuple[str, Path]:
    """(story, test) of the scenario where that allocation fails."""
    test = tmp_path / "test_it.py"
    result = septum("explore", name, *BOUNDS, "--fail", SPLIT, "--emit-test", str(test))
    assert result.exit_code == 1
    return result.output, test


def run_only_test(path: Path) -> None:
    functions = runpy.run_path(str(path))
    [function] = [function for key, function in functions.items() if key.startswith("test_")]
    function()


def test_without_it_nothing_fails() -> None:
    result = septum("explore", "convert-one-page", *BOUNDS)
    assert result.exit_code == 0 and "0 failures" in result.output


def test_where_only_failures_decide_and_none_may_come_one_run_is_all() -> None:
    words = ("explore", "convert-one-page", *BOUNDS, "--fail", "alloc:*")
    alone = septum(*words, "--failures", "0")
    assert alone.exit_code == 0 and "1 schedule," in alone.output
    assert septum(*words, "--failures", "1").exit_code == 1


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
    with pytest.raises(AssertionError, match="all-or-nothing"):
        run_only_test(test)


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
        (("convert-one-page", "--ignore", ""), "--ignore '': that is a part of every finding"),
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


ALL = ["convert-one-page", *BOUNDS, "--fail", SPLIT, "--fail", BUSY]
EVERY = ("--strategy", "exhaustive")
SOME = ("--strategy", "random", "--schedules", "40")


def verdict_of(*more: str) -> dict[str, object]:
    result = septum("explore", *ALL, "--json", *more)
    [verdict] = json.loads(result.output.splitlines()[0])["verdicts"]
    return {"exit": result.exit_code, **verdict}


def found(verdict: dict[str, object]) -> list[str]:
    examples = verdict["counterexamples"]
    assert isinstance(examples, list)
    return [f"{one['finding']['promise']}: {one['finding']['text']}" for one in examples]


def test_a_search_goes_on_and_leaves_out_what_is_known() -> None:
    """All that is found, one of each kind; without the first of them the others; without all of
    them it holds, which is complete."""
    nothing = verdict_of(*SOME, "--keep-going")
    everything = found(nothing)
    assert len(everything) > 1 and len(found(verdict_of(*SOME))) == 1
    known = everything[0].partition(",")[0]
    rest = found(verdict_of(*SOME, "--keep-going", "--ignore", known))
    assert rest == [text for text in everything if known not in text] and rest
    ignored: list[str] = []
    while found(nothing) and len(ignored) < 12:  # a run goes on, and may break more after that
        for text in found(nothing):
            ignored += ["--ignore", text.partition(": ")[0]]
        nothing = verdict_of(*EVERY, "--keep-going", *ignored)
    assert (nothing["exit"], nothing["outcome"], nothing["complete"]) == (0, "held", True)
    assert not nothing["foreseen"] and nothing["ignored"]
    told = " ".join(septum("explore", *ALL, *EVERY, *ignored).output.split())
    assert "breaks, and is ignored: all-or-nothing: " in told


def test_what_was_found_beside_what_is_known_comes_again(tmp_path: Path) -> None:
    """Token and test come to the finding that counted."""
    everything = found(verdict_of(*EVERY, "--keep-going", "--check", "every-step"))
    known = everything[0].partition(": ")[0]
    test = tmp_path / "test_it.py"
    verdict = verdict_of(
        "--check", "every-step", "--ignore", f"{known}: ", "--emit-test", str(test)
    )
    [text] = found(verdict)
    assert known not in text
    story = septum("replay", verdict["counterexamples"][0]["token"])  # type: ignore[index]
    assert story.exit_code == 1
    assert f"promise {text.partition(': ')[0]}" in story.output.splitlines()[0]
    with pytest.raises(AssertionError, match=text.partition(": ")[0]):
        run_only_test(test)
