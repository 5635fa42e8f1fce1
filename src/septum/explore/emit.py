"""Counterexamples as pytest tests that fail until the host is mended."""

from __future__ import annotations

import os
import re
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from septum.designs.own import is_own
from septum.errors import InputError
from septum.explore.reproduce import explore_words
from septum.scenarios.run import scenario_file

if TYPE_CHECKING:
    from collections.abc import Sequence

    from septum.explore.subject import Options
    from septum.explore.verdict import Counterexample

WIDTH = 96
_DOC_WIDTH = 88

HEAD = '''\
"""What `septum explore` found, as tests that replay schedules as they were shrunk.

A test passes when the promise holds on its schedule, and fails when the schedule does not fit the
host any more: then it says nothing, and the search is to be made again.
"""

'''

TEST = '''

def test_{name}() -> None:
    """{promise}

{found}
    """
    answers = {answers}
    again = {again}
    scenario = {scenario}
    design = {design}
    finding = replay_answers(scenario, design, answers, {check}, again{asked})
    assert finding is None, f"{{finding.promise}}: {{finding.text}}"
'''


def check_made(path: Path) -> None:
    """Raises InputError where a test would be written over a file that is none of these tests."""
    if not path.is_file():
        return  # there is none, or it is a pipe, from which nobody should wait to read
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            first = file.readline(WIDTH)
    except OSError:
        return  # it cannot be written either
    if first.strip() and first.strip() != HEAD.partition("\n")[0]:
        raise InputError(
            f"--emit-test {path}: a file is there that Septum has not made, and would be lost;"
            " name another one"
        )


class Emitted(msgspec.Struct, frozen=True):
    """A counterexample, and the search that found it, or would find another. `scenario` is what the
    user called it, by name or file; `source`: who wrote the token, where no search did."""

    subject: str
    design: str
    example: Counterexample
    scenario: str
    check: str
    options: Options
    source: str = ""

    def command(self) -> str:
        """The search, as a command line with its bounds."""
        return explore_words(self.scenario, self.design, self.check, self.options, every=True)


def regression_tests(emitted: Sequence[Emitted], folder: Path) -> str:
    """The source of a test file that will lie in `folder`: a function for each.

    Files of scenarios and of designs are found from there, wherever the tests are run.
    """
    names: dict[str, int] = {}
    tests = "".join(_test(one, folder, names) for one in emitted)
    text = HEAD
    here = "(HERE / " in tests
    if here:
        text += "from pathlib import Path\n\n"
    text += "from septum.explore.replay import replay_answers\n"
    if here:
        text += "\nHERE = Path(__file__).parent\n"
    return text + tests


def _test(one: Emitted, folder: Path, names: dict[str, int]) -> str:
    finding = one.example.finding
    name = _name(f"{one.subject} {finding.promise}")
    nr = names[name] = names.get(name, 0) + 1
    text = finding.text if len(finding.text) < 80 else finding.text[:77] + "..."
    found = [one.source or f"Found by `{one.command()}`", f"Token: {one.example.token}"]
    return TEST.format(
        name=name if nr == 1 else f"{name}_{nr}",
        promise=_harmless(f"{finding.promise}: {text}"),
        found="\n".join(_indented(_harmless(line)) for line in found),
        answers=_filled(repr(one.example.answers)),
        again=_pieces(one.command()),
        scenario=_scenario(one.scenario, folder),
        design=_design(one.design, folder),
        check=_quoted(one.check),
        asked="".join(
            f", {key}={list(words)}"
            for key, words in (("fail", one.options.fail), ("ignore", one.options.ignore))
            if words
        ),
    )


def _name(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def _scenario(name: str, folder: Path) -> str:
    """An expression for it."""
    path = scenario_file(name)
    return _quoted(name) if path is None else _located(path, folder)


def _design(name: str, folder: Path) -> str:
    if not is_own(name):
        return _quoted(name)
    path, _, chosen = name.rpartition(":")
    return f"{_located(Path(path), folder)} + {_quoted(f':{chosen}')}"


def _located(path: Path, folder: Path) -> str:
    relative = os.path.relpath(path.resolve(), folder.resolve())
    return f"str(HERE / {_quoted(relative)})"


def _filled(text: str) -> str:
    return textwrap.fill(text, WIDTH - 12, subsequent_indent=" " * 8)


def _pieces(text: str) -> str:
    """A string in as many lines as it takes."""
    lines = textwrap.wrap(text, WIDTH - 12, drop_whitespace=False, break_on_hyphens=False)
    if len(lines) == 1:
        return _quoted(text)
    return "\n".join(["(", *(f"        {_quoted(line)}" for line in lines), "    )"])


def _indented(text: str) -> str:
    return textwrap.fill(
        text,
        _DOC_WIDTH,
        initial_indent="    ",
        subsequent_indent="    ",
        break_on_hyphens=False,
    )


def _harmless(text: str) -> str:
    """For a docstring."""
    return text.replace('"', "'").replace("\\", "/")


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
