"""The promise `progress`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.kvm import RET_PF_RETRY
from septum.checks.promise import Promise
from septum.checks.sept import END_GFN
from septum.checks.text import agree, entry_text, level_text, pages_text
from septum.sim import RunStopped
from septum.words import ordinal

if TYPE_CHECKING:
    from collections.abc import Callable

    from septum.checks.checker import Checker
    from septum.checks.view import VmView
    from septum.linux.kvm.types import KvmVcpu

MAX_REPEATS = 64
"""So often the same may happen again although nothing has changed."""
MAX_REPEATS_UNDER_CHANGE = 1 << 16
"""And so often while another task gets on: a fair scheduler lets it end what it is about."""


class _Repeat:
    """What a vCPU does again and again, and which task it is.

    `nr` counts all of a row, `nr_alone` those in it during which no other task got on. `at` is
    where, and how often it got on, `state` what it finds; None: nobody looked, as most things
    happen once.
    """

    __slots__ = ("at", "gfn", "nr", "nr_alone", "state", "task", "vcpu")

    def __init__(self, vcpu: KvmVcpu) -> None:
        self.vcpu = vcpu
        self.at: object = None
        self.state: tuple[object, ...] | None = None
        self.gfn = 0
        self.task = 0
        self.nr = 0
        self.nr_alone = 0


class Progress(Promise):
    """No task waits for ever; no EPT violation repeats without change; no endless retry.

    On real hardware a vCPU spins at 100 % of a CPU or a task hangs in D state, and the guest's
    watchdog, or the host's, fires.
    """

    # Tasks of which none can go on are found by the scheduler itself. A task that spins never
    # ends, so that the run is stopped once it is found.

    __slots__ = ("_faults", "_violations")
    name = "progress"

    def __init__(self, checker: Checker) -> None:
        super().__init__(checker)
        self._violations: dict[tuple[int, int], _Repeat] = {}
        self._faults: dict[tuple[int, int], _Repeat] = {}

    def ept_violation_handled(self, vcpu: KvmVcpu) -> None:
        """The guest comes back with the same violation, at the same instruction, of an S-EPT entry
        that is as it was."""
        gpa = vcpu.tdx.exit_gpa
        self._judge(
            self._violations,
            vcpu,
            gpa >> 12,
            lambda: (
                f"an EPT violation of GPA {gpa:#x} (extended qualification "
                f"{vcpu.tdx.ext_exit_qual:#x}) repeats"
            ),
        )

    def fault_tried(self, vcpu: KvmVcpu, gpa: int, ret: int) -> None:
        """A fault is to be tried again, and nothing has changed since it was tried last."""
        if ret != RET_PF_RETRY:
            if self._faults:
                self._faults.pop((vcpu.kvm.id, vcpu.vcpu_id), None)
            return
        self._judge(self._faults, vcpu, gpa >> 12, lambda: f"the fault of GPA {gpa:#x} is retried")

    def look(self, vm: VmView, first_gfn: int = 0, end_gfn: int = END_GFN) -> None:
        """An invalidation that was begun and not ended makes faults retry for ever."""
        kvm = vm.kvm
        nr = kvm.mmu_invalidate_in_progress
        if nr and self.checker.at_rest() and not self.checker.history(vm).active:
            self.broken(
                (vm.name, "invalidate"),
                f"{vm.name}: {nr} {agree(nr, 'invalidation', 'invalidations')} of "
                f"{pages_text(kvm.mmu_invalidate_range_start, kvm.mmu_invalidate_range_end)} "
                f"{agree(nr, 'was', 'were')} begun and never ended: every fault there is retried "
                "for ever",
            )

    def _place_of(self, vcpu: KvmVcpu, gfn: int) -> tuple[int, ...]:
        """Where a vCPU is, and how often it, and KVM beside it, got on."""
        tdx = vcpu.tdx
        at = self.checker.world.module.vcpus.get(tdx.tdvpr_page or -1)
        retired = at.nr_retired if at is not None else 0
        return gfn, tdx.ext_exit_qual, retired, vcpu.kvm.mmu_invalidate_seq

    def _state_of(self, vcpu: KvmVcpu, gfn: int) -> tuple[object, ...]:
        """What a repetition finds there, and has not changed."""
        kvm = vcpu.kvm
        vm = self.checker.vm(kvm.id)
        if vm is None or not vm.has_key() or gfn & kvm.arch.gfn_direct_bits:
            return ()
        td = vm.td
        assert td is not None
        # Another task that splits or zaps elsewhere gets on: epoch and number of pages change.
        return vm.walk(gfn), td.td_epoch, td.chldcnt

    def _is_as_it_was(self, repeat: _Repeat) -> bool:
        vcpu, gfn = repeat.vcpu, repeat.gfn
        return self._place_of(vcpu, gfn) == repeat.at and self._state_of(vcpu, gfn) == repeat.state

    def _others_get_on(self) -> bool:
        """Some other task can run, and is not itself a vCPU that repeats what changes nothing."""
        sim = self.checker.world.sim
        stuck = {
            repeat.task
            for repeats in (self._violations, self._faults)
            for repeat in repeats.values()
            if repeat.nr > MAX_REPEATS and self._is_as_it_was(repeat)
        }
        for task in sim.tasks:
            if task.done or task.daemon or task is sim.current:
                continue
            if task.blocked_on is None and task.index not in stuck:
                return True
        return False

    def _judge(
        self,
        repeats: dict[tuple[int, int], _Repeat],
        vcpu: KvmVcpu,
        gfn: int,
        what: Callable[[], str],
    ) -> None:
        kvm = vcpu.kvm
        key = (kvm.id, vcpu.vcpu_id)
        repeat = repeats.get(key)
        if repeat is None:
            repeat = repeats[key] = _Repeat(vcpu)
        at = self._place_of(vcpu, gfn)
        if at != repeat.at:
            repeat.at = at
            repeat.gfn = gfn
            repeat.state = None
            repeat.nr = 1
            repeat.nr_alone = 0
            return
        state = self._state_of(vcpu, gfn)
        # The second time nobody knows what it found the first time: it is taken for the same.
        if repeat.state is not None and state != repeat.state:
            repeat.nr = repeat.nr_alone = 0
        repeat.state = state
        repeat.task = self.checker.world.sim.current.index
        repeat.nr += 1
        if repeat.nr > 1 and not self._others_get_on():
            repeat.nr_alone += 1
        if repeat.nr_alone < MAX_REPEATS and repeat.nr <= MAX_REPEATS_UNDER_CHANGE:
            return
        now = ""
        vm = self.checker.vm(kvm.id)
        if vm is not None and vm.has_key() and not gfn & kvm.arch.gfn_direct_bits:
            level, entry = vm.walk(gfn)
            now = f": the S-EPT has {entry_text(entry, vm.hpa_mask)} at {level_text(level)}"
        self.broken(
            key,
            f"vm{kvm.id}: vCPU {vcpu.vcpu_id}: {what()} for the {ordinal(repeat.nr)} time, and"
            f" nothing changes{now}",
        )
        raise RunStopped(self.checker.world.sim.findings[-1])
