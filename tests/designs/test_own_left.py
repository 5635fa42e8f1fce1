"""A wrong value that a user's design leaves in an object of the model is told in one sentence."""

import subprocess
import sys
from pathlib import Path

import pytest

from septum.cli.exits import guarded
from septum.cli.main import app
from septum.designs import find_design
from septum.explore.stories.recording import Recording
from septum.explore.workers.search import Searcher
from septum.scenarios.memory_map import total_stats

LEFT = """\
from septum.linux.kvm.guest_memfd import GuestMemfd
from septum.linux.kvm.tdx import KvmTdxUnit


class Track(KvmTdxUnit):
    __slots__ = ()

    def tdx_track(self, kvm):
        {body}


class Gmem(GuestMemfd):
    __slots__ = ()

    def kvm_gmem_invalidate_end(self, inode, start, end):
        inode.file_list = None
"""
TEXT = """\
from septum.linux.kvm.tdx import KvmTdxUnit


class Text(KvmTdxUnit):
    __slots__ = ()

    def tdx_sept_link_private_spt(self, kvm, gfn, level, private_spt):
        return super().tdx_sept_link_private_spt(kvm, gfn, level, private_spt) or "0"
"""
DEFECT = "septum.sim.sim.SimDefect: "
SENTENCE = ", with no function of the design at work, and v3 does not raise in an undisturbed run"


def design_of(folder: Path, body: str = "pass") -> str:
    """The path of a file with designs, one of which does `body`."""
    path = folder / "left.py"
    path.write_text(LEFT.format(body=body))
    return str(path)


def cli(*words: str) -> int:
    """The exit code of a command."""
    return guarded(lambda: app(list(words), standalone_mode=True))


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ("super().tdx_track(kvm); kvm.arch.tdp_mmu_roots = None", "'NoneType' object "),
        ("super().tdx_track(kvm); kvm.stat.values['x'] = 'y'", "TypeError: "),
    ],
)
@pytest.mark.parametrize(
    "words",
    [
        ("run", "convert-one-page"),
        ("explore", "convert-one-page", "--workers", "1", "--preemptions", "0"),
        ("explore", "convert-one-page", "--workers", "2", "--preemptions", "0"),
    ],
    ids=["run", "explore", "workers"],
)
def test_what_a_design_leaves_behind_is_one_sentence(
    words: tuple[str, ...],
    body: str,
    where: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With the design, what was raised, where, and what to look at."""
    design = f"{design_of(tmp_path, body)}:Track"
    assert cli(*words, "--design", design) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith(f"septum: {design}: the model raises ")
    assert where in said and SENTENCE in said
    assert said.endswith("look at what the design assigns to the objects that are read there\n")


def test_what_a_look_alone_cannot_read_ends_no_search(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The module refuses what follows, which is found; a run looks at more."""
    design = f"{design_of(tmp_path, 'kvm.tdx.hkid = None')}:Track"
    assert cli("run", "convert-one-page", "--design", design) == 2
    assert "in refresh (septum/checks/view.py, line " in capsys.readouterr().err
    assert cli("explore", "convert-one-page", "--workers", "1", "--design", design) == 1
    said = capsys.readouterr().out
    assert said.startswith("BROKEN: ") and "cannot be told, as refresh (septum/checks" in said


OTHER = """
from septum.linux.kvm.guest_memfd import GuestMemfd


class Other(GuestMemfd):
    __slots__ = ()

    def kvm_gmem_fallocate(self, f, mode, offset, length):
        return super().kvm_gmem_fallocate(f, mode, offset, length)
"""


def test_compare_tells_it_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    design = f"{design_of(tmp_path)}:Gmem"
    words = ("--scenarios", "convert-one-page", "--no-cost", "--report", str(tmp_path / "r"))
    assert cli("compare", design, *words) == 2
    said = capsys.readouterr().err
    assert "TypeError: 'NoneType' object is not iterable in " in said
    assert SENTENCE in said and "Traceback" not in said


def test_what_v3_raises_too_is_a_defect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """So is what raises on v3, and on a design of the tree: with the traceback."""

    def wrong(kvm: object) -> None:
        return total_stats(None)  # type: ignore[arg-type]

    monkeypatch.setattr("septum.scenarios.counts.total_stats", wrong)
    for design in ("v3", "bug-no-kick", f"{design_of(tmp_path, 'return')}:Track"):
        assert cli("run", "convert-one-page", "--design", design) == 70
        said = capsys.readouterr().err
        assert said.startswith("Traceback") and "defect of Septum" in said


def test_what_the_explorer_raises_is_a_defect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever design it is that it explores."""

    def wrong(self: Searcher, *args: object) -> None:
        raise TypeError("wrong")

    monkeypatch.setattr(Searcher, "do", wrong)
    monkeypatch.setattr(Recording, "__init__", wrong)
    design = f"{design_of(tmp_path, 'super().tdx_track(kvm)')}:Track"
    words = ("explore", "convert-one-page", "--workers", "1", "--no-watch", "--design", design)
    assert cli(*words) == 70
    assert capsys.readouterr().err.startswith("Traceback")


def test_pythons_development_mode_shows_the_traceback(tmp_path: Path) -> None:
    design = f"{design_of(tmp_path)}:Gmem"
    words = ["-X", "dev", "-m", "septum", "run", "convert-one-page", "--design", design]
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 2
    assert "Traceback" in done.stderr and "\nTypeError: 'NoneType' object" in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"septum: {design}: the model raises ")


def test_a_boot_says_what_to_try_on_v3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It takes too long to be made twice unasked. A design of this process that is not at work, and
    overrides what is called there, is not blamed."""
    from septum.abi.tdvf_build import synthetic_tdvf

    (tmp_path / "other.py").write_text(OTHER)
    find_design(f"{tmp_path / 'other.py'}:Other")

    (tmp_path / "image.fd").write_bytes(synthetic_tdvf())
    monkeypatch.chdir(tmp_path)
    words = ("run", "--firmware", "image.fd", "--memory", "384M", "--vcpus", "1")
    assert cli(*words, "--design", f"{design_of(tmp_path)}:Gmem") == 2
    said = capsys.readouterr().err
    assert "the model raises TypeError: " in said and "if the same raises with --design v3" in said


def test_a_vm_that_a_design_does_not_build_is_told_with_the_design(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And whether v3 builds it: another design does not say so."""
    (tmp_path / "text.py").write_text(TEXT)
    design = f"{tmp_path / 'text.py'}:Text"
    for command in ("run", "explore"):
        assert cli(command, "convert-one-page", "--design", design) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert f"VM vm: add_image failed: -EIO, on {design}; on v3 it is built, so look" in said


def test_a_promise_that_there_is_none_of_is_told_with_the_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    design = f"{design_of(tmp_path, 'self.sim.find(chr(110), chr(111))')}:Track"
    for command in ("run", "explore"):
        assert cli(command, "convert-one-page", "--design", design) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert f"left.py, line 9, in tdx_track: {DEFECT}no promise is called 'n'; there" in said
