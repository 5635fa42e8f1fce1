"""What a run says of itself: typed events, from which every rendering is made.

Each room defines its own subclasses of `Event` beside the code that emits them.
"""

import msgspec


class Event(msgspec.Struct, tag=True, frozen=True):
    """One thing that happened, at a task's virtual time (ns), on a logical processor."""

    time_ns: int
    task: str
    cpu: int


class SwitchEvent(Event, tag="switch", frozen=True):
    """The scheduler let another task run at a scheduling point of kind `at`.

    `preempted`: the first task could have gone on; otherwise it waits.
    """

    to: str
    at: str
    preempted: bool = False


class LockEvent(Event, tag="lock", frozen=True, omit_defaults=True):
    """A lock operation: `op` is lock, unlock or wait; `mode` is ex (exclusive) or sh (shared).

    `holders`: for a wait, the names of the tasks that hold the lock, joined by ", ".
    """

    op: str
    lock: str
    mode: str
    holders: str = ""


class ChoiceEvent(Event, tag="choice", frozen=True):
    """A named choice point had another outcome than 0, the ordinary one."""

    name: str
    value: int


class FindingEvent(Event, tag="finding", frozen=True):
    """A promise was seen broken at this point."""

    promise: str
    text: str
