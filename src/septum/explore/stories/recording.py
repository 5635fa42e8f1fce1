"""A run made once more with its events on, and with a look at the whole world at each of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from septum.explore.covering.errors import entry_of
from septum.explore.runs.run import DidNotRepeat
from septum.explore.runs.steering import Replaying
from septum.explore.scenario import ScenarioSubject
from septum.explore.stories.endings import Endings, Note, adjust, op_words
from septum.explore.stories.endless import SCHEDULER, Marks, stays
from septum.explore.stories.holders import Held
from septum.explore.stories.module_watch import call_under_way
from septum.explore.stories.parting import asked_at
from septum.explore.stories.watching import Seen, Watch
from septum.explore.stories.why_waits import flags_waited, leaked_pfn
from septum.linux.kvm.events import KvmTdpMmuSpteChanged
from septum.module.events import SeamcallEvent
from septum.scenarios.outcome import EXPECTATION
from septum.scenarios.world import ScenarioWorld
from septum.sim.events import ChoiceEvent, Event, FindingEvent, LockEvent, SwitchEvent
from septum.trace.ladder import is_quiet
from septum.trace.via import kernel_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from septum.explore.runs.run import Runner
    from septum.explore.stories.endless import Loop
    from septum.explore.stories.module_watch import ModuleLook
    from septum.explore.stories.parting import Asked
    from septum.scenarios.ops import Op
    from septum.scenarios.states import WorldState
    from septum.sim import Finding, Sim

PATH_DEPTH = 6
WORKS = "comes by again"
TURNS_BEATS = 200
"""So many events are kept of a run that has no end, from where tasks take turns."""


class Beat(msgspec.Struct):
    """An event of the run with what was known when it happened.

    `path` are the kernel functions that it came from, innermost first; `decision` is the index of
    the latest answer of the schedule before it; `injected` and `preempted` are the schedule's wish;
    `ignored`: it tells of what breaks, and the user knows of it;
    `yields`: another task runs because this one "goes round", "comes by again" (stands where it
    stood, and has done something) or "has run for long"; `begins`: what
    the scenario has this task of the VMM do, at the first event of it, and `entry` the kernel
    function that it called; `call`: in which call of the module another task, or a choice, comes.
    """

    event: Event
    path: tuple[str, ...]
    decision: int
    state: WorldState | None = None
    module: ModuleLook | None = None
    preempted: bool = False
    ignored: bool = False
    yields: str = ""
    injected: bool = False
    begins: str = ""
    entry: str = ""
    call: str = ""


def how_it_goes(beats: Sequence[Beat], task: str) -> str:
    """How a task that the search takes for one that goes round does so: it may have work to do at
    each of many pages."""
    for beat in reversed(beats):
        if beat.event.task != task:
            break
        event = beat.event
        if isinstance(event, KvmTdpMmuSpteChanged):
            return WORKS
        if isinstance(event, SeamcallEvent) and not event.status:
            return WORKS
    return "goes round"


class _Marked(Replaying):
    """Replays answers, watched point by point where that is wanted. `left` is called where a task
    has ended or waits, which no event tells of."""

    __slots__ = ("_left", "_marks")

    def __init__(
        self,
        answers: list[int],
        free: Iterable[int],
        marks: Marks | None,
        left: Callable[[], None],
    ) -> None:
        self._marks = marks
        self._left = left
        super().__init__(answers, free)

    def begin(self, sim: Sim, runner: Runner) -> None:
        super().begin(sim, runner)
        if self._marks is not None:
            self._marks.begin(sim)

    def pick(self, n: int, forced: bool) -> int:
        if forced:
            self._left()
        return super().pick(n, forced)

    def only_one(self) -> None:
        self._left()
        super().only_one()


def is_over(runner: Runner) -> bool:
    """The run under way has broken a promise, and no event tells of that. What follows comes of
    unwinding: locks that are given back in no run."""
    findings = runner.built.sim.findings
    return bool(findings) and runner.is_news(findings[-1])


def is_ignored(runner: Runner, event: FindingEvent) -> bool:
    """Whether the user does not want to hear of it, and it is not the scenario that knows of it."""
    known = runner.options.ignore
    if isinstance(runner.subject, ScenarioSubject):
        known = (*known, *runner.subject.scenario.ignored)
    text = f"{event.promise}: {event.text}"
    return any(part in text for part in known)


def beat_of(event: Event, decision: int, runner: Runner) -> Beat:
    """A beat right at its event, with where that comes from."""
    beat = Beat(event, tuple(kernel_path(PATH_DEPTH).split(" < ")), decision)
    if isinstance(event, SwitchEvent | ChoiceEvent):
        beat.call = call_under_way()
    elif isinstance(event, FindingEvent):
        beat.ignored = is_ignored(runner, event)
    return beat


class Recorded:
    """What a story is told of, event by event. `notes` are steps that no event tells; `refused` are
    those of them, and other errors, that folios in use caused. `start` is what there is when it
    begins, after the steps `setup`; `names` are what the scenario calls each VM: "vm1" -> "a".
    `loops` are of who goes round at its end, and `stays` is what they find every time. `held` and
    `flags` are of its end: what tells why a task waits. `call` is the call of the module in which
    it broke: "" for none. `nr_later`: so many events are left out that came when what is told was
    done."""

    __slots__ = (
        "beats",
        "call",
        "flags",
        "held",
        "loops",
        "names",
        "notes",
        "nr_later",
        "refused",
        "setup",
        "start",
        "stays",
        "tasks",
    )

    def __init__(self) -> None:
        self.beats: list[Beat] = []
        self.call = ""
        self.flags: dict[str, str] = {}
        self.held = Held()
        self.loops: list[Loop] = []
        self.names: dict[str, str] = {}
        self.notes: list[Note] = []
        self.nr_later = 0
        self.refused: list[Note] = []
        self.setup: list[str] = []
        self.start = Seen()
        self.stays: list[str] = []
        self.tasks: list[str] = []

    def contended(self) -> frozenset[str]:
        """Locks that several tasks take, one of them at least for itself alone."""
        takers: dict[str, set[str]] = {}
        alone: set[str] = set()
        for beat in self.beats:
            event = beat.event
            if isinstance(event, LockEvent):
                takers.setdefault(event.lock, set()).add(event.task)
                if event.mode == "ex":
                    alone.add(event.lock)
        return frozenset(lock for lock, tasks in takers.items() if len(tasks) > 1 and lock in alone)

    def leave_out(self, unwanted: Callable[[Beat], bool]) -> None:
        """Of some beats nothing is told."""
        left_out = [unwanted(beat) for beat in self.beats]
        adjust({id(note): note for note in (*self.notes, *self.refused)}.values(), left_out)
        self.beats = [beat for beat, out in zip(self.beats, left_out, strict=True) if not out]

    def unseen(self) -> Exception | None:
        """What a look at the world has raised, after which none was taken."""
        return None

    def asked_at(self, answers: list[int], at: int) -> Asked | None:
        """What another schedule, or this one, is asked as number `at`; None where none is."""
        return None

    def failures_of(self, answers: list[int]) -> int:
        """How many failures another schedule injects."""
        return 0


class Recording(Recorded):
    """A run up to where it broke."""

    __slots__ = (
        "_breaks",
        "_endings",
        "_failures",
        "_in_turns",
        "_marks",
        "_runner",
        "_steering",
        "_under_way",
        "_watch",
    )

    def __init__(
        self,
        runner: Runner,
        answers: list[int],
        finding: Finding,
        free: Iterable[int] = (),
        points: int = 0,
    ) -> None:
        """`free`: the numbers of the answers that let others run where a task goes round; `points`:
        so many scheduling points the run has, 0 for not known.

        Raises DidNotRepeat when the run does not break as it did.
        """
        super().__init__()
        self._runner = runner
        self._breaks = finding
        self._marks = Marks(points) if finding.promise == "progress" else None
        self._steering = _Marked(answers, free, self._marks, self._left)
        self._failures = 0
        self._in_turns = 0
        self._under_way: dict[str, Op] = {}  # by task of a VMM
        world = runner.built.world
        self._watch: Watch | None = None
        self._endings: Endings | None = None
        if isinstance(world, ScenarioWorld):
            self.setup = world.scenario.document.setup
            self._watch = Watch(world.world, leaked_pfn(finding))
            self._endings = Endings(world, self._watch, self.beats)
        runner.sink = self._see
        try:
            runner.clean()
            # What earlier runs did to VMs is put back now.
            vmms = world.vmms.items() if isinstance(world, ScenarioWorld) else ()
            self.names = {f"vm{vmm.kvm.id}": name for name, vmm in vmms if vmm.kvm is not None}
            if self._watch is not None:
                self.start = self._watch.begin()
            if self._endings is not None:
                self._endings.begin()
            again = runner.run(self._steering).finding
            if self._watch is not None:
                self.held = self._watch.end(finding.task, len(self.beats))
            if isinstance(world, ScenarioWorld):
                self.flags = flags_waited(world)
        finally:
            runner.sink = None
            if self._marks is not None:
                self._marks.end()
            if self._endings is not None:
                self._endings.end()
                self.notes, self.refused = self._endings.notes, self._endings.refused
        if again is None or (again.promise, again.text) != (finding.promise, finding.text):
            raise DidNotRepeat(f"a finding did not repeat: {finding.promise}: {finding.text}")
        self._fold(finding)
        if finding.promise == EXPECTATION:
            self._end_where_judged(finding.text)
        tasks = [beat.event.task for beat in self.beats]
        self.tasks = list(dict.fromkeys([*tasks, *(note.task for note in self.notes)]))

    def _fold(self, finding: Finding) -> None:
        """Of what goes round at the end one round is enough."""
        self.loops = self._marks.loops(finding) if self._marks is not None else []
        if not self.loops or finding.where == SCHEDULER:
            return
        (loop,) = self.loops
        kept = [mark.beat for mark in loop.first if mark.beat >= 0]
        if kept:
            shows = any(not is_quiet(self.beats[at].event) for at in kept)
            del self.beats[kept[-1] + 1 if shows else kept[0] :]
            self.notes = [note for note in self.notes if note.at < len(self.beats)]
        state = self._watch.now() if self._watch is not None else None
        self.stays = stays(self._runner.built.world, state, finding)
        self.notes = [note for note in self.notes if note.text not in self.stays]

    def _end_where_judged(self, unmet: str) -> None:
        """What an operation has come to no later step changes."""
        wrong = next((note for note in self.notes if note.unmet == unmet), None)
        if wrong is None:
            return
        self.notes = self.notes[: self.notes.index(wrong) + 1]
        self.refused = [note for note in self.refused if note.at <= wrong.at]
        self.nr_later = len(self.beats) - wrong.at
        del self.beats[wrong.at :]

    def _left(self) -> None:
        """The running task has ended, or waits."""
        if self._endings is not None and not is_over(self._runner):
            self._endings.look()
        if self._watch is not None:
            self._watch.left(self._runner.built.sim.current.name, len(self.beats))

    def _see(self, event: Event) -> None:
        steering = self._steering
        if steering.sim is None or is_over(self._runner):
            if isinstance(event, FindingEvent) and event.task == self._breaks.task:
                self.call = self.call or call_under_way()
            return
        if self._endings is not None:
            self._endings.look()
        if steering.fair_from >= 0:
            self._in_turns += 1
            if self._in_turns > TURNS_BEATS and not isinstance(event, FindingEvent):
                return
        beat = beat_of(event, len(self._runner.built.sim.answers) - 1, self._runner)
        self._ask_steering(beat)
        beat.begins = self._begins(event.task)
        if beat.begins:
            beat.entry = entry_of()
        if self._watch is not None:
            beat.state, beat.module = self._watch.after(event, len(self.beats))
        if self._marks is not None:
            self._marks.event(event, len(self.beats))
        self.beats.append(beat)

    def _ask_steering(self, beat: Beat) -> None:
        """What of a switch, or of a choice, the schedule wished for."""
        steering = self._steering
        event = beat.event
        if isinstance(event, SwitchEvent):
            beat.preempted = steering.preempting and event.preempted
            if steering.yields and event.preempted:
                beat.yields = (
                    "has run for long" if steering.ran_long else how_it_goes(self.beats, event.task)
                )
        elif isinstance(event, ChoiceEvent):
            beat.injected = steering.failures > self._failures
            self._failures = steering.failures

    def _begins(self, task: str) -> str:
        """The operation that a task of a VMM is in and no event has told of yet; "" for none."""
        world = self._runner.built.world
        if not isinstance(world, ScenarioWorld):
            return ""
        op = world.record.under_way.get(task)
        if op is None or self._under_way.get(task) is op:
            return ""
        self._under_way[task] = op
        return op_words(op, world)

    def unseen(self) -> Exception | None:
        return self._watch.error if self._watch is not None else None

    def asked_at(self, answers: list[int], at: int) -> Asked | None:
        """What another schedule, or this one, is asked as number `at`."""
        return asked_at(self._runner, answers, at)

    def failures_of(self, answers: list[int]) -> int:
        """How many failures another schedule injects."""
        self._runner.clean()
        return self._runner.run(Replaying(list(answers))).failures
