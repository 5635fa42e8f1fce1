"""The verdict of a run in a word and a sentence, from its trace alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from septum.checks import PROMISES
from septum.checks.promise import consequence, sentence
from septum.errors import InputError
from septum.explore.scenario import ScenarioSubject
from septum.scenarios.outcome import EXPECTATION
from septum.scenarios.run import ScenarioRecipe, scenario_of_recipe
from septum.sim.schedule import decode_token

if TYPE_CHECKING:
    from septum.sim.events import FindingEvent
    from septum.trace.header import TraceHeader


class FindingText(msgspec.Struct):
    """A finding, the step where it was seen, and what its promise is about."""

    promise: str
    text: str
    step: int
    task: str
    foreseen: bool
    sentence: str
    consequence: str


class VerdictText(msgspec.Struct):
    """The top of a page: `word` is BROKEN, HELD or UNFINISHED."""

    word: str
    sentence: str
    summary: str
    findings: list[FindingText]


def _subject(header: TraceHeader) -> ScenarioSubject | None:
    """The scenario and design that were run, from the header's token, as the scenario's file may
    have changed since. None for a boot, and when the scenario or design cannot be loaded any more.
    """
    try:
        _, packed, _ = decode_token(header.token)
        recipe = msgspec.msgpack.decode(packed, type=ScenarioRecipe)
        return ScenarioSubject(scenario_of_recipe(recipe), recipe.design)
    except (ValueError, msgspec.MsgspecError, InputError):
        return None


def finding_texts(
    subject: ScenarioSubject | None, findings: list[tuple[int, FindingEvent]]
) -> list[FindingText]:
    """Findings with the words of their promises; (step, event) each."""
    texts = []
    for step, event in findings:
        promise = PROMISES.get(event.promise)
        texts.append(
            FindingText(
                promise=event.promise,
                text=event.text,
                step=step,
                task=event.task,
                foreseen=subject is not None and subject.foresees(event.promise, event.text),
                sentence=sentence(promise) if promise is not None else "",
                consequence=consequence(promise, event.text) if promise is not None else "",
            )
        )
    return texts


def verdict_of(
    header: TraceHeader, findings: list[tuple[int, FindingEvent]], *, complete: bool
) -> VerdictText:
    """The verdict of a trace. `complete`: it has its end line."""
    subject = _subject(header)
    texts = finding_texts(subject, findings)
    summary = subject.scenario.summary if subject is not None else ""
    if texts:
        # A finding that the scenario does not foresee comes first.
        first = next((text for text in texts if not text.foreseen), texts[0])
        said = " So the scenario expects." if first.foreseen else ""
        line = f"Promise {first.promise} was broken: {first.text}.{said}"
        if first.promise == EXPECTATION:
            line = f"The run is not as the scenario says: {first.text}."
        return VerdictText("BROKEN", line, summary, texts)
    if not complete:
        return VerdictText("UNFINISHED", "The trace was cut short.", summary, texts)
    line = "No promise was seen broken in this run."
    return VerdictText("HELD", line, summary, texts)
