"""The promise `progress`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.kvm import RET_PF_RETRY
from septum.checks.promise import Promise
from septum.checks.sept import END_GFN
from septum.checks.text import entry_text, level_text
from septum.sim import RunStopped

if TYPE_CHECKING:
    from septum.checks.checker import Checker
    from septum.checks.view import VmView
    from septum.linux.kvm.types import KvmVcpu

MAX_REPEATS = 64
"""So often the same may happen again although nothing has changed."""
MAX_REPEATS_UNDER_CHANGE = 1 << 16
"""And so often while another task is in the middle of something: a fair scheduler lets it end."""


class _Repeat:
    """What a vCPU does again and again."""

    __slots__ = ("nr", "state")

    def __init__(self) -> None:
        self.state: object = None
        self.nr = 0

    def again(self, state: object) -> int:
        """It happened in `state`: how often in a row now."""
        if state != self.state:
            self.state = state
            self.nr = 0
        self.nr += 1
        return self.nr


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
        state = self._state_of(vcpu, vcpu.tdx.exit_gpa >> 12)
        self._judge(
            self._violations,
            vcpu,
            (vcpu.tdx.exit_gpa, vcpu.tdx.ext_exit_qual, self._rip(vcpu), state),
            f"an EPT violation of GPA {vcpu.tdx.exit_gpa:#x} (extended qualification "
            f"{vcpu.tdx.ext_exit_qual:#x}) repeats",
            vcpu.tdx.exit_gpa >> 12,
        )

    def fault_tried(self, vcpu: KvmVcpu, gpa: int, ret: int) -> None:
        """A fault is to be tried again, and nothing has changed since it was tried last."""
        key = (vcpu.kvm.id, vcpu.vcpu_id)
        if ret != RET_PF_RETRY:
            self._faults.pop(key, None)
            return
        state = self._state_of(vcpu, gpa >> 12)
        self._judge(
            self._faults, vcpu, (gpa, state), f"the fault of GPA {gpa:#x} is retried", gpa >> 12
        )

    def look(self, vm: VmView, first_gfn: int = 0, end_gfn: int = END_GFN) -> None:
        """An invalidation that was begun and not ended makes faults retry for ever."""
        nr = vm.kvm.mmu_invalidate_in_progress
        if nr and self.checker.at_rest() and not self.checker.history(vm).active:
            self.broken(
                (vm.name, "invalidate"),
                f"{vm.name}: {nr} invalidation(s) of GFNs [{vm.kvm.mmu_invalidate_range_start:#x}, "
                f"{vm.kvm.mmu_invalidate_range_end:#x}) were begun and never ended: every fault "
                "there is retried for ever",
            )

    def _rip(self, vcpu: KvmVcpu) -> int:
        found = self.checker.world.module.vcpus.get(vcpu.tdx.tdvpr_page or -1)
        return found.rip if found is not None else 0

    def _state_of(self, vcpu: KvmVcpu, gfn: int) -> object:
        kvm = vcpu.kvm
        vm = self.checker.vm(kvm.id)
        if vm is None or not vm.has_key() or gfn & kvm.arch.gfn_direct_bits:
            return kvm.mmu_invalidate_seq
        td = vm.td
        assert td is not None
        # Another task that splits or zaps elsewhere gets on: epoch and number of pages change.
        return kvm.mmu_invalidate_seq, vm.walk(gfn), td.td_epoch, td.chldcnt

    def _judge(
        self,
        repeats: dict[tuple[int, int], _Repeat],
        vcpu: KvmVcpu,
        state: object,
        what: str,
        gfn: int,
    ) -> None:
        kvm = vcpu.kvm
        repeat = repeats.setdefault((kvm.id, vcpu.vcpu_id), _Repeat())
        nr = repeat.again(state)
        if nr <= MAX_REPEATS:
            return
        vm = self.checker.vm(kvm.id)
        history = self.checker.history(vm) if vm is not None else None
        busy = (
            kvm.mmu_lock.writer is not None
            or bool(kvm.mmu_lock.readers)
            or (history is not None and bool(history.active))
        )
        if busy and nr <= MAX_REPEATS_UNDER_CHANGE:
            return
        now = ""
        if vm is not None and vm.has_key() and not gfn & kvm.arch.gfn_direct_bits:
            level, entry = vm.walk(gfn)
            now = f": the S-EPT has {entry_text(entry, vm.hpa_mask)} at {level_text(level)}"
        self.broken(
            (kvm.id, vcpu.vcpu_id),
            f"vm{kvm.id}: vCPU {vcpu.vcpu_id}: {what} for the {nr}th time, and nothing changes"
            f"{now}",
        )
        raise RunStopped(self.checker.world.sim.findings[-1])
