"""The commands of this room answer by text, by JSON and by exit code."""

import functools
import json

import pytest
from typer.testing import CliRunner

from septum.cli.main import app
from septum.conform import automaton
from septum.conform.mutants import Applied, all_mutants
from septum.errors import InputError

RUN = CliRunner().invoke


def test_fuzz_module() -> None:
    told = RUN(app, ["module", "fuzz", "--calls", "2000", "--seed", "5"])
    assert told.exit_code == 0
    assert "holds after 2000 calls, seed 5" in told.stdout
    told = RUN(app, ["module", "fuzz", "--calls", "2000", "--seed", "5", "--json"])
    assert json.loads(told.stdout)["calls"] == 2000
    assert isinstance(RUN(app, ["module", "fuzz", "--calls", "0"]).exception, InputError)


def test_fuzz_module_fails_on_a_broken_module_and_shows_the_last_calls() -> None:
    (mutant,) = (m for m in all_mutants() if m.test == "state not in _BLOCK_STATES")
    with Applied(mutant):
        told = RUN(app, ["module", "fuzz", "--calls", "5000"])
    assert told.exit_code == 1
    assert "BROKEN after" in told.stdout
    assert "TDH.MEM.RANGE.BLOCK" in told.stdout
    assert all(len(line) <= 80 for line in told.stdout.splitlines())


def test_module_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(automaton, "explore", functools.cache(automaton.explore))
    told = RUN(app, ["module", "table"])
    assert told.exit_code == 0
    assert "63 of 63 cells agree" in told.stdout
    told = RUN(app, ["module", "table", "--json"])
    table = json.loads(told.stdout)
    assert table["schema"] == "septum.module-table"
    assert {"state", "call", "answer"} == set(table["rows"][0])
    monkeypatch.setattr(automaton, "explore", lambda _dynamic: [])
    assert RUN(app, ["module", "table", "--json"]).exit_code == 1
