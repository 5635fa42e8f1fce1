"""What breaks before the programs begin is a finding, whoever searches: every schedule has it."""

import json
from pathlib import Path

import pytest
from hosts import KEEPS
from typer.testing import CliRunner, Result

from septum.cli.main import app
from septum.errors import InputError

SCENARIO = """
summary = "The guest uses a page that it has not accepted, and later another vCPU runs."
setup = ["vcpu0: use 4K page 0"]

[guest]
vcpu1 = ["accept 4K page 7"]

[expect]
may-end = ["Guest access before accepting"]
"""
BROKEN = "accept-once: Guest access before accepting 0x80000000 on vCPU 0"


def explored(path: Path, *words: str) -> Result:
    return CliRunner().invoke(app, ["explore", str(path), "--no-watch", *words])


def scenario(folder: Path, more: str = "") -> Path:
    path = folder / "before.toml"
    path.write_text(SCENARIO + more, encoding="utf-8")
    return path


@pytest.mark.parametrize("strategy", ["auto", "exhaustive", "pct", "random", "plain"])
@pytest.mark.parametrize("check", ["end", "every-step"])
def test_what_the_setup_breaks_is_found(tmp_path: Path, strategy: str, check: str) -> None:
    """By its token, too; and the story says when it broke."""
    result = explored(scenario(tmp_path), "--strategy", strategy, "--check", check, "--json")
    (verdict,) = json.loads(result.output)["verdicts"]
    (example,) = verdict["counterexamples"]
    assert result.exit_code == 1 and verdict["outcome"] == "broken"
    assert f"{example['finding']['promise']}: {example['finding']['text']}" == BROKEN
    assert example["steps"] == 0 and not example["answers"]
    again = CliRunner().invoke(app, ["replay", example["token"]])
    assert again.exit_code == 1
    told = " ".join(again.output.split())
    assert "Broken by the setup, in `vcpu0: use 4K page 0`, before the programs begin" in told
    assert "No schedule passes: each of them begins with the setup." in told
    assert "No passing schedule was found" not in told


def test_workers_and_who_goes_on_find_the_same(tmp_path: Path) -> None:
    """Nothing comes after it: a run ends with the first that is news."""
    for words in (("--workers", "2"), ("--keep-going",)):
        result = explored(scenario(tmp_path), *words)
        told = " ".join(result.output.split())
        assert result.exit_code == 1 and told.count("BROKEN: promise accept-once") == 1
        assert "Broken by the setup, in `vcpu0: use 4K page 0`, before the programs" in told


def test_a_host_that_never_lets_the_setup_end(tmp_path: Path) -> None:
    """What it breaks is told as what any setup breaks; who ignores that has nothing to search."""
    mine = tmp_path / "mine.py"
    mine.write_text(KEEPS, encoding="utf-8")
    words = ["convert-one-page", "--design", f"{mine}:Keeps"]
    kept = "locking: main has ended KVM_SET_USER_MEMORY_REGION2 and still holds vm1 slots_lock"
    for command in ("run", "report"):
        result = CliRunner().invoke(app, [command, *words])
        assert result.exit_code == 1 or command == "report"
        assert kept.partition(": ")[2] in " ".join(result.output.split())
    result = CliRunner().invoke(app, ["explore", *words, "--no-watch", "--json"])
    assert result.exit_code == 1, result.output
    (example,) = json.loads(result.output)["verdicts"][0]["counterexamples"]
    assert f"{example['finding']['promise']}: {example['finding']['text']}" == kept
    assert CliRunner().invoke(app, ["replay", example["token"]]).exit_code == 1
    ignored = [*words, "--no-watch", "--ignore", "locking: "]
    told = " ".join(CliRunner().invoke(app, ["explore", *ignored]).output.split())
    assert "Cause: main waits for vm1 slots_lock for ever (main, scheduler)." in told
    result = CliRunner().invoke(app, ["explore", *ignored, "--ignore", "progress: "])
    assert isinstance(result.exception, InputError)
    assert str(result.exception).endswith("for ever; nothing can be run or searched")


@pytest.mark.parametrize("strategy", ["auto", "exhaustive", "plain"])
def test_what_it_breaks_as_foreseen_is_said(tmp_path: Path, strategy: str) -> None:
    """And the programs are searched after it."""
    path = scenario(tmp_path, 'may-break = ["accept-once"]\n')
    result = explored(path, "--strategy", strategy)
    told = " ".join(result.output.split())
    assert result.exit_code == 0 and told.startswith("AS FORESEEN: before")
    assert f"breaks, as the scenario says of v3: {BROKEN}" in told
    assert "did not break here" not in told


def test_what_it_breaks_can_be_ignored(tmp_path: Path) -> None:
    """Then the rest is searched."""
    result = explored(scenario(tmp_path), "--ignore", "accept-once: ")
    told = " ".join(result.output.split())
    assert result.exit_code == 0 and "breaks, and is ignored: accept-once: " in told


WRONG = """
summary = "The second step of the setup comes to something else than it should."
setup = [
  "vcpu0: accept 4K page 0",
  "vcpu0: accept 4K page 1 => PAGE_ALREADY_ACCEPTED",
  "vcpu0: accept 4K page 2",
]

[guest]
vcpu0 = ["accept 4K page 7"]

[host]
convert = ["set-attributes page 9 to shared"]
"""


def test_a_step_that_comes_to_what_it_should_not_is_told_as_the_setup_s(tmp_path: Path) -> None:
    """Not as what the programs came to, which have no part in it."""
    path = tmp_path / "wrong.toml"
    path.write_text(WRONG, encoding="utf-8")
    result = explored(path, "--json")
    (example,) = json.loads(result.output)["verdicts"][0]["counterexamples"]
    again = CliRunner().invoke(app, ["replay", example["token"]])
    for result in (explored(path), again):
        told = " ".join(result.output.split())
        assert result.exit_code == 1
        assert "Broken by the setup, in `vcpu0: accept 4K page 1`, before the programs" in told
        assert "No schedule passes: each of them begins with the setup." in told
        story = told.partition("No schedule passes")[0]
        assert "0x80001000" in story and "0x80002000" not in story and "convert" not in story


def test_what_breaks_within_a_call_of_the_module_says_which() -> None:
    """The call has not ended, so that no step tells of it."""
    result = explored(Path("build-dirty-lines"), "--design", "bug-pages-not-flushed")
    assert "XX *  promise cache is broken in TDH.VP.CREATE\n" in result.output
