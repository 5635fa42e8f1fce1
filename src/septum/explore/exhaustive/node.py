"""A state on the path of a search with what was tried from it, and what is kept of it after."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.explore.exhaustive.loops import Row
from septum.explore.tracking.footprint import depend

if TYPE_CHECKING:
    from septum.explore.exhaustive.known import Step
    from septum.explore.exhaustive.loops import Spinning
    from septum.explore.states.fingerprint import Mark
    from septum.explore.tracking.footprint import Masks, Summary


NOBODYS = Row(0)
"""The row where no task has run yet."""


class Node:
    """A state on the current path, and what was tried from it.

    Slots say what the state is, what may still be spent, and what was tried; tasks go by index, and
    by their place in `tasks` where it says "answer".
    """

    __slots__ = (
        "alive",
        "answer",
        "asleep",
        "before",
        "below",
        "current",
        "depth",
        "failures_left",
        "free",
        "key",
        "mark",
        "pending",
        "preemptions_left",
        "ready",
        "rounds",
        "row",
        "row_length",
        "sleep",
        "spinning",
        "step",
        "steps",
        "taken",
        "tasks",
        "todo",
        "whole",
    )

    def __init__(self) -> None:
        # The state.
        self.ready: tuple[int, ...] = ()
        self.tasks: list[int] = []  # the same, but first the one that runs, if it is ready
        self.alive: frozenset[int] = frozenset()  # who must have ended when the run has
        self.current = -1  # the task that runs; -1: it cannot go on
        self.free = True  # that another one runs than `current` costs no preemption
        self.preemptions_left = 0
        self.failures_left = 0
        self.depth = 0  # decisions that lead here
        self.key = 0  # what stands for the state where it is looked for again
        self.mark: Mark = (0, 0, 0)  # to come back to it
        # Tasks that go round: which, how often all of them did without any change, and what
        # `current` did in a row, of which the first `row_length` steps lead here.
        self.spinning: Spinning = {}
        self.rounds = 0
        self.row = NOBODYS
        self.row_length = 0
        # Tasks that need not run here, with the steps that they would take; and those that needed
        # not where the node was entered, before known steps moved it on (`tails.slide`).
        self.sleep: dict[int, Masks] = {}
        self.asleep: dict[int, Masks] = {}
        self.before: list[Step] = []  # these known steps
        # What was tried.
        self.answer = -1  # who is being tried; -1: nobody was yet
        self.pending: list[tuple[int, ...]] = []  # other outcomes of its choice points, to be tried
        self.todo: list[int] = []  # answers still to be tried
        self.taken: Step | None = None  # the step that leads to the next node of the path
        self.step: Masks | None = None  # what the one that is being tried touched, all outcomes
        self.steps: dict[int, Masks] = {}  # the same, by the answers that were tried
        self.below: Summary = {}  # what was touched in all that was explored from here
        self.whole = True  # when it is left, all from here on has been explored


def order(node: Node) -> None:
    """Who could run, the running one first."""
    current = node.current
    node.tasks = [task for task in node.ready if task != current]
    if current >= 0:
        node.tasks.insert(0, current)
        node.free = current in node.spinning


def inherit_sleep(node: Node, parent: Node, bounded: bool) -> None:
    """Who still sleeps in `node` after the step that led there from `parent`."""
    assert parent.taken is not None
    step = parent.taken.masks
    ran = parent.tasks[parent.answer]
    node.sleep = {
        task: masks
        for task, masks in parent.sleep.items()
        if task != ran and not depend(masks, step)
    }
    for answer, masks in parent.steps.items():
        task = parent.tasks[answer]
        if task == ran or depend(masks, step):
            continue
        if not bounded or (answer == 0 and not parent.free):
            node.sleep[task] = masks
