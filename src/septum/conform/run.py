"""Replay recorded transcripts against the module and say where the two differ."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from septum.conform.decide import deciding_check
from septum.conform.inspect import state_lines
from septum.conform.report import ConformReport, Divergence, LeafReport
from septum.conform.testbed import (
    RECORDED_PROFILE,
    Answer,
    Testbed,
    machine_config,
    recorded_answer,
)
from septum.conform.transcript import COMPARED, GPRS, Env, Step, Transcript, read_transcripts
from septum.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from septum.module import ModuleProfile

_KNOWN_OUT = frozenset(COMPARED) | {"ret", "status", "event", "interrupted", "access"}


class _Tally:
    """Score of one call while a run goes on; `first` prefers a transcript's own first one."""

    def __init__(self) -> None:
        self.steps = 0
        self.agreements = 0
        self.first: tuple[Divergence, Transcript] | None = None


def run_conform(
    paths: Iterable[Path], profile: ModuleProfile = RECORDED_PROFILE, *, explain: bool = True
) -> ConformReport:
    """Replay every transcript of `paths` and compare step by step.

    After a divergence a transcript goes on, so later steps are scored too; each leaf's first
    divergence is one that follows no other in its transcript, where there is such a one.
    `explain` adds state and deciding check to those. Raises InputError for bad input.
    """
    tallies: dict[str, _Tally] = {}
    not_compared: Counter[str] = Counter()
    files: list[str] = []
    transcripts = agreeing = 0
    for path in paths:
        files.append(str(path))
        steps = 0
        for line, transcript in read_transcripts(path):
            transcripts += 1
            steps += len(transcript.all_steps())
            diverged = _replay(str(path), line, transcript, profile, tallies)
            agreeing += not diverged
            for step in transcript.all_steps():
                not_compared.update(set(step.out) - _KNOWN_OUT)
        if not steps:
            raise InputError(
                f"{path}: no call is recorded in it, so there is nothing to agree with; give a JSON"
                " Lines file of transcripts, plain or gzip"
            )
    leaves = []
    for call in sorted(tallies):
        tally = tallies[call]
        first = None
        if tally.first is not None:
            first, transcript = tally.first
            if explain:
                first = explain_divergence(first, transcript, profile)
        leaves.append(LeafReport(call, tally.steps, tally.agreements, first))
    return ConformReport(
        profile=profile.name,
        files=tuple(files),
        transcripts=transcripts,
        transcripts_agreeing=agreeing,
        steps=sum(leaf.steps for leaf in leaves),
        agreements=sum(leaf.agreements for leaf in leaves),
        leaves=tuple(leaves),
        not_compared=dict(sorted(not_compared.items())),
    )


def _replay(
    path: str,
    line: int,
    transcript: Transcript,
    profile: ModuleProfile,
    tallies: dict[str, _Tally],
) -> int:
    """Replay one transcript into `tallies`; returns its number of divergences."""
    bed = Testbed(machine_config(transcript.config), profile)
    diverged = 0
    for index, step in enumerate(transcript.all_steps()):
        tally = tallies.get(step.call)
        if tally is None:
            tally = tallies[step.call] = _Tally()
        tally.steps += 1
        expected = recorded_answer(step)
        got = perform_or_raise_text(bed, step)
        if got == expected:
            tally.agreements += 1
            continue
        if tally.first is None or (tally.first[0].after and not diverged):
            divergence = Divergence(
                file=path,
                line=line,
                transcript=transcript.id,
                step=index,
                call=step.call,
                lp=step.lp,
                version=step.version,
                inputs=dict(step.inputs),
                env=env_text(step.env),
                differs=differences(expected, got),
                after=diverged,
            )
            tally.first = divergence, transcript
        diverged += 1
    return diverged


def perform_or_raise_text(bed: Testbed, step: Step) -> Answer:
    """The answer to a step; what the model raises instead is an answer too (and a wrong one)."""
    try:
        return bed.perform(step)
    except Exception as error:
        return {"ret": "raised", "raised": f"{type(error).__name__}: {error}"}


def differences(expected: Answer, got: Answer) -> tuple[tuple[str, str, str], ...]:
    """(field, recorded, ours) of every field that differs, registers in their usual order."""
    order = ("ret", "raised", "interrupted", "event", "access", *GPRS)
    return tuple(
        (name, _text(expected.get(name)), _text(got.get(name)))
        for name in order
        if expected.get(name) != got.get(name)
    )


def _text(value: int | str | None) -> str:
    if value is None:
        return "-"
    return hex(value) if isinstance(value, int) else value


def env_text(env: Env) -> str:
    """The circumstances of a step in words; empty for none."""
    parts = []
    if env.interrupt_pending:
        parts.append("a host interrupt is pending")
    if env.guest_interrupt_pending:
        parts.append("an interrupt is pending in the guest")
    for lock in env.locks:
        about = " ".join(
            f"{name} {value}"
            for name, value in (("td", lock.td), ("hpa", lock.hpa), ("gpa", lock.gpa))
            if value != "0x0"
        )
        level = f" level {lock.level}" if lock.obj in ("pamt", "sept_entry") else ""
        mode = f"by the {lock.by}" if lock.obj == "sept_entry" else lock.mode
        parts.append(f"{lock.obj} {about}{level} is held {mode}".replace("  ", " "))
    return "; ".join(parts)


def explain_divergence(
    divergence: Divergence, transcript: Transcript, profile: ModuleProfile
) -> Divergence:
    """`divergence` with the state before its step and the check that decided.

    The transcript is replayed on a fresh machine up to the step, which then runs traced.
    """
    bed = Testbed(machine_config(transcript.config), profile)
    steps = transcript.all_steps()
    for step in steps[: divergence.step]:
        perform_or_raise_text(bed, step)
    step = steps[divergence.step]
    state: list[str] = []

    def traced() -> int | None:
        answer = bed.perform(step, before_call=lambda: state.extend(state_lines(bed, step)))
        rax = answer.get("rax")
        return rax if isinstance(rax, int) and answer["ret"] != "td_exit" else None

    decided = deciding_check(traced)
    return msgspec.structs.replace(divergence, decided_at=decided, state=tuple(state))
