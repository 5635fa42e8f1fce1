"""Two judges on scenarios from dice, with all that a host does to VMs that come and go."""

import pytest
from drawn import SMALL, drawn_scenario
from judging import judges_agree

from septum.explore.exhaustive.graph import GraphSearch
from septum.explore.exhaustive.node import Node

SEEDS = [seed for seed in range(17) if seed not in (1, 2, 4, 11, 12, 14, 15)]
"""Without those that the plain judge takes long for, or comes to nothing of."""
SCHEDULES = 80
"""Scenarios that have more are left out. Of these none has between 76 and 150."""


def agreed(tmp_path, seed: int, *how: str, expects: bool = False) -> bool:  # type: ignore[no-untyped-def]
    """Whether there was something to compare. AssertionError: the judges do not agree. `how`: on
    which design, and when promises look, if not on v3 at the end."""
    path = tmp_path / f"drawn-{seed}.toml"
    path.write_text(drawn_scenario(seed, SMALL, expects=expects), encoding="utf-8")
    return judges_agree(str(path), SCHEDULES, *how)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_judges_agree(tmp_path, seed: int) -> None:  # type: ignore[no-untyped-def]
    """On how runs end and on what breaks, within no preemption and within one."""
    assert agreed(tmp_path, seed)


@pytest.mark.parametrize("seed", [0, 5, 9, 10])
def test_the_judges_agree_on_what_is_expected(tmp_path, seed: int) -> None:  # type: ignore[no-untyped-def]
    """Of operations that must come to `ok`, and do not always."""
    assert agreed(tmp_path, seed, expects=True)


@pytest.mark.parametrize(
    ("seed", "bug", "check"),
    [
        (0, "no-track", "end"),
        (0, "no-track", "quiet"),
        (10, "retries-going-slot", "end"),
        (10, "retries-going-slot", "quiet"),
        (2002, "seq-not-checked", "quiet"),
        (38, "split-cache-one-pair", "end"),
        (2002, "module-accept-unlocked", "quiet"),
    ],
)
def test_the_judges_agree_on_broken_hosts(tmp_path, seed: int, bug: str, check: str) -> None:  # type: ignore[no-untyped-def]
    """Also where promises look after every operation."""
    assert agreed(tmp_path, seed, f"bug-{bug}", check)


def test_the_judges_agree_where_the_setup_breaks(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Of a guest that uses what it has not accepted, in a VM without #VE."""
    assert agreed(tmp_path, 700002)


def test_a_search_that_lets_nobody_else_run_is_noticed(monkeypatch, tmp_path) -> None:  # type: ignore[no-untyped-def]
    def first(self: GraphSearch, node: Node) -> int | None:
        return node.todo.pop(0) if node.answer < 0 and node.todo else None

    monkeypatch.setattr(GraphSearch, "_next", first)
    with pytest.raises(AssertionError):
        agreed(tmp_path, 2)
    with pytest.raises(AssertionError):
        agreed(tmp_path, 2002, "bug-seq-not-checked", "quiet")
