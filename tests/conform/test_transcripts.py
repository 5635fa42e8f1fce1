"""Every recorded step that is at hand is answered by the model as by the real module."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from septum.conform import run_conform
from septum.conform.allowed import status_allowed
from septum.conform.report import render_conform
from septum.conform.testbed import recorded_answer
from septum.conform.transcript import find_transcripts, read_transcripts

FILES = find_transcripts(os.environ)
SKIP = (
    "no recorded transcripts: put them in ../shared/vectors beside the checkout, "
    "or name a file or folder in SEPTUM_TRANSCRIPTS"
)


def at_hand(test: Callable[[Path], None]) -> Callable[[Path], None]:
    """Run `test` on each file, or skip it with the sentence above."""
    if not FILES:
        return pytest.mark.skip(reason=SKIP)(pytest.mark.parametrize("path", [Path("none")])(test))
    return pytest.mark.parametrize("path", FILES, ids=[path.name for path in FILES])(test)


@at_hand
def test_every_step_agrees(path: Path) -> None:
    report = run_conform([path])
    assert report.steps > 0
    assert report.agrees, render_conform(report)
    assert not report.not_compared


@at_hand
def test_every_recorded_status_is_one_that_the_facts_allow(path: Path) -> None:
    for _, transcript in read_transcripts(path):
        for step in transcript.all_steps():
            answer = recorded_answer(step)
            rax = answer.get("rax")
            if isinstance(rax, int) and answer["ret"] != "td_exit":
                assert status_allowed(step.call, rax), (transcript.id, step)
