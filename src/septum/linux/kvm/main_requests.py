"""Requests to vCPUs, kicks and IPIs, dead VMs.

A request whose flags say WAIT returns when every vCPU that was in guest mode has left it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from septum.abi.kvm import (
    KVM_REQ_MMU_FREE_OBSOLETE_ROOTS,
    KVM_REQ_OUTSIDE_GUEST_MODE,
    KVM_REQ_TLB_FLUSH,
    KVM_REQ_VM_DEAD,
)
from septum.linux.kvm.types import EXITING_GUEST_MODE, IN_GUEST_MODE, OUTSIDE_GUEST_MODE
from septum.linux.unit import Unit

if TYPE_CHECKING:
    from collections.abc import Callable

    from septum.linux.host import Host
    from septum.linux.kvm.types import Kvm, KvmVcpu

SplitCause = Literal["accept", "conversion", "punch_hole", "fault", "memory_failure"]
"""What a huge page is split for, as Septum counts it."""

# Flags of requests: KVM_REQUEST_WAIT, KVM_REQUEST_NO_WAKEUP, KVM_REQUEST_NO_ACTION.
_WAIT = frozenset(
    {
        KVM_REQ_TLB_FLUSH,
        KVM_REQ_VM_DEAD,
        KVM_REQ_OUTSIDE_GUEST_MODE,
        KVM_REQ_MMU_FREE_OBSOLETE_ROOTS,
    }
)
_NO_WAKEUP = _WAIT


class KvmMainState:
    """What kvm_main.c keeps outside any VM."""

    __slots__ = ("cause", "next_vm_id", "running_vcpu")

    def __init__(self) -> None:
        self.next_vm_id = 1
        # By task index. MODEL: per thread where the kernel has it per CPU and moves it with the
        # thread.
        self.running_vcpu: dict[int, KvmVcpu] = {}
        # By task index: what a task splits huge pages for, for statistics and traces.
        self.cause: dict[int, SplitCause] = {}


class MainRequests(Unit):
    """Requests."""

    __slots__ = ("state",)

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.state = KvmMainState()

    # Who runs what

    def kvm_get_running_vcpu(self) -> KvmVcpu | None:
        """The vCPU that the current thread has loaded."""
        return self.state.running_vcpu.get(self.sim.current.index)

    def current_signal_pending(self) -> bool:
        """signal_pending(current): of a thread that has a vCPU loaded."""
        vcpu = self.kvm_get_running_vcpu()
        return vcpu is not None and vcpu.signal_pending

    def set_cause(self, cause: SplitCause | Literal[""]) -> SplitCause | Literal[""]:
        """Say what the current thread will split for ("": nothing); returns what it was before."""
        causes = self.state.cause
        index = self.sim.current.index
        previous: SplitCause | Literal[""] = causes.get(index, "")
        if cause:
            causes[index] = cause
        else:
            causes.pop(index, None)
        return previous

    def current_cause(self) -> SplitCause:
        """What the current thread splits for; "fault" when it has not said anything."""
        return self.state.cause.get(self.sim.current.index, "fault")

    # Requests

    def kvm_make_request(self, req: int, vcpu: KvmVcpu) -> None:
        """kvm_make_request()."""
        vcpu.requests.add(req)

    def kvm_test_request(self, req: int, vcpu: KvmVcpu) -> bool:
        """Whether the request is there; it stays. KVM_REQ_VM_DEAD is only ever tested: a vCPU of
        a dead VM never enters again. Source: "KVM: Never clear KVM_REQ_VM_DEAD" (6.18)."""
        return req in vcpu.requests

    def kvm_make_all_cpus_request(self, kvm: Kvm, req: int) -> bool:
        """Make the request of every vCPU, and interrupt those in guest mode. True if any was.

        KVM_REQ_OUTSIDE_GUEST_MODE leaves no request behind: it is only about getting out.
        """
        sim = self.sim
        sim.point("kick")
        me = sim.current.cpu
        no_action = req == KVM_REQ_OUTSIDE_GUEST_MODE
        wait = req in _WAIT
        wakeup = req not in _NO_WAKEUP
        cpus: list[int] = []
        for vcpu in kvm.vcpus:
            if not no_action:
                vcpu.requests.add(req)
            if wakeup and self.kvm_vcpu_wake_up(vcpu):
                continue
            mode = vcpu.mode
            if mode == OUTSIDE_GUEST_MODE:
                continue
            if mode == IN_GUEST_MODE:
                vcpu.mode = EXITING_GUEST_MODE
            elif not wait:
                continue
            if vcpu.cpu not in (-1, me):
                cpus.append(vcpu.cpu)
        values = kvm.stat.values
        values["kick"] = values.get("kick", 0) + 1
        if not cpus:
            return False
        values["ipi"] = values.get("ipi", 0) + len(cpus)
        self.machine.send_ipi_and_wait(cpus)
        return True

    def kvm_flush_remote_tlbs(self, kvm: Kvm) -> None:
        """Flush what vCPUs have cached of the shared EPT (and of all else)."""
        kvm.stat.add("remote_tlb_flush_requests")
        if self.kvm_make_all_cpus_request(kvm, KVM_REQ_TLB_FLUSH):
            kvm.stat.add("remote_tlb_flush")

    def kvm_vcpu_wake_up(self, vcpu: KvmVcpu) -> bool:
        """Wake the vCPU's thread if it waits; whether it did."""
        if not vcpu.wq.active():
            return False
        vcpu.stat.add("halt_wakeup")
        vcpu.wq.wake_up_all()
        return True

    def kvm_vcpu_kick(self, vcpu: KvmVcpu) -> None:
        """Make the vCPU notice a request: wake it, or interrupt the guest. Does not wait."""
        if self.kvm_vcpu_wake_up(vcpu):
            return
        if vcpu.mode == IN_GUEST_MODE:
            vcpu.mode = EXITING_GUEST_MODE
            if vcpu.cpu not in (-1, self.sim.current.cpu):
                vcpu.kvm.stat.add("ipi")
                # MODEL: the sender waits, as every IPI of the machine does.
                self.machine.send_ipi_and_wait([vcpu.cpu])

    def kvm_vcpu_has_events(self, vcpu: KvmVcpu) -> bool:
        """An interrupt waits for the guest, and the guest lets it in."""
        tdx = self.host.tdx
        return tdx.tdx_interrupt_allowed(vcpu) and tdx.tdx_protected_apic_has_interrupt(vcpu)

    # Bugs

    def kvm_vm_dead(self, kvm: Kvm) -> None:
        """The VM must not run again: every ioctl is -EIO from here on."""
        kvm.vm_dead = True
        self.kvm_make_all_cpus_request(kvm, KVM_REQ_VM_DEAD)

    def kvm_vm_bugged(self, kvm: Kvm) -> None:
        """kvm_vm_bugged()."""
        kvm.vm_bugged = True
        self.kvm_vm_dead(kvm)

    def kvm_bug_on(self, kvm: Kvm, cond: bool, text: str) -> bool:
        """KVM_BUG_ON(): when `cond`, a WARN the first time, and the VM is bugged. Returns cond."""
        if cond and not kvm.vm_bugged:
            self.sim.find("no-bug", f"KVM_BUG_ON: {text}", where=f"vm{kvm.id}")
            self.kvm_vm_bugged(kvm)
        return cond

    # Functions on other CPUs

    def smp_call_on_cpu(self, cpu: int, func: Callable[..., int | None], *args: object) -> int:
        """smp_call_on_cpu(): run `func` on CPU `cpu` and return what it returned.

        MODEL: the caller's thread runs it there, after the interrupt was taken.
        """
        task = self.sim.current
        own = task.cpu
        if cpu != own:
            self.machine.send_ipi_and_wait([cpu])
        task.cpu = cpu
        ret = func(*args)
        task.cpu = own
        return ret or 0

    def smp_call_function_single(
        self, cpu: int, func: Callable[[KvmVcpu, int], int], vcpu: KvmVcpu
    ) -> int:
        """smp_call_function_single(cpu, func, vcpu, wait=1): what `func` reports."""
        return self.smp_call_on_cpu(cpu, func, vcpu, cpu)
