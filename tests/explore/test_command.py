"""`septum explore` and `septum replay` as a user meets them: words, mistakes, files."""

import re

import msgspec
import pytest

from septum.cli.exits import guarded
from septum.cli.main import app
from septum.explore import Options, Outcome, Strategy, Verdict, explore
from septum.explore.command import verdict_lines
from septum.explore.ktap import verdict_case
from septum.explore.toybox import LOCKED_UPDATE
from septum.explore.toys import Toy


def cli(*words: str) -> int:
    """The exit code of a command."""
    return guarded(lambda: app(list(words), standalone_mode=True))


# Words


def verdict(count: int) -> Verdict:
    """One in which everything was counted so often."""
    kinds = ("call", "tdcall", "choice", "wait", "sept", "contend")
    return Verdict(
        outcome=Outcome.UNDETERMINED,
        subject="one",
        design="v3",
        strategy="auto",
        seed=0,
        preemptions=count,
        failures=count,
        complete=False,
        why="why",
        schedules=count,
        states=count,
        steps=count,
        seconds=0.5,
        coverage={f"{kind}:{nr}": 1 for kind in kinds for nr in range(count)},
    )


def test_one_is_one_and_two_are_two() -> None:
    """Numbers and nouns agree in all that a verdict says."""
    said = "\n".join(verdict_lines(verdict(1), Options()))
    case = verdict_case(msgspec.structs.replace(verdict(1), outcome=Outcome.HELD), [])
    said += "\n".join(case.diagnostics)
    assert not re.search(r"\b1 (?:\w+ )*?(?!is\b|as\b|S\b)\w+s\b", said.replace("S-EPT", "EPT"))
    many = "\n".join(verdict_lines(verdict(2), Options()))
    for noun in ("preemption", "failure", "schedule", "state", "step", "SEAMCALL outcome"):
        assert f"1 {noun}" in said and f"2 {noun}s" in many
    assert "2 choices other than the ordinary" in " ".join(many.split())


def test_a_level_of_one_is_said_so() -> None:
    options = Options(preemptions=1, failures=1, strategy=Strategy.EXHAUSTIVE)
    toy = Toy("may-fail", [(("fail", 1, 1),), (("read", 0),)])
    assert explore(toy, options).why == "complete: all with 1 preemption, 1 failure"


def test_a_strategy_is_named_once() -> None:
    for strategy, words in (
        (Strategy.RANDOM, "1 random schedule broke nothing"),
        (Strategy.PCT, "1 random schedule (PCT) broke nothing"),
    ):
        assert explore(LOCKED_UPDATE, Options(strategy=strategy, schedules=1)).why == words


def test_help_and_mistake_name_the_same_strategies(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("explore", "--help") == 0
    told = " ".join(capsys.readouterr().out.split())
    assert cli("explore", "toy:rare", "--strategy", "best") == 2
    mistake = capsys.readouterr().err
    listed = told.partition("--strategy")[2].partition("[default:")[0]
    for strategy in Strategy:
        assert strategy.value in listed and strategy.value in mistake


# Interrupts


def test_an_interrupt_before_there_is_anything_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("septum.explore.command.explore_command", interrupted)
    assert cli("explore", "toy:rare") == 130
    assert capsys.readouterr().err == "septum: interrupted\n"


def test_an_interrupt_while_the_story_is_told_keeps_the_token(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The verdict, what broke and the token come out, and the exit code is that of the verdict."""

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("septum.explore.command.Recording", interrupted)
    assert cli("explore", "toy:rare", "--no-watch") == 1
    out = capsys.readouterr().out
    assert out.startswith("BROKEN: toy:rare") and "Cause: " in out
    assert "Interrupted before its story was told" in out
    token = out[out.index("token: ") :].split("\n\n")[0].removeprefix("token: ").replace("\n", "")
    assert cli("replay", token) == 1


# What a verdict is not silent about


def test_what_breaks_as_the_scenario_says_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """v3 breaks a promise in it: to call that held would be no honest verdict. Of what breaks
    nothing it is not said."""
    assert cli("explore", "finding-attributes-late", "--preemptions", "1", "--no-watch") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert out.startswith("AS FORESEEN: finding-attributes-late on v3")
    assert "breaks, as the scenario says of v3: mapping-in-folio: vm1: the 4K leaf" in out
    assert cli("explore", "convert-one-page", "--no-watch") == 0
    assert "AS FORESEEN" not in (out := capsys.readouterr().out) and out.startswith("HELD")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_what_is_foreseen_is_in_the_json(workers: str, capsysbinary) -> None:  # type: ignore[no-untyped-def]
    words = ("--preemptions", "1", "--workers", workers, "--json")
    assert cli("explore", "finding-attributes-late", *words) == 0
    report = msgspec.json.decode(capsysbinary.readouterr().out)
    (verdict,) = report["verdicts"]
    promises = [text.partition(":")[0] for text in verdict["foreseen"]]
    assert promises == ["mapping-in-folio", "private-unreachable"]
    assert verdict["outcome"] == "held" and not verdict["counterexamples"]


def test_failures_where_nothing_fails_are_not_claimed(capsys: pytest.CaptureFixture[str]) -> None:
    """A scenario that allows no failure was not searched with one."""
    assert cli("explore", "convert-one-page", "--failures", "1", "--no-watch") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "nothing fails here: the scenario's [failures] allow names no choice point" in out
    assert "1 failure" not in out
    assert cli("explore", "convert-one-page", "--no-watch") == 0
    assert "nothing fails here" not in capsys.readouterr().out
