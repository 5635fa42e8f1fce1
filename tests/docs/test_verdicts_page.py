"""The page of verdicts can be renewed in part, without a word of it getting untrue."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return runpy.run_path(str(ROOT / "tools" / "verdicts.py"))


def row(tool, name, verdict, findings=()):
    tokens = ["septum1.x"] * len(findings)
    return tool["Row"](name, verdict, "complete: all", 412.5, list(findings), tokens)


def test_one_row_is_renewed_and_the_counts_follow(tool):
    """Every other row stays as it was."""
    rows = [row(tool, "a-b", "held"), row(tool, "c", "undetermined"), row(tool, "c-2", "held")]
    before = tool["page"](rows, "1 s of one core each")
    assert "\n3 scenarios: 2 held, 1 undetermined.\n" in before
    after = tool["renewed"](before, [row(tool, "c", "as foreseen")])
    assert after == before.replace("| c | undetermined |", "| c | as foreseen |").replace(
        "3 scenarios: 2 held, 1 undetermined.", "3 scenarios: 1 as foreseen, 2 held."
    )


def test_what_a_part_cannot_tell_is_refused(tool):
    """A scenario without a row, a break that is new, and breaks that are there already."""
    held = tool["page"]([row(tool, "a", "held")], "1 s")
    broken = row(tool, "a", "broken", ["no-bug: a WARN"])
    for text, new in (
        (held, row(tool, "b", "held")),
        (held, broken),
        (tool["page"]([broken], "1 s"), row(tool, "a", "held")),
    ):
        with pytest.raises(ValueError, match="make the whole page anew"):
            tool["renewed"](text, [new])


def test_the_page_that_is_there_counts_its_rows(tool):
    """docs/verdicts.md, renewed by nothing, stays as it is: its counts are those of its rows."""
    text = tool["PAGE"].read_text(encoding="utf-8")
    assert tool["renewed"](text, []) == text
    head, _, table = text.partition("| --- |")
    assert int(re.search(r"(\d+) scenarios:", head)[1]) == len(table.splitlines()) - 1
