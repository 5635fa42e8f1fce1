"""The trace as /sys/kernel/tracing/trace shows KVM's tracepoints, so that existing scripts read it.

Lines have ftrace's own layout and the events' own formats. SEAMCALLs, for which the kernel has no
tracepoint, are shown as kretprobes on their wrappers would be, with offset 0 in the caller. Events
that no kernel could show (locks, scheduling, the guest's TDCALLs) are left out.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from septum.abi.leaves import seamcall_name
from septum.linux.kvm import events as kvm
from septum.module.events import SeamcallEvent
from septum.trace.filters import tag_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from septum.sim.events import Event

HEADER = """\
# tracer: nop
#
#                                _-----=> irqs-off/BH-disabled
#                               / _----=> need-resched
#                              | / _---=> hardirq/softirq
#                              || / _--=> preempt-depth
#                              ||| / _-=> migrate-disable
#                              |||| /     delay
#           TASK-PID     CPU#  |||||  TIMESTAMP  FUNCTION
#              | |         |   |||||     |         |
"""

FIRST_PID = 4200
COMM_MAX = 15
WRAPPER_PREFIX = "tdh_"
_VCPU = re.compile(r"\.?vcpu(\d+)$")

_FLAGS: dict[type[Event], str] = {
    kvm.KvmEntry: "d..1.",
    kvm.KvmExit: "d..1.",
    kvm.KvmPageFaultEvent: ".....",
    kvm.KvmUserspaceExit: ".....",
    kvm.KvmHypercall: ".....",
}
PREEMPT_OFF = "...1."


def comm(task: str) -> str:
    """The name of the thread, as QEMU names it: vCPU threads are "CPU 3/KVM"."""
    vcpu = _VCPU.search(task)
    return f"CPU {vcpu.group(1)}/KVM" if vcpu else task[:COMM_MAX]


class FtraceWriter:
    """Turns events into lines. PIDs are given in the order in which tasks appear."""

    __slots__ = ("pids",)

    def __init__(self) -> None:
        self.pids: dict[str, int] = {}

    def line(self, event: Event, via: str = "") -> str | None:
        """The line of an event, without line end; None for what the kernel does not show.

        `via` are the kernel functions that a SEAMCALL came from, as the trace has them.
        """
        body = self.body(event, via)
        if body is None:
            return None
        pid = self.pids.setdefault(event.task, FIRST_PID + len(self.pids))
        flags = _FLAGS.get(type(event), PREEMPT_OFF)
        seconds, rest_ns = divmod(event.time_ns, 10**9)
        stamp = f"{seconds}.{rest_ns // 1000:06d}"
        return f"{comm(event.task):>16}-{pid:<7} [{event.cpu:03d}] {flags} {stamp:>12}: {body}"

    def body(self, event: Event, via: str) -> str | None:
        """`event: text`."""
        if isinstance(event, SeamcallEvent):
            wrapper, caller = _probed(event, via)
            return (
                f"{wrapper}: ({caller} <- {wrapper}) rcx={event.rcx:#x} rdx={event.rdx:#x}"
                f" r8={event.r8:#x} ret={event.status:#x}"
            )
        # KVM's tracepoints have text(); what Septum adds to them, and other rooms' events, do not.
        text = getattr(event, "text", None)
        if type(event).__module__ != kvm.__name__ or text is None:
            return None
        return f"{tag_of(type(event))}: {text()}"


def _probed(event: SeamcallEvent, via: str) -> tuple[str, str]:
    """(the wrapper that a kretprobe is on, where it returns to; "0" when that is not known)"""
    path = via.split(" < ")
    for at, name in enumerate(path):
        if name.startswith(WRAPPER_PREFIX):
            return name, f"{path[at + 1]}+0x0/0x0" if at + 1 < len(path) else "0"
    return seamcall_name(event.leaf).lower().replace(".", "_"), "0"


def ftrace_lines(events: Iterable[Event], via: Callable[[], str] = str) -> Iterator[str]:
    """The header and the lines, each with its line end, sorted by virtual time as scripts expect.

    Every task has its own clock, so the events of a trace are not in the order of time. `via()`
    gives the kernel functions that the event taken last from `events` came from.
    """
    writer = FtraceWriter()
    yield HEADER
    told = [(event, via() if isinstance(event, SeamcallEvent) else "") for event in events]
    told.sort(key=_time_ns)
    for event, path in told:
        line = writer.line(event, path)
        if line is not None:
            yield line + "\n"


def _time_ns(told: tuple[Event, str]) -> int:
    return told[0].time_ns
