"""The fact tables and single refusals hold, and each judge notices broken modules."""

from __future__ import annotations

import json

import pytest

from septum.conform import mutate
from septum.conform.judges import refusals_hold, tables_hold
from septum.conform.mutants import Applied, Mutant, all_mutants
from septum.conform.refusals import CASES, wrong_refusals
from septum.conform.tables import accept_by_state, leaf_by_state, one_lock_held

MUTANTS = {(m.function, m.test): m for m in all_mutants()}


@pytest.mark.parametrize("dynamic_pamt", [False, True])
@pytest.mark.parametrize("table", [leaf_by_state, accept_by_state, one_lock_held])
def test_the_facts_tables_hold(table: object, dynamic_pamt: bool) -> None:
    assert callable(table)
    assert table(dynamic_pamt) == []


def test_what_must_be_refused_is_refused() -> None:
    assert wrong_refusals() == []
    assert len(CASES) > 100


def test_every_check_has_a_mutant() -> None:
    """At least 40 are asked for; a mutant that cannot be applied would raise here."""
    mutants = all_mutants()
    assert len(mutants) >= 150
    for mutant in mutants:
        with Applied(mutant):
            pass


def find(function: str, test: str) -> Mutant:
    """The mutant of `function` whose test contains `test`."""
    (mutant,) = (m for m in MUTANTS.values() if m.function == function and test in m.test)
    return mutant


@pytest.mark.parametrize(
    ("function", "test"),
    [
        ("begin", "found & LOCK"),
        ("check_tracking", "BLOCKED_STATES"),
        ("tdh_mem_range_block", "_BLOCK_STATES"),
        ("tdg_mem_page_accept", "state == STATE_MAPPED"),
        ("tdh_mem_track", "try_ex"),
    ],
)
def test_the_tables_notice(function: str, test: str) -> None:
    with Applied(find(function, test)):
        assert tables_hold()
    assert tables_hold() == ""


@pytest.mark.parametrize(
    ("function", "test"),
    [
        ("can_merge", "GPA_ALIGN"),
        ("tdh_vp_init", "max_vcpus"),
        ("_configure", "max_vcpus"),
        ("poll_host", "LOCK_HP"),
    ],
)
def test_the_refusals_notice(function: str, test: str) -> None:
    with Applied(find(function, test)):
        assert refusals_hold()
    assert refusals_hold() == ""


@pytest.mark.parametrize(
    ("function", "test"),
    [
        ("_reclaim", "td.chldcnt"),
        ("tdh_mem_page_aug", "_AUG_STATES"),
        ("Pamt.lock_free_2m", "used"),
    ],
)
def test_the_fuzzer_notices(function: str, test: str) -> None:
    with Applied(find(function, test)):
        assert mutate.judge_fuzz()


def test_the_kill_table_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--jobs", "1", "--only", "mem_range.tdh_mem_track", "--first"]
    assert mutate.main(argv) == 0
    text = capsys.readouterr().out
    assert " of the rest cannot be noticed" in text
    assert all(len(line) <= 80 for line in text.splitlines())
    assert mutate.main([*argv, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2


def test_a_check_that_nobody_misses_fails_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutate, "JUDGES", ("tables",))
    assert mutate.main(["--jobs", "1", "--only", "mng.tdh_mng_addcx"]) == 1
