"""What came of a run of a scenario, compared with what the scenario says must come of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from septum.report.result import FindingRecord
from septum.scenarios.counts import count_fits
from septum.scenarios.scenario import covers
from septum.words import wrap

if TYPE_CHECKING:
    from septum.scenarios.record import Result
    from septum.scenarios.world import ScenarioWorld

INDENT = "  "


class OpResult(msgspec.Struct, frozen=True):
    """An operation that was done, in the order of ending, and its result."""

    actor: str
    op: str
    result: str
    fits: bool


class ScenarioOutcome(msgspec.Struct, kw_only=True):
    """One run. `unmet` are the expectations that were not met, one sentence each.

    `token` replays it. `failures` counts what the schedule injected; with any, results and counts
    are not compared.
    """

    scenario: str
    summary: str
    design: str
    schedule: str
    seed: int
    check: str
    token: str
    results: list[OpResult]
    unmet: list[str]
    ended: list[str]
    """Why VMMs gave up."""
    findings: list[FindingRecord]
    foreseen: list[bool]
    """Of each finding, whether the scenario says so."""
    promises: dict[str, str]
    counts: dict[str, int]
    pages: dict[str, str]
    failures: int
    steps: int
    time_ns: int

    @property
    def ok(self) -> bool:
        """All is as the scenario says."""
        return not self.unmet

    @property
    def held(self) -> bool:
        """No promise was broken."""
        return not self.findings


EXPECTATION = "expectation"
"""Stands for a promise where what is broken is what a scenario says must come of it."""


def beside_promises(unmet: list[str]) -> list[str]:
    """The unmet expectations that are not about promises, which findings tell of."""
    return [text for text in unmet if not text.startswith("promise ")]


def unmet_expectations(run: ScenarioWorld) -> list[str]:
    """What is not as the scenario says, one sentence each."""
    expect = run.scenario.expect
    findings = run.sim.findings
    first: dict[str, str] = {}
    for finding in findings:
        if not expect.foresees(finding.promise, finding.text):
            first.setdefault(finding.promise, finding.text)
    lines = [f"promise {name} was broken: {text}" for name, text in first.items()]
    if run.failures.nr_failures or run.stopped:
        return lines
    lines += [
        f"promise {entry} was not broken"
        for entry in expect.broken
        if not any(covers(entry, finding.promise, finding.text) for finding in findings)
    ]
    gave_up = run.gave_up()
    known = (*expect.ends, *expect.may_end)
    lines += [text for text in gave_up if not any(part in text for part in known)]
    lines += [
        f"no VMM gave up with {part!r}"
        for part in expect.ends
        if not any(part in text for text in gave_up)
    ]
    if not expect.may_end or not gave_up:
        lines += run.record.unmet()
        lines += _unmet_state(run)
    return lines


def _unmet_state(run: ScenarioWorld) -> list[str]:
    scenario = run.scenario
    expect = scenario.expect
    dead = expect.dead
    if isinstance(dead, bool):
        dead = [scenario.vms[0].name] if dead else []
    lines = [f"VM {name} is dead" for name in run.dead if name not in dead]
    lines += [f"VM {name} is not dead" for name in dead if name not in run.dead]
    for name, right in expect.counts.items():
        value = run.counts.get(name, 0)
        if not count_fits(right, value):
            lines.append(f"{name} is {value}, not {right}")
    for (key, _, _, right), state in zip(scenario.pages, run.pages, strict=True):
        if state not in right.split(" or "):
            lines.append(f"{key}: {state}, not {right}")
    return lines


def outcome_of(run: ScenarioWorld, token: str, kind: str, seed: int) -> ScenarioOutcome:
    """The outcome of a run that has ended."""
    scenario = run.scenario
    return ScenarioOutcome(
        scenario=scenario.name,
        summary=scenario.summary,
        design=run.design,
        schedule=kind,
        seed=seed,
        check=run.checker.mode,
        token=token,
        results=[_op_result(result) for result in run.record.results],
        unmet=unmet_expectations(run),
        ended=run.gave_up(),
        findings=[
            FindingRecord(
                promise=f.promise, text=f.text, where=f.where, task=f.task, time_ns=f.time_ns
            )
            for f in run.sim.findings
        ],
        foreseen=[scenario.expect.foresees(f.promise, f.text) for f in run.sim.findings],
        promises=dict(run.checker.results),
        counts=run.counts,
        pages={key: state for (key, *_), state in zip(scenario.pages, run.pages, strict=False)},
        failures=run.failures.nr_failures,
        steps=run.sim.nr_points,
        time_ns=run.sim.now_ns(),
    )


def _op_result(result: Result) -> OpResult:
    return OpResult(result.actor, result.text, result.result, result.fits)


# Text

SHOWN_COUNTS = (
    "pages_4k",
    "pages_2m",
    "splits",
    "seamcall.TDH.MEM.PAGE.AUG",
    "seamcall.TDH.MEM.PAGE.DEMOTE",
    "seamcall.TDH.MEM.PAGE.REMOVE",
)


def outcome_lines(outcome: ScenarioOutcome) -> list[str]:
    """The outcome as text of at most 80 columns, but for long words."""
    verdict = "as expected" if outcome.ok else "NOT as expected"
    schedule = outcome.schedule + (f" {outcome.seed}" if outcome.schedule == "random" else "")
    lines = [f"{outcome.scenario}: {verdict}  ({outcome.design}, {schedule})"]
    lines += _words(outcome.summary)
    if outcome.results:
        lines.append("")
        actors = max(len(r.actor) for r in outcome.results)
        ops = min(46, max(len(r.op) for r in outcome.results))
        for r in outcome.results:
            mark = " " if r.fits else "!"
            lines.append(f"{mark} {r.actor:<{actors}}  {r.op:<{ops}}  {r.result}")
    lines.append("")
    shown = {name: outcome.counts[name] for name in SHOWN_COUNTS if name in outcome.counts}
    if shown:
        text = ", ".join(f"{name.removeprefix('seamcall.')} {nr}" for name, nr in shown.items())
        lines += _words(f"counts: {text}")
    broken = [name for name, result in outcome.promises.items() if result == "broken"]
    held = len(outcome.promises) - len(broken)
    lines.append(f"{INDENT}promises: {held} held, {len(broken)} broken")
    for finding, foreseen in zip(outcome.findings, outcome.foreseen, strict=True):
        expected = " (expected)" if foreseen else ""
        lines += _words(f"broken{expected}: {finding.promise}: {finding.text}")
    for text in outcome.ended:
        lines += _words(f"ended: {text}")
    for text in outcome.unmet:
        lines += _words(f"not as expected: {text}")
    lines.append(f"{INDENT}replay: septum replay {outcome.token}")
    return lines


def _words(text: str) -> list[str]:
    return wrap(text, INDENT, 2 * INDENT, break_long=False)
