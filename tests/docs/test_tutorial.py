"""Pages that teach are true: their files are written, their commands run, what they show comes."""

import re
import runpy
import shlex
from pathlib import Path

import pytest

from septum.cli.main import app

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = DOCS / "tutorial.md"
OWN = DOCS / "your-own-design.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.M | re.S)
HOST = re.compile(r"0x[12][0-9a-f]{5,}")
BROKEN = {
    "septum explore late.toml --check quiet --report found --emit-test test_late.py",
    "septum explore convert-against-fault --design lazy_kick.py:NoKick",
}
"""Commands of which the page says that a promise is broken: exit code 1."""


def blocks(kind: str, page: Path = PAGE) -> list[str]:
    return [text for found, text in BLOCK.findall(page.read_text()) if found == kind]


def check_command(text: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Run the command of a console block, and compare what it shows."""
    command, *shown = text.rstrip("\n").split("\n")
    printed = run(command.removeprefix("$ "), capfd).rstrip("\n").split("\n")
    check_shown(shown, printed)


def run(command: str, capfd: pytest.CaptureFixture[str]) -> str:
    """What a command of the page prints."""
    words = shlex.split(command)
    assert words[0] == "septum"
    # However busy this machine is: a search has the time that it needs.
    patience = ["--time", "600"] if words[1] in ("explore", "compare") else []
    with pytest.raises(SystemExit) as stop:
        app(words[1:] + patience, standalone_mode=False)
        raise SystemExit(0)
    assert stop.value.code == (1 if command in BROKEN else 0), command
    return capfd.readouterr().out


def check_shown(shown: list[str], printed: list[str]) -> None:
    """Each line that the page shows is printed, in this order; lines may be left out at `...`, and
    the rest of a line that ends in ` ...`. Which host frames were free does not matter."""
    shown, printed = ([HOST.sub("0xHOST", line) for line in lines] for lines in (shown, printed))
    at = 0
    free = False
    for line in shown:
        if line == "...":
            free = True
            continue
        found = next((n for n in range(at, len(printed)) if _shows(line, printed[n])), -1)
        assert found >= 0, f"not printed: {line!r}"
        assert free or found == at, f"lines are left out before {line!r} without a word"
        at, free = found + 1, False
    assert free or at == len(printed), "lines are left out at the end without a word"


def _shows(shown: str, printed: str) -> bool:
    return printed == shown or (shown.endswith(" ...") and printed.startswith(shown[:-4]))


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
        check_command(text, capfd)
    # The files that it names are there, and the regression test fails as it says.
    assert {"late-1.txt", "late.json", "test_late_1.py"} <= {
        p.name for p in Path("found").iterdir()
    }
    names = runpy.run_path("test_late.py")
    test = next(value for name, value in names.items() if name.startswith("test_"))
    with pytest.raises(AssertionError, match="mapping-in-folio"):
        test()


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
        (["ab ...", "..."], "not printed: 'ab ...'"),
    ],
)
def test_what_is_shown_is_held_to_what_is_printed(shown: list[str], wrong: str) -> None:
    """The check can fail."""
    if not wrong:
        check_shown(shown, ["a", "b", "c"])
        return
    with pytest.raises(AssertionError, match=wrong):
        check_shown(shown, ["a", "b", "c"])


def test_your_own_design_as_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The file grows block by block, and each command is run with what is in it by then."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    source = ""
    consoles = 0
    for kind, text in BLOCK.findall(OWN.read_text()):
        if kind == "python":
            source += f"\n\n{text}" if source else text
            Path("lazy_kick.py").write_text(source)
        elif kind == "console":
            consoles += 1
            check_command(text, capfd)
    assert consoles == 3
    assert source == (DOCS / "examples" / "lazy_kick.py").read_text()


def test_what_your_own_design_costs_is_what_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The table, and the figures in the words below it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    page = OWN.read_text()
    Path("lazy_kick.py").write_text((DOCS / "examples" / "lazy_kick.py").read_text())
    words = "septum compare lazy_kick.py:KickWhenTold --scenarios convert-one-page --preemptions 0"
    printed = run(words, capfd)
    (table,) = (text for text in blocks("text", OWN) if text.startswith("Cost of"))
    shown = table.splitlines()
    shown.insert(1, "...")
    check_shown([*shown, "..."], printed[printed.index(shown[0]) :].splitlines())
    boot, convert = printed.split("Cost of the load ")[1:]
    rows = [
        re.findall(r"^ *(?:v3)? +\d+ +[\d.]+ .s +(\d+) +(\d+)", load, re.M)
        for load in (boot, convert)
    ]
    before, after = re.findall(r"TDH.MEM.PAGE.REMOVE\s+(\d+) -> (\d+)", boot)[0]
    said = " ".join(page.split())
    assert f"price: {int(after) - int(before)} more TDH.MEM.PAGE.REMOVE" in said
    (kicks, ipis), (fewer, more) = rows[1]
    assert f"{fewer} kicks instead of {int(kicks):,}, but {more} IPIs instead of {ipis}" in said
