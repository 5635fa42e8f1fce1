"""`septum explore` and `septum replay` as a user meets them: words, mistakes, files."""

import json
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from septum.cli.exits import guarded
from septum.cli.main import app
from septum.errors import InputError
from septum.explore import Options, Outcome, Strategy, Verdict, explore
from septum.explore.api import DidNotRepeat, Search
from septum.explore.command import verdict_lines
from septum.explore.ktap import verdict_case
from septum.explore.replay import replay_answers
from septum.explore.toybox import LOCKED_UPDATE, RARE
from septum.explore.toys import Toy
from septum.scenarios.run import LIBRARY


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
    said = "\n".join(verdict_lines(verdict(1)))
    case = verdict_case(msgspec.structs.replace(verdict(1), outcome=Outcome.HELD), [])
    said += "\n".join(case.diagnostics)
    assert not re.search(
        r"\b1 (?:\w+ )*?(?!is\b|as\b|S\b)\w+s\b",
        " ".join(said.replace("S-EPT", "EPT").replace("of tasks", "of two").split()),
    )
    many = "\n".join(verdict_lines(verdict(2)))
    for noun in ("preemption", "failure", "schedule", "state", "step", "SEAMCALL outcome"):
        assert f"1 {noun}" in said and f"2 {noun}s" in many
    assert "2 choices other than the ordinary" in " ".join(many.split())


def test_ktap_tells_of_all_that_breaks_one_promise() -> None:
    """What it says in a line is what broke first."""
    (example,) = explore(RARE, Options()).counterexamples
    other = msgspec.structs.replace(example.finding, text="something else")
    both = [example, msgspec.structs.replace(example, finding=other)]
    broken = msgspec.structs.replace(
        verdict(1), outcome=Outcome.BROKEN, design="", counterexamples=both
    )
    (case,) = verdict_case(broken, [["one"], ["two"]]).subtests
    assert case.data == example.finding.text
    assert list(case.diagnostics) == ["one", "", "two"]


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


def test_an_interrupt_between_two_jobs_keeps_what_was_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("septum.explore.api.split", interrupted)
    assert cli("explore", "toy:rare", "--keep-going", "--no-watch", "--workers", "1") == 1
    out = capsys.readouterr().out
    assert out.startswith("BROKEN: toy:rare") and "interrupted" in out


@pytest.mark.parametrize("workers", ["1", "2"])
def test_sigterm_is_an_interrupt(workers: str) -> None:
    """`timeout 60 septum explore ...`: what was found is kept. Workers end as they always do."""
    code = (
        "import os, signal, sys\n"
        "from septum.cli.main import run_and_exit\n"
        "from septum.explore import api\n"
        "def ended(*args):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    signal.pause()\n"
        "api.split = ended\n"
        f"sys.argv[1:] = 'explore toy:rare --keep-going --no-watch --workers {workers}'.split()\n"
        "run_and_exit()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("BROKEN: toy:rare") and "interrupted" in done.stdout


def test_an_interrupt_while_the_story_is_told_keeps_the_token(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The verdict, what broke and the token come out, and the exit code is that of the verdict."""

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("septum.explore.stories.telling.Recording", interrupted)
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


@pytest.mark.parametrize("says", ["broken", "may-break"])
def test_what_does_not_break_as_the_scenario_says_is_said(
    says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where all was searched: an expectation that nothing meets hides what breaks in another way.
    Of another design the scenario does not speak."""
    text = (LIBRARY / "convert-one-page.toml").read_text(encoding="utf-8")
    path = tmp_path / "page.toml"
    entry = f'[expect]\n{says} = ["precise-zap: of nobody"]'
    path.write_text(text.replace("[expect]", entry), encoding="utf-8")
    words = ("explore", str(path), "--no-watch")
    said = "did not break here, though the scenario says so of v3: precise-zap: of nobody"
    for more, code, told in (
        ((), 0, True),
        (("--check", "quiet"), int(says == "broken"), True),
        (("--schedules", "1", "--strategy", "random"), 3, False),
        (("--design", "v3-f2-repaired"), 0, False),
    ):
        assert cli(*words, *more) == code
        out = " ".join(capsys.readouterr().out.split())
        assert (said in out) == told
        # Damage that is gone when a run has ended is not seen by default.
        assert ("promises were looked at when the programs had ended" in out) == (
            "--check" not in more
        )


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


def test_an_interrupt_keeps_what_was_found_before(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Search.run

    def second(self: Search) -> Verdict:
        if self.progress.subject == "toy:locked-update":
            raise KeyboardInterrupt
        return run(self)

    monkeypatch.setattr(Search, "run", second)
    assert cli("explore", "toy:rare", "toy:locked-update", "--json", "--workers", "1") == 1
    said = capsys.readouterr()
    assert [v["subject"] for v in json.loads(said.out)["verdicts"]] == ["toy:rare"]
    assert said.err == "septum: interrupted\n"


# Mistakes

MISTAKES = {
    "no folder can be there": ("--report", "/dev/null/x"),
    "a folder that is none": ("--report", "FILE"),
    "no folder for the test": ("--emit-test", "/nonexist/x.py"),
    "a test that is a folder": ("--emit-test", "."),
    "workers": ("--workers", "10000"),
    "no time": ("--time", "0"),
    "less than no time": ("--time", "-1"),
    "no number": ("--time", "nan"),
    "no schedules": ("--schedules", "0"),
    "fewer than none": ("--schedules", "-3"),
    "preemptions": ("--preemptions", "-2"),
    "failures": ("--failures", "-1"),
    "a seed that no report can hold": ("--seed", "9" * 20),
    "no way to check": ("--check", "sometimes"),
    "two formats": ("--json", "--ktap"),
    "a name that is none": ("nosuch", "--json"),
    "a name that is none, as KTAP": ("nosuch", "--ktap"),
}


@pytest.mark.parametrize("words", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_sentence_before_anything_is_searched(
    words: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It names the option or the word that is wrong."""
    (tmp_path / "FILE").write_text("kept")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Search, "run", None)
    assert cli("explore", "toy:locked-update", *words) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert said.err.startswith("septum: ") and words[0] in said.err
    assert [path.name for path in tmp_path.iterdir()] == ["FILE"]
    assert (tmp_path / "FILE").read_text() == "kept"


@pytest.mark.parametrize(
    "words", [("--preemptions", "99999999999"), ("--failures", "99999999999"), ("--time", "inf")]
)
def test_a_bound_that_no_run_reaches_is_none(
    words: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli("explore", "toy:failing", "--workers", "1", "--schedules", "20", *words) in (1, 3)


def test_a_large_bound_is_not_searched_one_by_one() -> None:
    options = Options(preemptions=40_000, strategy=Strategy.EXHAUSTIVE)
    assert (
        explore(LOCKED_UPDATE, options).why == "complete: all with 40,000 preemptions, 0 failures"
    )


def test_too_many_processes_are_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(self: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("multiprocessing.context.ForkProcess.start", full)
    assert cli("explore", "toy:rare", "--workers", "2") == 2
    assert "--workers 2" in capsys.readouterr().err


def test_what_cannot_be_written_in_the_end_does_not_hide_the_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("septum.explore.artefacts._write", full)
    words = ("--emit-test", str(tmp_path / "test_it.py"), "--workers", "1", "--json")
    assert cli("explore", "toy:rare", *words) == 2
    said = capsys.readouterr()
    assert json.loads(said.out)["verdicts"][0]["outcome"] == "broken"
    assert "No space left" in said.err


# Designs that do not do the same twice

UNSTEADY = '''
{imports}
from septum.linux.kvm.tdx import KvmTdxUnit

CALLS = [0]


class Odd(KvmTdxUnit):
    """Now this, now that."""

    __slots__ = ()

    def tdx_track(self, kvm):
        {draws}
            return super().tdx_track(kvm)
        err, _, _ = self.tdh_do_no_vcpus(self.host.x86_tdx.tdh_mem_track, kvm, kvm.tdx)
        if err:
            self.tdx_bug_on(err, "TDH_MEM_TRACK", kvm)
'''


@pytest.mark.parametrize(
    ("imports", "draws", "look"),
    [
        ("import random", "if random.random() < 0.99:", "line 14: random "),
        ("from random import random as r", "if r() < 0.99:", "line 14: r of random "),
        ("from time import time", "if int(time() * 1000) % 7:", "line 14: time "),
        ("", "CALLS[0] += 1\n        if CALLS[0] % 7:", "look at CALLS in line 14"),
    ],
)
def test_a_design_that_is_not_deterministic_is_told_where_to_look(
    imports: str, draws: str, look: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also one that differs too seldom for a search to see it."""
    path = tmp_path / "odd.py"
    path.write_text(UNSTEADY.format(imports=imports, draws=draws))
    design = f"{path}:Odd"
    words = ("--design", design, "--workers", "1", "--strategy", "exhaustive")
    assert cli("explore", "convert-against-fault", *words) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert str(path) in said.err and look in said.err


def test_what_is_found_at_the_end_says_nothing_of_the_design(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first run takes the VM down, which takes time; those after it know how that ends."""
    path = tmp_path / "mine.py"
    path.write_text(
        "from septum.linux.kvm.tdx import KvmTdxUnit\n\n\nclass Mine(KvmTdxUnit):\n"
        "    __slots__ = ()\n\n    def tdx_track(self, kvm):\n        super().tdx_track(kvm)\n"
    )
    scenario = tmp_path / "s.toml"
    scenario.write_text(
        'summary = "s"\n[guest]\nvcpu0 = ["accept page 0", "accept page 1 => refused"]\n'
        '[host]\na = ["allocate frame 0"]\n'
    )
    words = ("--design", f"{path}:Mine", "--workers", "1")
    assert cli("explore", str(scenario), *words) == 1
    assert "`accept page 1` came to ok, not refused" in " ".join(capsys.readouterr().out.split())


def test_a_finding_that_does_not_repeat_is_the_designs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is seen only by a search; of a design of the tree it is a defect of Septum."""
    path = tmp_path / "odd.py"
    path.write_text(UNSTEADY.format(imports="", draws="if CALLS:"))

    def run(self: Search) -> Verdict:
        raise DidNotRepeat("a finding did not repeat: mirror: it")

    monkeypatch.setattr(Search, "run", run)
    words = ("explore", "convert-one-page", "--workers", "1")
    assert cli(*words, "--design", f"{path}:Odd") == 2
    assert "is not deterministic" in capsys.readouterr().err
    assert cli(*words) == 70


# Tests that are emitted


def run_test(path: Path, folder: Path) -> "subprocess.CompletedProcess[str]":
    """pytest, in `folder`."""
    words = ("-q", "-p", "no:cacheprovider", "--rootdir", str(path.parent))
    return subprocess.run(
        [sys.executable, "-m", "pytest", *words, str(path)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_all_counterexamples_are_emitted_and_found_again_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two scenarios, one of them a file beside the test's folder, and a design in a file."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "elsewhere").mkdir()
    library = LIBRARY / "convert-against-fault.toml"
    (tmp_path / "mine.toml").write_text(library.read_text())
    (tmp_path / "own.py").write_text(UNSTEADY.format(imports="", draws="if not CALLS:"))
    monkeypatch.chdir(tmp_path)
    names = ("convert-against-fault", "mine.toml", "mine.toml")
    words = ("--emit-test", "tests/test_it.py", "--design", "own.py:Odd", "--workers", "1")
    assert cli("explore", *names, *words) == 1
    path = tmp_path / "tests" / "test_it.py"
    text = " ".join(path.read_text().split())
    functions = re.findall(r"def (test_\w+)", text)
    assert len(set(functions)) == len(functions) == 3
    assert text.count("--preemptions 2 --failures 0 --check end --seed 0`") == 3
    tokens = re.findall(r'Token: ([^"]+)"""', text)
    assert len(tokens) == 3
    for token in tokens:
        assert cli("replay", token) == 1
    done = run_test(path, tmp_path / "elsewhere")
    assert done.returncode == 1 and "3 failed" in done.stdout
    assert "no scenario" not in done.stdout and "cannot be read" not in done.stdout


def test_an_emitted_test_whose_schedule_does_not_fit_does_not_pass(tmp_path: Path) -> None:
    """Answers that nobody asks for, or that are too large for their question, on a host on which
    the promise holds; the sentence says what to do. The schedule that fits passes."""
    for answers in ([7, 1], [0] * 5000 + [1]):
        with pytest.raises(InputError, match="not fit this host any more: search again with `"):
            replay_answers("toy:locked-update", "", answers, "end", "septum explore it")
    assert replay_answers("toy:locked-update", "", [0, 1, 0, 0]) is None


def test_one_preemption_does_where_two_were_needed_to_find_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Who has the processor must have it a little longer, and who gets it as long as it can:
    neither alone breaks it, so that no small change of the schedule leads there."""
    words = ("slot-delete-against-prefault", "--design", "bug-no-srcu", "--no-watch")
    assert cli("explore", *words, "--ignore", "use after free") == 1
    assert ", 1 preemption (found with 2), " in " ".join(capsys.readouterr().out.split())
