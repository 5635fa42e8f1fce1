"""The exact commands that go with a counterexample: again, as a picture, as a test."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from septum.explore.subject import Strategy

if TYPE_CHECKING:
    from septum.explore.subject import Options

WIDTH = 80
LABEL = 10
TOKEN = "'TOKEN'"


def command_lines(name: str, design: str, check: str, options: Options) -> list[str]:
    """What to type. `name` is the scenario as the user gave it, by name or file."""
    test = f"{explore_words(name, design, check, options)} --emit-test test_it.py"
    return [*token_lines(design), *_wrapped("Test:", test)]


def replayed_lines(design: str) -> list[str]:
    """What to type with a token alone."""
    test = f"septum replay {TOKEN} --emit-test test_it.py"
    return [*token_lines(design), *(_wrapped("Test:", test) if design else [])]


def token_lines(design: str) -> list[str]:
    """What a token is good for, by itself. Toys, which have no design, have no pictures."""
    lines = [
        "TOKEN is the word above, with or without its line breaks, between quotes.",
        *_wrapped("Again:", f"septum replay {TOKEN}"),
    ]
    if design:
        lines += _wrapped("Picture:", f"septum report {TOKEN} --html it.html --mermaid it.mmd")
    return lines


def explore_words(
    name: str, design: str, check: str, options: Options, *, every: bool = False
) -> str:
    """The search, as a command line. `every`: with the bounds that it would have by itself, too."""
    words = ["septum", "explore", name]
    if design:
        words += ["--design", design]
    if options.strategy is not Strategy.AUTO:
        words += ["--strategy", options.strategy.value]
    preemptions = -1 if options.preemptions is None else options.preemptions
    words += ["--preemptions", str(preemptions), "--failures", str(options.failures)]
    for pattern in options.fail:
        words += ["--fail", pattern]
    for text in options.ignore:
        words += ["--ignore", text]
    if options.keep_going:
        words.append("--keep-going")
    if every or check != "end":
        words += ["--check", check]
    words += ["--seed", str(options.seed)]
    return shlex.join(words)


def misfit_text(again: str) -> str:
    """What is to be said of a run that could not follow its schedule; `again` is the search."""
    return f"the schedule does not fit this host any more: search again with `{again}`"


def _wrapped(label: str, command: str) -> list[str]:
    """The command after its label, broken between options so that it can be pasted."""
    lines: list[str] = []
    line = f"{label:<{LABEL}}"
    words = command.split(" ")
    for at, word in enumerate(words):
        # An option goes with its value.
        unit = len(word)
        if word.startswith("--") and at + 1 < len(words):
            unit += 1 + len(words[at + 1])
        if len(line) + unit > WIDTH - 2 and line.strip():
            lines.append(f"{line}\\")
            line = " " * (LABEL + 2)
        line += f"{word} "
    return [*lines, line.rstrip()]
