"""Real runs that a search makes to learn steps: along a path that it knows, and on from its end.

Also the runs in which it learns beforehand what tasks share.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from septum.explore.exhaustive.ahead import along_max, look_ahead
from septum.explore.exhaustive.known import BLOCKED, DONE, POINT, Choice, Ends
from septum.explore.exhaustive.transitions import Unfaithful
from septum.explore.runs.sampling import Length, RandomWalk
from septum.explore.runs.steering import Replaying, Steering
from septum.explore.states.stacks import place_of

if TYPE_CHECKING:
    from septum.explore.exhaustive.ahead import Move
    from septum.explore.exhaustive.known import Look, Step
    from septum.explore.exhaustive.transitions import Transitions
    from septum.explore.runs.run import Runner
    from septum.explore.states.fingerprint import Fingerprint
    from septum.explore.subject import Options
    from septum.explore.tracking.track import Tracker
    from septum.sim import Finding, Sim, Task

HUSH_MIN = 12
"""Where a run makes at least so many known steps first, nothing of them is logged."""

HUSH_AHEAD = 3
"""And where so many follow on what it has learned."""

LISTEN_AHEAD = 8
"""But for so many before one in which promises look at what they did not see so far."""

TO_THE_POINT = 4096
"""So many decisions more a run may make than the search follows: the last step that is followed is
known when it has come to its next scheduling point, and choice points come before that."""


class Learning(RandomWalk):
    """A random run that tells the tracker what each step touches."""

    __slots__ = ("tracker",)

    def __init__(self, options: Options, number: int, length: Length, tracker: Tracker) -> None:
        self.tracker = tracker
        super().__init__(options, number, length)

    def only_one(self) -> None:
        super().only_one()
        self._step()

    def pick_task(self, n: int, forced: bool, spins: bool) -> int:
        self._step()
        return super().pick_task(n, forced, spins)

    def ended(self) -> None:
        self._step()

    def _step(self) -> None:
        task = self.sim.current.index
        self.tracker.steps.take(task)
        self.tracker.own.settle(task)  # nothing is handed on here: others may end what is one's own


class Recording(Steering):
    """Takes `moves`, then lets tasks run as they come; records every step from the last move on.

    The run comes by known steps to the move of number `first` (the last, if nothing else is said),
    before which the world is in `state`. Up to there it is looked whether every step comes out as
    it is known, if the run is `thorough`; else nobody looks (`_pick_known`), nor need the world log
    what they touch. From there on steps are recorded: they are in `steps`, and `state` follows.

    When the moves are used up, and the run is not thorough, steps that are known to follow become
    moves themselves (`_foresee`), and `first` is what is to be learned next. The run ends when
    nothing is, or when a task has gone on by itself for too long.

    `ready` are the ready tasks at every pick that was looked at, the first included.
    """

    __slots__ = (
        "_at",
        "_choices",
        "_enough_at",
        "_given",
        "_in_a_row",
        "_is_news",
        "_last",
        "_looks_ahead",
        "_tracker",
        "_transitions",
        "_unheard",
        "broke",
        "end",
        "first",
        "known",
        "looks",
        "moves",
        "ready",
        "silent",
        "state",
        "steps",
        "tasks",
        "thorough",
    )

    def __init__(
        self,
        moves: list[Move],
        known: list[Step],
        state: Fingerprint,
        tracker: Tracker,
        transitions: Transitions,
    ) -> None:
        """`known`: the steps that `moves` but the last are known to be."""
        self.moves = [*moves]
        self._given = len(moves)  # those that were asked for
        self.known = known
        self.state = state
        self.first = max(0, len(moves) - 1)
        self.silent = False  # take the moves and the end that follows, record nothing
        self.thorough = True  # look whether known steps come out as they are known
        self._tracker = tracker
        self._transitions = transitions
        self.steps: list[Step] = []
        self.ready: list[tuple[int, ...]] = []
        self.end: Fingerprint | None = None  # the state at the end of the run
        self.looks: list[Look] = []  # those in which no promise broke
        # Those to come in known steps, by the number of the step; the number of the step that need
        # not be made; whether nobody listens to the steps before.
        self._looks_ahead: dict[int, Look] = {}
        self._enough_at = -1
        self._unheard = False
        self.broke: Finding | None = None  # what broke in the first step recorded, or before
        self.tasks: dict[int, bool] = {}  # every task that was ready -> whether it is a daemon
        super().__init__()

    def reset(self) -> None:
        super().reset()
        self._at = -1  # the number of the step under way
        self._choices: list[Choice] = []  # that it has met
        self._last: int | None = None  # whose it is
        self._in_a_row = 0  # decisions beyond the moves at which a task went on by itself
        self.steps = []
        self.ready = []

    def only_one(self) -> None:
        super().only_one()
        self.count_skipped()
        self.pick_task(1, True, False)

    def pick_task(self, n: int, forced: bool, spins: bool) -> int:
        sim = self.sim
        ring = sim.ready_ring()
        if 0 <= self._at < self.first - 1 and not self.thorough and not self.silent:
            return self._pick_known(ring)
        if self._at >= self.first - 1 and not self.silent:
            self._tracker.patches.hush(False)
        self._close(sim)
        ready = tuple(sorted(task.index for task in ring))
        self.ready.append(ready)
        for task in ring:
            self.tasks[task.index] = task.daemon
        self._at = at = self._at + 1
        if at == self._enough_at:
            self.stop()
        if at == self.first and not self.thorough and not self._tracker.stacks.meet():
            raise Unfaithful("known steps led to another place")
        if at >= self._given and at > self.first and not self.thorough:
            self._foresee([task.index for task in ring])
        answer = 0
        if at < len(self.moves):
            wanted = self.moves[at][0]
            answer = next((a for a, task in enumerate(ring) if task.index == wanted), -1)
            if answer < 0:
                raise Unfaithful(f"task {wanted} is not ready; {ready} are")
        else:
            if self.silent:
                self.stop()
            self._in_a_row = 0 if forced else self._in_a_row + 1
            if self._in_a_row > along_max(self._given):
                self.stop()
        self._last = ring[answer].index
        return answer

    def _foresee(self, ring: list[int]) -> None:
        """Take what is known to follow for moves. Ends the run if that is all."""
        alive = {task.index for task in self.sim.tasks if not (task.done or task.daemon)}
        most = along_max(self._given)
        ahead = look_ahead(self.state, self._transitions, ring, alive, most)
        looks = list(ahead.looks)
        if ahead.tires or (
            ahead.ends and self._transitions.ends.knows(ahead.end, self.failures > 0)
        ):
            if not looks:
                self.stop()
            if looks[-1] < len(ahead.steps):
                self._enough_at = len(self.known) + looks[-1] + 1
        self._looks_ahead = {len(self.known) + at: look for at, look in ahead.looks.items()}
        self.moves += ahead.moves
        self.known += ahead.steps
        self.first = len(self.known)
        self._unheard = len(ahead.steps) >= HUSH_AHEAD and not any(
            step.hearsay for step in ahead.steps
        )
        self._listen(self._at)

    def _listen(self, at: int) -> None:
        """Log what the step of the number `at` touches if promises look in it for the first time,
        or soon after: what they read must be known."""
        if self._unheard:
            soon = range(at, min(at + LISTEN_AHEAD, self.first))
            self._tracker.patches.hush(not any(number in self._looks_ahead for number in soon))

    def _pick_known(self, ring: list[Task]) -> int:
        """`pick_task` where known steps lead to what is to be learned, and nobody looks."""
        self._close_known(self._last)
        self._choices.clear()
        self._at += 1
        if self._at == self._enough_at:
            self.stop()
        self._listen(self._at)
        wanted = self.moves[self._at][0]
        for answer, task in enumerate(ring):
            if task.index == wanted:
                self._last = wanted
                self._run_on(wanted)
                return answer
        raise Unfaithful(f"task {wanted} is not ready on a known way")

    def _run_on(self, task: int) -> None:
        """Do not ask before those of the next known steps before which there is nothing to do: the
        same task goes on, makes nothing that needs a name, and meets no choice."""
        at = self._at
        step = self.known[at]
        looks = self._looks_ahead
        while at < self.first - 1 and step.end == POINT and not step.woken and at not in looks:
            step = self.known[at + 1]
            if self.moves[at + 1][0] != task or step.makes or step.answers or step.left is None:
                break
            if looks and any(number in looks for number in range(at + 1, at + 1 + LISTEN_AHEAD)):
                break
            at += 1
        if at > self._at and self.known[self._at].left is not None:
            self.sim.skip_points(at - self._at)

    def was_skipped(self, count: int) -> None:
        for _ in range(count):
            known = self.known[self._at]
            self._listens_to(known)
            assert self._last is not None
            self._tracker.stacks.follow(self._last, known.moved, known.raw)
            self._note_known(self._last, known)
            self._at += 1

    def choose_value(self, name: str, n: int) -> int:
        met = len(self._choices)
        given = self.moves[self._at][1] if 0 <= self._at < len(self.moves) else ()
        value = given[met] if met < len(given) else 0
        self._choices.append(Choice(self.is_failure(name), n, value))
        if value:
            self._tracker.coverage.reach(f"choice:{name}={value}")
        return value

    def _close(self, sim: Sim) -> None:
        """The step under way is complete."""
        task = self._last
        choices = tuple(self._choices)
        self._choices.clear()
        if task is None or self.silent or self._at < self.first:
            self._close_known(task)
            return
        before = set(self.ready[-1])
        now = {ready.index for ready in sim.ready_ring()}
        end = POINT
        if not any(t.index == task for t in sim.tasks if not t.done):
            end = DONE
        elif task not in now:
            end = BLOCKED
        fresh = now - before
        ends = Ends(end, tuple(sorted(fresh)), None if end == DONE else sim.current)
        self._record(task, before == {task}, choices, ends)

    def _close_known(self, task: int | None) -> None:
        """The step under way, if there is one, is known, and was made again."""
        tracker = self._tracker
        current = self.sim.current
        if task is None or self.silent:
            tracker.steps.forget()
            return
        known = self.known[self._at]
        self._listens_to(known)
        if known.end == DONE:
            tracker.stacks.forget(task)
        if not self.thorough:
            if known.end != DONE:
                tracker.stacks.follow(task, known.moved, known.raw)
            self._note_known(task, known)
            self._settle(task)
            return
        if known.end == POINT and known.place != place_of(sys._getframe()):
            raise Unfaithful(f"task {task}: a known step led to another place")
        if not current.done:
            tracker.stacks.passed(current, known.raw)
        tracker.steps.passes(task)
        self._hands_on(known)
        self._settle(task)

    def _listens_to(self, known: Step) -> None:
        """A step is made that is known. If somebody listens, nobody need do so next time."""
        if known.hearsay and not self._tracker.patches.hushed:
            known.hearsay = False

    def _note_known(self, task: int, known: Step) -> None:
        """A known step was made, at which nobody looked: what it left is known."""
        look = self._looks_ahead.pop(self._at, None)
        if look is not None:
            self.looks.append(look)
        self._tracker.steps.follows(task, known.left)
        self._hands_on(known)

    def _settle(self, task: int) -> None:
        if not self._tracker.own.settle(task):
            raise Unfaithful("something died in a step of another task than had it alone")

    def _hands_on(self, known: Step) -> None:
        if known.handed_on and not self._tracker.own.hand_on(known.handed_on):
            raise Unfaithful("a known step handed on what is not there")

    def _record(self, task: int, alone: bool, choices: tuple[Choice, ...], ends: Ends) -> None:
        tracker = self._tracker
        looked, shown = tracker.steps.looked, self.state.shown
        if not self.thorough and ends.finding is None:
            values = tuple([choice.value for choice in choices])
            known = self._transitions.find(self.state, task, alone, values)
            if known is not None and len(known.choices) == len(choices):
                self.state.apply(known.change)
                if ends.task is not None:
                    tracker.stacks.passed(ends.task, known.raw)
                elif ends.end == DONE:
                    tracker.stacks.forget(task)
                self._note_known(task, known)
                known.hearsay = False
                self._keep(task, known, looked, shown, ends)
                return
        ends.place = place_of(sys._getframe()) if ends.end == POINT else 0
        if ends.end == DONE:
            tracker.stacks.forget(task)  # what its frames hold is gone
        step = self._transitions.record(self.state, task, alone, choices, ends)
        self._keep(task, step, looked, shown, ends)

    def _keep(self, task: int, step: Step, looked: bool, shown: int, ends: Ends) -> None:
        self._settle(task)
        self.steps.append(step)
        if self._at >= self._given:
            self.moves.append((task, step.answers))
        self.known.append(step)
        if looked and ends.finding is None:
            self.looks.append((shown, step.raw))

    def ended(self) -> None:
        task = self._last
        if task is None or self.stopped:
            return
        sim = self.sim
        self.count_skipped()
        choices = tuple(self._choices)
        self._choices.clear()
        finding = next((f for f in sim.findings if self._is_news(f)), None)
        if self._at < self._given:
            self.broke = finding
        if self.silent:
            return
        if self._at < self.first:
            if self._at >= self._given and (finding is None or self._at not in self._looks_ahead):
                raise Unfaithful("a run ended before it was known to")
            return
        over = not any(t.index == task and not t.done for t in sim.tasks)
        ends = Ends(DONE if over else BLOCKED, ())
        ends.finding = finding
        self._record(task, set(self.ready[-1]) == {task}, choices, ends)
        self._has_ended(finding)

    def _has_ended(self, finding: Finding | None) -> None:
        self.end = self.state
        known = self._transitions.ends.knows(self.end.value, self.failures > 0)
        if finding is None and not self.thorough and known:
            self.stop()  # how it is judged is known
        self._tracker.patches.hush(False)  # what is looked at to judge it is told

    def begin(self, sim: Sim, runner: Runner) -> None:
        super().begin(sim, runner)
        self.max_points += TO_THE_POINT
        self._is_news = runner.is_news

    def begins_unheard(self) -> bool:
        return (
            not self.silent
            and not self.thorough
            and self.first >= HUSH_MIN
            and all(step.left is not None and not step.hearsay for step in self.known[: self.first])
        )


class Translating(Replaying):
    """Replays answers and says which moves they are. The last may be of a step half-way."""

    __slots__ = ("moves",)

    def reset(self) -> None:
        super().reset()
        self.moves: list[tuple[int, list[int]]] = []

    def pick_task(self, n: int, forced: bool, spins: bool) -> int:
        if self._at >= len(self.answers):
            self.stop()
        answer = super().pick_task(n, forced, spins)
        self.moves.append((self.sim.ready_ring()[answer].index, []))
        return answer

    def only_one(self) -> None:
        super().only_one()
        if not self.stopped:
            self.moves.append((self.sim.ready_ring()[0].index, []))

    def choose_value(self, name: str, n: int) -> int:
        if self._at >= len(self.answers):
            self.stop()
        value = super().choose_value(name, n)
        if self.moves:
            self.moves[-1][1].append(value)
        return value
