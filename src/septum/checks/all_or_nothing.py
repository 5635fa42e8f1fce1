"""The promise `all-or-nothing`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.checks.history import states_in
from septum.checks.intervals import Intervals
from septum.checks.promise import Promise
from septum.checks.text import agree, pages_text

if TYPE_CHECKING:
    from septum.checks.checker import Checker
    from septum.checks.operation import Operation
    from septum.checks.view import VmView

_ROUND = 512
_NOTHING = Intervals()


class _Before:
    """One VM in the GFNs around what an operation names, when it began: which of the named ones
    are shared, and the leaves."""

    __slots__ = ("_leaves", "shared")

    def __init__(self, vm: VmView, spans: Intervals) -> None:
        self.shared = shared_in(vm, spans)
        self._leaves = [(start, end, vm.runs(start, end)) for start, end in widened(spans)]

    def states(self) -> tuple[Intervals, Intervals]:
        """(mapped, accepted) GFNs: most operations succeed, and nobody asks."""
        mapped = accepted = _NOTHING
        for start, end, runs in self._leaves:
            mapped_here, accepted_here, _ = states_in(runs, start, end)
            mapped = mapped.union(mapped_here)
            accepted = accepted.union(accepted_here)
        return mapped, accepted


class AllOrNothing(Promise):
    """An ioctl that fails leaves attributes, mappings and guest data as they were, or as its
    contract says.

    On real hardware user space believes that nothing happened, tells the guest so, and the guest
    goes on with memory that it has lost, or that is not what it thinks it is.
    """

    __slots__ = ("_before", "_others", "_running")
    name = "all-or-nothing"

    def __init__(self, checker: Checker) -> None:
        super().__init__(checker)
        self._running: list[Operation] = []
        self._before: dict[int, dict[int, _Before]] = {}
        # By number of an operation: those that went on at the same time.
        self._others: dict[int, list[Operation]] = {}

    def operation_begin(self, op: Operation) -> None:
        """Remember what is there."""
        for other in self._running:
            self._others[other.number].append(op)
        self._others[op.number] = list(self._running)
        self._running.append(op)
        before: dict[int, _Before] = {}
        for number, spans in op.spans.items():
            vm = self.checker.vm(number)
            if vm is not None:
                before[number] = _Before(vm, spans)
        self._before[op.number] = before

    def operation_end(self, op: Operation) -> None:
        """Compare, if it failed. What others asked for at the same time is theirs."""
        self._running.remove(op)
        before = self._before.pop(op.number)
        others = self._others.pop(op.number)
        if not op.ret:
            return
        for number, was in before.items():
            vm = self.checker.vm(number)
            if vm is None or vm.kvm.vm_bugged:
                continue
            theirs = _NOTHING
            for other in others:
                theirs = theirs.union(other.on(number))
            self._compare(op, vm, was, theirs.union(op.done(number)))

    def _compare(self, op: Operation, vm: VmView, was: _Before, not_ours: Intervals) -> None:
        spans = op.on(vm.kvm.id)
        now = _Before(vm, spans)
        mapped, accepted = was.states()
        mapped_now, accepted_now = now.states()
        changed = now.shared.minus(was.shared).union(was.shared.minus(now.shared))
        for what, lost in (
            ("changed between private and shared", changed),
            ("lost the guest's ACCEPT", accepted.minus(accepted_now)),
            ("lost {its} mapping", mapped.minus(mapped_now)),
        ):
            for start, end in lost.minus(not_ours):
                told = what.format(its=agree(end - start, "its", "their"))
                self.broken(
                    (op.number, vm.name, what),
                    f"{vm.name}: {op} failed ({op.ret}), and {pages_text(start, end)} {told}",
                )
                break


def widened(spans: Intervals) -> Intervals:
    """The 2 MB frames that the spans touch."""
    return Intervals([(start & -_ROUND, -(-end // _ROUND) * _ROUND) for start, end in spans])


def shared_in(vm: VmView, spans: Intervals) -> Intervals:
    """The GFNs in `spans` whose attributes say that they are shared."""
    shared = Intervals()
    for start, end in spans:
        gfn = start
        while gfn < end:
            slot = vm.slot_at(gfn)
            if slot is None:
                gfn = min(
                    (s.base_gfn for s in vm.kvm.memslots.values() if s.base_gfn > gfn), default=end
                )
                continue
            attributes, next_gfn = vm.attributes(slot, gfn)
            stop = min(end, next_gfn, slot.base_gfn + slot.npages)
            if not attributes:
                shared.append(gfn, stop)
            gfn = stop
    return shared
