"""The exhaustive search: every schedule within the bounds, up to the order of independent steps.

Depth-first, by running again from the beginning with other answers. Four things cut it down, and
each keeps at least one schedule of every class of schedules that differ only in the order of
independent steps, with no more preemptions than the cheapest of the class:

- Another task is preferred to the running one only where the step that the running one would
  take depends on something that another task does later (anywhere in what was explored below).
- A task that was passed over sleeps until a step depends on the step that it would take.
- A state that was reached before, with at least as much left to spend, is not entered again.
  States are told apart by the hash of the partial order that led to them (TraceHash).
- A task that spins yields, at no cost.

With a bound on preemptions, only the running task's own step decides and sleeps, because passing
over any other may cost a preemption. Without one, the tasks to try at a state are the least set
that is closed under dependence, and every task that was tried sleeps.

Sources: Flanagan, Godefroid, POPL 2005; Yang et al., SPIN 2008 (stateful); Coons, Musuvathi,
McKinley, OOPSLA 2013 (bounded).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.explore.footprint import (
    NOTHING,
    Masks,
    Summary,
    TraceHash,
    add_to,
    depend,
    join,
    join_into,
)
from septum.explore.run import Abandoned, Steering, standing
from septum.explore.subject import UNBOUNDED
from septum.sim import SimDefect

if TYPE_CHECKING:
    from septum.explore.subject import Options
    from septum.explore.track import Tracker
    from septum.sim import Sim

EVERYTHING: Masks = (1, 1, 0, 0)
"""The footprint of a step of which nothing is known: it depends on every other such step."""


ANYTHING: Masks = (-1, -1, -1, -1)
"""The footprint of whatever may follow: it depends on every step that touches anything shared."""


NO_HASH = TraceHash()


PERIOD_MAX = 60
"""Steps of the longest loop that is recognised as a retry loop."""


class Node:
    """A decision on the current path. `kind`: a pick among tasks, or a choice point.

    `tasks` are the ready tasks by answer; `todo` the answers not yet tried; `answer` is being
    tried. `below` is what was touched in what was explored under this node, `steps` the first
    step of each answer tried. `sleep` are the tasks that need not run here, with their steps.
    """

    __slots__ = (
        "answer",
        "below",
        "choice",
        "current",
        "failures_left",
        "forced",
        "free",
        "hash",
        "key",
        "preemptions_left",
        "row",
        "sleep",
        "step",
        "steps",
        "tasks",
        "todo",
        "variants",
    )

    def __init__(self, choice: bool, answer: int, todo: list[int]) -> None:
        self.choice = choice
        self.answer = answer
        self.todo = todo
        self.below: Summary = {}
        self.step: Masks | None = None
        self.variants = NOTHING  # the same step, as its choice points came out otherwise before
        self.steps: dict[int, Masks] = {}
        self.sleep: dict[int, Masks] = {}
        self.tasks: list[int] = []
        self.forced = False
        self.free = False
        self.current = 0
        self.key = 0
        self.hash = NO_HASH
        self.row: tuple[int, ...] = ()
        self.preemptions_left = 0
        self.failures_left = 0


class Visited:
    """What was explored from one state: with how much to spend, without which sleepers."""

    __slots__ = ("below", "current", "failures_left", "preemptions_left", "sleep")

    def __init__(self, node: Node) -> None:
        self.current = node.current
        self.preemptions_left = node.preemptions_left
        self.failures_left = node.failures_left
        self.sleep = frozenset(node.sleep)
        self.below = node.below

    def covers(self, node: Node) -> bool:
        """Whether entering the state as `node` would find nothing new."""
        need = node.preemptions_left
        if self.current != node.current:
            need += 1
        return (
            self.preemptions_left >= need
            and self.failures_left >= node.failures_left
            and self.sleep <= node.sleep.keys()
        )


class Restart(Abandoned):
    """A location turned out to be shared: what was computed without it does not count."""


class FastSteering(Steering):
    """Walks the reduced tree. `next_schedule` moves on after each run."""

    __slots__ = (
        "_accesses",
        "_at",
        "_choices",
        "_hash",
        "_last_pick",
        "_prefix_at",
        "_resume",
        "_reuse",
        "_row",
        "bounded",
        "failures_max",
        "nr_visited_hits",
        "path",
        "preemptions_max",
        "prefix",
        "tracker",
        "visited",
    )

    def __init__(
        self, options: Options, preemptions: int, tracker: Tracker | None, prefix: list[int]
    ) -> None:
        self.preemptions_max = preemptions
        self.failures_max = options.failures
        self.bounded = preemptions < UNBOUNDED
        self.tracker = tracker
        self.path: list[Node] = []
        self.prefix = prefix  # answers that are given: another worker has the rest
        self.visited: dict[int, list[Visited]] = {}
        self.nr_visited_hits = 0
        super().__init__()

    def reset(self) -> None:
        super().reset()
        self._at = 0
        self._prefix_at = 0
        self._hash = TraceHash()
        self._choices: list[int] = []
        self._accesses = 0
        self._row: list[int] = []
        self._last_pick: Node | None = None
        self._reuse: Summary | None = None
        # The last pick of the path: what was before it repeats, its step comes out otherwise.
        self._resume = -1
        for at in range(len(self.path) - 1, -1, -1):
            if not self.path[at].choice:
                self._resume = at
                break

    # Answers

    def only_one(self) -> None:
        if not self.stopped:
            self._prefix_at -= 1  # there is no answer to it
            self.pick_task(1, True, False)

    def pick_task(self, n: int, forced: bool, spins: bool) -> int:
        sim = self.sim
        at = self._at
        self._at = at + 1
        if at <= self._resume:
            self._repeat_step(at)
        else:
            self._close_step(sim.current.index)
            if not forced and self._repeats():
                self.yields = spins = True
        ring = sim.ready_ring(forced)
        tasks = [task.index for task in ring]
        if at < len(self.path):
            node = self.path[at]
            if node.tasks != tasks:
                raise SimDefect("a schedule did not repeat: the model is not deterministic")
            self._prefix_at += 1
        else:
            node = self._new_pick(tasks, forced, spins, sim)
        self.yields = node.free and not forced
        if node.answer or forced:
            self._row.clear()
        self._last_pick = node
        return node.answer

    def _repeats(self) -> bool:
        """Whether the running task has done the same three times in a row: the same accesses,
        standing at the same places in the code. A loop that gets on touches something else."""
        row = self._row
        row.append(hash((self._accesses, standing(3))))
        last = row[-1]
        length = len(row)
        for period in range(1, min(PERIOD_MAX, length // 3) + 1):
            if last == row[-1 - period] == row[-1 - 2 * period]:
                a, b, c = length - period, length - 2 * period, length - 3 * period
                if row[a:] == row[b:a] == row[c:b]:
                    return True
        return False

    def _new_pick(self, tasks: list[int], forced: bool, spins: bool, sim: Sim) -> Node:
        node = Node(False, 0, [])
        node.tasks = tasks
        node.forced = forced
        node.free = forced or spins
        node.current = -1 if forced else sim.current.index
        node.preemptions_left = self.preemptions_max - self.preemptions
        node.failures_left = self.failures_max - self.failures
        node.sleep = self._inherited_sleep()
        node.hash = self._hash.copy()
        node.row = tuple(self._row)
        node.key = hash((self._hash.value, tuple(sorted(tasks))))
        given = self._given(len(tasks))
        if given is not None:
            node.answer = given
            node.sleep = {}
            self.path.append(node)
            return node
        for visited in self.visited.get(node.key, ()):
            if visited.covers(node):
                self.nr_visited_hits += 1
                self._cut(visited.below)
        awake = [a for a, task in enumerate(tasks) if task not in node.sleep]
        if spins and 0 in awake:
            awake.remove(0)
        if not node.free and node.preemptions_left <= 0:
            awake = [a for a in awake if a == 0]
        if not awake:
            self._cut(self._below_sleepers(node.sleep))
        node.answer = awake[0]
        node.todo = awake[1:]
        self.path.append(node)
        return node

    def _given(self, n: int) -> int | None:
        at = self._prefix_at
        self._prefix_at = at + 1
        return self.prefix[at] % n if 0 <= at < len(self.prefix) and n > 1 else None

    def choose_value(self, name: str, n: int) -> int:
        at = self._at
        self._at = at + 1
        if at < len(self.path):
            answer = self.path[at].answer
            self._prefix_at += 1
        else:
            given = self._given(n)
            if given is not None:
                node = Node(True, given, [])
            elif self.is_failure(name) and self.failures >= self.failures_max:
                node = Node(True, 0, [])
            else:
                node = Node(True, 0, list(range(1, n)))
            self.path.append(node)
            answer = node.answer
        self._choices.append(answer)
        return answer

    # Steps

    def _repeat_step(self, at: int) -> None:
        """The step before the pick `at` is one of the last run, and known."""
        if self.tracker is not None:
            self.tracker.log.clear()
        self._choices.clear()
        if at == self._resume:
            self._hash = self.path[at].hash.copy()
            self._row = list(self.path[at].row)

    def _close_step(self, task: int) -> None:
        """The step since the last pick is complete: it was one of `task`."""
        node = self._last_pick
        tracker = self.tracker
        if node is None:
            if tracker is not None:
                tracker.log.clear()  # how the run was set up is no step
        elif tracker is None:
            node.step = EVERYTHING
            self._hash.step(task, (1,), tuple(self._choices))
        else:
            accesses = tracker.take_step(task)
            self._accesses = hash(frozenset(accesses))
            if tracker.footprints.grown:
                raise Restart
            node.step = tracker.footprints.masks(accesses)
            self._hash.step(task, accesses, tuple(self._choices))
        self._choices.clear()

    def ended(self) -> None:
        if self._last_pick is not None and not self.stopped:
            self._close_step(self._last_pick.tasks[self._last_pick.answer])
            self._last_pick = None

    def _inherited_sleep(self) -> dict[int, Masks]:
        """Who still sleeps after the last step."""
        parent = self._last_pick
        if parent is None:
            return {}
        step = parent.step
        assert step is not None
        ran = parent.tasks[parent.answer]
        sleep = {
            task: masks
            for task, masks in parent.sleep.items()
            if task != ran and not depend(masks, step)
        }
        for answer, masks in parent.steps.items():
            task = parent.tasks[answer]
            if task == ran or depend(masks, step):
                continue
            if not self.bounded or (answer == 0 and not parent.free):
                sleep[task] = masks
        return sleep

    def _below_sleepers(self, sleep: dict[int, Masks]) -> Summary:
        """What may follow where only sleepers could go on: all that followed where each of them
        was passed over."""
        total: Summary = {}
        for node in self.path:
            if any(node.tasks[answer] in sleep for answer in node.steps):
                join_into(total, node.below)
        for task, masks in sleep.items():
            add_to(total, task, masks)
        return total

    def _cut(self, below: Summary) -> None:
        self._reuse = below
        self.stop()

    @property
    def nr_states(self) -> int:
        """States that were explored to the end."""
        return sum(map(len, self.visited.values()))

    # Backtracking

    def next_schedule(self) -> bool:
        """Move on to the next schedule; False when all have been covered."""
        below: Summary = {}
        if self.broken:
            # What would have followed is not known: take it that everything would.
            below = {task: ANYTHING for node in self.path for task in node.tasks}
        elif self._reuse is not None:
            join_into(below, self._reuse)
        path = self.path
        while path:
            node = path[-1]
            if node.choice:
                join_into(node.below, below)
                if node.todo:
                    self._keep_step(node)
                    node.answer = node.todo.pop(0)
                    return True
            else:
                task = node.tasks[node.answer]
                step = node.step if node.step is not None else NOTHING
                step = join(step, node.variants)
                add_to(below, task, step)
                node.steps[node.answer] = step
                join_into(node.below, below)
                answer = self._another(node)
                if answer is not None:
                    node.answer = answer
                    node.step = None
                    node.variants = NOTHING
                    return True
                self.visited.setdefault(node.key, []).append(Visited(node))
            below = node.below
            path.pop()
        return False

    def _keep_step(self, choice: Node) -> None:
        """The step that `choice` is in will be made again, and come out otherwise."""
        at = self.path.index(choice) - 1
        while at >= 0:
            node = self.path[at]
            if not node.choice:
                if node.step is not None:
                    node.variants = join(node.variants, node.step)
                return
            at -= 1

    def _another(self, node: Node) -> int | None:
        """The next answer that must be tried at `node`."""
        if not node.todo:
            return None
        if self.bounded:
            if not node.free and not self._wanted(node, node.tasks[0]):
                return None
            return node.todo.pop(0)
        tried = {node.tasks[answer]: masks for answer, masks in node.steps.items()}
        wanted: set[int] = set()
        for task, masks in node.below.items():
            if task in tried:
                continue
            if any(depend(masks, step) for step in tried.values()):
                wanted.add(task)
        if not wanted:
            return None
        ready = [answer for answer in node.todo if node.tasks[answer] in wanted]
        if len(ready) < len(wanted):
            return node.todo.pop(0)  # one that is wanted is not ready: any may lead to it
        node.todo.remove(ready[0])
        return ready[0]

    def _wanted(self, node: Node, task: int) -> bool:
        """Whether anything that others do below depends on the step of `task` here."""
        step = node.steps.get(0)
        if step is None:
            return True  # it slept: nothing is known of its step here
        return any(depend(masks, step) for other, masks in node.below.items() if other != task)
