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

    `preempted`: the task could have gone on; else it waits.
    """

    to: str
    at: str
    preempted: bool = False


class LockEvent(Event, tag="lock", frozen=True, omit_defaults=True):
    """A lock operation: `op` is lock, unlock or wait; `mode` is ex or sh.

    `holders`: of a wait, the tasks that have the lock, with a comma and a blank between them.
    """

    op: str
    lock: str
    mode: str
    holders: str = ""


class ChoiceEvent(Event, tag="choice", frozen=True):
    """A named choice point came out other than the ordinary way."""

    name: str
    value: int


class FindingEvent(Event, tag="finding", frozen=True):
    """A promise was seen broken at this point."""

    promise: str
    text: str
