"""The exhaustive search: all states within the bounds, step by step, by known steps.

Depth-first over states (Fingerprint). A step that is not known yet is learned in a real run along
the path (Recording), which goes on to the end and so learns the steps after it, too. What cuts the
search down keeps at least one schedule of every class of schedules that differ only in the order
of independent steps, with no more preemptions than the cheapest of the class:

- Another task is preferred to the running one only where the step that the running one would
  take depends on something that another task does later (anywhere in what was explored below).
- A task that was passed over sleeps until a step depends on the step that it would take.
- A state that was reached before, with at least as much left to spend, is not entered again.
- A task that goes round without change is put aside, at no cost, until what it looks at changes.

With a bound on preemptions, only the running task's own step decides and sleeps, because passing
over any other may cost a preemption. Without one, the tasks to try at a state are the least set
that is closed under dependence, and every task that was tried sleeps.

Promises are judged in real runs alone: every state in which a step begins that has them look, and
every state in which runs end, is reached by one.

Sources: Flanagan, Godefroid, POPL 2005; Yang et al., SPIN 2008 (stateful); Coons, Musuvathi,
McKinley, OOPSLA 2013 (bounded); Musuvathi, Qadeer, PLDI 2008 (fair).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.explore.exhaustive.known import DONE, POINT, Step
from septum.explore.exhaustive.learn import Recording, Translating
from septum.explore.exhaustive.loops import Row, looks_at, still_spinning
from septum.explore.exhaustive.node import Node, inherit_sleep, order
from septum.explore.exhaustive.real import RealRuns, Restart
from septum.explore.exhaustive.tails import slide
from septum.explore.exhaustive.transitions import Transitions, Unfaithful
from septum.explore.exhaustive.visited import FOUND
from septum.explore.states.fingerprint import Fingerprint
from septum.explore.subject import UNBOUNDED
from septum.explore.tracking.footprint import (
    NOTHING,
    Masks,
    Summary,
    add_to,
    depend,
    join,
    join_into,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from septum.explore.exhaustive.ahead import Move
    from septum.explore.exhaustive.known import Choice
    from septum.explore.runs.run import Run, Runner
    from septum.explore.runs.steering import Steering
    from septum.explore.subject import Options
    from septum.explore.tracking.track import Tracker
    from septum.explore.workers.search import Job
    from septum.sim import Finding

ANYTHING: Masks = (-1, -1, -1, -1)
"""The footprint of whatever may follow: it depends on every step that touches anything shared."""

ROUNDS_MAX = 3
"""So often all tasks go round without any change before nobody is taken to get on."""


class GraphSearch:
    """Walks the states. `found` is called with every run that broke a promise for the first time
    in its kind; it says whether to go on."""

    __slots__ = (
        "_exchange",
        "_on_path",
        "_path",
        "_prefix",
        "_runs",
        "_state",
        "_tasks",
        "_tracker",
        "_transitions",
        "_visited",
        "bounded",
        "failures_max",
        "max_points",
        "nr_paths",
        "nr_states",
        "nr_steps",
        "preemptions_max",
    )

    def __init__(
        self,
        runner: Runner,
        options: Options,
        job: Job,
        transitions: Transitions,
        run: Callable[[Steering], Run],
        found: Callable[[Run], bool],
    ) -> None:
        assert runner.tracker is not None
        self._tracker: Tracker = runner.tracker
        self._transitions = transitions
        self._runs = RealRuns(runner.tracker, transitions, run, found)
        self.preemptions_max = job.preemptions
        self.failures_max = job.failures
        self.max_points = options.max_points
        self.bounded = job.preemptions < UNBOUNDED
        self._state = Fingerprint(self._tracker.footprints, self._tracker.watched)
        self._path: list[Node] = []
        self._on_path: set[int] = set()  # keys of the states on it
        self._prefix: list[tuple[int, Step, bool]] = []  # taken before the first node
        self._tasks: dict[int, bool] = {}
        self._visited = transitions.visited
        # Where there is a limit on schedules, how many are left out must not depend on others.
        self._exchange = None if job.schedules_max else transitions.exchange
        self.nr_paths = 0
        self.nr_states = 0
        self.nr_steps = 0

    # The walk

    def begin(self, prefix: list[int]) -> None:
        """Stand at the state that the answers `prefix` lead to."""
        recording = self._real([])
        if not recording.ready:
            return
        node = Node()
        node.ready = recording.ready[0]
        node.alive = frozenset(t for t in node.ready if not self._tasks[t])
        node.preemptions_left = self.preemptions_max
        node.failures_left = self.failures_max
        if not prefix:
            self._enter(node)
            return
        translating = Translating(prefix)
        self._runs.run(translating)
        moves: list[Move] = [(task, tuple(choices)) for task, choices in translating.moves]
        made = self._real(moves, first=0).steps
        for task, choices in moves[:-1]:
            order(node)
            node.answer = node.tasks.index(task)
            step = self._transitions.find(self._state, task, node.ready == (task,), choices)
            if made[-1].finding is not None and (step is None or step.finding is not None):
                return  # it ends before: the same is seen from a shorter prefix
            if step is None:
                raise Unfaithful("a step that was made is not known")
            node.mark = self._state.mark()
            self._state.apply(step.change)
            self._prefix.append((task, step, node.free))
            node = self._child(node, task, step)
        order(node)
        node.mark = self._state.mark()
        node.whole = False
        node.answer = node.tasks.index(moves[-1][0])
        node.step = None
        node.pending = [moves[-1][1]]
        self._path.append(node)

    def walk(self, go_on: Callable[[], bool]) -> bool:
        """Everything from there. Returns False when `go_on` or `found` says to stop before."""
        path = self._path
        while path:
            node = path[-1]
            if not node.pending:
                if node.answer >= 0:
                    self._tried(node)
                answer = self._next(node)
                if answer is None:
                    self._leave(node)
                    continue
                node.answer = answer
                node.step = None
                node.pending = [()]
            if self._runs.stopped or not go_on():
                return False
            self._state.rewind(node.mark)
            self._move(node, node.pending.pop())
        return not self._runs.stopped and self._runs.all_judged

    def _taken(self) -> Iterator[tuple[int, Step, bool]]:
        """The steps that lead to where we stand: whose, which they are known to be, and whether it
        cost nothing that this task ran and not another."""
        yield from self._prefix
        for node in self._path:
            for step in node.before:
                yield node.current, step, False
            if node is not self._path[-1]:
                assert node.taken is not None
                yield node.tasks[node.answer], node.taken, node.free

    def _moves(self) -> list[Move]:
        return [(task, step.answers) for task, step, _ in self._taken()]

    def _free(self) -> list[bool]:
        """Of `_moves` and the one that is being tried, which cost nothing."""
        return [*(free for _, _, free in self._taken()), self._path[-1].free]

    def _known(self) -> list[Step]:
        """The steps that `_moves` are known to be."""
        return [step for _, step, _ in self._taken()]

    def _move(self, node: Node, choices: tuple[int, ...]) -> None:
        """Take the step of the task that is being tried, its choice points as in `choices`."""
        self.nr_steps += 1
        task = node.tasks[node.answer]
        if node.depth >= self.max_points:
            # A run is cut before it would make this step.
            node.step = ANYTHING
            self._lasting([*self._moves(), (task, choices)], node)
            return
        found, step = self._step(node, task, choices)
        if found is not None:
            self._report([*self._moves(), (task, choices)], found)
        if step is None:
            node.step = ANYTHING
            self._broken(node)
            return
        node.taken = step
        node.step = step.masks if node.step is None else join(node.step, step.masks)
        self._add_variants(node, step, len(choices))
        if found is not None or step.finding is not None:
            self._broken(node)
            return
        self._state.apply(step.change)
        child = self._child(node, task, step)
        if not child.alive or not child.ready:
            self._end(node, task, step, child.failures_left < self.failures_max)
        else:
            self._enter(child)

    def _step(
        self, node: Node, task: int, choices: tuple[int, ...]
    ) -> tuple[Finding | None, Step | None]:
        """(what it breaks, the step); the step is None when it broke something half-way."""
        alone = node.ready == (task,)
        state = self._state
        looks = self._transitions.looks
        step = self._transitions.find(state, task, alone, choices)
        if not self._is_known(step) and self._hears():
            step = self._transitions.find(state, task, alone, choices)
        if not self._is_known(step):
            made = self._real([*self._moves(), (task, choices)])
            step = self._transitions.find(state, task, alone, choices)
            if step is None:
                if made.broke is None:
                    raise Unfaithful("a step that was made is not known")
                if made.steps:
                    self._add_variants(node, made.steps[0], len(choices))
                return made.broke, None
            if made.broke is not None:
                # Half a step that breaks a promise is another one than all of it.
                looks[state.shown, step.raw] = made.broke
        assert step is not None
        found = looks.get((state.shown, step.raw)) if step.looked else None
        return found or step.finding, step

    def _is_known(self, step: Step | None) -> bool:
        """Whether it is known what a step does here, and what promises say that look in it."""
        return step is not None and (
            not step.looked or (self._state.shown, step.raw) in self._transitions.looks
        )

    def _hears(self) -> bool:
        """Whether other workers have learned something. Raises Restart where that shows that more
        is shared."""
        heard = self._transitions.hear()
        if self._tracker.footprints.news:
            raise Restart
        return heard

    def _add_variants(self, node: Node, step: Step, given: int) -> None:
        if len(step.choices) == given:
            return
        left = node.failures_left - _nr_failures(step.choices[:given])
        answers = step.answers
        for at in range(len(step.choices) - 1, given - 1, -1):
            choice = step.choices[at]
            if not choice.failure or left > 0:
                node.pending += [(*answers[:at], value) for value in range(choice.n - 1, 0, -1)]

    def _child(self, node: Node, task: int, step: Step) -> Node:
        child = Node()
        child.ready, child.alive = node.ready, node.alive
        if step.end != POINT or step.woken:
            ready = set(node.ready)
            if step.end != POINT:
                ready.discard(task)
            ready.update(step.woken)
            child.ready = tuple(sorted(ready))
            fresh = {t for t in step.woken if t not in node.alive and not self._tasks[t]}
            child.alive |= fresh
            if step.end == DONE:
                child.alive -= {task}
        child.preemptions_left = node.preemptions_left
        if self.bounded and node.answer > 0 and not node.free:
            child.preemptions_left -= 1
        child.failures_left = node.failures_left - _nr_failures(step.choices)
        child.current = task if step.end == POINT else -1
        child.depth = node.depth + 1 + len(step.choices)
        child.spinning, child.rounds = node.spinning, node.rounds
        if child.spinning:
            child.spinning = still_spinning(child.spinning, self._state)
            if len(child.spinning) < len(node.spinning):
                child.rounds = 0
        if step.end == POINT:
            if node.current == task:
                child.row = node.row
                child.row.cut(node.row_length)
            else:
                child.row = Row(node.mark[1])
            loop = child.row.add(step, self._state.value)
            if loop:
                child.spinning = {**child.spinning, task: looks_at(loop, self._state)}
                child.row = Row(self._state.value)
            child.row_length = len(child.row)
        return child

    def _enter(self, node: Node) -> None:
        """Go on from a new node, unless what follows is known."""
        ready = node.ready
        parent = self._path[-1] if self._path else None
        if node.spinning and all(task in node.spinning for task in ready):
            node.rounds += 1
            if node.rounds > ROUNDS_MAX:
                assert parent is not None
                self._go_round(parent)
                return
            node.spinning = {}
        order(node)
        if parent is not None:
            inherit_sleep(node, parent, self.bounded)
        node.asleep = node.sleep
        node.mark = self._state.mark()
        node.key = hash((self._state.value, ready, node.alive, *sorted(node.spinning)))
        below = self._visited.below(node)
        if below is not None:
            self.nr_paths += 1
            if parent is not None:
                join_into(parent.below, below)
            return
        awake = [
            answer
            for answer, task in enumerate(node.tasks)
            if task not in node.sleep and task not in node.spinning
        ]
        if not node.free and node.preemptions_left <= 0:
            awake = [answer for answer in awake if answer == 0]
        if not awake:
            self.nr_paths += 1
            if parent is not None:
                join_into(parent.below, self._below_sleepers(node.sleep))
            return
        if node.key in self._on_path and parent is not None:
            # Several tasks go round together, and come to where they were.
            if self._leaves_nobody_out(node.key):
                self._go_round(parent)
            else:
                self._broken(parent)  # who was left out may end it: that is looked at, too
            return
        node.todo = awake
        self._on_path.add(node.key)
        self._path.append(node)
        if awake[0] == 0 and node.current >= 0:
            slide(node, self._state, self._transitions, self.max_points)
            node.mark = self._state.mark()
            node.depth += sum([1 + len(step.choices) for step in node.before])
            self.nr_states += len(node.before)
            self.nr_steps += len(node.before)

    def _leaves_nobody_out(self, key: int) -> bool:
        """Whether in what goes round, from the state `key` on the path to the same again, all run
        that can all the while and do not go round by themselves."""
        waits: set[int] | None = None
        for node in reversed(self._path):
            others = set(node.ready).difference(node.spinning)
            others.discard(node.tasks[node.answer])
            if node.before:
                others.discard(node.current)
            waits = others if waits is None else waits & others
            if node.key == key:
                break
        return not waits

    def _below_sleepers(self, sleep: dict[int, Masks]) -> Summary:
        """What may follow where only sleepers could go on: all that followed where each of them
        was passed over."""
        total: Summary = {}
        for node in self._path:
            if any(node.tasks[answer] in sleep for answer in node.steps):
                join_into(total, node.below)
        for task, masks in sleep.items():
            add_to(total, task, masks)
        return total

    # Leaving

    def _tried(self, node: Node) -> None:
        """All outcomes of the step of one task have been explored."""
        step = node.step if node.step is not None else NOTHING
        add_to(node.below, node.tasks[node.answer], step)
        node.steps[node.answer] = step

    def _leave(self, node: Node) -> None:
        self._path.pop()
        self._on_path.discard(node.key)
        self.nr_states += 1
        if node.whole:
            visit = self._visited.add(node)
            if self._exchange is not None and self._exchange.tell_visit(node.key, visit):
                self._hears()
        if self._path:
            join_into(self._path[-1].below, node.below)

    def _next(self, node: Node) -> int | None:
        """Who must be tried next at `node`."""
        todo = node.todo
        if not todo:
            return None
        if node.answer < 0:
            return todo.pop(0)
        if self.bounded:
            if not node.free and not self._wanted(node, node.tasks[0]):
                return None
            return todo.pop(0)
        tried = {node.tasks[answer]: masks for answer, masks in node.steps.items()}
        wanted = {
            task
            for task, masks in node.below.items()
            if task not in tried and any(depend(masks, step) for step in tried.values())
        }
        if not wanted:
            return None
        ready = [answer for answer in todo if node.tasks[answer] in wanted]
        if len(ready) < len(wanted):
            return todo.pop(0)  # one that is wanted is not ready: any may lead to it
        todo.remove(ready[0])
        return ready[0]

    def _wanted(self, node: Node, task: int) -> bool:
        """Whether anything that others do below depends on the step of `task` here."""
        step = node.steps.get(0)
        if step is None:
            return True  # it slept: nothing is known of its step here
        return any(depend(masks, step) for other, masks in node.below.items() if other != task)

    # Ends of runs

    def _end(self, node: Node, task: int, step: Step, failed: bool) -> None:
        """A run ends here; that it does so as it should is judged in a real one. `failed`:
        something did, by the schedule's choice."""
        self.nr_paths += 1
        value = self._state.value
        ends = self._transitions.ends
        moves = [*self._moves(), (task, step.answers)]
        if not ends.knows(value, failed):
            self._hears()
        if not ends.knows(value, failed):
            self._state.rewind(node.mark)
            self._real(moves)
            if not ends.knows(value, failed):
                raise Unfaithful("a run did not end in the state that it was known to end in")
        finding = ends.finding(value, failed)
        if finding is not None:
            self._report(moves, finding)
            node.below[FOUND] = NOTHING

    def _broken(self, node: Node) -> None:
        """What would have followed is not known: take it that everything would."""
        self.nr_paths += 1
        for task in node.ready:
            node.below[task] = ANYTHING

    def _go_round(self, parent: Node) -> None:
        assert parent.taken is not None
        task = parent.tasks[parent.answer]
        self._lasting([*self._moves(), (task, parent.taken.answers)], parent)

    def _lasting(self, moves: list[Move], node: Node) -> None:
        """A real run says whether this ever ends."""
        self._broken(node)
        self._runs.lasting(moves, self._free(), self._state)

    # Real runs

    def _real(self, moves: list[Move], first: int | None = None) -> Recording:
        """A run that makes `moves`, the last of them from the state that we stand at, and goes on.
        Raises Restart when it showed that more is shared than was known."""
        recording = self._runs.real(moves, self._known(), self._state, first)
        self._tasks.update(recording.tasks)
        return recording

    def _report(self, moves: list[Move], finding: Finding) -> None:
        self._runs.report(moves, self._free(), finding, self._state)


def _nr_failures(choices: tuple[Choice, ...]) -> int:
    return sum([choice.failure and choice.value > 0 for choice in choices]) if choices else 0
