"""Where the damage of a run is done: the same schedule once more, with promises looked at at every
step.

A search that looks when runs have ended finds what is broken then, and the run has gone on for long
since it broke. What every step is looked at for is no other run: the promises only look.
"""

from __future__ import annotations

from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

import msgspec

from septum.explore.runs.run import Run, Runner
from septum.explore.runs.shrink import nearest_passing
from septum.explore.runs.steering import Replaying
from septum.explore.scenario import ScenarioSubject
from septum.explore.stories.endless import SCHEDULER
from septum.explore.stories.parting import first_difference
from septum.explore.stories.recording import Recorded, Recording, is_over
from septum.sim import Finding
from septum.sim.events import FindingEvent

if TYPE_CHECKING:
    from septum.explore.stories.recording import Beat
    from septum.explore.verdict import Counterexample
    from septum.sim.events import Event


class Other(msgspec.Struct, frozen=True):
    """A promise that is broken before the one that the story is of: after `nr_events` events."""

    finding: Finding
    nr_events: int


class Damage(msgspec.Struct, frozen=True):
    """What every step tells of a counterexample.

    `example` and `recording` are what is to be told: up to where its promise is broken first, and
    then `cut` says so in words; else as they were, and `untold` says why where nobody could look.
    `other` is broken before that. `unseen`: why the story has no look at the world from some step
    on, "" where it has.
    """

    example: Counterexample
    recording: Recorded
    cut: str = ""
    other: Other | None = None
    untold: str = ""
    unseen: str = ""


class _EveryStep(ScenarioSubject):
    """What a search went through, with every step looked at; with `only`, for that promise."""

    __slots__ = ("_only", "_subject")

    def __init__(self, subject: ScenarioSubject, only: str = "") -> None:
        super().__init__(subject.scenario, subject.design, "every-step")
        self._subject = subject
        self._only = only

    def expects(self, finding: Finding) -> bool:
        if self._only and finding.promise != self._only:
            return True
        return self._subject.expects(finding)


def damage_of(
    runner: Runner,
    example: Counterexample,
    recording: Recording,
    *,
    searched: bool = True,
    near: bool = True,
) -> Damage:
    """Where the damage of `example` is done, whose whole run is `recording`, made by `runner`.

    `searched`: a search found it; `near`: a schedule near it that passes is wanted: one that breaks
    nothing at any step.
    """
    subject = runner.subject
    promise = example.finding.promise
    told = Damage(example, recording)
    if (
        not isinstance(subject, ScenarioSubject)
        or subject.check == "every-step"
        or example.finding.where == SCHEDULER
    ):
        return told
    with ExitStack() as worlds:
        careful = every = worlds.enter_context(closing(Runner(_EveryStep(subject), runner.options)))
        whole = [beat.event for beat in recording.beats if not isinstance(beat.event, FindingEvent)]
        run, events = _again(careful, example)
        other = None
        if run.finding is not None and run.finding.promise != promise and _is_part(events, whole):
            other = Other(run.finding, len(events))
            told = Damage(example, recording, other=other)
            another = Runner(_EveryStep(subject, promise), runner.options)
            careful = worlds.enter_context(closing(another))
            run, events = _again(careful, example)
        if run.finding is None or run.finding.promise != promise or not _is_part(events, whole):
            return told
        seen = Recording(careful, example.answers, run.finding, example.free)
        # What is broken before that is told once, and is not foreseen.
        seen.leave_out(lambda beat: _is_news(beat, subject))
        passing = _passing(every, example, run) if near else None
        cut = msgspec.structs.replace(example, finding=run.finding, passing=passing)
        mode = f"with --check {subject.check},"
        who = f"The search, {mode} saw" if searched else f"The run, {mode} shows"
        return Damage(cut, seen, _cut_words(example, run.finding, seen, who), other)


def _again(runner: Runner, example: Counterexample) -> tuple[Run, list[Event]]:
    """The run, with its events: but for those that tell what breaks as foreseen, of which there are
    the more the more is looked at."""
    events: list[Event] = []

    def see(event: Event) -> None:
        if not isinstance(event, FindingEvent) and not is_over(runner):
            events.append(event)

    runner.sink = see
    try:
        return runner.run(Replaying(list(example.answers), example.free)), events
    finally:
        runner.sink = None


def _is_news(beat: Beat, subject: ScenarioSubject) -> bool:
    event = beat.event
    if not isinstance(event, FindingEvent):
        return False
    return not subject.expects(Finding(event.promise, event.text, "", event.task, event.time_ns))


def _is_part(part: list[Event], whole: list[Event]) -> bool:
    """The same run, and ended earlier: no look has changed it."""
    return len(part) < len(whole) and part == whole[: len(part)]


def _passing(every: Runner, example: Counterexample, run: Run) -> list[int] | None:
    """The one that the search found, if it parts before the damage, and breaks nothing at any step;
    else another that does so."""
    passing = example.passing
    if passing is not None and first_difference(example.answers, passing) < len(run.answers):
        near = every.run(Replaying(list(passing)))
        if near.finding is None and not near.cut:
            return passing
    every.verify_every = 1
    return nearest_passing(every, list(example.answers), example.free)


def _cut_words(example: Counterexample, finding: Finding, cut: Recording, who: str) -> str:
    """That the story is cut, and what `who` saw or shows of the rest."""
    late = example.finding
    where = ", ".join(word for word in (late.task, late.where) if word)
    what = "the same later" if late.text == finding.text else f"later: {late.text}"
    text = (
        "The story is cut where the damage is done: it looks at promises at every step."
        f" {who} {what} ({where})."
    )
    hidden = example.preemptions - sum(beat.preempted for beat in cut.beats)
    hidden += example.failures - sum(beat.injected for beat in cut.beats)
    if hidden > 0:
        text += f" Not shown, as later: {hidden} of the schedule's preemptions and failures."
    return text
