"""What `septum replay` prints of a token that somebody got by mail: the story that the search told,
word for word, but for what only the search knows."""

import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from septum import __version__
from septum.cli.exits import guarded
from septum.cli.main import app
from septum.explore.replay import find_subject
from septum.explore.runs.run import DidNotRepeat
from septum.scenarios.outcome import ScenarioOutcome, outcome_lines
from septum.sim import ListSchedule, encode_token
from septum.sim.schedule import SEARCHED

NO_TRACK = """
from septum.linux.kvm.tdx import KvmTdxUnit


class NoTrack(KvmTdxUnit):
    __slots__ = ()

    def tdx_track(self, kvm):
        return
"""
Printed = Callable[..., tuple[int, str]]


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Printed:
    """Exit code and output of a command line."""

    def run(*words: str) -> tuple[int, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            app(words, standalone_mode=False)
        assert isinstance(stop.value.code, int)
        return stop.value.code, capsys.readouterr().out

    return run


def parts(text: str) -> dict[str, str]:
    """A story's head (verdict and token), its size, all else up to the last command, and what
    follows that."""
    story = text[text.index("BROKEN: promise") :]
    size = re.search(r"^The (?:shortest|schedule of)[^.]*\.$", story, re.M)
    head, rest = story.split("\n\n", 1)
    last = r"test_it\.py" if "test_it.py" in rest else "septum replay 'TOKEN'"
    command, after = re.split(rf"(?<={last})\n", rest, maxsplit=1)
    assert size is not None
    told = command.replace(size[0], "SIZE")
    return {"head": head, "size": size[0], "told": told, "after": after}


def without_test(text: str) -> str:
    """A story without the command for a test: a token alone is replayed, not searched for again."""
    return text.partition("Test:")[0].rstrip()


@pytest.mark.parametrize(
    ("scenario", "design"),
    [
        ("convert-against-write", "bug-no-kick"),
        ("punch-enomem", "bug-punch-never-ends"),
        ("slot-delete-against-fault", "bug-retries-going-slot"),  # a task lets others run
        ("toy:rare", "v3"),
    ],
)
def test_a_token_tells_the_story_of_its_search(
    scenario: str, design: str, printed: Printed
) -> None:
    """The same bytes: token, cause, ladder, why-lines, the nearest schedule that passes, and the
    commands. What it does not know it says."""
    code, text = printed("explore", scenario, "--design", design, "--no-watch")
    assert code == 1
    searched = parts(text)
    token = searched["head"].split("token: ")[1]
    code, text = printed("replay", token)
    assert code == 1
    assert text.startswith("BROKEN: promise ")
    assert max(map(len, text.split("\n\n" + scenario)[0].splitlines())) <= 80
    again = parts(text)
    head = " ".join(searched["head"].split()).replace(" (seed 0)", "")
    assert " ".join(again["head"].split()) == head
    assert without_test(again["told"]) == without_test(searched["told"])
    assert "nearest schedule that passes" in again["told"]
    found = re.sub(r" \(found with \d+\)", "", " ".join(searched["size"].split()))
    size = found.replace("The shortest schedule found", "The schedule of the token")
    assert " ".join(again["size"].split()) == size
    assert "are not in the token" in again["after"]


def test_a_scenario_that_is_not_of_the_tree_is_a_file(tmp_path: Path, printed: Printed) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(find_subject("convert-one-page").scenario.text)  # type: ignore[attr-defined]
    subject = find_subject(str(path), "v3-without-08")
    token = encode_token(__version__, subject.recipe, ListSchedule([], SEARCHED))
    code, text = printed("replay", token)
    assert code == 1
    assert "Test:     septum replay 'TOKEN' --emit-test test_it.py" in text


def test_a_design_that_does_not_do_the_same_twice_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the run of a story comes out in another way than the one before; of a design of the
    tree that is a defect of Septum."""
    (tmp_path / "mine.py").write_text(NO_TRACK)

    def again(*args: object) -> None:
        raise DidNotRepeat("a finding did not repeat")

    monkeypatch.setattr("septum.explore.stories.telling.Recording", again)
    for design, code in ((f"{tmp_path}/mine.py:NoTrack", 2), ("bug-no-track", 70)):
        recipe = find_subject("convert-against-write", design).recipe
        token = encode_token(__version__, recipe, ListSchedule([], SEARCHED))
        assert guarded(lambda token=token: app(["replay", token])) == code
        told = " ".join(capsys.readouterr().err.split())
        assert ("mine.py:NoTrack is not deterministic" in told) == (code == 2)


def outcome_of(token: str, printed: Printed) -> tuple[int, ScenarioOutcome]:
    """Of --json, which tells no story."""
    code, text = printed("replay", token, "--json")
    return code, msgspec.json.decode(text, type=ScenarioOutcome)


@pytest.mark.parametrize("origin", [0, SEARCHED])
def test_a_run_that_breaks_nothing_is_told_in_short(origin: int, printed: Printed) -> None:
    """The outcome and nothing else; so it is with --json, whatever breaks."""
    recipe = find_subject("convert-one-page").recipe
    token = encode_token(__version__, recipe, ListSchedule([], origin))
    code, outcome = outcome_of(token, printed)
    assert (code, outcome.ok) == (0, True)
    assert printed("replay", token) == (0, "\n".join(outcome_lines(outcome)) + "\n")


def test_the_outcome_follows_the_story(printed: Printed) -> None:
    """Also of a run that breaks what the scenario foresees, which is no failure; its schedule is
    of no search, so that no search is spoken of."""
    recipe = find_subject("finding-demote-busy-dpamt").recipe
    token = encode_token(__version__, recipe, ListSchedule([]))
    code, outcome = outcome_of(token, printed)
    assert (code, outcome.held) == (0, False)
    code, text = printed("replay", token)
    assert code == 0
    assert text.endswith("\n\n" + "\n".join(outcome_lines(outcome)) + "\n")
    story = " ".join(text.split())
    assert story.startswith("BROKEN: promise no-bug in scenario finding-demote-busy-dpamt")
    assert "as the scenario foresees" in story and "Cause: KVM_BUG_ON" in story
    assert "The run: " in story and "search" not in story.split("Why:")[0]


def test_near_a_run_of_no_search_one_that_passes_is_looked_for(
    printed: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where two vCPUs must meet, the story of any such run says at which step. Not of long ones:
    each try would take as long as the run."""
    _, text = printed("run", "finding-folio-lock", "--schedule", "random", "--seed", "6")
    (token,) = re.findall(r"septum replay (septum1\S+)", text)
    story = printed("replay", token)[1]
    preempted = re.findall(r"^ +(\d+) >> .* (\w+) is at ", story, re.M)
    passes = re.search(
        r"^The nearest schedule that passes lets (\w+) go on at step (\d+)\.$", story, re.M
    )
    assert passes is not None and passes.groups()[::-1] == preempted[-1]
    monkeypatch.setattr("septum.explore.stories.retell.NEAR_MAX", 0)
    assert "passes" not in printed("replay", token)[1]


def test_a_task_that_has_to_wait_is_not_preempted(printed: Printed) -> None:
    """Right after it was preferred to another one: the story marks as many switches as the run has
    preemptions."""
    _, text = printed("run", "finding-folio-lock", "--schedule", "random", "--seed", "6")
    (token,) = re.findall(r"septum replay (septum1\S+)", text)
    story = printed("replay", token)[1]
    counted = re.search(r"points, (\d+) preemptions", story)
    assert counted is not None and len(re.findall(r"^ +\d+ >> ", story, re.M)) == int(counted[1])
