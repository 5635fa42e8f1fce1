"""A small trace as a Mermaid sequence diagram, for an issue or a mail.

Steps are folded as in the ladder: quiet ones are counted, and of a repetition the first and the
last round are shown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.errors import InputError
from septum.module.events import GuestAccessEvent, SeamcallEvent, TdcallEvent
from septum.sim.events import ChoiceEvent, FindingEvent
from septum.trace.describe import describe
from septum.trace.ladder import fold

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from septum.sim.events import Event
    from septum.trace.ladder import Row

MAX_STEPS = 400
MODULE = "tdx"
_ENTITIES = {"#": "#35;", ";": "#59;", "<": "#lt;", ">": "#gt;"}


def _escape(text: str) -> str:
    """Text that Mermaid takes as it is: no statement separator, no entity, no arrow, no markup."""
    arrows = text.replace("->", "→").replace("\n", " ")
    return "".join(_ENTITIES.get(char, char) for char in arrows)


def mermaid_lines(events: Sequence[Event]) -> Iterator[str]:
    """The lines of the diagram, without line ends.

    Raises InputError when there are more than MAX_STEPS steps to draw.
    """
    rows = list(fold(events))
    if len(rows) > MAX_STEPS:
        raise InputError(
            f"a Mermaid diagram of {len(rows)} steps is of no use to anybody; choose at most "
            f"{MAX_STEPS} with --only, for example --only split,conversion"
        )
    tasks = list(dict.fromkeys(row.task for row in rows if row.task))
    return _diagram(rows, {task: f"t{at}" for at, task in enumerate(tasks)})


def _diagram(rows: list[Row], names: dict[str, str]) -> Iterator[str]:
    yield "sequenceDiagram"
    for task, name in names.items():
        yield f"    participant {name} as {_escape(task)}"
    yield f"    participant {MODULE} as TDX module"
    everybody = f"{next(iter(names.values()), MODULE)},{MODULE}"
    for row in rows:
        if row.event is None:
            over = names[row.task] if row.task else everybody
            yield f"    Note over {over}: {_escape(row.text)}"
            continue
        for line in _event(row.event, names[row.task]):
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
