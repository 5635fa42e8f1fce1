"""What happened in a run of a scenario: results of operations, flags, memory faults."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from septum.scenarios.ops import result_fits
from septum.scenarios.results import STOPPED

if TYPE_CHECKING:
    from septum.guest.tdcpu import TdGuestCpu
    from septum.scenarios.ops import Op
    from septum.sim import WaitQueue


class Result(msgspec.Struct, frozen=True):
    """An operation that ended: who did what, what came of it, and whether that is right.

    `right` is what the scenario says; empty: anything.
    """

    actor: str
    text: str
    result: str
    fits: bool
    right: tuple[str, ...] = ()

    def unmet(self) -> str:
        """One that is not right, as a sentence."""
        came = f"came to {self.result}, not {' or '.join(self.right)}"
        return f"{self.actor}: `{self.text}` {came if self.right else f'was {self.result}'}"


class Record:
    """The record of one run, and what programs tell each other: flags."""

    __slots__ = ("cpus", "faults", "flags", "results", "under_way", "wq")

    def __init__(self, wq: WaitQueue) -> None:
        self.results: list[Result] = []
        self.under_way: dict[str, Op] = {}
        self.flags: dict[str, bool] = {}
        self.faults: dict[str, int] = {}  # KVM_EXIT_MEMORY_FAULTs, by what they were about
        self.wq = wq  # threads of VMMs that wait for a flag, a slot, the end of a VM
        self.cpus: list[TdGuestCpu] = []  # one of each guest, to wake those that spin

    def begin(self, actor: str, op: Op) -> None:
        """`actor` begins an operation."""
        self.under_way[actor] = op

    def end(self, actor: str, op: Op, result: str) -> None:
        """It ended."""
        self.under_way.pop(actor, None)
        self.results.append(Result(actor, op.text, result, result_fits(op, result), op.results))

    def raise_flag(self, name: str) -> None:
        """Whoever waits for the flag goes on."""
        self.flags[name] = True
        self.wq.wake_up_all()
        for cpu in self.cpus:
            cpu.wake_spinners()

    def memory_fault(self, what: str) -> None:
        """KVM_EXIT_MEMORY_FAULT."""
        self.faults[what] = self.faults.get(what, 0) + 1

    def unmet(self) -> list[str]:
        """The results that are not right, and what never ended, one sentence each. By actor, as who
        of them came first tells no ends of runs apart."""
        wrong = [r for r in self.results if not r.fits]
        lines = [r.unmet() for r in sorted(wrong, key=lambda r: r.actor)]
        lines += [
            f"{actor}: `{op.text}` never ended"
            for actor, op in sorted(self.under_way.items())
            if op.results and STOPPED not in op.results
        ]
        return lines
