"""The scheduler: which task runs, what time it is, what was found.

`Sim.point` is where a task may be switched. It costs one attribute test while a single task is
ready and nothing explores.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

import msgspec

from septum.sim.events import ChoiceEvent, Event, FindingEvent, SwitchEvent
from septum.sim.schedule import RoundRobin, Schedule
from septum.sim.task import BREAK_OFF, BrokenOff, Task, getcurrent, start

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import FrameType

    import greenlet

    from septum.sim.task import Named


class Finding(msgspec.Struct, frozen=True):
    """A broken promise (or KVM_BUG_ON, WARN, machine check), seen at one moment of the run."""

    promise: str
    text: str
    where: str
    task: str
    time_ns: int


class RunStopped(BaseException):
    """Ends a run: at its first finding when `Sim.stop_on_finding` is set, or where the model cannot
    go on."""


class SimDefect(Exception):
    """Septum itself is wrong: a primitive was used in a way that no kernel could."""


class ChoiceRules(Protocol):
    """Decides which choice points the schedule answers in this world. Its state is the world's."""

    def settled(self, name: str) -> int | None:
        """The outcome of the choice point `name` this time; None leaves it to the schedule."""

    def taken(self, name: str, value: int) -> None:
        """The schedule chose an outcome other than the ordinary one."""


NEVER = 1 << 62
"""The number of a scheduling point that no run reaches."""


class Sim:
    """A deterministic kernel. Outside `run()` the task `main` is current and never switches."""

    __slots__ = (
        "_alarm",
        "_held",
        "_hub",
        "_main",
        "_next_index",
        "_ready",
        "_skip",
        "_skip_look",
        "_solo",
        "_watched_from",
        "_woken",
        "answers",
        "choice_rules",
        "current",
        "design_files",
        "findings",
        "granted",
        "lock_observer",
        "nr_points",
        "nr_switches",
        "point_observer",
        "promises",
        "schedule",
        "sink",
        "stop_on_finding",
        "tasks",
        "tracing",
    )

    def __init__(self, schedule: Schedule | None = None) -> None:
        self.schedule: Schedule = schedule if schedule is not None else RoundRobin()
        self._main = Task("main", 0, 0)
        self._next_index = 1
        self.current: Task = self._main
        self.tasks: list[Task] = []
        self._ready: list[Task] = []
        self._solo = True
        self._held = False
        self._woken: Task | None = None  # made ready since the schedule was last asked
        self._hub: greenlet.greenlet | None = None
        self.tracing = False
        self.sink: Callable[[Event], None] | None = None
        self.findings: list[Finding] = []
        self.stop_on_finding = False
        self.answers: list[int] = []  # every answer of the schedule, in order
        # The files that a design's own code is in (see `released`).
        self.design_files: frozenset[str] = frozenset()
        # Asked before the schedule. An outcome that it settles itself is not in `answers`.
        self.choice_rules: ChoiceRules | None = None
        self.promises: tuple[str, ...] = ()  # what `find` may name; () anything
        self.nr_points = 0
        self._skip = 0  # so many coming scheduling points pass without asking the schedule
        self.granted = 0  # those, and all that have passed so
        self._skip_look: Callable[[], bool] | None = None
        self.nr_switches = 0
        # The number of the first scheduling point at which the alarm or the observer is called.
        self._watched_from = NEVER
        self._alarm: tuple[Callable[[], None], int] | None = None
        # Called at every scheduling point while tasks run, for checks of every step.
        self.point_observer: Callable[[str], None] | None = None
        # Called as (task, lock, op) when a lock was taken inside another, to check their order;
        # op is lock or trylock.
        self.lock_observer: Callable[[Task, Named, str], None] | None = None

    # Tasks

    def spawn(
        self, name: str, fn: Callable[[], None], *, cpu: int = 0, daemon: bool = False
    ) -> Task:
        """A new ready task. It starts at the spawning task's virtual time."""
        task = Task(name, cpu, self._next_index, daemon)
        self._next_index += 1
        task.time_ns = self.current.time_ns
        start(task, fn, self._hub if self._hub is not None else getcurrent())
        self.tasks.append(task)
        self._ready.append(task)
        self.skip_points(0)
        self._update_solo()
        return task

    def run(self) -> None:
        """Run until every task that is not a daemon has ended.

        A state in which none can go on is a finding of the promise `progress`. Raises RunStopped
        at the first finding when `stop_on_finding` is set, and whatever a task raised.
        """
        self._hub = getcurrent()
        for task in self.tasks:
            if task.stack is not None and task.stack.body is not None:
                task.stack.parent = self._hub
        self._update_solo()
        try:
            while self._goes_on():
                if not self._ready:
                    self._deadlock()
                    break
                self._enter(self._next())
        finally:
            self.current = self._main
            self._hub = None
            self.tasks = [task for task in self.tasks if not task.done]
            self._solo = True

    def break_off(self, guests: Iterable[Callable[[], None]] = ()) -> None:
        """End all tasks where they stand, then call each of `guests`, which ends a guest program.

        The `with` blocks of what is cut off unwind in a world that nobody uses any more, so what
        they raise is ignored.
        """
        for task in self.tasks:
            self.current = task
            with suppress(Exception, RunStopped):
                task.kill()
        for end in guests:
            with suppress(Exception, RunStopped):
                end()
        self.current = self._main

    def _goes_on(self) -> bool:
        """Whether a task that is not a daemon has not ended."""
        # Not any(): it would leave a generator half done, in which closing it raises GeneratorExit.
        for task in self.tasks:  # noqa: SIM110
            if not task.done and not task.daemon:
                return True
        return False

    def _enter(self, task: Task) -> None:
        assert task.glet is not None
        self.current = task
        task.glet.switch()
        # Tasks switch to each other directly. One comes back to the hub, and is current then,
        # when it has ended, or has blocked with no other task ready.
        last = self.current
        if last.done:
            self._ready.remove(last)
            self.skip_points(0)
            self._main.time_ns = max(self._main.time_ns, last.time_ns)
            self._update_solo()
            if last.held:
                kept = ", ".join(lock.name for lock, _ in last.held)
                self.find(
                    "locking", f"{last.name} has ended and still holds {kept}", where="scheduler"
                )

    def _update_solo(self) -> None:
        self._solo = (
            self._held
            or self._hub is None
            or (len(self._ready) <= 1 and self.point_observer is None and self._alarm is None)
        )

    def _deadlock(self) -> None:
        stuck = [t for t in self.tasks if not t.done]
        lines = "; ".join(f"{t.name} waits for {t.blocked_on}" for t in stuck)
        self.find("progress", f"no task can go on: {lines}", where="scheduler")

    def _next(self) -> Task:
        """Ask the schedule who runs next, where the current task ended or blocked."""
        ready = self._ready
        n = len(ready)
        if n == 1:
            self.schedule.only_one()
            return ready[0]
        answer = self._ask(n, True) if self._woken is not None else self.schedule.pick(n, True)
        self.answers.append(answer)
        if answer:
            ready.insert(0, ready.pop(answer))
        return ready[0]

    def _preempt(self, answer: int, kind: str) -> None:
        """The current task, at the head of the run queue, goes to its end; another one runs."""
        ready = self._ready
        task = ready.pop(answer)
        ready.append(ready[0])
        ready[0] = task
        self._switch(task, kind, True)

    def _ask(self, n: int, forced: bool) -> int:
        """Ask the schedule, where a task was made ready since it was asked last."""
        woken = self._woken
        self._woken = None
        if woken in self._ready:
            return self.schedule.pick_woken(n, forced, self._ready.index(woken))
        return self.schedule.pick(n, forced)

    @property
    def hub(self) -> greenlet.greenlet | None:
        """The stack that tasks return to; None while none runs."""
        return self._hub

    def ready_ring(self) -> list[Task]:
        """The ready tasks in the order that `Schedule.pick` counts them."""
        return list(self._ready)

    def _switch(self, task: Task, at: str, preempted: bool = False) -> None:
        current = self.current
        current.glet = getcurrent()
        if self.tracing:
            self.emit(
                SwitchEvent(current.time_ns, current.name, current.cpu, task.name, at, preempted)
            )
        self.nr_switches += 1
        self.current = task
        assert task.glet is not None
        if task.glet.switch() is BREAK_OFF:
            raise BrokenOff

    # Scheduling points and choices

    def point(self, kind: str, obj: object = None) -> None:
        """A scheduling point of the named kind, about `obj` (what the next step will touch)."""
        if self._solo:
            return
        nr = self.nr_points = self.nr_points + 1
        if nr >= self._watched_from:
            self._watched(kind, nr)
        # Nobody else becomes ready without ending this.
        skip = self._skip
        if skip:
            if self._skip_look is None or not self._skip_look():
                self._skip = skip - 1
                self.answers.append(0)
                return
            self.skip_points(0)
        n = len(self._ready)
        if n > 1:
            woken = self._woken
            answer = self.schedule.pick(n, False) if woken is None else self._ask(n, False)
            self.answers.append(answer)
            if answer:
                self._preempt(answer, kind)

    def released(self, lock: object) -> None:
        """A lock was given back. If code of a design does that, or called who does, a scheduling
        point: it may go on to what the lock guards.

        MODEL: what the base does from an unlock to its next point runs in one piece.
        """
        files = self.design_files
        if not files:
            return
        at: FrameType | None = sys._getframe(1)
        while at is not None:
            if at.f_code.co_filename in files:
                self.point("unlock", lock)
                return
            at = at.f_back

    def _watched(self, kind: str, nr: int) -> None:
        """Call the alarm if it is set for scheduling point `nr`, and the observer."""
        if self._alarm is not None and nr == self._alarm[1]:
            self._alarm[0]()
        if self.point_observer is not None:
            self.point_observer(kind)

    def retry(self, kind: str) -> None:
        """A scheduling point at which the current task is about to repeat a failed attempt.

        While it stands there, `Task.in_vain` says whether the next attempt must fail, too: no other
        task has run since its last retry, so that nothing can have changed.
        """
        if self._solo:
            return
        task = self.current
        task.in_vain = task.retried_at == self.nr_switches
        if task.in_vain:
            self.skip_points(0)
        task.retrying = True
        self.point(kind)
        task.retrying = False
        task.in_vain = False
        task.retried_at = self.nr_switches

    def skip_points(self, count: int, look: Callable[[], bool] | None = None) -> None:
        """The answer at the next `count` scheduling points is 0, without asking the schedule. This
        ends when another task becomes ready, and when `look`, called at each, returns True."""
        self.granted += count - self._skip
        self._skip = count
        self._skip_look = look

    @property
    def nr_skipped(self) -> int:
        """How many scheduling points have passed without asking the schedule."""
        return self.granted - self._skip

    def choose(self, name: str, n: int = 2) -> int:
        """The outcome 0..n-1 of a named choice point; 0 is the ordinary one."""
        rules = self.choice_rules
        if rules is not None:
            settled = rules.settled(name)
            if settled is not None:
                if settled and self.tracing:
                    self._tell_choice(name, settled)
                return settled
        value = self.schedule.choose(name, n)
        self.answers.append(value)
        if value:
            if rules is not None:
                rules.taken(name, value)
            if self.tracing:
                self._tell_choice(name, value)
        return value

    def _tell_choice(self, name: str, value: int) -> None:
        current = self.current
        self.emit(ChoiceEvent(current.time_ns, current.name, current.cpu, name, value))

    def hold(self) -> bool:
        """If the schedule is coarse, switch tasks no more until `unhold`; returns whether it is.

        For a series of similar steps on memory that no other task uses. The caller must not block.
        """
        if self.schedule.coarse:
            self._held = True
            self._solo = True
            return True
        return False

    def unhold(self) -> None:
        """Ends what `hold` began."""
        self._held = False
        self._update_solo()

    # Blocking, for locks and wait queues

    def block(self, waiters: list[Task], reason: str) -> None:
        """The current task stops being ready until `wake` is called on `waiters`.

        Outside `run()` nobody could call it: a finding, and RunStopped.
        """
        current = self.current
        if self._hub is None:
            self.find("progress", f"{current.name} waits for {reason} for ever", where="scheduler")
            raise RunStopped(self.findings[-1])
        waiters.append(current)
        current.blocked_on = reason
        current.retried_at = -1
        self._ready.remove(current)
        self.skip_points(0)
        self._update_solo()
        if self.point_observer is not None:
            self.point_observer("block")
        if self._ready:
            task = self._next()
            self._switch(task, reason)
        else:
            current.glet = getcurrent()
            if self._hub.switch() is BREAK_OFF:
                raise BrokenOff

    def wake(self, waiters: list[Task], preempt: bool = True) -> None:
        """Make every task in `waiters` ready, its clock at the waker's virtual time or later.

        `preempt`: the schedule is told, and may let the first of them run at once.
        """
        if not waiters:
            return
        now = self.current.time_ns
        for task in waiters:
            task.blocked_on = None
            if task.time_ns < now:
                task.time_ns = now
        if preempt:
            self._woken = waiters[0]
        self._ready.extend(waiters)
        self.skip_points(0)
        waiters.clear()
        self._update_solo()

    def might_sleep(self, what: str, of: str = "") -> None:
        """might_sleep(): finding `locking` when the current task holds a spinning lock, or is
        in RCU: which, it says. `what` is the function that may sleep, `of` the lock that it takes,
        if any."""
        current = self.current
        if current.atomic:
            if of:
                what = f"{what}({of})"
            # A semaphore or a mutex that is held, too, forbids nothing.
            names = ", ".join(lock.name for lock, _ in current.held if lock.spins)
            self.find("locking", f"{what} may sleep, in atomic context (held: {names})", where=what)

    # Time, events, findings

    def now_ns(self) -> int:
        """Virtual time of the current task, in ns."""
        return self.current.time_ns

    def advance(self, time_ns: int) -> None:
        """The current task spends `time_ns` of virtual time."""
        self.current.time_ns += time_ns

    def emit(self, event: Event) -> None:
        """Hand an event to the sink. Call only when `tracing` is set."""
        if self.sink is not None:
            self.sink(event)

    def set_sink(self, sink: Callable[[Event], None] | None) -> None:
        """Where events go; None turns tracing off."""
        self.sink = sink
        self.tracing = sink is not None

    def set_point_observer(self, observer: Callable[[str], None] | None) -> None:
        """Called at every scheduling point while tasks run (also when only one is ready)."""
        self.point_observer = observer
        self._watch()

    def set_alarm(self, alarm: Callable[[], None] | None, at: int = NEVER) -> None:
        """Called at the scheduling point of number `at`, also when only one task is ready."""
        self._alarm = (alarm, at) if alarm is not None else None
        self._watch()

    def _watch(self) -> None:
        at = self._alarm[1] if self._alarm is not None else NEVER
        self._watched_from = at if self.point_observer is None else 0
        self._update_solo()

    def find(self, promise: str, text: str, *, where: str = "") -> None:
        """Record a finding; raises RunStopped when `stop_on_finding` is set."""
        if self.promises and promise not in self.promises:
            raise SimDefect(
                f"no promise is called {promise!r}; there are {', '.join(self.promises)}"
            )
        current = self.current
        finding = Finding(promise, text, where, current.name, current.time_ns)
        self.findings.append(finding)
        if self.tracing:
            self.emit(FindingEvent(current.time_ns, current.name, current.cpu, promise, text))
        if self.stop_on_finding:
            raise RunStopped(finding)
