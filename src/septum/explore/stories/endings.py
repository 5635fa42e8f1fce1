"""What no event of a run tells: how operations come to an error, and where tasks end or wait."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from septum.abi.types import PAGE_SHIFT
from septum.explore.covering.errors import ErrorPaths
from septum.explore.covering.races import noticing_hooks
from septum.scenarios.results import SIGBUS
from septum.sim.events import LockEvent, SwitchEvent
from septum.trace.ladder import is_quiet
from septum.trace.via import kernel_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from septum.explore.stories.holders import FolioHeld
    from septum.explore.stories.recording import Beat
    from septum.explore.stories.watching import Watch
    from septum.scenarios.ops import Op
    from septum.scenarios.record import Result
    from septum.scenarios.world import ScenarioWorld

AGAIN = "-EAGAIN"
REFUSING = ("kvm_gmem_convert", "merge_truncate_range")
"""Functions that answer so where somebody refers to a page that they should convert or remove."""

STALE = {
    "is_page_fault_stale": "the page fault is found stale",
    "mmu_invalidate_retry_gfn_unsafe": "the page fault meets an invalidation",
}
"""What a fault notices, by the function that does: KVM then begins again."""


class Note(msgspec.Struct):
    """A step of `task` before the beat of index `at`, of which no event tells; `function` is where
    an error began, and `folios` are what kept it from its work, each with its first GFN. `unmet`:
    what the scenario does not expect of it, in words."""

    at: int
    task: str
    text: str
    function: str = ""
    unmet: str = ""
    folios: tuple[tuple[int, FolioHeld], ...] = ()


def op_words(op: Op, world: ScenarioWorld) -> str:
    """An operation in the scenario's words, with the GFNs that it is about."""
    if not op.area.nr_pages:
        return op.text
    gfn = op.area.gpa(world.scenario.vm(op.vm).gpa) >> PAGE_SHIFT
    size = f"+{op.area.nr_pages:#x}" if op.area.nr_pages > 1 else ""
    return f"{op.text} (GFN {gfn:#x}{size})"


class Endings:
    """Notes of a run whose beats are `beats`."""

    __slots__ = (
        "_beats",
        "_errors",
        "_nr_results",
        "_paths",
        "_plain",
        "_tasks",
        "_watch",
        "_world",
        "notes",
        "refused",
    )

    def __init__(self, world: ScenarioWorld, watch: Watch, beats: list[Beat]) -> None:
        self._world = world
        self._watch = watch
        self._beats = beats
        self._errors: dict[str, Note] = {}  # by task: the latest, its text the error's name
        self._nr_results = 0
        self._tasks: list[str] = []  # those that had not ended at the last look
        self._paths = ErrorPaths(self._error)
        self._plain: list[tuple[type, str, object]] = []  # methods that tell meanwhile
        self.notes: list[Note] = []
        self.refused: list[Note] = []  # errors of operations that folios kept from their work

    def begin(self) -> None:
        """The run begins."""
        for kind, name, told in noticing_hooks(self._world.world.host, self._race):
            if name in STALE:
                assert isinstance(kind, type)
                self._plain.append((kind, name, vars(kind).get(name)))
                setattr(kind, name, told)
        self._nr_results = len(self._world.record.results)
        self._paths.install()

    def look(self) -> None:
        """Before each event, and where a task has ended or waits: what has ended since."""
        results = self._world.record.results
        new = results[self._nr_results :]
        self._nr_results = len(results)
        for result in new:
            self._ended(result)
        tasks = [task.name for task in self._world.sim.tasks if not task.done]
        for task in self._tasks:
            if task not in tasks:
                self._gone(task)
        self._tasks = tasks

    def end(self) -> None:
        """The run has broken: who waits now waits for ever, or until nobody looks any more."""
        self._paths.uninstall()
        for kind, name, plain in self._plain:
            if plain is None:
                delattr(kind, name)
            else:
                setattr(kind, name, plain)
        for task in self._world.sim.tasks:
            at = self._last(task.name, lambda _: True)
            if task.done or not task.blocked_on or at < 0:
                continue
            event = self._beats[at].event
            if not (isinstance(event, LockEvent) and event.op == "wait"):
                text = f"{task.name} waits for {task.blocked_on}"
                self.notes.append(Note(at + 1, task.name, text))
        self.look()
        self.notes.sort(key=lambda note: note.at)

    def _error(self, item: str) -> None:
        """The running task comes to an error: `error:FUNCTION:-ERRNO...`."""
        self.look()
        word = item.split(":")[2]
        task = self._world.sim.current.name
        op = self._world.record.under_way.get(task)
        note = Note(len(self._beats), task, word, kernel_path(1))
        if word == AGAIN and note.function in REFUSING and op is not None:
            note.folios = self._folios(task, op)
        self._errors[task] = note
        if note.folios:
            self.refused.append(note)

    def _race(self, item: str) -> None:
        """The running task notices that something came in between: `race:FUNCTION:ENTRY`."""
        self.look()
        task, function = self._world.sim.current.name, item.split(":")[1]
        note = Note(len(self._beats), task, STALE[function], function)
        if note not in self.notes[-1:]:
            self.notes.append(note)

    def _folios(self, task: str, op: Op) -> tuple[tuple[int, FolioHeld], ...]:
        """Folios of the range that somebody refers to."""
        vmms = self._world.vmms
        vmm = vmms[op.vm] if op.vm else next(iter(vmms.values()))
        if vmm.ram is None:
            return ()
        first = op.area.offset(vmm.vm_spec.gpa) >> PAGE_SHIFT
        gfn = op.area.gpa(vmm.vm_spec.gpa) >> PAGE_SHIFT
        pages = range(first, first + op.area.nr_pages)
        return tuple(
            (gfn + folio.index - first, folio)
            for folio in self._watch.folios_of(vmm.ram.gmem.inode, task, len(self._beats))
            if folio.index < pages.stop and pages.start < folio.index + folio.nr_pages
        )

    def _ended(self, result: Result) -> None:
        """An operation that failed, or did not come to what the scenario says."""
        error = self._errors.pop(result.actor, None)
        failed = result.result.startswith("-") or result.result == SIGBUS
        if result.fits and not failed:
            return
        text = f"{self._unseen(result) or result.text} -> {result.result}"
        note = Note(len(self._beats), result.actor, text)
        if not result.fits:
            note.text += f", not {' or '.join(result.right)}"
            note.unmet = result.unmet()
        if error is not None and error.text == result.result.partition(" ")[0].rstrip(","):
            note.function, note.folios = error.function, error.folios
            self.refused = [note if each is error else each for each in self.refused]
        self.notes.append(note)

    def _unseen(self, result: Result) -> str:
        """The words of an operation whose beginning no beat tells of; "" where one does."""
        if any(
            beat.event.task == result.actor and beat.begins.startswith(result.text)
            for beat in self._beats
        ):
            return ""
        ops = (
            each
            for program in self._world.scenario.programs
            if program.name == result.actor
            for op in program.ops
            for each in (op, *op.alternatives)
        )
        return next((op_words(op, self._world) for op in ops if op.text == result.text), "")

    def _gone(self, task: str) -> None:
        """A task that has ended, and was not seen since another one ran in its place, or ever."""
        at = self._last(task, lambda beat: _parts(beat) or bool(beat.begins) or _shows(beat))
        seen = any(note.task == task and note.at > at for note in self.notes)
        if seen or (at >= 0 and not _parts(self._beats[at])):
            return
        results = [r for r in self._world.record.results if r.actor == task]
        if results:
            words = self._unseen(results[-1]) or results[-1].text
            text = f"{words} -> {results[-1].result}, and {task} ends"
            self.notes.append(Note(len(self._beats), task, text))

    def _last(self, task: str, wanted: Callable[[Beat], bool]) -> int:
        """The index of the latest beat of a task that is wanted; -1 for none."""
        for at in range(len(self._beats) - 1, -1, -1):
            beat = self._beats[at]
            if beat.event.task == task and wanted(beat):
                return at
        return -1


def _shows(beat: Beat) -> bool:
    return not is_quiet(beat.event)


def _parts(beat: Beat) -> bool:
    """The task could have gone on, and another one ran."""
    return isinstance(beat.event, SwitchEvent) and (beat.preempted or bool(beat.yields))


def adjust(notes: Iterable[Note], left_out: Sequence[bool]) -> None:
    """Of some beats nothing is told: `at` of notes is the index without them."""
    gone = [sum(left_out[:at]) for at in range(len(left_out) + 1)]
    for note in notes:
        note.at -= gone[note.at]
