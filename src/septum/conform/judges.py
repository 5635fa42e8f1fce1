"""Who notices a broken module: a judge answers with the first thing that is wrong, or nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.conform.refusals import wrong_refusals
from septum.conform.run import perform_or_raise_text
from septum.conform.tables import accept_by_state, leaf_by_state, one_lock_held
from septum.conform.testbed import Answer, Testbed, machine_config, recorded_answer
from septum.conform.transcript import Step, Transcript, read_transcripts

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_LOADED: list[tuple[Transcript, list[tuple[Step, Answer]]]] = []


def load_transcripts(paths: Iterable[Path]) -> None:
    """Read the transcripts that `agrees_with_transcripts` replays, once for many replays."""
    _LOADED.clear()
    for path in paths:
        for _, transcript in read_transcripts(path):
            steps = [(step, recorded_answer(step)) for step in transcript.all_steps()]
            _LOADED.append((transcript, steps))


def agrees_with_transcripts() -> str:
    """The first step whose answer differs from the recording."""
    for transcript, steps in _LOADED:
        bed = Testbed(machine_config(transcript.config))
        for index, (step, expected) in enumerate(steps):
            if perform_or_raise_text(bed, step) != expected:
                return f"{transcript.id} step {index} {step.call}"
    return ""


def tables_hold() -> str:
    """The first cell of the facts' tables that differs."""
    for table in (leaf_by_state, accept_by_state, one_lock_held):
        for dynamic_pamt in (False, True):
            try:
                wrong = table(dynamic_pamt)
            except Exception as error:  # what a broken module raises, or SceneDefect
                return f"{type(error).__name__}: {error}"
            if wrong:
                return repr(wrong[0])
    return ""


def refusals_hold() -> str:
    """The first single case that ends otherwise than it must."""
    wrong = wrong_refusals()
    return wrong[0] if wrong else ""
