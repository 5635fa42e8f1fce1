"""`septum report`: every kind of run, every form, through the command line's own functions."""

import re
from pathlib import Path

import msgspec
import pytest

from septum.cli.report import ReportOptions, report_run, trace_of
from septum.errors import InputError
from septum.explore.stories.retell import retell
from septum.scenarios.findings import FINDINGS, token_of
from septum.scenarios.run import load_scenario, run_scenario
from septum.sim import decode_token
from septum.trace import TraceReader

SCENARIO = "accept-level-b"


def test_a_trace_a_token_and_a_scenario_are_the_same_run(tmp_path: Path) -> None:
    recorded = trace_of(SCENARIO, tmp_path / "a.jsonl")
    with TraceReader(recorded) as reader:
        token = reader.header.token
    again = trace_of(token, tmp_path / "b.jsonl")
    assert recorded.read_bytes() == again.read_bytes()
    assert trace_of(str(recorded), tmp_path / "c.jsonl") == recorded


def test_the_token_of_an_outcome_tells_of_the_same_events(tmp_path: Path) -> None:
    token = run_scenario(SCENARIO).token
    first = trace_of(SCENARIO, tmp_path / "a.jsonl").read_bytes().splitlines()[1:]
    assert trace_of(token, tmp_path / "b.jsonl").read_bytes().splitlines()[1:] == first


def test_every_form_is_written(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    files = {name: tmp_path / name for name in ("mermaid", "ftrace", "perfetto")}
    assert report_run(SCENARIO, ReportOptions(**files, text=True, only="seamcall")) == 0
    assert all(path.stat().st_size > 100 for path in files.values())
    shown = capfd.readouterr()
    assert "TDH.MEM.PAGE.AUG" in shown.out
    assert all(str(path) in shown.err for path in files.values())


def test_what_is_no_run_is_told() -> None:
    with pytest.raises(InputError, match="no trace file, no replay token"):
        report_run("nonsense", ReportOptions())


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        report_run(SCENARIO, ReportOptions(ftrace=tmp_path / "no" / "such"))


def test_a_run_that_breaks_something_is_told_as_a_story(capfd: pytest.CaptureFixture[str]) -> None:
    """Also what the scenario foresees, which a search would pass over."""
    assert report_run("finding-demote-busy-dpamt", ReportOptions()) == 0
    text = capfd.readouterr().out
    assert text.startswith("BROKEN: promise no-bug in scenario finding-demote-busy-dpamt on design")
    assert ", as the scenario foresees token:" in " ".join(text.split())
    assert "Cause: KVM_BUG_ON" in text
    said = " ".join(text.split())
    assert "the scenario injects it: TDH.MEM.PAGE.DEMOTE returns TDX_OPERAND_BUSY" in said
    assert "shortest" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert report_run("finding-demote-busy-dpamt", ReportOptions(only="seamcall")) == 0
    assert "BROKEN" not in capfd.readouterr().out


def test_what_the_scenario_does_not_foresee_is_told_before_what_it_does() -> None:
    """Of three promises that break the last is news, or none is."""
    name = "finding-attributes-late-accept"
    (finding,) = [found for found in FINDINGS if found.scenario == name]
    token = token_of(finding)
    known = load_scenario(name)
    text = " ".join(retell(known, "v3", decode_token(token)[2], "quiet"))
    assert text.startswith(f"BROKEN: promise mapping-in-folio in scenario {name} on design v3, as")
    others = [entry for entry in known.expect.may_break if not entry.startswith("precise-zap")]
    expect = msgspec.structs.replace(known.expect, may_break=others)
    unknown = msgspec.structs.replace(
        known, document=msgspec.structs.replace(known.document, expect=expect)
    )
    text = " ".join(retell(unknown, "v3", decode_token(token)[2], "quiet"))
    assert text.startswith(f"BROKEN: promise precise-zap in scenario {name} on design v3 token")


def test_the_token_of_a_finding_is_told_as_a_story(capfd: pytest.CaptureFixture[str]) -> None:
    """The tokens that docs/findings.md gives, line breaks and all."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "findings.md").read_text()
    tokens = re.findall(r"septum1\.[\w-]+", page)
    assert len(tokens) > 5
    token = tokens[0]
    assert report_run(f"{token[:40]}\n{token[40:]}", ReportOptions()) in (0, 1)
    assert capfd.readouterr().out
