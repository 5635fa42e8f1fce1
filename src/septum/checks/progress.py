"""The promise `progress`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.kvm import RET_PF_RETRY
from septum.checks.promise import Promise
from septum.checks.sept import END_GFN
from septum.checks.text import agree, entry_text, level_text, pages_text
from septum.sim import RunStopped

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

    `nr` counts all of a row, `nr_alone` those in it during which no other task got on.
    """

    __slots__ = ("gfn", "nr", "nr_alone", "state", "task", "vcpu")

    def __init__(self, vcpu: KvmVcpu) -> None:
        self.vcpu = vcpu
        self.state: object = None
        self.gfn = 0
        self.task = 0
        self.nr = 0
        self.nr_alone = 0

    def again(self, state: object, gfn: int, task: int) -> None:
        """It happened in `state`."""
        if state != self.state:
            self.state = state
            self.nr = self.nr_alone = 0
        self.gfn = gfn
        self.task = task
        self.nr += 1


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

    def _state_of(self, vcpu: KvmVcpu, gfn: int) -> tuple[object, ...]:
        """What a repetition has not changed."""
        kvm = vcpu.kvm
        tdx = vcpu.tdx
        at = self.checker.world.module.vcpus.get(tdx.tdvpr_page or -1)
        retired = at.nr_retired if at is not None else 0
        seq = kvm.mmu_invalidate_seq
        vm = self.checker.vm(kvm.id)
        if vm is None or not vm.has_key() or gfn & kvm.arch.gfn_direct_bits:
            return gfn, tdx.ext_exit_qual, retired, seq
        td = vm.td
        assert td is not None
        # Another task that splits or zaps elsewhere gets on: epoch and number of pages change.
        return gfn, tdx.ext_exit_qual, retired, seq, vm.walk(gfn), td.td_epoch, td.chldcnt

    def _others_get_on(self) -> bool:
        """Some other task can run, and is not itself a vCPU that repeats what changes nothing."""
        sim = self.checker.world.sim
        stuck = {
            repeat.task
            for repeats in (self._violations, self._faults)
            for repeat in repeats.values()
            if repeat.nr > MAX_REPEATS and self._state_of(repeat.vcpu, repeat.gfn) == repeat.state
        }
        return any(
            task is not sim.current
            and not task.daemon
            and task.blocked_on is None
            and task.index not in stuck
            for task in sim.tasks
            if not task.done
        )

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
        repeat.again(self._state_of(vcpu, gfn), gfn, self.checker.world.sim.current.index)
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
            f"vm{kvm.id}: vCPU {vcpu.vcpu_id}: {what()} for the {repeat.nr}th time, and nothing"
            f" changes{now}",
        )
        raise RunStopped(self.checker.world.sim.findings[-1])
