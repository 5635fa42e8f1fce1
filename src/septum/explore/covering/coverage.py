"""What a search reached, so that its silence can be judged.

Items are texts, and a scenario's witness is the beginning of one (`scenarios.names.REACHED` are the
words that they begin with):

    call:TDH.MEM.TRACK:TDX_OPERAND_BUSY            a SEAMCALL, and its status
    tdcall:TDG.MEM.PAGE.ACCEPT:TDX_SUCCESS         a TDCALL; "exit": it ended in a TD exit
    sept:PENDING:TDH.MEM.RANGE.BLOCK:TDX_SUCCESS   either, with the S-EPT state that it worked on
    error:tdp_mmu_split_huge_pages_root:-ENOMEM:kvm_gmem_set_attributes
                                                   an error of the host: where it began, and the
                                                   kernel function that the task was in with it
    race:is_page_fault_stale:kvm_vcpu_ioctl_run    KVM saw that somebody came in between, and began
                                                   again: what saw it, and as above
    wait:vm1 mmu_lock:ex                           a lock that somebody waited for
    contend:vm1 mmu_lock:vcpu0:host.convert        who waited, and who had it
    choice:alloc:tdx_split_cache=1                 an outcome other than the ordinary

An exhaustive search tells all that its steps reach. Watching random runs costs time: of those the
first are watched, and then some; errors, races and the choices of recorded runs are always told.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from septum.abi.leaves import GPA_LEAVES, TDG_MEM_PAGE_ACCEPT, seamcall_name, tdcall_name
from septum.abi.sept import state_name
from septum.abi.status import STATUS_MASK, status_name
from septum.explore.covering.errors import ErrorPaths
from septum.explore.covering.races import noticing_hooks
from septum.module import Module, tdg
from septum.module.events import SeamcallEvent, TdcallEvent
from septum.module.outcome import OutcomeKind
from septum.sim.events import ChoiceEvent, LockEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from septum.explore.subject import Built
    from septum.machine.tables import TablePage
    from septum.module.state import Td
    from septum.sim import Event

WATCHED_FIRST = 50
WATCHED_EVERY = 8


class Coverage:
    """Counts, per job, in how many events each item was seen."""

    __slots__ = ("_built", "_counts", "_errors", "_met", "_originals")

    def __init__(self, built: Built) -> None:
        self._built = built
        self._counts: dict[str, int] = {}
        self._met: dict[str, int] = {}  # by task: the S-EPT entry that its call worked on last
        self._errors = ErrorPaths(self.reach)
        self._originals: list[tuple[object, str, object]] = []

    def begin(self) -> None:
        """A job begins: from now on the model's classes and modules tell. Ends with `end`."""
        self._counts = {}
        self._errors.install()
        plain_lock, plain_busy = Module.lock_entry_host, Module.entry_busy
        plain_unlock = tdg.unlock_entry
        met, sim = self._met, self._built.sim

        # No scheduling point is passed in any of them, so that nobody sees them on a stack.
        def lock_entry_host(m: Module, page: TablePage, index: int, entry: int) -> int:
            met[sim.current.name] = entry
            return plain_lock(m, page, index, entry)

        def entry_busy(
            m: Module, td: Td, page: TablePage, index: int, entry: int, exclusive: bool
        ) -> None:
            met[sim.current.name] = entry
            plain_busy(m, td, page, index, entry, exclusive)

        def unlock_entry(page: TablePage, index: int, entry: int | None = None) -> None:
            met[sim.current.name] = page.entry(index)
            plain_unlock(page, index, entry)

        told: list[tuple[object, str, object]] = [
            (Module, "lock_entry_host", lock_entry_host),
            (Module, "entry_busy", entry_busy),
            (tdg, "unlock_entry", unlock_entry),
        ]
        host = getattr(getattr(self._built.world, "world", None), "host", None)
        if host is not None:  # toys have none
            told += noticing_hooks(host, self.reach)
        for owner, name, function in told:
            self._originals.append((owner, name, vars(owner).get(name)))
            setattr(owner, name, function)

    def forget(self) -> None:
        """What was told since the job began was told by runs that do not count."""
        self._counts.clear()

    def end(self) -> None:
        """Put them back."""
        while self._originals:
            owner, name, original = self._originals.pop()
            if original is None:
                delattr(owner, name)
            else:
                setattr(owner, name, original)
        self._errors.uninstall()

    def sink_for(self, nr_runs: int) -> Callable[[Event], None] | None:
        """What watches the run that is about to begin. The last may have ended in a call."""
        self._met.clear()
        watched = nr_runs < WATCHED_FIRST or nr_runs % WATCHED_EVERY == 0
        return self._see if watched else None

    def call_begins(self, task: str) -> None:
        """A SEAMCALL or TDCALL of `task` begins, of a run that nobody watches."""
        self._met.pop(task, None)

    @contextmanager
    def not_counting(self) -> Iterator[None]:
        """Runs that the search does not stand for: they may go beyond its bounds."""
        counts, self._counts = self._counts, {}
        try:
            yield
        finally:
            self._counts = counts

    def items(self) -> dict[str, int]:
        """What was seen, by name."""
        return dict(sorted(self._counts.items()))

    def reach(self, item: str) -> None:
        """Something was reached, unless the run is over: worlds that are alike then are taken down
        once."""
        if not self._built.is_over:
            self._counts[item] = self._counts.get(item, 0) + 1

    def seamcall(self, leaf: int, status: int, task: str) -> None:
        """A SEAMCALL of `task` ended."""
        name, word = seamcall_name(leaf), _name_of(status)
        met = self._met.pop(task, None)
        self.reach(f"call:{name}:{word}")
        if met is not None and leaf in GPA_LEAVES:
            self.reach(f"sept:{state_name(met)}:{name}:{word}")

    def tdcall(self, leaf: int, outcome: int, status: int, task: str) -> None:
        """An attempt of a TDCALL of `task` ended."""
        name, word = tdcall_name(leaf), _ended(outcome, status)
        met = self._met.pop(task, None)
        self.reach(f"tdcall:{name}:{word}")
        if met is not None and leaf == TDG_MEM_PAGE_ACCEPT:
            self.reach(f"sept:{state_name(met)}:{name}:{word}")

    def waits(self, lock: str, mode: str, task: str, holders: list[str]) -> None:
        """A task waits for a lock."""
        self.reach(f"wait:{lock}:{mode}")
        for holder in holders:
            self.reach(f"contend:{lock}:{task}:{holder}")

    def _see(self, event: Event) -> None:
        if isinstance(event, SeamcallEvent):
            self.seamcall(event.leaf, event.status, event.task)
        elif isinstance(event, TdcallEvent):
            self.tdcall(event.leaf, event.outcome, event.status, event.task)
        elif isinstance(event, LockEvent) and event.op == "wait":
            holders = event.holders.split(", ") if event.holders else []
            self.waits(event.lock, event.mode, event.task, holders)
        elif isinstance(event, ChoiceEvent):
            self.reach(f"choice:{event.name}={event.value}")


def _ended(outcome: int, status: int) -> str:
    """How a TDCALL ended, in a word."""
    if outcome == OutcomeKind.TD:
        return _name_of(status)
    return {OutcomeKind.TD_EXIT: "exit", OutcomeKind.INTERRUPTED: "interrupted"}.get(
        OutcomeKind(outcome), "event"
    )


def _name_of(status: int) -> str:
    """A status without its details."""
    return status_name(status & STATUS_MASK).partition("|")[0]
