"""A recording with the numbers that its steps have in the story: how sentences refer to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.linux.kvm.events import KvmExit
from septum.module.events import SeamcallEvent, TdcallEvent, TdExitEvent
from septum.trace.describe import describe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from septum.explore.stories.recording import Beat, Recorded
    from septum.sim.events import Event

ModuleCall = SeamcallEvent | TdcallEvent


class Told:
    """Beats by index, and what a reader knows them by."""

    __slots__ = ("beats", "numbers")

    def __init__(self, recording: Recorded, numbers: dict[int, int]) -> None:
        self.beats: list[Beat] = recording.beats
        self.numbers = numbers

    def number(self, at: int) -> int:
        """The number of a step that shows; 0 of one that does not."""
        return self.numbers.get(id(self.beats[at]), 0)

    def when(self, at: int) -> str:
        """ "step 5", "after step 5" of what does not show, "before step 1"; -1 is the beginning."""
        if at < 0:
            return "the beginning"
        # A quiet event may be the first of what the scenario asks for, whose step is another.
        if number := self._leaves(at) or self.number(at):
            return f"step {number}"
        return self.after(at)

    def place(self, at: int) -> str:
        """`when` as part of a sentence: "at step 5", "after step 5", "before step 1"."""
        when = self.when(at)
        return when if when.startswith(("after", "before")) else f"at {when}"

    def _leaves(self, at: int) -> int:
        """The number of the step that shows a TD exit: that of the call, or of the exit in KVM; 0
        of what is no TD exit."""
        event = self.beats[at].event
        if not isinstance(event, TdExitEvent):
            return 0
        for later in range(at + 1, len(self.beats)):
            told = self.beats[later].event
            if told.task == event.task and self.number(later):
                return self.number(later) if isinstance(told, TdcallEvent | KvmExit) else 0
        return 0

    def after(self, at: int) -> str:
        """ "after step 5", the last that shows before `at`."""
        shown = (self.number(before) for before in range(at - 1, -1, -1))
        last = next((number for number in shown if number), 0)
        return f"after step {last}" if last else "before step 1"

    def since(self, at: int) -> str:
        """ "since step 5", "since after step 5"; with who did what, where an event tells it."""
        who = f" ({self.who(at)})" if at >= 0 else ""
        return f"since {self.when(at)}{who}"

    def who(self, at: int) -> str:
        """Who did it: "TDH.MEM.TRACK of vcpu0", or the task alone."""
        event = self.beats[at].event
        if isinstance(event, ModuleCall):
            return f"{describe(event).verb} of {event.task}"
        return event.task

    def first_of(self, at: int, holds: Callable[[Beat], bool]) -> int:
        """The index from which on up to `at` it holds; -1 when it did from the beginning on."""
        while at >= 0 and holds(self.beats[at]):
            at -= 1
        return at + 1 if at >= 0 else -1

    def calls(self, before: int, after: int = -1) -> Iterator[tuple[int, Event]]:
        """Index and event, from `before` backwards to `after`, both excluded."""
        for at in range(before - 1, after, -1):
            yield at, self.beats[at].event
