"""Known steps where nobody else need run: taken one after the other, without a node for each.

Most states that a bounded search goes through are such: the last preemption is spent, and the task
that runs goes on until it must wait. Or its step touches nothing that makes it depend on others:
then they may as well run after it. Nothing is decided on the way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.explore.footprint import NOTHING, add_to, depend, join
from septum.explore.loops import entry_of, still_spinning
from septum.explore.transitions import POINT

if TYPE_CHECKING:
    from septum.explore.fingerprint import Fingerprint
    from septum.explore.footprint import Masks
    from septum.explore.node import Node
    from septum.explore.transitions import Step, Transitions


def slide(node: Node, state: Fingerprint, transitions: Transitions) -> None:
    """Move a node that was just entered, where the running task is to be tried first, on to the
    last state before anything is to be decided, or to be seen in a real run: a step that is not
    known, or not looked at, or breaks something; an outcome to be chosen; a task that waits, ends,
    wakes another, or goes round, or need not go round any more; one that may be preempted."""
    task = node.current
    alone = node.ready == (task,)
    only = alone or node.preemptions_left <= 0
    watched = {location for saw in node.spinning.values() for location, _ in saw}
    masks: Masks = NOTHING
    row = node.row
    row.cut(node.row_length)
    while True:
        step = transitions.find(state, task, alone, ())
        if step is None or not (only or step.masks is NOTHING):
            break
        if not _is_plain(step, node, state, transitions):
            break
        chain = state.chain(task)
        mark = state.mark()
        state.apply(step.change)
        wakes = not watched.isdisjoint(step.wrote) and _wakes(node, state)
        if wakes or row.add(entry_of(step, chain, state.value)):
            state.rewind(mark)
            break
        node.before.append(step)
        if step.masks is not NOTHING:
            masks = join(masks, step.masks)
            if node.sleep:
                node.sleep = {
                    other: its for other, its in node.sleep.items() if not depend(its, step.masks)
                }
    node.row_length += len(node.before)
    if masks is not NOTHING:
        add_to(node.below, task, masks)


def _wakes(node: Node, state: Fingerprint) -> bool:
    return len(still_spinning(node.spinning, state)) < len(node.spinning)


def _is_plain(step: Step, node: Node, state: Fingerprint, transitions: Transitions) -> bool:
    """Whether nothing is to be decided or seen in a step or after it."""
    if step.end != POINT or step.woken or step.finding is not None:
        return False
    if step.looked:
        look = (state.shown, step)
        if look not in transitions.looks or transitions.looks.get(look) is not None:
            return False
    return not step.choices or (
        node.failures_left <= 0 and all(choice.failure for choice in step.choices)
    )
