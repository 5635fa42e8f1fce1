"""A verdict is not lost by its story: what cannot be told of it is said, and why."""

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from septum.cli.main import app
from septum.errors import InputError
from septum.explore.command import explore_command
from septum.explore.wanted import Wanted
from septum.words import WIDTH

LEAVES = """
from septum.linux.kvm.tdx import KvmTdxUnit

class Key(KvmTdxUnit):
    __slots__ = ()
    def tdx_track(self, kvm):
        kvm.tdx.hkid = None

class Roots(KvmTdxUnit):
    __slots__ = ()
    def tdx_track(self, kvm):
        kvm.arch.tdp_mmu_roots = None
"""


def explored(folder: Path, name: str) -> Result:
    path = folder / "leaves.py"
    path.write_text(LEAVES, encoding="utf-8")
    words = ("convert-against-fault", "--design", f"{path}:{name}", "--workers", "1", "--no-watch")
    return CliRunner().invoke(app, ["explore", *words])


@pytest.mark.parametrize(("name", "function"), [("Key", "refresh"), ("Roots", "mirror_root")])
def test_what_nobody_can_look_at(tmp_path: Path, name: str, function: str) -> None:
    """All else is told: the steps, and what they changed before."""
    result = explored(tmp_path, name)
    assert result.exit_code == 1
    assert max(map(len, result.output.splitlines())) <= max(WIDTH, len(str(tmp_path)) + WIDTH)
    story = " ".join(result.output.replace("|", " ").split())
    assert story.startswith("BROKEN: convert-against-fault on ")
    assert "Cause: KVM_BUG_ON: SEAMCALL TDH_MEM_PAGE_REMOVE failed" in story
    untold = story.partition("What changes after step ")[2]
    step = int(untold.partition(" ")[0])
    assert untold.startswith(f"{step} cannot be told, as {function} (septum/checks/view.py, line ")
    assert "raises TypeError: " in untold
    assert "look at what the design assigns to the objects that are read there" in untold
    steps = story.partition("When it begins")[2]
    assert "~ S-EPT GFN 0x80000: 4K pending -> 4K blocked pending" in steps
    last = f" {step + 1} * TDH.MEM.PAGE.REMOVE 0x80000000 4K -> TDX_TLB_TRACKING_NOT_DONE RCX"
    assert last in steps
    assert "XX * promise no-bug is broken" in steps


NO_FAULT = """
from septum.linux.kvm.tdx import KvmTdxUnit

class Mine(KvmTdxUnit):
    __slots__ = ()
    def tdx_track(self, kvm):
        pass
"""


def raises(*_args: object, **_words: object) -> None:
    raise ValueError("nobody knows")


def test_where_the_damage_is_done_cannot_be_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.py"
    path.write_text(NO_FAULT)
    monkeypatch.setattr("septum.explore.stories.telling.damage_of", raises)
    assert explore_command(["convert-against-fault"], Wanted(design=f"{path}:Mine")) == 1
    story = " ".join(capsys.readouterr().out.split())
    assert "Where the damage is done cannot be told, as raises (" in story
    assert "raises ValueError: nobody knows; look at what the design assigns" in story
    assert " promise no-bug is broken " in story


def test_a_story_that_cannot_be_told_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Verdict, token, cause, and the commands that repeat it."""
    path = tmp_path / "mine.py"
    path.write_text(NO_FAULT)
    monkeypatch.setattr("septum.explore.stories.telling.Recording", raises)
    assert explore_command(["convert-against-fault"], Wanted(design=f"{path}:Mine")) == 1
    story = " ".join(capsys.readouterr().out.split())
    assert story.startswith("BROKEN: convert-against-fault on ")
    assert "token: septum1." in story
    assert "Cause: KVM_BUG_ON: SEAMCALL TDH_MEM_PAGE_" in story
    assert "Its story cannot be told, as raises (" in story
    assert "Again: septum replay 'TOKEN'" in story


def test_a_defect_of_septum_comes_after_the_verdict(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where no design of the user's has a part in it, it is raised, and ends the command as any
    defect does."""
    monkeypatch.setattr("septum.explore.stories.telling.story_lines", raises)
    with pytest.raises(ValueError, match="nobody knows"):
        explore_command(["accept-against-block"], Wanted(design="bug-block-busy-ignored"))
    story = " ".join(capsys.readouterr().out.split())
    assert story.startswith("BROKEN: accept-against-block on bug-block-busy-ignored (seed 0)")
    assert "raises ValueError: nobody knows; that is a defect of Septum, please report it" in story


def test_a_replay_tells_what_broke_before_the_model_raises(tmp_path: Path) -> None:
    """A run that is replayed goes on behind that."""
    story = explored(tmp_path, "Key").output
    token = story.partition("token: ")[2].partition("\n\n")[0]
    result = CliRunner().invoke(app, ["replay", token])
    again = " ".join(result.output.replace("|", " ").split())
    assert again.startswith("BROKEN: promise no-bug in scenario convert-against-fault on design ")
    assert "XX * promise no-bug is broken" in again
    assert isinstance(result.exception, InputError)
    assert ": the model raises TypeError: " in str(result.exception)
