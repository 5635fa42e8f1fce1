"""Where a trace's story begins: after the events that only tell what there is already."""

from __future__ import annotations

from itertools import dropwhile
from typing import TYPE_CHECKING

from septum.linux.kvm import events as kvm
from septum.module.events import PamtPairEvent, SeptLeavesEvent

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from septum.sim.events import Event

OPENING = (
    kvm.KvmTdEvent,
    kvm.KvmMemslotEvent,
    kvm.KvmMemoryAttributesEvent,
    kvm.KvmGmemFolioEvent,
    kvm.KvmMirrorLeavesEvent,
    SeptLeavesEvent,
    PamtPairEvent,
)
"""What a trace that begins in the middle of a run says first (`septum.scenarios.opening`)."""


def without_opening(events: Iterable[Event]) -> Iterator[Event]:
    """The events from the first step of the run on."""
    return dropwhile(lambda event: isinstance(event, OPENING), events)
