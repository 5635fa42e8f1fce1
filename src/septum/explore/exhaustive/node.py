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

    `tasks`: who could run, the running one first unless it cannot (`forced`). `answer`: who is
    being tried, `pending` with which other outcomes of its choice points, `todo`: who is still to
    be tried. `below`: what was touched in what was explored from here; `steps`: by each task that
    was tried first. `sleep`: tasks that need not run here, with their steps. `free`: that another
    one runs costs nothing.
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
        self.whole = True  # it will have been explored to the end
        self.tasks: list[int] = []
        self.ready: tuple[int, ...] = ()
        self.alive: frozenset[int] = frozenset()
        self.current = -1
        self.free = True
        self.preemptions_left = 0
        self.failures_left = 0
        self.spinning: Spinning = {}
        self.rounds = 0
        self.row = NOBODYS
        self.row_length = 0
        self.sleep: dict[int, Masks] = {}
        self.asleep: dict[int, Masks] = {}
        self.before: list[Step] = []
        self.depth = 0
        self.key = 0
        self.mark: Mark = (0, 0, 0)
        self.answer = -1
        self.todo: list[int] = []
        self.pending: list[tuple[int, ...]] = []
        self.taken: Step | None = None
        self.step: Masks | None = None
        self.steps: dict[int, Masks] = {}
        self.below: Summary = {}


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
