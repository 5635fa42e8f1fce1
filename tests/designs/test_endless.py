"""A design that never ends is told in one sentence, or as a finding: with and without scheduling
points, in a run, in a replay, and in the workers of a search."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from septum import __version__
from septum.cli.exits import BROKEN, USAGE, guarded
from septum.cli.main import app
from septum.designs import endless
from septum.scenarios.run import load_scenario, recipe_for_token
from septum.sim import ListSchedule, encode_token

LOOPS = '''
from septum.linux.kvm.guest_memfd import GuestMemfd


class Deaf(GuestMemfd):
    """Goes round without a scheduling point, and takes no notice of exceptions."""

    __slots__ = ()

    def kvm_gmem_set_attributes(self, f, attrs):
        return self._round(attrs)

    def _round(self, attrs):
        while True:
            try:
                self._one(attrs)
            except Exception:
                pass

    def _one(self, attrs):
        return attrs.offset


class Round(GuestMemfd):
    """Goes round with scheduling points."""

    __slots__ = ()

    def kvm_gmem_set_attributes(self, f, attrs):
        while True:
            self.sim.point("cond_resched")


class Long(GuestMemfd):
    """Takes long, and comes to its end: in several looks of the watchdog there is a point."""

    __slots__ = ()

    def kvm_gmem_set_attributes(self, f, attrs):
        for _ in range(400):
            sum(range(30_000))
            self.sim.point("cond_resched")
        return super().kvm_gmem_set_attributes(f, attrs)
'''
SCENARIO = "convert-one-page"
SETUP = """
summary = "Converts before anything begins."
setup = ["host: set-attributes page 0 to shared"]
[guest]
vcpu0 = ["accept 4K page 1"]
"""
TICK_S = 0.02


@pytest.fixture
def loops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file of designs, under a watchdog that looks often."""
    path = tmp_path / "loops.py"
    path.write_text(LOOPS)
    monkeypatch.setattr(endless, "PATIENCE", 3)
    monkeypatch.setattr(endless, "TICK_S", TICK_S)
    before = signal.getitimer(signal.ITIMER_VIRTUAL)
    endless.WATCHDOG.watch("")  # the timer, if no other test has set it
    endless.set_timer(TICK_S)
    yield path
    signal.setitimer(signal.ITIMER_VIRTUAL, *before)


def septum(*words: str) -> int:
    return guarded(lambda: app(list(words), standalone_mode=True))


def told(err: str, path: Path) -> bool:
    """Which function goes round: not the one that it calls, nor the one that calls it."""
    lines = err.splitlines()
    return (
        len(lines) == 1
        and lines[0].startswith(f"septum: {path}, line 1")
        and "in _round: it goes round without a scheduling point" in lines[0]
    )


def test_without_a_scheduling_point(loops: Path, capsys: pytest.CaptureFixture[str]) -> None:
    design = f"{loops}:Deaf"
    assert septum("run", SCENARIO, "--design", design) == USAGE
    assert told(capsys.readouterr().err, loops)
    recipe = recipe_for_token(load_scenario(SCENARIO), design, "quiet")
    token = encode_token(__version__, msgspec.msgpack.encode(recipe), ListSchedule([]))
    assert septum("replay", token) == USAGE
    assert told(capsys.readouterr().err, loops)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_in_a_search(
    workers: str,
    loops: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever meets it first: `check_steady` is left out, so that the workers do."""
    monkeypatch.setattr("septum.explore.command.check_steady", lambda subject, options: None)
    design = f"{loops}:Deaf"
    words = ["explore", SCENARIO, "--design", design, "--workers", workers, "--no-watch"]
    assert septum(*words, "--strategy", "random", "--time", "1") == USAGE
    assert told(capsys.readouterr().err, loops)


def test_what_takes_long_is_left_alone(loops: Path, capsys: pytest.CaptureFixture[str]) -> None:
    looked = []

    class Seen(endless.Watchdog):
        def _unwatch(self) -> None:
            looked.append(self._points)
            super()._unwatch()

    watchdog = Seen()
    watchdog.paths = endless.WATCHDOG.paths
    before = signal.signal(signal.SIGVTALRM, watchdog.look)
    try:
        assert septum("run", SCENARIO, "--design", f"{loops}:Long") == 0
    finally:
        signal.signal(signal.SIGVTALRM, before)
    assert any(looked), "its calls were watched, and a scheduling point was among them"
    assert capsys.readouterr().err == ""


def test_with_scheduling_points(
    loops: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("septum.scenarios.limit.POINTS_MAX", 5000)
    assert septum("run", SCENARIO, "--design", f"{loops}:Round") == BROKEN
    out = capsys.readouterr().out
    assert "broken: progress: no end after 5000 scheduling points; still running: vcpu0" in out
    token = out.split()[-1]
    assert septum("replay", token) == BROKEN
    assert "no end after 5000 scheduling points" in capsys.readouterr().out


def test_before_the_programs_begin(
    loops: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("septum.scenarios.limit.POINTS_MAX", 5000)
    path = tmp_path / "setup.toml"
    path.write_text(SETUP)
    words = (str(path), "--design", f"{loops}:Round")
    no_end = "no end after 5000 scheduling points; still running: host"
    for command in ("run", "explore"):
        assert septum(command, *words) == BROKEN
        assert no_end in " ".join(capsys.readouterr().out.split())
    assert septum("explore", *words, "--ignore", "progress: ") == USAGE
    assert capsys.readouterr().err == (
        f"septum: scenario setup: before its programs begin: {no_end}; nothing can be run or"
        " searched\n"
    )
    assert septum("run", str(path)) == 0


def test_the_timer_outlives_nothing() -> None:
    """The interpreter takes its handlers back before it has ended; the signal would kill it."""
    program = (
        "from septum.designs import endless\n"
        "endless.TICK_S = 0.0001\n"
        "endless.WATCHDOG.watch('any.py')\n"
        "import septum.scenarios.run\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False)
    assert done.returncode == 0


def test_a_file_that_never_ends_to_be_read(loops: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loops.write_text("while True:\n    pass\n")
    assert septum("run", SCENARIO, "--design", f"{loops}:Deaf") == USAGE
    err = capsys.readouterr().err
    assert err.startswith(f"septum: {loops}, line ") and " in <module>: it goes round" in err
