"""The token of a run that has no end: made again, it ends where the search's run ended."""

import re
from pathlib import Path

import pytest

from septum import __version__
from septum.cli.report import ReportOptions, report_run
from septum.cli.run import decode_run, replay_token
from septum.explore import Options
from septum.explore.replay import find_subject
from septum.explore.runs.run import Runner
from septum.explore.runs.steering import Replaying
from septum.explore.subject import Subject
from septum.sim import Finding, ListSchedule, encode_token
from septum.sim.schedule import SEARCHED

DESIGN = """
from septum.linux.kvm.guest_memfd import GuestMemfd


class ConvertsNever(GuestMemfd):
    '''KVM_SET_MEMORY_ATTRIBUTES2 tries again and again.'''

    __slots__ = ()

    def kvm_gmem_set_attributes(self, f, attrs):
        for _ in range(600_000):
            self.sim.point("cond_resched")
        raise AssertionError("nobody brings this to an end")
"""
SCENARIO = """
summary = "Threads that convert."

[guest]
vcpu0 = ["accept 2M frame 0"]

[host]
"""
CONVERTS = '{} = ["set-attributes page {} to shared => any"]\n'


def found(subject: Subject) -> tuple[Finding, str]:
    """What the undisturbed run comes to, and its token as a search makes it."""
    runner = Runner(subject, Options())
    run = runner.run(Replaying([]))
    assert run.finding is not None
    schedule = ListSchedule(list(run.answers), SEARCHED)
    return run.finding, encode_token(__version__, subject.recipe, schedule)


@pytest.mark.parametrize(
    ("threads", "text"),
    [
        (
            "a",
            r"no end after \d+ scheduling decisions, and 10000 scheduling points of host.a",
        ),
        ("ab", "no end after 100000 scheduling decisions, the last 80000 in turns; still running"),
    ],
)
def test_a_replay_ends_where_the_search_ended(
    threads: str,
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One thread goes on alone; two take turns. The token that a replay prints replays, too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("septum.explore.runs.steering.ALONE_MAX", 10_000)
    Path("never.py").write_text(DESIGN)
    converts = (CONVERTS.format(name, page) for page, name in enumerate(threads))
    Path("never.toml").write_text(SCENARIO + "".join(converts))
    finding, token = found(find_subject("never.toml", "never.py:ConvertsNever"))
    assert re.match(text, finding.text)
    printed = ""
    for _ in range(2):
        assert replay_token(token, None, trace=None, json=False) == 1
        out = capsys.readouterr().out
        assert f"broken: progress: {finding.text}" in " ".join(out.split())
        assert printed in ("", out)
        printed = out
        token = out.rsplit("septum replay ", 1)[1].strip()


def test_its_report_ends_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("septum.explore.runs.steering.ALONE_MAX", 10_000)
    Path("never.py").write_text(DESIGN)
    Path("never.toml").write_text(SCENARIO + CONVERTS.format("a", 0))
    finding, token = found(find_subject("never.toml", "never.py:ConvertsNever"))
    assert report_run(token, ReportOptions(text=True)) == 1
    text = " ".join(capsysbinary.readouterr().out.decode().split())
    assert f"Cause: {finding.text} (host.a, scheduler)." in text


def test_a_toys_replay_ends(capsys: pytest.CaptureFixture[str]) -> None:
    finding, token = found(find_subject("toy:livelock"))
    assert "no end after 100000 scheduling decisions, the last 80000 in turns" in finding.text
    assert replay_token(token, None, trace=None, json=False) == 1
    assert f"progress: {finding.text}\n" in capsys.readouterr().out


def test_a_run_that_no_search_made_may_be_as_long_as_it_likes() -> None:
    """What `septum run` printed ended by itself, however long a task went on alone in it."""
    recipe = find_subject("convert-one-page").recipe
    for origin in (0, SEARCHED):
        token = encode_token(__version__, recipe, ListSchedule([0, 1], origin))
        _, schedule = decode_run(token)
        assert schedule.spec() == ("list", origin)
        assert schedule.given() == [0, 1]
        assert isinstance(schedule, ListSchedule) is not bool(origin)
