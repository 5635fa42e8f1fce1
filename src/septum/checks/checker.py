"""Runs the promises over a world: at its end, at quiet points, or at every scheduling point.

Quiet points look at what the operation named, and at everything when it is time to (Pace).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from septum.checks.history import NO_LOSSES, VmHistory
from septum.checks.observe import attach
from septum.checks.operation import Aim, Operation, Spans, vm_spans
from septum.checks.pace import FRAME, NEAR, Pace
from septum.checks.promise import Promise
from septum.checks.sept import END_GFN
from septum.checks.view import VmView

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from septum.checks.intervals import Intervals
    from septum.checks.modes import Mode
    from septum.checks.view import GuestView, WorldView
    from septum.guest.memory import GuestMemory
    from septum.linux.kvm.types import Kvm, KvmVcpu

Result = Literal["held", "broken"]

MAX_FINDINGS_PER_PROMISE = 8


class Checker:
    """The promises of one world.

    The world's host is built with `observed_units`, so that the checker is told what user space
    asks; `start` begins, `finish` ends. `results` says of each promise whether it held so far. A
    broken one is a finding of `world.sim`, at most MAX_FINDINGS_PER_PROMISE of each.

    `mapping_may_exceed_folio`: the design rests on contiguity of private memory instead of on
    folios.
    """

    __slots__ = (
        "_changing",
        "_destroyed",
        "_histories",
        "_looking",
        "_looks",
        "_next_operation",
        "_nr_found",
        "_of_machine",
        "_pace",
        "_quick",
        "_settled_at",
        "_thorough",
        "_told_of_begins",
        "_told_of_ends",
        "_told_of_faults",
        "_told_of_returns",
        "_told_of_violations",
        "_under_way",
        "_vms",
        "_watching",
        "_writes",
        "guests",
        "losses",
        "mapping_may_exceed_folio",
        "mode",
        "nr_full_looks",
        "nr_looks",
        "promises",
        "results",
        "told",
        "where",
        "world",
    )

    def __init__(
        self,
        world: WorldView,
        promises: Iterable[str] | None = None,
        mode: Mode = "quiet",
        guests: Sequence[GuestView] | None = None,
        rarely: int = 1,
    ) -> None:
        """`promises` are names of septum.checks.PROMISES; None: all of them.

        `guests` are the guest programs, in the order of their VMs; None: `world.guests`, if the
        world knows them. `rarely`: at quiet points, look at everything, and at what a fault mapped,
        so many times less often, as for a guest that boots at full size. What user space asks for
        is looked at always.
        """
        from septum.checks import find_promises

        self.world = world
        self._writes = world.machine.table_writes
        self.mode: Mode = mode
        self.guests: Sequence[GuestView] = (
            guests if guests is not None else getattr(world, "guests", ())
        )
        self.mapping_may_exceed_folio = False
        self.promises: list[Promise] = [cls(self) for cls in find_promises(promises)]
        self.results: dict[str, Result] = {p.name: "held" for p in self.promises}
        self.where = ""
        self.nr_looks = 0
        self.nr_full_looks = 0
        self.told = False  # whether the host tells what user space asks
        self._vms: dict[int, VmView] = {}
        self._histories: dict[int, VmHistory] = {}
        self._changing: dict[int, list[tuple[int, int]]] = {}
        self._destroyed: set[int] = set()  # VMs of which nothing is left to be given back
        self._pace = Pace(rarely)
        self._looking = False
        self.losses = NO_LOSSES  # what the look that goes on found lost, in its window
        self._next_operation = 1
        self._under_way: list[Operation] = []
        self._nr_found: dict[str, int] = {}
        # How often tables had been written when nothing had changed since the last look; -1: not
        # known.
        self._settled_at = -1
        # Those that do anything when they are asked or told.
        self._watching = self._with("changed")
        self._told_of_begins = self._with("operation_begin")
        self._told_of_ends = self._with("operation_end")
        self._told_of_returns = self._with("returned")
        self._told_of_faults = self._with("fault_tried")
        self._told_of_violations = self._with("ept_violation_handled")
        self._of_machine = self._with("look_machine")
        self._looks = self._with("look")
        self._quick = [p for p in self._looks if not p.thorough]
        self._thorough = [p for p in self._looks if p.thorough]

    def _with(self, hook: str) -> list[Promise]:
        return [p for p in self.promises if getattr(type(p), hook) is not getattr(Promise, hook)]

    # Life

    def start(self) -> None:
        """Begin to observe. The world is as it should be now."""
        self.told = attach(self.world.host, self)
        if self.told and self.world.host.gmem.mapping_may_exceed_folio:
            self.mapping_may_exceed_folio = True
        for promise in self.promises:
            promise.start()
        if self.mode == "every-step":
            self.world.sim.set_point_observer(self._step)

    def finish(self, *, exited: bool = False) -> dict[str, Result]:
        """The run is over: look at everything once more. `exited`: every process has, so that
        nothing is open any more. Returns `results`."""
        if self.mode == "every-step":
            self.world.sim.set_point_observer(None)
        attach(self.world.host, None)
        self.where = "end"
        self._meet_vms()
        self._full_look()
        for promise in self.promises:
            if exited:
                promise.exited()
            promise.finish()
        return self.stopped()

    def stopped(self) -> dict[str, Result]:
        """The run is over, maybe in the middle of things (RunStopped), so that nothing is looked
        at: what was found stands. Returns `results`."""
        # The model itself reports what it sees at once: WARN, lost data that the guest reads back.
        for finding in self.world.sim.findings:
            if finding.promise in self.results:
                self.results[finding.promise] = "broken"
        return self.results

    # What the host tells (septum.checks.observe)

    def operation_begin(
        self, name: str, spans: Spans, aim: Aim, named: Callable[[], Spans] | None = None
    ) -> Operation:
        """User space is about to ask for `name` over `spans`, see Operation."""
        op = Operation(self._next_operation, name, spans, aim, named)
        self._next_operation += 1
        self._under_way.append(op)
        self._meet_vms()
        if op.takes and self.mode != "end":
            self._look(name, spans, light=True)  # so that what it loses is known
        for number in spans:
            self._histories[number].begin(op, number)
        for promise in self._told_of_begins:
            promise.operation_begin(op)
        return op

    def operation_end(self, op: Operation, ret: int) -> None:
        """The operation returned `ret`. What it named is looked at."""
        op.ret = ret
        op.named = None  # what it names does not change any more
        self._under_way.remove(op)
        for number in op.spans:
            self._histories[number].end(op, number)
        for promise in self._told_of_ends:
            promise.operation_end(op)
        self.returned(op.name)
        if self.mode == "end":
            return
        if self._pace.operation_is_wide():
            self.quiet_point(op.name, op.spans)
        else:
            self.quiet_point(op.name, op.spans, NEAR, FRAME)

    def returned(self, name: str) -> None:
        """The current task goes back to user space from the system call `name`."""
        where, self.where = self.where, name
        for promise in self._told_of_returns:
            promise.returned(name)
        self.where = where

    def slot_bound(self) -> None:
        """A slot was given memory of a guest_memfd: who asks for something to be done to that
        memory asks for the slot's GFNs, too."""
        self._meet_vms()
        for op in self._under_way:
            for number, more in op.grow().items():
                self._histories[number].grow(op, number, more)

    def quiet_point(
        self, where: str, spans: Spans | None = None, near: int = FRAME, wide: int = 0
    ) -> None:
        """A task is between two things: the GFNs in `spans`, and what surrounds them, are looked
        at, and everything when it is time to."""
        if self.mode == "end":
            return
        self._pace.earn()
        self._look(where, spans if spans is not None else {}, near, wide)

    def look_now(self, where: str) -> None:
        """Look at everything, in whatever mode. No task may be in the middle of anything."""
        self.where = where
        self._meet_vms()
        self._full_look()

    def ept_violation_handled(self, vcpu: KvmVcpu) -> None:
        """KVM has handled an EPT violation of the vCPU."""
        for promise in self._told_of_violations:
            promise.ept_violation_handled(vcpu)
        if self.mode == "end":
            return
        kvm = vcpu.kvm
        gfn = vcpu.tdx.exit_gpa >> 12
        if not gfn & kvm.arch.gfn_direct_bits:
            around = self._pace.around_violation()
            if around:
                self.quiet_point("EPT violation", vm_spans(kvm, [(gfn, gfn + 1)]), around)

    def entry_changes(self, kvm: Kvm, gfn: int, level: int) -> None:
        """The holder of mmu_lock is about to write a mirror entry, and then to change the S-EPT."""
        self._changing.setdefault(kvm.id, []).append((gfn, level))

    def entry_changed(self, kvm: Kvm, gfn: int, level: int) -> None:
        """It has: from here on both sides must agree. A huge one is looked at."""
        self._changing[kvm.id].remove((gfn, level))
        if level > 1 and self.mode != "end":
            self._look("tdp_mmu_set_spte", vm_spans(kvm, [(gfn, gfn + 1)]), light=True)

    def vm_destroyed(self, kvm: Kvm) -> None:
        """kvm_destroy_vm() has given back all that it gives back."""
        self._destroyed.add(kvm.id)

    def fault_tried(self, vcpu: KvmVcpu, gpa: int, ret: int) -> None:
        """A fault at `gpa` came to `ret`: RET_PF_* or -errno."""
        for promise in self._told_of_faults:
            promise.fault_tried(vcpu, gpa, ret)

    def _step(self, kind: str) -> None:
        """A scheduling point: where page tables changed since the last look (in more than the locks
        of S-EPT entries) is looked at, and every so often what tasks are at, and all the rest."""
        if self._looking:
            return
        if self._pace.step_is_active():
            self._pace.earn()
            self._look(kind, self._active_spans())
            return
        # What changed is a function of what tables hold, and of what looks have noted of that.
        nr_writes = self._writes.nr
        if nr_writes == self._settled_at:
            return
        changed = self._changed_spans()
        if changed is not None:
            self._look(kind, changed)
        # A VM without a key has nothing to be seen; that it gets one is no write.
        elif all(vm.keyed for vm in self._vms.values()):
            self._settled_at = nr_writes

    def _changed_spans(self) -> Spans | None:
        """Where page tables changed since they were looked at; None is nowhere. When it is time to
        look at everything, that something changed is enough, and nothing says where."""
        everything = self._pace.is_time_for_all()
        spans: Spans = {}
        for vm in self._vms.values():
            changed = vm.changed()
            if changed and everything:
                return {}
            for promise in self._watching:
                changed += promise.changed(vm)
            if changed:
                spans.update(vm_spans(vm.kvm, changed))
        return spans or None

    def _active_spans(self) -> Spans:
        """What tasks are at: ranges of operations, and GFNs that vCPUs faulted at."""
        spans: Spans = {}
        for number, vm in self._vms.items():
            kvm = vm.kvm
            active = self._histories[number].under_way
            faults = [
                (gfn, gfn + 1)
                for vcpu in kvm.vcpus
                if not (gfn := vcpu.tdx.exit_gpa >> 12) & kvm.arch.gfn_direct_bits
            ]
            spans.update(vm_spans(kvm, [*active, *faults]))
        return spans

    # Looking

    def _look(
        self, where: str, spans: Spans, near: int = FRAME, wide: int = 0, *, light: bool = False
    ) -> None:
        """Look at `spans` rounded to `near` pages, and (if given) to `wide` with the promises that
        are quick about it; at everything instead when it is time to."""
        if self._looking:
            return
        self._looking = True
        try:
            self.where = where
            self._meet_vms()
            if self._pace.is_time_for_all() and not light:
                self._pace.spend()
                self._full_look()
                return
            self.nr_looks += 1
            for number, ranges in spans.items():
                vm = self._vms.get(number)
                if vm is None:
                    continue
                if wide:
                    self._look_around(vm, ranges, wide, self._quick)
                    self._look_around(vm, ranges, near, self._thorough)
                else:
                    self._look_around(vm, ranges, near, self._quick if light else self._looks)
        finally:
            self._looking = False

    def _look_around(
        self, vm: VmView, ranges: Intervals, round_to: int, promises: list[Promise]
    ) -> None:
        done = 0
        for start, end in ranges:
            first = max(done, start & -round_to)
            done = max(done, -(-end // round_to) * round_to)
            if first < done:
                self._look_at(vm, first, done, promises)

    def _full_look(self) -> None:
        self.nr_full_looks += 1
        nr_runs = 0
        keyed = True
        for vm in list(self._vms.values()):
            nr_runs += self._look_at(vm, 0, END_GFN, self._looks)
            keyed = keyed and vm.has_key()
        if keyed:
            self._settled_at = self._writes.nr
        for promise in self._of_machine:
            promise.look_machine()
        self._pace.looked_at_all(nr_runs)

    def _look_at(self, vm: VmView, first_gfn: int, end_gfn: int, promises: list[Promise]) -> int:
        """Returns how many runs of alike leaves are there."""
        self._settled_at = -1
        vm.begin_look(first_gfn, end_gfn)
        if promises is not self._thorough:
            self.losses = self._histories[vm.kvm.id].look(vm, first_gfn, end_gfn)
        for promise in promises:
            promise.look(vm, first_gfn, end_gfn)
        self.losses = NO_LOSSES
        nr_runs = len(vm.runs(first_gfn, end_gfn))
        vm.end_look()
        return nr_runs

    def _meet_vms(self) -> None:
        """VMs that appeared get a record; those that are gone are told to the promises."""
        kvms = self.world.host.kvms
        for number, kvm in kvms.items():
            vm = self._vms.get(number)
            if vm is None:
                self._vms[number] = VmView(self.world, kvm, self._memory_of(kvm))
                self._histories[number] = VmHistory()
                self._settled_at = -1
            else:
                vm.refresh()
        if len(kvms) == len(self._vms):
            return
        for number in [n for n in self._vms if n not in kvms]:
            vm = self._vms[number]
            if self._is_destroyed(vm.kvm):
                del self._vms[number]
                self._settled_at = -1
                vm.refresh()  # what it has to this day, it has kept
                for promise in self.promises:
                    promise.gone(vm)

    def _is_destroyed(self, kvm: Kvm) -> bool:
        """Of a VM that is off the list, which kvm_destroy_vm() does first."""
        if self.told:
            return kvm.id in self._destroyed
        return not kvm.memslots and not kvm.vcpus  # which it frees last, where there are any

    def _memory_of(self, kvm: Kvm) -> GuestMemory | None:
        """The record of the guest that runs in a VM: by VMM, else in the order of creation."""
        nr = len(self._histories)
        for at, vmm in enumerate(getattr(self.world, "vmms", ())):
            if vmm.kvm is kvm:
                nr = at
        return self.guests[nr].memory if nr < len(self.guests) else None

    # For the promises

    def history(self, vm: VmView) -> VmHistory:
        """What is remembered of a VM."""
        return self._histories[vm.kvm.id]

    def changing(self, vm: VmView) -> list[tuple[int, int]]:
        """(GFN, KVM level) of the mirror entries that are being written under mmu_lock."""
        return self._changing.get(vm.kvm.id, [])

    def vms(self) -> Iterable[VmView]:
        """The VMs that exist."""
        return self._vms.values()

    def vm(self, number: int) -> VmView | None:
        """The VM with this id."""
        return self._vms.get(number)

    def takes(self) -> bool:
        """User space is about to be rid of memory."""
        return any(op.takes for op in self._under_way)

    def at_rest(self) -> bool:
        """No task is in the middle of a change: none holds a lock but a vCPU's mutex and, to look
        at memory slots, SRCU; and no VM is half destroyed."""
        if len(self._vms) != len(self.world.host.kvms):
            return False
        sim = self.world.sim
        for task in (sim.current, *sim.tasks):
            for lock, _ in task.held:
                if not lock.name.endswith((" mutex", " srcu")):
                    return False
        return True

    def was_found(self, promise: str) -> bool:
        """Whether a finding of this promise was recorded, by whomever."""
        return any(f.promise == promise for f in self.world.sim.findings)

    def report(self, promise: str, text: str) -> None:
        """A promise is broken: a finding, as long as there are few of it."""
        self.results[promise] = "broken"
        nr = self._nr_found.get(promise, 0) + 1
        self._nr_found[promise] = nr
        if nr <= MAX_FINDINGS_PER_PROMISE:
            self.world.sim.find(promise, text, where=self.where)
