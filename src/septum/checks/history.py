"""What the checks remember of a VM's memory, to see what was lost between two looks.

Nothing is believed: `mapped` and `accepted` are read from the S-EPT at each look. What may have
gone since is what user space asked to take away, in operations under way or ended since then.

Making memory private takes nothing away from a guest that has it. Of the two ioctls that do it,
KVM_SET_MEMORY_ATTRIBUTES unmaps on x86 what is shared alone (kvm_arch_pre_set_memory_attributes()),
so that nothing private may go. KVM_SET_MEMORY_ATTRIBUTES2 on a guest_memfd unmaps both halves
(kvm_gmem_get_invalidate_filter()). Where user space had made memory shared, and the guest has not
accepted it since, there is nothing that the guest could have: a private mapping that is there all
the same is one that `mapping-in-folio` tells of, and it may go. What a fault maps into a hole, or
after a failure, is the guest's.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from septum.checks.intervals import Intervals
from septum.checks.operation import Aim
from septum.checks.sept import END_GFN, EVERYTHING, MEMO_MAX, PENDING_STATE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from septum.checks.operation import Operation
    from septum.checks.sept import LeafRun
    from septum.checks.view import VmView

FEW_RUNS = 64
_NOTHING = Intervals()


class Losses:
    """What a look found: each an interval set of GFNs, within the window looked at.

    `unmapped`: mapped before and not now. `unaccepted`: accepted before and not now. `pending`:
    pending now. None of them contains what user space asked to take.
    """

    __slots__ = ("pending", "unaccepted", "unmapped")

    def __init__(self, unmapped: Intervals, unaccepted: Intervals, pending: Intervals) -> None:
        self.unmapped = unmapped
        self.unaccepted = unaccepted
        self.pending = pending


NO_LOSSES = Losses(_NOTHING, _NOTHING, _NOTHING)


class VmHistory:
    """One VM's memory at the last look, and the operations since."""

    __slots__ = (
        "_kept",
        "_states",
        "accepted",
        "active",
        "ended",
        "giving",
        "last",
        "mapped",
        "shared",
        "taken",
        "under_way",
    )

    def __init__(self) -> None:
        self.mapped = Intervals()
        self.accepted = Intervals()
        self.active: list[Operation] = []  # under way: those that take
        self.under_way = _NOTHING  # what those ask to take
        self.giving: list[Operation] = []  # and those that make memory private
        self.last: Operation | None = None  # of both, the one that ended last
        self.ended = Intervals()  # what those that ended since the last look may have taken
        # Taken by user space at any time, and not seen accepted again: the guest may think that
        # it still owns it.
        self.taken = Intervals()
        # Made shared by user space, and not private again since.
        self.shared = Intervals()
        # `taken`, and what was accepted and under way when it was left like that.
        self._kept = (_NOTHING, _NOTHING, _NOTHING)
        # All leaves as they were read, and what they say: mapped, accepted, pending.
        self._states: tuple[list[LeafRun], Intervals, Intervals, Intervals] | None = None

    def begin(self, op: Operation, vm_id: int) -> None:
        """An operation of user space begins, which names GFNs of this VM."""
        if op.takes:
            self.active.append(op)
            self.taken = self.taken.union(op.on(vm_id))
            self.under_way = self.under_way.union(op.on(vm_id))
        elif op.gives:
            self.giving.append(op)

    def grow(self, op: Operation, vm_id: int, more: Intervals) -> None:
        """An operation under way names GFNs of this VM that it did not name before."""
        if op not in self.active and op not in self.giving:
            self.begin(op, vm_id)
        elif op.takes:
            self.taken = self.taken.union(more)
            self.under_way = self.under_way.union(more)

    def end(self, op: Operation, vm_id: int) -> None:
        """It ended, well or not."""
        if op.takes:
            self.active.remove(op)
            self.ended = self.ended.union(op.on(vm_id))
            self.under_way = _NOTHING
            for other in self.active:
                self.under_way = self.under_way.union(other.on(vm_id))
            if op.aim is Aim.TO_SHARED:
                # Now, as one to private that ended meanwhile may have come before. Until now all
                # of it may go anyway.
                self.shared = self.shared.union(op.done(vm_id))
        elif op.gives:
            self.giving.remove(op)
            self.ended = self.ended.union(self._stale_in(op, vm_id))
            if not op.ret:
                self.shared = self.shared.minus(op.on(vm_id))
        else:
            return
        self.last = op

    def _stale_in(self, op: Operation, vm_id: int) -> Intervals:
        """Where an operation that makes memory private may unmap what is private all the same."""
        if op.aim is not Aim.TO_PRIVATE_AFRESH:
            return _NOTHING
        return op.on(vm_id).intersect(self.shared).intersect(self.taken)

    def _may_go(self, vm_id: int) -> Intervals:
        """What may have gone since the last look."""
        asked = self.ended.union(self.under_way)
        for op in self.giving:
            asked = asked.union(self._stale_in(op, vm_id))
        return asked

    def asked(self) -> str:
        """What user space asks for now, or did last, for a report."""
        if self.active or self.giving:
            return f"asked: {'; '.join(str(op) for op in (*self.active, *self.giving))}"
        return f"asked last: {self.last}" if self.last is not None else "asked: nothing"

    def look(self, vm: VmView, first_gfn: int = 0, end_gfn: int = END_GFN) -> Losses:
        """Read the S-EPT in the window, and say what is gone that nobody asked for.

        Without a key the TD is being torn down, and nothing is kept or missed.
        """
        if not vm.has_key():
            self.mapped = self.accepted = self.ended = _NOTHING
            return Losses(_NOTHING, _NOTHING, _NOTHING)
        if (first_gfn, end_gfn) == EVERYTHING:
            return self._look_at_all(vm)
        under_way = self.under_way
        mapped, accepted, pending = states_of(vm, first_gfn, end_gfn)
        asked = self._may_go(vm.kvm.id).within(first_gfn, end_gfn)
        allowed = asked.union(self.taken.within(first_gfn, end_gfn))
        losses = Losses(
            self.mapped.within(first_gfn, end_gfn).minus(mapped).minus(asked),
            self.accepted.within(first_gfn, end_gfn).minus(accepted).minus(asked),
            pending.minus(allowed),
        )
        self.mapped = self.mapped.replace(first_gfn, end_gfn, mapped)
        self.accepted = self.accepted.replace(first_gfn, end_gfn, accepted)
        if self.ended:
            self.ended = self.ended.replace(first_gfn, end_gfn, _NOTHING)
        if self.taken:
            kept = self.taken.within(first_gfn, end_gfn).minus(accepted.minus(under_way))
            self.taken = self.taken.replace(first_gfn, end_gfn, kept)
        return losses

    def _look_at_all(self, vm: VmView) -> Losses:
        """`look` without a window: the same, with less to cut. What was read when no table had
        been written is taken as it is."""
        runs = vm.runs()
        if self._states is None or self._states[0] is not runs:
            few = len(runs) <= FEW_RUNS
            self._states = (runs, *(states_of_few(tuple(runs)) if few else states_of(vm)))
        _, mapped, accepted, pending = self._states
        if (
            self.mapped is mapped
            and self.accepted is accepted
            and not (pending.starts or self.taken.starts or self.ended.starts)
        ):
            return NO_LOSSES
        under_way = self.under_way
        asked = self._may_go(vm.kvm.id)
        unmapped = unaccepted = _NOTHING
        if self.mapped is not mapped:
            unmapped = self.mapped.minus(mapped).minus(asked)
            self.mapped = mapped
        if self.accepted is not accepted:
            unaccepted = self.accepted.minus(accepted).minus(asked)
            self.accepted = accepted
        if pending.starts:
            pending = pending.minus(asked.union(self.taken))
        self.ended = _NOTHING
        if self.taken.starts and self._kept != (self.taken, accepted, under_way):
            self.taken = self.taken.minus(accepted.minus(under_way))
            self._kept = (self.taken, accepted, under_way)
        return Losses(unmapped, unaccepted, pending)


@lru_cache(MEMO_MAX)
def states_of_few(runs: tuple[LeafRun, ...]) -> tuple[Intervals, Intervals, Intervals]:
    """`states_of` all of a guest with few leaves: the same come again in many runs."""
    return states_in(runs, 0, END_GFN)


def states_of(
    vm: VmView, first_gfn: int = 0, end_gfn: int = END_GFN
) -> tuple[Intervals, Intervals, Intervals]:
    """(mapped, accepted, pending) GFNs in the window. A blocked page is still mapped."""
    return states_in(vm.runs(first_gfn, end_gfn), first_gfn, end_gfn)


def states_in(
    runs: Iterable[LeafRun], first_gfn: int, end_gfn: int
) -> tuple[Intervals, Intervals, Intervals]:
    """(mapped, accepted, pending) GFNs of these leaves within the window."""
    mapped = Intervals()
    accepted = Intervals()
    pending = Intervals()
    for gfn, nr, _, state, _ in runs:
        start = max(gfn, first_gfn)
        end = min(gfn + nr, end_gfn)
        mapped.append(start, end)
        (pending if state & PENDING_STATE else accepted).append(start, end)
    return mapped, accepted, pending
