"""Where the schedule of a story and the nearest one that passes part, in a reader's words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from septum.explore.runs.steering import Replaying
from septum.explore.stories.module_watch import call_under_way
from septum.explore.stories.why import failure_words
from septum.sim import ALTERNATIVE
from septum.sim.events import ChoiceEvent
from septum.trace.via import kernel_path

if TYPE_CHECKING:
    from collections.abc import Sequence

    from septum.explore.runs.run import Runner

PLACE_DEPTH = 6
_THEIRS = "In the nearest schedule that passes"


class Asked(msgspec.Struct, frozen=True):
    """What a schedule was asked, and its answer: who `runs` next (`why` is "" when `task` could go
    on, else what became of it), or how the choice point `choice` of `task` comes out. `path`: the
    kernel functions around the task, `call`: the call of the module that it would go on in."""

    answer: int
    task: str
    runs: str = ""
    why: str = ""
    choice: str = ""
    path: tuple[str, ...] = ()
    call: str = ""


class Asking(Replaying):
    """Replays a schedule up to the question of number `at`."""

    __slots__ = ("_at_number", "asked")

    def __init__(self, answers: list[int], at: int) -> None:
        self._at_number = at
        super().__init__(answers)

    def reset(self) -> None:
        super().reset()
        self.asked: Asked | None = None

    def pick_task(self, n: int, forced: bool, spins: bool) -> int:
        answer = super().pick_task(n, forced, spins)
        sim = self.sim
        if len(sim.answers) == self._at_number:
            task = sim.current
            why = ""
            if forced:
                why = "has ended" if task.done else "has to wait" if task in sim.tasks else "begins"
            runs = sim.ready_ring()[answer].name
            call = "" if forced else call_under_way()
            self._is(Asked(answer, task.name, runs, why, path=_path(), call=call))
        return answer

    def choose_value(self, name: str, n: int) -> int:
        value = super().choose_value(name, n)
        if len(self.sim.answers) == self._at_number:
            self._is(Asked(value, self.sim.current.name, choice=name, path=_path()))
        return value

    def _is(self, asked: Asked) -> None:
        self.asked = asked
        self.stop()


def _path() -> tuple[str, ...]:
    return tuple(kernel_path(PLACE_DEPTH).split(" < "))


def first_difference(one: Sequence[int], other: Sequence[int]) -> int:
    """The number of the first answer that is another. The end of a list is all zeros."""
    length = max(len(one), len(other))
    padded = ([*answers, *[0] * (length - len(answers))] for answers in (one, other))
    return next(at for at, (a, b) in enumerate(zip(*padded, strict=True)) if a != b)


def asked_at(runner: Runner, answers: list[int], at: int) -> Asked | None:
    """What the schedule is asked as number `at`; None when its run ends before."""
    asking = Asking(answers, at)
    runner.clean()
    runner.run(asking)
    return asking.asked


def parting_words(
    ours: Asked | None, theirs: Asked | None, step: int, before: int, place: str
) -> str:
    """One sentence: what the schedule does that passes, where the one of the story does otherwise.

    `step`: the number of what is done there in the story, 0 where it does not show; `before`: that
    of the last step before it, 0 for none. `place`: the functions that say where the task is.
    """
    where = f"at step {step}" if step else f"after step {before}" if before else "at the beginning"
    if ours is None or theirs is None or (ours.choice, ours.task) != (theirs.choice, theirs.task):
        return f"The nearest schedule that passes does something else {where}."
    if theirs.choice:
        return _choice_words(theirs, step, where, place)
    if not theirs.answer and not theirs.why:
        return f"The nearest schedule that passes lets {theirs.task} go on {where}."
    if theirs.why:
        when = "" if theirs.why == "begins" else f", when {theirs.task} {theirs.why}"
        return f"{_THEIRS} {theirs.runs} runs, and not {ours.runs}, {where}{when}."
    if ours.answer:
        return f"{_THEIRS} {theirs.runs} runs, and not {ours.runs}, {where}."
    inside = f", while {theirs.task} is in {place}" if place else f", before {theirs.task} goes on"
    return f"{_THEIRS} {theirs.runs} runs {where}{inside}."


def _choice_words(theirs: Asked, step: int, where: str, place: str) -> str:
    if theirs.choice.startswith(ALTERNATIVE):
        return f"{_THEIRS} {theirs.task} takes its alternative {theirs.answer + 1} {where}."
    if not theirs.answer:
        # What fails is injected, and so it shows.
        return f"The nearest schedule that passes lets step {step} succeed."
    event = ChoiceEvent(0, theirs.task, 0, theirs.choice, theirs.answer)
    inside = f", in {place}" if place else ""
    return f"{_THEIRS} {failure_words(event)} {where}{inside}."
