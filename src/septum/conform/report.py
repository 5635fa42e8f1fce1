"""What a conformance run found: as data (JSON) and as 80-column text."""

from __future__ import annotations

import msgspec

from septum.abi.status import status_name
from septum.json_text import json_text
from septum.words import wrap


class Divergence(msgspec.Struct, frozen=True, kw_only=True):
    """One step whose answer differs from the recording.

    `after` is the number of earlier divergences in the same transcript: above 0, this one may be
    only a consequence. `differs` lists (register or field, recorded, ours).
    """

    file: str
    line: int
    transcript: str
    step: int
    call: str
    lp: int
    version: int
    inputs: dict[str, str]
    env: str
    differs: tuple[tuple[str, str, str], ...]
    after: int
    decided_at: str = ""
    state: tuple[str, ...] = ()


class LeafReport(msgspec.Struct, frozen=True):
    """One call's score; `first` is its first divergence."""

    call: str
    steps: int
    agreements: int
    first: Divergence | None


class ConformReport(msgspec.Struct, frozen=True, kw_only=True):
    """The result of `run_conform`. `not_compared`: recorded fields that Septum does not know."""

    schema: str = "septum.conform"
    version: int = 1
    profile: str
    files: tuple[str, ...]
    transcripts: int
    transcripts_agreeing: int
    steps: int
    agreements: int
    leaves: tuple[LeafReport, ...]
    not_compared: dict[str, int]

    @property
    def agrees(self) -> bool:
        """Every step of every transcript agrees."""
        return self.agreements == self.steps

    def to_json(self) -> str:
        """The report as JSON, indented."""
        return json_text(self)


def _wrap(text: str, indent: str) -> list[str]:
    return wrap(text, indent, indent + "  ")


def answer_text(name: str, value: str) -> str:
    """A register value; RAX also in words."""
    if name == "rax" and value.startswith("0x"):
        return f"{value} {status_name(int(value, 16))}"
    return value


def divergence_lines(divergence: Divergence) -> list[str]:
    """A divergence for people."""
    d = divergence
    lines = _wrap(f"{d.call}: {d.transcript} step {d.step} ({d.file}, line {d.line})", "")
    version = f" version {d.version}" if d.version else ""
    inputs = " ".join(f"{name}={value}" for name, value in d.inputs.items())
    lines += _wrap(f"LP {d.lp}{version}: {inputs}", "  ")
    if d.env:
        lines += _wrap(f"while {d.env}", "  ")
    for name, recorded, ours in d.differs:
        lines += _wrap(f"{name}: recorded {answer_text(name, recorded)}", "  ")
        lines += _wrap(f"ours     {answer_text(name, ours)}", "  " + " " * (len(name) + 2))
    if d.after:
        lines += _wrap(f"{d.after} earlier step(s) of this transcript diverged already", "  ")
    if d.decided_at:
        lines += _wrap(f"decided at {d.decided_at}", "  ")
    if d.state:
        lines.append("  state before the call:")
        for text in d.state:
            lines += _wrap(text, "    ")
    return lines


def render_conform(report: ConformReport) -> str:
    """The report as text of at most 80 columns."""
    verdict = "agrees" if report.agrees else "DIVERGES"
    lines = [
        (
            f"conform: module profile {report.profile} {verdict}: "
            f"{report.agreements} of {report.steps} steps,"
        ),
        (
            f"{report.transcripts_agreeing} of {report.transcripts} transcripts "
            f"in {len(report.files)} file(s)"
        ),
        "",
        f"{'call':24}{'steps':>9}{'agree':>9}{'differ':>8}",
    ]
    for leaf in report.leaves:
        differ = leaf.steps - leaf.agreements
        lines.append(f"{leaf.call:24}{leaf.steps:>9}{leaf.agreements:>9}{differ or '-':>8}")
    for name, count in report.not_compared.items():
        lines += _wrap(f"not compared: recorded field {name!r}, {count} time(s)", "")
    broken = [leaf.first for leaf in report.leaves if leaf.first is not None]
    if broken:
        lines += ["", "First divergence of each call:"]
    for divergence in broken:
        lines += ["", *divergence_lines(divergence)]
    return "\n".join(line.rstrip() for line in lines) + "\n"
