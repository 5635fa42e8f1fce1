"""The report of a run as text of 80 columns: verdict first, then numbers, then the memory."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from septum.report.counters import counter_lines
from septum.report.lines import Lines, Span
from septum.report.memory_map import memory_map_lines
from septum.report.published import SOURCE, figures
from septum.words import WIDTH, count_text, plural, size_text, time_text, wrap

if TYPE_CHECKING:
    from septum.report.result import FindingRecord, PromiseResult, RunResult

MAX_FINDINGS = 8
NAME_WIDTH = 20


def verdict(result: RunResult) -> str:
    """HELD, BROKEN or UNDETERMINED."""
    if not result.held:
        return "BROKEN"
    return "HELD" if result.complete else "UNDETERMINED"


_VERDICT_STYLE = {"HELD": "good", "BROKEN": "bad", "UNDETERMINED": "warn"}


def report_lines(result: RunResult, files: list[str] | None = None) -> Lines:
    """The whole report. `files` are the artefacts to name at its end."""
    lines = Lines()
    _verdict_lines(lines, result)
    _findings_lines(lines, result)
    _promise_lines(lines, result)
    _figure_lines(lines, result)
    counter_lines(lines, result)
    _picture_lines(lines, result)
    _again_lines(lines, result, files or [])
    return lines


def render_report(result: RunResult, files: list[str] | None = None) -> str:
    """`report_lines` as plain text."""
    return report_lines(result, files).plain()


def title(result: RunResult) -> str:
    """What was run, in a few words."""
    return (
        f"{result.scenario} of a TD with {size_text(result.memory_bytes)}"
        f" and {plural(result.nr_vcpus, 'vCPU')}, design {result.design}"
    )


def _cause(result: RunResult) -> str:
    """One sentence of cause, "" when all held."""
    if result.cause:
        return result.cause
    if result.findings:
        return result.findings[0].text
    return result.failures[0] if result.failures else ""


def _verdict_lines(lines: Lines, result: RunResult) -> None:
    word = verdict(result)
    first, *rest = wrap(f"{word}: {title(result)}", "", "  ")
    lines.add(Span(word, _VERDICT_STYLE[word]), Span(first.removeprefix(word), "head"))
    for line in rest:
        lines.add(Span(line, "head"))
    broken = [promise.name for promise in result.promises if promise.nr_broken]
    told = f"{plural(len(result.promises) - len(broken), 'promise')} held, {len(broken)} broken"
    if broken:
        told += f" ({', '.join(broken)})"
    parts = [told]
    if result.ended:
        parts.append(result.ended)
    if result.time_ns:
        parts.append(f"{time_text(result.time_ns)} of virtual time")
    lines.paragraph("; ".join(parts) + ".", "  ")
    cause = _cause(result)
    if cause:
        lines.paragraph(f"Cause: {cause.rstrip('.')}.", "  ", style="bad")
    lines.blank()
    # The seed of a round-robin schedule is how many steps each task has.
    seed = "quantum" if result.schedule == "round-robin" else "seed"
    for name, value in (
        ("firmware", result.firmware.removeprefix("Firmware: ")),
        ("MRTD", " ".join(textwrap.wrap(result.mrtd, 48))),
        ("TDX module", result.module),
        ("design", f"{result.design}: {result.design_origin}" if result.design_origin else ""),
        ("schedule", f"{result.schedule}, {seed} {result.seed}"),
        ("checked", result.check),
    ):
        if value:
            lines.paragraph(value, f"  {name:<12}", " " * 14)


def _findings_lines(lines: Lines, result: RunResult) -> None:
    told = [_finding_text(finding) for finding in result.findings]
    told += [f"the VM died: {text}" for text in result.failures]
    if not told:
        return
    lines.heading("What was found")
    for number, text in enumerate(told[:MAX_FINDINGS], 1):
        lines.paragraph(text, f"  {number}. ", "     ")
    if len(told) > MAX_FINDINGS:
        lines.add(f"     and {count_text(len(told) - MAX_FINDINGS)} more; report.json has them all")


def _finding_text(finding: FindingRecord) -> str:
    at = [finding.task] if finding.task else []
    if finding.where:
        at.append(f"in {finding.where}")
    at.append(f"at {time_text(finding.time_ns)}")
    return f"{finding.promise}: {finding.text} ({' '.join(at)})"


def _promise_lines(lines: Lines, result: RunResult) -> None:
    if not result.promises:
        return
    lines.heading("Promises")
    for promise in result.promises:
        _promise_line(lines, promise)


def _promise_line(lines: Lines, promise: PromiseResult) -> None:
    broken = promise.nr_broken > 0
    word = "BROKEN" if broken else "held"
    first, *rest = wrap(
        promise.sentence, f"  {word:<8}{promise.name:<{NAME_WIDTH}}", " " * (NAME_WIDTH + 10)
    )
    lines.add("  ", Span(word, "bad" if broken else "good"), first[2 + len(word) :])
    for line in rest:
        lines.add(line)
    if broken and promise.consequence:
        lines.paragraph(
            f"On hardware: {promise.consequence}", " " * (NAME_WIDTH + 10), style="warn"
        )


def _figure_lines(lines: Lines, result: RunResult) -> None:
    rows = figures(result)
    lines.heading("Beside the published figures")
    lines.add(Span(f"  {'':46}{'ours':>10}{'published':>12}", "dim"))
    for row in rows:
        ours = "-" if row.ours is None else count_text(row.ours)
        lines.add(
            f"  {row.what:46}", Span(f"{ours:>10}", "number"), f"{count_text(row.published):>12}"
        )
        lines.paragraph(row.why, "    ", style="dim")
    lines.paragraph(f"Published: {SOURCE}.", "  ", "    ", style="dim")


def _picture_lines(lines: Lines, result: RunResult) -> None:
    snapshot = result.snapshot(result.picture)
    if snapshot is None or not result.banks:
        return
    lines.heading(snapshot.title or f"The guest's memory: {snapshot.name}")
    lines.extend(memory_map_lines(result.banks, snapshot.regions))


def _shell_lines(command: str) -> list[str]:
    """A command in lines of 80 columns that a shell puts together again when it is pasted: from
    the second on there is no indentation, as a token must stay one word."""
    lines = ["  " + command[: WIDTH - 3]]
    rest = command[WIDTH - 3 :]
    while rest:
        lines[-1] += "\\"
        lines.append(rest[: WIDTH - 1])
        rest = rest[WIDTH - 1 :]
    return lines


def _again_lines(lines: Lines, result: RunResult, files: list[str]) -> None:
    lines.heading("Again")
    lines.paragraph(result.command, "  ", "    ")
    if result.token:
        for line in _shell_lines(f"septum replay {result.token}"):
            lines.add(line)
    if files:
        lines.heading("Files")
        for file in files:
            lines.add(f"  {file}")  # whole, to be copied
