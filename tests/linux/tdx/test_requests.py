"""Requests, kicks and dead VMs: who is interrupted, who is not, and who waits for whom."""

from collections.abc import Callable
from typing import Any

from septum.abi.errno import EIO
from septum.abi.kvm import (
    KVM_REQ_OUTSIDE_GUEST_MODE,
    KVM_REQ_TLB_FLUSH,
    KVM_REQ_VM_DEAD,
)
from septum.linux.kvm.types import EXITING_GUEST_MODE, IN_GUEST_MODE, OUTSIDE_GUEST_MODE

Benches = Callable[..., Any]


class Machine:
    """Stands for the machine: notes IPIs."""

    def __init__(self) -> None:
        self.sent: list[list[int]] = []

    def send_ipi_and_wait(self, cpus: list[int]) -> None:
        self.sent.append(list(cpus))


def two_vcpus(bench: Benches) -> tuple[Any, Any, Any, list[list[int]]]:
    b = bench("4k", scripts=[[], []])
    machine = Machine()
    b.host.main.machine = machine
    first, second = b.vmm.vcpus
    first.cpu, second.cpu = 3, 4
    return b, first, second, machine.sent


def test_only_vcpus_in_guest_mode_are_interrupted(bench: Benches) -> None:
    b, first, second, sent = two_vcpus(bench)
    first.mode, second.mode = IN_GUEST_MODE, OUTSIDE_GUEST_MODE
    assert b.host.main.kvm_make_all_cpus_request(b.kvm, KVM_REQ_TLB_FLUSH)
    assert sent == [[3]]
    assert first.mode == EXITING_GUEST_MODE
    assert KVM_REQ_TLB_FLUSH in first.requests and KVM_REQ_TLB_FLUSH in second.requests


def test_getting_out_leaves_no_request(bench: Benches) -> None:
    b, first, second, sent = two_vcpus(bench)
    first.mode = second.mode = IN_GUEST_MODE
    before = [set(v.requests) for v in (first, second)]
    assert b.host.main.kvm_make_all_cpus_request(b.kvm, KVM_REQ_OUTSIDE_GUEST_MODE)
    assert sent == [[3, 4]]
    assert [set(v.requests) for v in (first, second)] == before


def test_a_vcpu_on_its_way_out_is_waited_for(bench: Benches) -> None:
    """EXITING_GUEST_MODE may still hold translations: a request that waits must wait for it."""
    b, first, _, sent = two_vcpus(bench)
    first.mode = EXITING_GUEST_MODE
    assert b.host.main.kvm_make_all_cpus_request(b.kvm, KVM_REQ_TLB_FLUSH)
    assert sent == [[3]]


def test_nobody_in_guest_mode_costs_no_ipi(bench: Benches) -> None:
    b, _, _, sent = two_vcpus(bench)
    assert not b.host.main.kvm_make_all_cpus_request(b.kvm, KVM_REQ_TLB_FLUSH)
    assert sent == [] and b.kvm.stat.get("ipi") == 0


def test_a_dead_vm_answers_every_ioctl_with_eio(bench: Benches) -> None:
    b = bench("4k")
    main, kvm, vcpu = b.host.main, b.kvm, b.vmm.vcpus[0]
    main.kvm_vm_dead(kvm)
    assert KVM_REQ_VM_DEAD in vcpu.requests
    assert main.kvm_vm_ioctl_set_memory_attributes(kvm, 0, 4096, 0) == -EIO
    assert main.kvm_vcpu_ioctl_run(vcpu) == -EIO
    assert main.kvm_vm_ioctl_create_vcpu(kvm, 5) == (-EIO, None)
    b.vmm.teardown()
    assert b.texts() == []
    b.assert_nothing_left()


def test_a_dead_vm_stays_dead(bench: Benches) -> None:
    """KVM_REQ_VM_DEAD is tested and never taken: each attempt to enter is -EIO."""
    b = bench("4k")
    vcpu = b.vmm.vcpus[0]
    b.host.main.kvm_vm_dead(b.kvm)
    for _ in range(2):
        assert b.host.x86.vcpu_enter_guest(vcpu) == -EIO
    assert KVM_REQ_VM_DEAD in vcpu.requests


def test_bug_on_reports_once_and_kills(bench: Benches) -> None:
    b = bench("4k")
    assert not b.host.main.kvm_bug_on(b.kvm, False, "nothing")
    assert not b.kvm.vm_dead and b.texts() == []
    assert b.host.main.kvm_bug_on(b.kvm, True, "something")
    assert b.host.main.kvm_bug_on(b.kvm, True, "something else")
    assert b.kvm.vm_dead and b.texts() == ["KVM_BUG_ON: something"]


def test_cause_of_a_split_nests(bench: Benches) -> None:
    main = bench("4k", build=False).host.main
    assert main.current_cause() == "fault"
    outer = main.set_cause("conversion")
    inner = main.set_cause("accept")
    assert (outer, inner, main.current_cause()) == ("", "conversion", "accept")
    main.set_cause(inner)
    main.set_cause(outer)
    assert main.current_cause() == "fault"
