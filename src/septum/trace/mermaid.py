"""A small trace as a Mermaid sequence diagram, for an issue or a mail."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.errors import InputError
from septum.module.events import GuestAccessEvent, SeamcallEvent, TdcallEvent
from septum.sim.events import ChoiceEvent, FindingEvent, LockEvent
from septum.trace.describe import describe
from septum.trace.ladder import is_quiet

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from septum.sim.events import Event

MAX_STEPS = 300
MODULE = "tdx"


def _escape(text: str) -> str:
    """Text that Mermaid takes as it is: no statement separator, no entity, no arrow."""
    escaped = "".join({"#": "#35;", ";": "#59;"}.get(char, char) for char in text)
    return escaped.replace("->", "→").replace("\n", " ")


def mermaid_lines(events: Sequence[Event]) -> Iterator[str]:
    """The lines of the diagram, without line ends.

    Raises InputError when there are more than MAX_STEPS steps to draw.
    """
    shown = [event for event in events if not is_quiet(event) or isinstance(event, LockEvent)]
    if len(shown) > MAX_STEPS:
        raise InputError(
            f"a Mermaid diagram of {len(shown)} steps is of no use to anybody; choose at most "
            f"{MAX_STEPS} with --only, for example --only split,conversion"
        )
    return _diagram(shown)


def _diagram(events: list[Event]) -> Iterator[str]:
    names = {
        task: f"t{at}" for at, task in enumerate(dict.fromkeys(event.task for event in events))
    }
    yield "sequenceDiagram"
    for task, name in names.items():
        yield f"    participant {name} as {_escape(task)}"
    yield f"    participant {MODULE} as TDX module"
    for event in events:
        for line in _event(event, names[event.task]):
            yield f"    {line}"


def _event(event: Event, who: str) -> Iterator[str]:
    step = describe(event)
    words = _escape(f"{step.verb} {step.detail}".rstrip())
    if isinstance(event, SeamcallEvent | TdcallEvent | GuestAccessEvent):
        yield f"{who}->>{MODULE}: {words}"
        if step.result:
            yield f"{MODULE}-->>{who}: {_escape(step.result)}"
    elif isinstance(event, FindingEvent | ChoiceEvent):
        yield f"Note over {who},{MODULE}: {words}"
    else:
        yield f"Note over {who}: {_escape(step.text)}"
