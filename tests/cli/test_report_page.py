"""The page through the command line: where it is written, and what bad input is told."""

from pathlib import Path

import msgspec
import pytest

from septum.cli.exits import BROKEN, OK, USAGE, guarded
from septum.cli.main import app
from septum.scenarios.run import LIBRARY, load_scenario, recipe_for_token
from septum.sim import RoundRobin, encode_token
from septum.trace import TraceHeader, TraceWriter

SCENARIO = "accept-level-b"


def septum(capfd: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a command line."""
    code = guarded(lambda: app(list(words), standalone_mode=True))
    shown = capfd.readouterr()
    return code, shown.out, shown.err


def test_a_page_is_one_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "page.html"
    code, out, err = septum(capfd, "report", SCENARIO, "--html", str(target))
    assert (code, out) == (OK, "")
    assert str(target) in err
    assert target.read_text().startswith("<!doctype html>")
    assert list(tmp_path.iterdir()) == [target]


def test_the_same_run_is_the_same_page(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pages = [tmp_path / name for name in ("a.html", "b.html")]
    for page in pages:
        septum(capfd, "report", SCENARIO, "--html", str(page))
    assert pages[0].read_bytes() == pages[1].read_bytes()


def test_a_scenario_with_a_report(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "there"
    code, out, _ = septum(capfd, "run", SCENARIO, "--report", str(folder))
    assert code == OK
    assert (folder / f"{SCENARIO}.txt").read_text() == out
    assert "HELD" in (folder / f"{SCENARIO}.html").read_text()


def test_counterexamples_have_their_page_beside_their_text(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, _, _ = septum(
        capfd,
        *("explore", SCENARIO, "--design", "v3-without-12", "--preemptions", "0"),
        *("--schedules", "3", "--report", str(tmp_path)),
    )
    assert code == BROKEN
    [text] = tmp_path.glob("*.txt")
    page = text.with_suffix(".html").read_text()
    assert "The run is not as the scenario says: splits is 1, not 0" in page
    assert "v3-without-12" in page


def bad_inputs(folder: Path) -> dict[str, tuple[list[str], str]]:
    """Command line, and a part of the one sentence that answers it."""
    no_trace = folder / "notes.txt"
    no_trace.write_text("hello\n")
    empty = folder / "empty.jsonl"
    with TraceWriter(empty, TraceHeader(septum_version="0")):
        pass
    recipe = recipe_for_token(load_scenario(SCENARIO), "v3", "quiet")
    old = encode_token("0.0.1", msgspec.msgpack.encode(recipe), RoundRobin())
    page = str(folder / "page.html")
    return {
        "not a trace": ([str(no_trace), "--html", page], "this is not a Septum trace"),
        "no steps": ([str(empty), "--html", page], "has no steps"),
        "no run at all": (["nonsense", "--html", page], "no trace file, no replay token"),
        "another version": ([old, "--html", page], "the token is of Septum 0.0.1"),
        "damaged token": (["septum1.xyz", "--html", page], "damaged"),
        "a folder as target": ([SCENARIO, "--html", str(folder)], "cannot be written"),
        "no such folder": (
            [SCENARIO, "--html", str(folder / "no" / "x.html")],
            "cannot be written",
        ),
    }


CASES = (
    "not a trace",
    "no steps",
    "no run at all",
    "another version",
    "damaged token",
    "a folder as target",
    "no such folder",
)


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_told_in_one_sentence(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], case: str
) -> None:
    words, part = bad_inputs(tmp_path)[case]
    code, out, err = septum(capfd, "report", *words)
    assert (code, out) == (USAGE, "")
    assert part in err
    assert err.count("\n") == 1


def test_a_page_has_the_words_of_the_scenario_that_was_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Not of one of the library, or of a file, that is called the same."""
    name = "finding-attributes-late"
    text = (LIBRARY / f"{name}.toml").read_text()
    summary = load_scenario(name).summary
    mine = tmp_path / f"{name}.toml"
    mine.write_text(text.replace(summary, "This one is mine.").replace("may-break", "# may-break"))
    page = tmp_path / "page.html"
    septum(capfd, "report", str(mine), "--html", str(page))
    assert "This one is mine." in page.read_text()
    assert summary not in page.read_text()
