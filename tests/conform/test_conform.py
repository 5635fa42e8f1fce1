"""Reading transcripts, replaying them, and saying where they differ: on small ones made here."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from septum.cli.main import app
from septum.conform import run_conform
from septum.conform.report import render_conform
from septum.conform.transcript import find_transcripts, read_transcripts
from septum.errors import InputError

CONFIG: dict[str, Any] = {
    "max_pa": 46,
    "hkid_bits": 6,
    "private_hkid_min": 32,
    "private_hkid_max": 63,
    "global_hkid": 32,
    "dynamic_pamt": False,
    "num_packages": 1,
    "num_lps": 2,
    "tdmrs": [
        {
            "base": "0x40000000",
            "size": "0x40000000",
            "pamt_1g": "0x10000000",
            "pamt_2m": "0x10001000",
            "pamt_4k": "0x10100000",
            "reserved": [["0x3fe00000", "0x200000"]],
        }
    ],
    "seamrr": ["0x1c0000000", "0x4000000"],
}
TDR = "0x40000000"


def call(name: str, out: dict[str, Any] | None = None, **inputs: Any) -> dict[str, Any]:
    """A step; by default it succeeded and changed no register."""
    step = {"call": name, "lp": inputs.pop("lp", 0)}
    for key in ("env", "mem", "version"):
        if key in inputs:
            step[key] = inputs.pop(key)
    return step | {"in": inputs, "out": {"rax": "0x0"} if out is None else out}


BUILD = [
    call("TDH.MNG.CREATE", rcx=TDR, rdx="0x21"),
    call("TDH.MNG.KEY.CONFIG", rcx=TDR),
    *(call("TDH.MNG.ADDCX", rcx=hex(0x40001000 + i * 0x1000), rdx=TDR) for i in range(6)),
    call(
        "TDH.MNG.INIT",
        {"rax": "0x0", "rcx": "0x0"},
        rcx=TDR,
        rdx="0x1000",
        mem={
            "td_params": {
                "xfam": "0x3",
                "max_vcpus": 1,
                "eptp_controls": "0x1e",
                "tsc_frequency": 100,
            }
        },
    ),
    call("TDH.VP.CREATE", rcx="0x40010000", rdx=TDR),
    *(call("TDH.VP.ADDCX", rcx=hex(0x40011000 + i * 0x1000), rdx="0x40010000") for i in range(5)),
    call("TDH.VP.INIT", rcx="0x40010000"),
    call("TDH.MR.FINALIZE", rcx=TDR),
]
ZERO = {"rcx": "0x0", "rdx": "0x0"}
AUG_BUSY = call(
    "TDH.MEM.PAGE.AUG",
    {"rax": "0x8000020000000092"} | ZERO,
    rcx="0x40000001",
    rdx=TDR,
    r8="0x42000000",
    env={"locks": [{"obj": "secure_ept", "td": TDR, "mode": "ex"}]},
)
STEPS = [
    call("TDH.MEM.SEPT.ADD", {"rax": "0x0"} | ZERO, rcx="0x3", rdx=TDR, r8="0x40020000"),
    call("TDH.MEM.SEPT.ADD", {"rax": "0x0"} | ZERO, rcx="0x40000002", rdx=TDR, r8="0x40021000"),
    AUG_BUSY,
    call("TDH.MEM.PAGE.AUG", {"rax": "0x0"} | ZERO, rcx="0x40000001", rdx=TDR, r8="0x42000000"),
    call(
        "TDH.MEM.PAGE.DEMOTE",
        {"rax": "0xc0000b0600000001", "rcx": "0x80000000420000f0", "rdx": "0x201"},
        rcx="0x40000001",
        rdx=TDR,
        r8="0x40022000",
    ),
    call("TDH.VP.ENTER", {"ret": "td"}, rcx="0x40010000"),
    call("GUEST.ACCESS", {"ret": "td", "event": "0x80000314"}, gpa="0x40001008", access="0x2"),
    call(
        "TDG.VP.VEINFO.GET",
        {
            "ret": "td",
            "rax": "0x0",
            "rcx": "0x30",
            "rdx": "0x182",
            "r9": "0x40001008",
            "r10": "0x4",
        },
    ),
    call(
        "TDG.MEM.PAGE.ACCEPT",
        {"ret": "td", "interrupted": True},
        rcx="0x40000001",
        env={"guest_interrupt_pending": True},
    ),
    call("TDG.MEM.PAGE.ACCEPT", {"ret": "td", "rax": "0x0"}, rcx="0x40000001"),
    call("GUEST.ACCESS", {"ret": "td", "access": "ok"}, gpa="0x40001008", access="0x1"),
    call(
        "TDG.MEM.PAGE.ACCEPT",
        {"ret": "td_exit", "rax": "0x30", "rcx": "0x2", "rdx": "0x900000001", "r8": "0x40200000"},
        rcx="0x40200001",
    ),
    call(
        "TDH.VP.ENTER",
        {"ret": "seamret", "rax": "0x8000070100000000"},
        rcx="0x40010000",
        lp=1,
    ),
    call("TDH.VP.ENTER", {"ret": "td"}, rcx="0x40010000"),
    call("VMEXIT.EXTINT", {"ret": "td_exit", "rax": "0x1", "r9": "0x800000ec"}),
]


def steps_that_agree() -> list[dict[str, Any]]:
    """STEPS, to change at will."""
    copy: list[dict[str, Any]] = json.loads(json.dumps(STEPS))
    return copy


def write(path: Path, *transcripts: dict[str, Any]) -> Path:
    """A transcript file; gzip if its name says so."""
    text = "".join(json.dumps(transcript) + "\n" for transcript in transcripts)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def transcript(*, steps: list[dict[str, Any]] | None = None, name: str = "t1") -> dict[str, Any]:
    """A whole transcript with the TD built in its setup."""
    return {
        "id": name,
        "seed": 1,
        "config": CONFIG,
        "setup": BUILD,
        "steps": steps_that_agree() if steps is None else steps,
    }


@pytest.mark.parametrize("name", ["plain.jsonl", "packed.jsonl.gz"])
def test_a_true_transcript_agrees(tmp_path: Path, name: str) -> None:
    report = run_conform([write(tmp_path / name, transcript(), transcript(name="t2"))])
    assert report.agrees, render_conform(report)
    assert (report.transcripts, report.transcripts_agreeing) == (2, 2)
    assert report.steps == 2 * (len(BUILD) + len(STEPS))


def test_a_wrong_recording_diverges_and_says_why(tmp_path: Path) -> None:
    steps = steps_that_agree()
    steps[2]["out"]["rax"] = "0x8000020000000001"
    path = write(tmp_path / "wrong.jsonl", transcript(), transcript(steps=steps, name="t2"))
    report = run_conform([path])
    assert not report.agrees
    assert report.steps - report.agreements == 1
    (first,) = [leaf.first for leaf in report.leaves if leaf.first is not None]
    assert (first.line, first.transcript, first.step) == (2, "t2", len(BUILD) + 2)
    assert first.differs == (("rax", "0x8000020000000001", "0x8000020000000092"),)
    assert "secure_ept td 0x40000000 is held ex" in first.env
    file, line, function = first.decided_at.split(":")
    source = (Path(__file__).parents[2] / "src/septum/module" / file).read_text().splitlines()
    assert "OPERAND_ID_SEPT_TREE" in source[int(line) - 1]
    assert function == "begin"
    state = "\n".join(first.state)
    assert "S-EPT tree exclusive" in state
    assert "level 1 FREE" in state


def test_a_register_that_is_not_listed_keeps_its_input(tmp_path: Path) -> None:
    steps = steps_that_agree()[:1]
    steps[0]["out"] = {"rax": "0x0", "rcx": "0x0"}
    report = run_conform([write(tmp_path / "w.jsonl", transcript(steps=steps))])
    (first,) = [leaf.first for leaf in report.leaves if leaf.first is not None]
    assert first.differs == (("rdx", TDR, "0x0"),)


def test_consequences_do_not_hide_the_cause(tmp_path: Path) -> None:
    """The first divergence of a call is one that follows no other, when there is one."""
    steps = steps_that_agree()
    steps[0]["in"]["r8"] = "0x40000000"  # the recording's page was another one
    bad = transcript(steps=steps, name="bad")
    steps = steps_that_agree()
    steps[3]["out"]["rax"] = "0x1"
    report = run_conform([write(tmp_path / "w.jsonl", bad, transcript(steps=steps, name="root"))])
    aug = next(leaf.first for leaf in report.leaves if leaf.call == "TDH.MEM.PAGE.AUG")
    assert aug is not None
    assert (aug.transcript, aug.after) == ("root", 0)


def test_what_the_model_raises_is_a_divergence(tmp_path: Path) -> None:
    """A lock that another processor cannot hold in the model is not held in silence."""
    steps = steps_that_agree()
    steps[5]["env"] = {"locks": [{"obj": "sept_entry", "td": TDR, "gpa": "0x0", "level": 0}]}
    report = run_conform([write(tmp_path / "w.jsonl", transcript(steps=steps))])
    first = next(leaf.first for leaf in report.leaves if leaf.call == "TDH.VP.ENTER")
    assert first is not None
    assert first.differs[0] == ("ret", "td", "raised")


def test_unknown_results_are_named_and_not_compared(tmp_path: Path) -> None:
    steps = steps_that_agree()
    steps[0]["out"]["tsc"] = "0x1"
    report = run_conform([write(tmp_path / "w.jsonl", transcript(steps=steps))])
    assert report.agrees
    assert report.not_compared == {"tsc": 1}
    assert "not compared: recorded field 'tsc'" in render_conform(report)


def test_the_report_fits_80_columns(tmp_path: Path) -> None:
    steps = steps_that_agree()
    for step in steps:
        step["out"]["rax"] = "0xffff"
    report = run_conform([write(tmp_path / "w.jsonl", transcript(steps=steps))])
    text = render_conform(report)
    path = str(tmp_path)
    assert all(len(line) <= 80 or path in line for line in text.splitlines())
    told = json.loads(report.to_json())
    assert (told["schema"], told["version"]) == ("septum.conform", 1)


BAD_INPUT = [
    (b"{", "line 1: not JSON"),
    (b"[1, 2]\n", "line 1: not a transcript"),
    (b'{"id": "x"}\n', "missing required field `config`"),
    (json.dumps(transcript(steps=[call("TDH.MEM.FROB")])).encode(), "no leaf is called"),
    (json.dumps(transcript(steps=[call("TDH.MEM.TRACK", lp=7)])).encode(), "lp 7 is not one"),
    (json.dumps(transcript(steps=[call("TDH.MEM.TRACK", eax="0x0")])).encode(), "'eax' is unknown"),
    (
        json.dumps(transcript(steps=[call("TDH.MEM.TRACK", {"rax": "zero"})])).encode(),
        "must be a hexadecimal string",
    ),
    (
        json.dumps(transcript(steps=[call("TDH.MEM.TRACK", env={"weather": 1})])).encode(),
        "unknown field `weather`",
    ),
    (
        json.dumps(
            transcript(steps=[call("TDH.MEM.TRACK", env={"locks": [{"obj": "wbcache"}]})])
        ).encode(),
        "Invalid enum value 'wbcache'",
    ),
    (b"\x1f\x8b damaged", "damaged gzip"),
    (gzip.compress(b"{}" * 999)[:-9], "damaged gzip"),
]


@pytest.mark.parametrize(("content", "sentence"), BAD_INPUT, ids=[s for _, s in BAD_INPUT])
def test_bad_input_is_one_sentence(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        list(read_transcripts(path))
    text = str(caught.value)
    assert sentence in text
    assert text.startswith(f"{path}: ")
    assert "\n" not in text


@pytest.mark.parametrize("content", ["", "\n\n", json.dumps(transcript(steps=[]) | {"setup": []})])
def test_a_file_without_a_call_agrees_with_nothing(tmp_path: Path, content: str) -> None:
    """Beside a good one, too: it was meant to say something."""
    good, empty = tmp_path / "good.jsonl", tmp_path / "empty.jsonl"
    good.write_text(json.dumps(transcript()))
    empty.write_text(content)
    for files in ([empty], [good, empty]):
        with pytest.raises(InputError, match=r"empty\.jsonl: no call is recorded in it, so"):
            run_conform(files)


def test_a_file_that_is_not_there_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        list(read_transcripts(tmp_path / "none.jsonl"))


def test_transcripts_are_found_where_the_environment_says(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", transcript())
    (tmp_path / "README.md").write_text("")
    assert find_transcripts({"SEPTUM_TRANSCRIPTS": str(tmp_path)}) == [file]
    assert find_transcripts({"SEPTUM_TRANSCRIPTS": str(file)}) == [file]
    with pytest.raises(InputError):
        find_transcripts({"SEPTUM_TRANSCRIPTS": str(tmp_path / "none")})


def test_the_command_says_it_by_its_exit_code(tmp_path: Path) -> None:
    def run(*words: str) -> Result:
        return CliRunner().invoke(app, ["conform", *words])

    good = write(tmp_path / "good.jsonl", transcript())
    steps = steps_that_agree()
    steps[0]["out"]["rax"] = "0x1"
    wrong = write(tmp_path / "wrong.jsonl", transcript(steps=steps))
    assert run(str(good)).exit_code == 0
    assert run(str(good), str(wrong)).exit_code == 1
    told = run(str(wrong), "--json")
    assert told.exit_code == 1
    assert json.loads(told.stdout)["transcripts"] == 1
    assert isinstance(run(str(tmp_path / "none")).exception, InputError)
    assert isinstance(run(str(good), "--profile", "2.0").exception, InputError)
