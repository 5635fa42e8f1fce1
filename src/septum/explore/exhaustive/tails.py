"""Known steps where nobody else need run: taken one after the other, without a node for each.

Most states that a bounded search goes through are such: the last preemption is spent, and the task
that runs goes on until it must wait. Or its step touches nothing that makes it depend on others:
then they may as well run after it. Nothing is decided on the way.

Such steps in a row are one change of all that they write, made in every state that shows what they
see: a `Tail`. The same few thousand of them are walked again and again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.explore.exhaustive.known import POINT
from septum.explore.exhaustive.loops import still_spinning
from septum.explore.states.fingerprint import MASK, Change
from septum.explore.tracking.footprint import NOTHING, add_to, depend, join
from septum.explore.tracking.slots import MISSING

if TYPE_CHECKING:
    from septum.explore.exhaustive.known import Look, Step
    from septum.explore.exhaustive.loops import Row
    from septum.explore.exhaustive.node import Node
    from septum.explore.exhaustive.transitions import Transitions
    from septum.explore.states.fingerprint import Fingerprint, Seen
    from septum.explore.tracking.footprint import Masks

TAIL_MIN = 3
"""So many steps in a row are worth being kept as one."""

Kind = tuple[int, bool, bool, bool]
"""What decides, besides contents, how far a tail goes: whose it is, whether it is alone, whether
nobody else is to be tried in any case, whether failures are spent."""


class Tail:
    """Steps of one task in a row: what they rest on, and what comes of them."""

    __slots__ = ("_looks", "_values", "change", "masks", "seen", "steps", "wrote")

    def __init__(self, steps: list[Step], seen: Seen, change: Change) -> None:
        self.steps = steps
        self.seen = seen
        self.change = change
        self.masks: Masks = NOTHING
        self.wrote: frozenset[int] = frozenset().union(*(step.wrote for step in steps))
        # Promises looked in these steps, when what they can see had changed by so much.
        self._looks: list[Look] = []
        # For the row of what the task did: how far the state is after each step.
        self._values: list[int] = []
        for step in steps:
            if step.looked:
                self._looks.append((change.shown, step.raw))
            change.value += step.change.value
            change.shown += step.change.shown
            self._values.append(change.value)
            if step.masks is not NOTHING:
                self.masks = join(self.masks, step.masks)

    def fits(self, state: Fingerprint, row: Row, transitions: Transitions) -> bool:
        """Whether these are the next steps in `state`, and close no loop; then they are in the row
        of what the task did."""
        if not state.sees(self.seen):
            return False
        looks = transitions.looks
        if self._looks and not all(
            looks.get((state.shown + shown & MASK, raw), MISSING) is None
            for shown, raw in self._looks
        ):
            return False
        value = state.value
        return row.extend(self.steps, [value + more & MASK for more in self._values])


def slide(node: Node, state: Fingerprint, transitions: Transitions, most: int) -> None:
    """Move a node that was just entered, where the running task is to be tried first, on to the
    last state before anything is to be decided, or to be seen in a real run: a step that is not
    known, or not looked at, or breaks something; an outcome to be chosen; a task that waits, ends,
    wakes another, or goes round, or need not go round any more; one that may be preempted; the end
    of what runs may have, `most` decisions."""
    task = node.current
    alone = node.ready == (task,)
    only = alone or node.preemptions_left <= 0
    kind = (task, alone, only, node.failures_left <= 0)
    watched = {location for saw in node.spinning.values() for location, _ in saw}
    masks: Masks = NOTHING
    row = node.row
    row.cut(node.row_length)
    singles = _Singles(kind, state)
    while node.depth + len(node.before) < most:
        chain = state.chain(task)
        tails = transitions.tails.get((kind, chain))
        tail = _tail_of(tails, watched, state, row, transitions) if tails else None
        if tail is not None:
            singles.keep(state, transitions)
            state.apply(tail.change)
            node.before += tail.steps
            masks = join(masks, tail.masks)
            singles = _Singles(kind, state)
            continue
        step = transitions.find(state, task, alone, ())
        if step is None or not (only or step.masks is NOTHING):
            break
        if not _is_plain(step, node, state, transitions):
            break
        joins = not (step.change.afresh or step.change.emptied or step.retries)
        if not joins:
            singles.keep(state, transitions)
        mark = state.mark()
        state.apply(step.change)
        wakes = not watched.isdisjoint(step.wrote) and _wakes(node, state)
        if wakes or row.add(step, state.value):
            state.rewind(mark)
            break
        node.before.append(step)
        masks = join(masks, step.masks)
        if joins:
            singles.steps.append(step)
        else:
            singles = _Singles(kind, state)
    singles.keep(state, transitions)
    node.row_length += len(node.before)
    if masks[0]:
        add_to(node.below, task, masks)
        node.sleep = {other: its for other, its in node.sleep.items() if not depend(its, masks)}


def _tail_of(
    tails: list[Tail], watched: set[int], state: Fingerprint, row: Row, transitions: Transitions
) -> Tail | None:
    for at, tail in enumerate(tails):
        if watched.isdisjoint(tail.wrote) and tail.fits(state, row, transitions):
            if at:
                # What was met last is often met next.
                tails.insert(0, tails.pop(at))
            return tail
    return None


def _wakes(node: Node, state: Fingerprint) -> bool:
    return len(still_spinning(node.spinning, state)) < len(node.spinning)


def _is_plain(step: Step, node: Node, state: Fingerprint, transitions: Transitions) -> bool:
    """Whether nothing is to be decided or seen in a step or after it."""
    if step.end != POINT or step.woken or step.finding is not None:
        return False
    if step.looked and transitions.looks.get((state.shown, step.raw), MISSING) is not None:
        return False  # what promises say of it is not known, or they are broken
    return not step.choices or (
        node.failures_left <= 0 and all(choice.failure for choice in step.choices)
    )


class _Singles:
    """Steps that were taken one by one, each of which changes the same whatever there was before.
    They become a tail if they are many and come to no place twice."""

    __slots__ = ("_begun", "_first", "_kind", "steps")

    def __init__(self, kind: Kind, state: Fingerprint) -> None:
        self.steps: list[Step] = []
        self._kind = kind
        self._begun = state.mark()
        self._first = state.chain(kind[0])

    def keep(self, state: Fingerprint, transitions: Transitions) -> None:
        """They led to `state`, and others follow, or none."""
        steps = self.steps
        if len(steps) < TAIL_MIN or len({step.place for step in steps}) < len(steps):
            return
        state.rewind(self._begun)
        tail = Tail(steps, _seen(steps, state), _change(steps))
        state.apply(tail.change)
        transitions.tails.setdefault((self._kind, self._first), []).append(tail)


def _seen(steps: list[Step], state: Fingerprint) -> Seen:
    """What `steps` see that were taken in `state`, as it is there."""
    seen: dict[int, int] = {}
    changed: set[int] = set()
    for step in steps:
        for location, now in step.seen.entries():
            if location not in seen:
                at = location if location >= 0 else ~location
                seen[location] = state.as_seen(location) if at in changed else now
        changed |= step.wrote
    return state.seen(seen)


def _change(steps: list[Step]) -> Change:
    """What `steps` write, one after the other."""
    writes: dict[tuple[int, int], int | None] = {}
    digests: dict[int, int] = {}
    for step in steps:
        for table, key, new in step.change.writes:
            writes[table, key] = new
        for whole, difference in step.change.digests:
            digests[whole] = digests.get(whole, 0) + difference
    change = Change(tuple([(*at, new) for at, new in writes.items()]), (), ())
    change.digests = tuple(digests.items())
    return change
