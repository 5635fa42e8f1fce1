"""An option that says nothing of what was asked for is refused, and says where it is said instead;
what `run` and `explore` call as expected `report` does, too."""

import json
from pathlib import Path

import pytest

from septum.cli.exits import BROKEN, OK, USAGE, guarded
from septum.cli.main import app
from septum.cli.run import bare_token
from septum.errors import InputError
from septum.explore.replay import find_subject
from septum.scenarios import boot
from septum.sim import ListSchedule, encode_token
from septum.stamp import stamp

NAME = "accept-level-b"


def code_of(*args: str) -> int:
    return guarded(lambda: app(list(args), standalone_mode=True))


def token_of(name: str, design: str = "v3") -> str:
    return encode_token(stamp(), find_subject(name, design).recipe, ListSchedule([]))


@pytest.fixture
def trace(tmp_path: Path) -> str:
    path = tmp_path / "run.jsonl"
    assert code_of("run", NAME, "--trace", str(path)) == OK
    return str(path)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ["--memory", "banana"],
            "--memory is of the boot, and this is a scenario: its file says it",
        ),
        (["--vcpus", "-1"], "its file says it, as `vcpus` in [vm]"),
        (["--backing", "thp"], "its file says it, as `backing` in [vm]"),
        (["--module", "zzz"], "its file says it, as `module` in [machine]"),
        (["--firmware", "/nonexistent"], "its VMs boot none"),
        (["--dynamic-pamt"], "as `dynamic-pamt = true` in [machine]"),
        (["--gmem-attributes"], "--gmem-attributes is of the boot"),
        (["--seed", "5"], "--seed 5: round-robin draws nothing; add --schedule random"),
        (["--schedule", "random", "--seed", "9" * 20], "give a number of at most 9223372036854775"),
        (["--json", "--ktap"], "--json and --ktap both write to stdout"),
    ],
)
def test_run_a_scenario(
    options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code_of("run", NAME, *options) == USAGE
    told = capsys.readouterr()
    assert sentence in told.err and told.err.count("\n") == 1 and not told.out


def test_run_a_scenario_with_what_it_can_be_given() -> None:
    assert code_of("run", NAME, "--schedule", "random", "--seed", "5", "--check", "end") == OK


@pytest.mark.parametrize(
    "options",
    [
        ["--vcpus", "0"],
        ["--memory", "64M"],
        ["--backing", "zzz"],
        ["--module", "zzz"],
        ["--design", "nosuch"],
        ["--seed", "5"],
        ["--json", "--ktap"],
    ],
    ids=" ".join,
)
def test_what_no_boot_can_be_given_is_told_before_a_firmware_is_fetched(
    options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(*args: object) -> None:
        raise AssertionError("the firmware was looked for")

    monkeypatch.setattr("septum.cli.run.acquire_firmware", fetch)
    monkeypatch.setattr("septum.cli.backing.acquire_firmware", fetch)
    assert code_of("run", *options) == USAGE
    if options[0] in ("--vcpus", "--memory", "--backing"):
        assert code_of("compare-backing", *options) == USAGE


def test_the_boot_knows_as_much() -> None:
    for wrong in ((1 << 20, 1, "thp"), (1 << 30, 0, "thp"), (1 << 30, 1, "8k")):
        with pytest.raises(InputError):
            boot.check_boot(*wrong)


def test_report_of_what_has_a_design(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    token = token_of(NAME)
    capsys.readouterr()
    for args, sentence in (
        ((trace, "--design", "nosuch"), "--design nosuch: this is a trace, and that of the run is"),
        ((token, "--design", "v3"), "--design v3: this is a token, and that of the run is in it"),
        ((trace, "--firmware", "x"), "--firmware x: this is a trace"),
        ((token, "--firmware", "x"), "--firmware x: this is a scenario, and its VMs boot none"),
        ((NAME, "--firmware", "x"), "--firmware x: this is a scenario"),
        ((NAME, "--design", "nosuch"), "no design is called 'nosuch'"),
    ):
        assert code_of("report", *args) == USAGE
        assert sentence in capsys.readouterr().err
    assert code_of("report", NAME, "--design", "v3-without-09") == OK


def test_replay_of_what_boots_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for token in (token_of(NAME), token_of("toy:rare")):
        assert code_of("replay", token, "--report", str(tmp_path / "d")) == USAGE
        assert "the folder is of a boot's report" in capsys.readouterr().err
        assert code_of("replay", token, "--firmware", "x") == USAGE
        assert "which boots none; leave it out" in capsys.readouterr().err
    assert not (tmp_path / "d").exists()


def test_a_toy_has_no_report_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    token = token_of("toy:rare")
    capsys.readouterr()
    assert code_of("replay", token, "--json") == USAGE
    assert "--json: the token is of toy:rare, which has no report" in capsys.readouterr().err


@pytest.mark.parametrize(
    "copied",
    [
        "septum replay {}",
        "$ septum replay '{}'",
        "'{}'",
        "`septum replay {}`",
        '  replay: septum replay "{}"\n',
        "Again:    septum replay \\\n            {}",
        "> token: {}",
    ],
)
def test_a_token_as_it_is_copied(copied: str) -> None:
    token = token_of(NAME)
    assert bare_token(copied.format(token)) == token
    assert bare_token(copied.format(f"{token[:20]}\n# {token[20:]}")) == token


def test_report_says_with_its_code_what_run_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the scenario foresees of v3 it does not foresee of a host that changes another one."""
    name = "finding-folio-split-enomem"
    path = tmp_path / "run.jsonl"
    assert code_of("run", name, "--trace", str(path)) == OK
    capsys.readouterr()
    for run in (name, str(path), token_of(name)):
        assert code_of("report", run) == OK
        assert "as the scenario foresees" in " ".join(capsys.readouterr().out.split())
    assert code_of("report", "convert-against-write", "--design", "v3-without-08") == BROKEN
    assert code_of("report", NAME) == OK


@pytest.mark.parametrize(
    "command",
    [
        "scenarios",
        f"run {NAME}",
        "designs --kind base",
        "module fuzz --calls 100",
        "explore toy:rare --workers 1",
    ],
)
def test_json_says_what_it_is(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As docs/formats.md promises: its schema is named."""
    code_of(*command.split(), "--json")
    assert json.loads(capsys.readouterr().out)["schema"].startswith("septum")


@pytest.mark.parametrize("words", ["run", "mrtd", "firmware", "conform", "trace", "report"])
def test_a_name_with_an_end_of_line_is_told_in_one_line(
    words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code_of(*words.split(), "a\nb.toml") == USAGE
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "a\\nb.toml" in told
