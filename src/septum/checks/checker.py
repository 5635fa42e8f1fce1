"""Runs the promises over a world: at its end, at quiet points, or at every scheduling point.

Looking at everything costs in proportion to the guest, so that quiet points look at what the
operation named, and at everything only as often as keeps the cost of checks in bounds. What is
looked at when is a function of the run alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from septum.checks.history import Losses, VmHistory
from septum.checks.sept import END_GFN
from septum.checks.view import Operation, VmView
from septum.module.state import Vcpu

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from septum.checks.promise import Promise
    from septum.checks.view import WorldView
    from septum.linux.kvm.types import Kvm

Mode = Literal["end", "quiet", "every-step"]
Result = Literal["held", "broken"]

CREDIT_PER_QUIET_POINT = 64
CREDIT_PER_STEP = 16
MAX_FINDINGS_PER_PROMISE = 8
_ROUND = 512


class Checker:
    """The promises of one world.

    `results` says of each whether it held so far. A broken one is a finding of `world.sim`, at
    most MAX_FINDINGS_PER_PROMISE of each. `mapping_may_exceed_folio`: the design rests on
    contiguity of private memory instead of on folios.
    """

    __slots__ = (
        "_credit",
        "_histories",
        "_looking",
        "_nr_found",
        "_vms",
        "mapping_may_exceed_folio",
        "mode",
        "nr_full_looks",
        "nr_looks",
        "promises",
        "results",
        "where",
        "world",
    )

    def __init__(
        self, world: WorldView, promises: Iterable[str] | None = None, mode: Mode = "quiet"
    ) -> None:
        """`promises` are names of septum.checks.PROMISES; None: all of them."""
        from septum.checks import find_promises

        self.world = world
        self.mode: Mode = mode
        self.mapping_may_exceed_folio = False
        self.promises: list[Promise] = [cls(self) for cls in find_promises(promises)]
        self.results: dict[str, Result] = {p.name: "held" for p in self.promises}
        self.where = ""
        self.nr_looks = 0
        self.nr_full_looks = 0
        self._vms: dict[int, VmView] = {}
        self._histories: dict[int, VmHistory] = {}
        self._credit = 0
        self._looking = False
        self._nr_found: dict[str, int] = {}

    # Life

    def start(self) -> None:
        """Begin to observe. The world is as it should be now."""
        for promise in self.promises:
            promise.start()
        if self.mode == "every-step":
            self.world.sim.set_point_observer(self._step)

    def operation_begin(
        self,
        kvm: Kvm,
        name: str,
        ranges: Iterable[tuple[int, int]] = (),
        *,
        takes: bool = False,
        partial: bool = False,
    ) -> Operation:
        """User space is about to ask for `name` over `ranges` of GFNs, see Operation."""
        op = Operation(kvm, name, tuple(ranges), takes, partial)
        self._meet_vms()
        self._histories[kvm.id].begin(op)
        for promise in self.promises:
            promise.operation_begin(op)
        return op

    def operation_end(self, op: Operation, ret: int) -> None:
        """The operation returned `ret`: 0 or more, or -errno. What it named is looked at."""
        op.ret = ret
        self._histories[op.kvm.id].end(op)
        for promise in self.promises:
            promise.operation_end(op)
        if self.mode != "end":
            self.quiet_point(op.name, op.kvm, op.ranges)

    def quiet_point(
        self, where: str, kvm: Kvm | None = None, ranges: Iterable[tuple[int, int]] = ()
    ) -> None:
        """A task is between two things: the GFNs in `ranges` of `kvm`, and what surrounds them,
        are looked at, and everything when it is time to."""
        if self.mode == "end":
            return
        self._credit += CREDIT_PER_QUIET_POINT
        self._look(where, [(kvm.id, span) for span in ranges] if kvm is not None else [])

    def finish(self) -> dict[str, Result]:
        """The run is over: look at everything once more. Returns `results`."""
        if self.mode == "every-step":
            self.world.sim.set_point_observer(None)
        self.where = "end"
        self._meet_vms()
        self._full_look()
        for promise in self.promises:
            promise.finish()
        # The model itself reports what it sees at once: WARN, lost data that the guest reads back.
        for finding in self.world.sim.findings:
            if finding.promise in self.results:
                self.results[finding.promise] = "broken"
        return self.results

    def _step(self, kind: str) -> None:
        self._credit += CREDIT_PER_STEP
        self._look(kind, list(self._active_spans()))

    def _active_spans(self) -> Iterator[tuple[int, tuple[int, int]]]:
        """What tasks are at: ranges of operations, and GFNs that vCPUs faulted at."""
        for number, history in self._histories.items():
            for op in history.active:
                for span in op.ranges:
                    yield number, span
        for number, vm in self._vms.items():
            for vcpu in vm.kvm.vcpus:
                gfn = vcpu.tdx.exit_gpa >> 12
                yield number, (gfn, gfn + 1)

    # Looking

    def _look(self, where: str, spans: list[tuple[int, tuple[int, int]]]) -> None:
        if self._looking:
            return
        self._looking = True
        try:
            self.where = where
            self._meet_vms()
            if self._credit >= self._cost():
                self._credit = 0
                self._full_look()
                return
            self.nr_looks += 1
            for number, (start, end) in dict.fromkeys(spans):
                vm = self._vms.get(number)
                if vm is not None:
                    self._look_at(vm, start & -_ROUND, -(-end // _ROUND) * _ROUND)
        finally:
            self._looking = False

    def _cost(self) -> int:
        """What a full look costs, in pages of page tables."""
        cost = 0
        for vm in self._vms.values():
            cost += vm.kvm.arch.tdp_mmu_pages
        return cost * 4

    def _full_look(self) -> None:
        self.nr_full_looks += 1
        for vm in list(self._vms.values()):
            self._look_at(vm, 0, END_GFN)
        for promise in self.promises:
            promise.look_machine()

    def _look_at(self, vm: VmView, first_gfn: int, end_gfn: int) -> None:
        history = self._histories[vm.kvm.id]
        history.losses = history.look(vm, first_gfn, end_gfn)
        history.window = (first_gfn, end_gfn)
        for promise in self.promises:
            promise.look(vm, first_gfn, end_gfn)
        history.losses = None

    def _meet_vms(self) -> None:
        """VMs that appeared get a record; those that are gone are told to the promises."""
        kvms = self.world.host.kvms
        for number, kvm in kvms.items():
            vm = self._vms.get(number)
            if vm is None:
                nr = len(self._histories)
                guests = self.world.guests
                memory = guests[nr].memory if nr < len(guests) else None
                self._vms[number] = VmView(self.world, kvm, memory)
                self._histories[number] = VmHistory()
            else:
                vm.refresh()
        if len(kvms) != len(self._vms):
            for number in [n for n in self._vms if n not in kvms]:
                vm = self._vms.pop(number)
                for promise in self.promises:
                    promise.gone(vm)

    # For the promises

    def history(self, vm: VmView) -> VmHistory:
        """What is remembered of a VM."""
        return self._histories[vm.kvm.id]

    def losses(self, vm: VmView, first_gfn: int, end_gfn: int) -> Losses:
        """What the look that goes on found lost in its window."""
        history = self._histories[vm.kvm.id]
        assert history.losses is not None and history.window == (first_gfn, end_gfn)
        return history.losses

    def vms(self) -> Iterable[VmView]:
        """The VMs that exist."""
        return self._vms.values()

    def vcpus(self) -> Iterator[Vcpu]:
        """The module's vCPUs."""
        yield from self.world.module.vcpus.values()

    def was_found(self, promise: str) -> bool:
        """Whether a finding of this promise was recorded, by whomever."""
        return any(f.promise == promise for f in self.world.sim.findings)

    def report(self, promise: str, text: str, where: str = "") -> None:
        """A promise is broken."""
        self.results[promise] = "broken"
        nr = self._nr_found.get(promise, 0) + 1
        self._nr_found[promise] = nr
        if nr <= MAX_FINDINGS_PER_PROMISE:
            self.world.sim.find(promise, text, where=where or self.where)
