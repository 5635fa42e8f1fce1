"""The tutorial is true: its files are written, its commands run, what it shows is what comes."""

import re
import shlex
from pathlib import Path

import pytest

from septum.cli.main import app

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tutorial.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.M | re.S)
HOST = re.compile(r"0x[12][0-9a-f]{5,}")
BROKEN = {"septum explore late.toml --check quiet --report found --emit-test test_late.py"}
"""Commands of which the page says that a promise is broken: exit code 1."""


def blocks(kind: str) -> list[str]:
    return [text for found, text in BLOCK.findall(PAGE.read_text()) if found == kind]


def run(command: str, capfd: pytest.CaptureFixture[str]) -> str:
    """What a command of the page prints."""
    words = shlex.split(command)
    assert words[0] == "septum"
    with pytest.raises(SystemExit) as stop:
        app(words[1:], standalone_mode=False)
        raise SystemExit(0)
    assert stop.value.code == (1 if command in BROKEN else 0), command
    return capfd.readouterr().out


def check_shown(shown: list[str], printed: list[str]) -> None:
    """Each line that the page shows is printed, in this order; lines may be left out at `...`.
    Which host frames were free does not matter."""
    shown, printed = ([HOST.sub("0xHOST", line) for line in lines] for lines in (shown, printed))
    at = 0
    free = False
    for line in shown:
        if line == "...":
            free = True
            continue
        found = printed.index(line, at) if line in printed[at:] else -1
        assert found >= 0, f"not printed: {line!r}"
        assert free or found == at, f"lines are left out before {line!r} without a word"
        at, free = found + 1, False
    assert free or at == len(printed), "lines are left out at the end without a word"


def test_every_command_of_the_tutorial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    for text in blocks("toml"):
        name = re.match(r"# (\S+\.toml)\n", text)
        assert name is not None
        Path(name[1]).write_text(text)
    consoles = blocks("console")
    assert len(consoles) > 5
    for text in consoles:
        command, *shown = text.rstrip("\n").split("\n")
        printed = run(command.removeprefix("$ "), capfd).rstrip("\n").split("\n")
        check_shown(shown, printed)
    # The files that it names are there, and the regression test fails as it says.
    assert {"late-1.txt", "late.json", "test_late_1.py"} <= {
        p.name for p in Path("found").iterdir()
    }
    names: dict[str, object] = {}
    exec(Path("test_late.py").read_text(), names)
    test = next(value for name, value in names.items() if name.startswith("test_"))
    with pytest.raises(AssertionError, match="mapping-in-folio"):
        test()  # type: ignore[operator]


def test_commands_that_are_named_in_passing_exist() -> None:
    known = {c.name or c.callback.__name__ for c in app.registered_commands if c.callback}
    named = set(re.findall(r"`septum ([a-z-]+)", PAGE.read_text()))
    assert named - {"module"} <= known


@pytest.mark.parametrize(
    ("shown", "wrong"),
    [
        (["a", "c"], "left out before 'c'"),
        (["a", "...", "x"], "not printed: 'x'"),
        (["a", "...", "b", "..."], ""),
        (["a", "b"], "left out at the end"),
        (["...", "c", "b"], "not printed: 'b'"),
    ],
)
def test_what_is_shown_is_held_to_what_is_printed(shown: list[str], wrong: str) -> None:
    """The check can fail."""
    if not wrong:
        check_shown(shown, ["a", "b", "c"])
        return
    with pytest.raises(AssertionError, match=wrong):
        check_shown(shown, ["a", "b", "c"])
