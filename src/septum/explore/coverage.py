"""What a search reached: calls with their outcomes, choice points, waits, and a scenario's
witnesses.

Items are texts: "call:TDH.MEM.PAGE.AUG:TDX_SUCCESS", "choice:alloc:tdx_split_cache=1",
"wait:mmu_lock:ex"; of the exhaustive search also the S-EPT state that a call met, and who was in
whose way: "sept:MAPPED:TDH.MEM.RANGE.BLOCK:TDX_SUCCESS", "contend:mmu_lock:vcpu0:host.convert".
Watching random runs costs time, so that not all are watched once the first were.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.leaves import SEAMCALL_NAMES
from septum.abi.status import STATUS_MASK, status_name
from septum.module.events import SeamcallEvent, TdcallEvent
from septum.sim.events import ChoiceEvent, LockEvent

if TYPE_CHECKING:
    from collections.abc import Callable

    from septum.sim import Event

WATCHED_FIRST = 50
WATCHED_EVERY = 8


class Coverage:
    """Counts, per job, in how many events each item was seen."""

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def begin(self) -> None:
        """A job begins."""
        self._counts = {}

    def sink_for(self, nr_runs: int) -> Callable[[Event], None] | None:
        """What watches the run that is about to begin."""
        watched = nr_runs < WATCHED_FIRST or nr_runs % WATCHED_EVERY == 0
        return self._see if watched else None

    def items(self) -> dict[str, int]:
        """What was seen, by name."""
        return dict(sorted(self._counts.items()))

    def reach(self, item: str) -> None:
        """Something was reached."""
        self._counts[item] = self._counts.get(item, 0) + 1

    def _see(self, event: Event) -> None:
        if isinstance(event, SeamcallEvent):
            name = SEAMCALL_NAMES.get(event.leaf, hex(event.leaf))
            item = f"call:{name}:{status_name(event.status & STATUS_MASK)}"
        elif isinstance(event, TdcallEvent):
            item = f"tdcall:{event.leaf:#x}:{status_name(event.status & STATUS_MASK)}"
        elif isinstance(event, LockEvent) and event.op == "wait":
            item = f"wait:{event.lock}:{event.mode}"
        elif isinstance(event, ChoiceEvent):
            item = f"choice:{event.name}={event.value}"
        else:
            return
        self.reach(item)
