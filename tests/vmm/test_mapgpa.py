"""MapGPA and conversions: pieces, errors, what QEMU does with each, implicit conversion."""

from collections.abc import Callable
from typing import Any

import pytest

from septum.abi import tdvmcall
from septum.abi.errno import EINVAL
from septum.abi.kvm import KVM_HC_MAP_GPA_RANGE
from septum.abi.leaves import TDG_VP_VMCALL
from septum.abi.regs import Regs
from septum.guest.cpu import GuestCpu
from septum.guest.program import Guest
from septum.guest.script import Accept, AcceptRange, Convert, Verify, Write
from septum.guest.tdcpu import TdGuestCpu
from septum.linux.host import HostUnits, v3_units
from septum.linux.kvm.events import KvmHypercall
from septum.linux.kvm.tdx import KvmTdxUnit
from septum.vmm.qemu import VmmConfig

Runs = Callable[..., Any]
PAGE = 4096
MB = 1 << 20
MB2 = 2 << 20
GPA = 32 << 20
SHARED = 1 << 47
INVALID = tdvmcall.TDVMCALL_STATUS_INVALID_OPERAND
ALIGN = tdvmcall.TDVMCALL_STATUS_ALIGN_ERROR
UNSUPPORTED = 0x80000000_00000003
MMIO = 48  # #VE.RequestMMIO
DEVICE = 0xFE000000
MAP_GPA = tdvmcall.TDVMCALL_MAP_GPA


class Calls(Guest):
    """Makes TDVMCALLs and keeps what they return."""

    __slots__ = ("calls", "results")

    def __init__(self, *calls: tuple[int, ...]) -> None:
        super().__init__(1)
        self.calls = calls
        self.results: list[tuple[int, int]] = []

    def run(self, cpu: GuestCpu) -> None:
        for call in self.calls:
            self.results.append(cpu.tdvmcall(*call))
        cpu.report(tdvmcall.REPORT_SCRIPT_DONE)
        cpu.idle()


@pytest.mark.parametrize(
    ("gpa", "size", "status"),
    [
        (GPA | SHARED, PAGE, 0),
        (GPA | SHARED, 0, INVALID),
        (GPA | SHARED | 8, PAGE, ALIGN),
        (GPA | SHARED, PAGE + 8, ALIGN),
        (SHARED - PAGE, 2 * PAGE, INVALID),  # private first, shared last
        (SHARED * 2, PAGE, INVALID),
        (SHARED * 2 - PAGE, 2 * PAGE, INVALID),
        ((1 << 64) - PAGE, PAGE, INVALID),
        (0xFE000000 | SHARED, PAGE, 0),  # no RAM: shared already
        (0xFE000000, PAGE, INVALID),  # and never private
    ],
)
def test_status(run: Runs, gpa: int, size: int, status: int) -> None:
    """On an error R11 says where."""
    guest = Calls((MAP_GPA, gpa, size))
    r = run(guest).go()
    assert guest.results[0][0] == status
    if status:
        assert guest.results[0][1] == gpa
    r.assert_clean()


@pytest.mark.parametrize(
    ("call", "status"),
    [
        ((0x12345,), UNSUPPORTED),
        ((0x10000,), 0),  # GetTdVmCallInfo
        ((0x10000, 1), 0),  # user space answers
        ((0x10000, 2), INVALID),
        ((tdvmcall.TDVMCALL_GET_QUOTE, GPA, PAGE), INVALID),  # a private buffer
        ((tdvmcall.TDVMCALL_GET_QUOTE, GPA | SHARED, PAGE), 0),
        ((0x10004, 31), INVALID),  # SetupEventNotifyInterrupt
        ((0x10004, 32), 0),
        ((tdvmcall.TDVMCALL_IO, 3, 1, 0x80, 0), INVALID),
        ((tdvmcall.TDVMCALL_IO, 1, 0, 0x80, 0), 0),
        ((10, 0, 0), 0),  # CPUID
        ((31, 0), 0),  # RDMSR
        ((32, 0), 0),  # WRMSR
        ((MMIO, 4, 0, DEVICE | SHARED), 0),
        ((MMIO, 8, 1, DEVICE | SHARED, 5), 0),
        ((MMIO, 3, 0, DEVICE | SHARED), INVALID),
        ((MMIO, 4, 2, DEVICE | SHARED), INVALID),
        ((MMIO, 4, 0, DEVICE), INVALID),  # a private address
        ((MMIO, 8, 0, SHARED - 4), INVALID),  # and one that is so in its first half
    ],
)
def test_other_calls(run: Runs, call: tuple[int, ...], status: int) -> None:
    guest = Calls(call)
    r = run(guest).go()
    assert guest.results[0][0] == status
    r.assert_clean()


class Hypercall(Guest):
    """Makes a KVM hypercall, as a guest of KVM does that knows nothing of the GHCI."""

    __slots__ = ("operands", "result")

    def __init__(self, *operands: int) -> None:
        super().__init__(1)
        self.operands = operands
        self.result = 0

    def run(self, cpu: GuestCpu) -> None:
        assert isinstance(cpu, TdGuestCpu)
        names = ("r10", "r11", "r12", "r13", "r14")
        regs = Regs(rax=TDG_VP_VMCALL, rcx=tdvmcall.TDVMCALL_EXPOSED_REGS)
        for name, value in zip(names, self.operands, strict=True):
            setattr(regs, name, value)
        cpu.machine.tdcall(cpu._boundary(), regs)
        self.result = regs.r10
        cpu.report(tdvmcall.REPORT_SCRIPT_DONE)
        cpu.idle()


@pytest.mark.parametrize(
    ("operands", "result", "exits"),
    [
        ((KVM_HC_MAP_GPA_RANGE, GPA, 3, 0, 7), 0, 1),  # three pages become shared
        ((KVM_HC_MAP_GPA_RANGE, GPA + 8, 3, 0, 0), -EINVAL, 0),
        ((KVM_HC_MAP_GPA_RANGE, GPA, 0, 0, 0), -EINVAL, 0),
        ((1, 2, 3, 4, 5), -1000, 0),  # -KVM_ENOSYS
    ],
)
def test_a_kvm_hypercall(run: Runs, operands: tuple[int, ...], result: int, exits: int) -> None:
    """With what the tracepoint kvm_hypercall tells of it, whatever comes of it."""
    guest = Hypercall(*operands)
    r = run(guest)
    told: list[KvmHypercall] = []
    r.world.sim.set_sink(lambda e: told.append(e) if isinstance(e, KvmHypercall) else None)
    r.go()
    assert guest.result == result & (1 << 64) - 1
    assert r.vm.vmm.exits.get("hypercall", 0) == exits
    assert [(e.nr, e.a0, e.a1, e.a2, e.a3) for e in told] == [operands]
    r.assert_clean()


def test_pieces_are_counted_from_the_start(run: Runs) -> None:
    """5 MiB from an odd MiB: three exits, each but the last of 2 MiB, none aligned."""
    r = run([[Convert(GPA + MB, 5 * MB)]]).go()
    assert r.vm.results == [[0]] and r.vm.vmm.exits["hypercall"] == 3
    r.assert_clean()


def test_pending_interrupt_ends_the_call_between_pieces(run: Runs) -> None:
    """RETRY, and the guest goes on where the host stopped."""

    class Interrupt(KvmTdxUnit):
        __slots__ = ()

        def tdx_complete_vmcall_map_gpa(self, vcpu: Any) -> int:
            vcpu.pi_desc.on = True
            return super().tdx_complete_vmcall_map_gpa(vcpu)

    v3 = v3_units()
    fields = {f: getattr(v3, f) for f in v3.__slots__} | {"tdx": Interrupt}
    guest = Calls((MAP_GPA, GPA | SHARED, 3 * MB2))
    r = run(guest, units=HostUnits(**fields)).go()
    assert guest.results[0] == (tdvmcall.TDVMCALL_STATUS_RETRY, (GPA | SHARED) + MB2)
    r.assert_clean()


def test_conversion_splits_and_keeps_the_neighbours(run: Runs) -> None:
    script = [
        AcceptRange(GPA),
        Write(GPA, 512),
        Convert(GPA + 7 * PAGE, 3 * PAGE),
        Verify(GPA, 512),
        Convert(GPA + 7 * PAGE, 3 * PAGE, shared=False),
        AcceptRange(GPA + 7 * PAGE, 3 * PAGE),
        Verify(GPA, 512),
    ]
    r = run([script]).go()
    results = r.vm.results[0]
    assert [results[i] for i in (0, 2, 3, 4, 5, 6)] == [0] * 6
    assert r.vm.stat("split.conversion") == 1
    r.assert_clean()


def test_private_access_to_a_shared_page_is_an_implicit_conversion(run: Runs) -> None:
    r = run([[Convert(GPA), Accept(GPA)]]).go()
    assert r.vm.results == [[0, 0]]
    assert r.vm.vmm.exits["memory_fault"] == 1
    r.assert_clean()


def test_conversion_that_the_host_cannot_do_is_told_to_the_guest(run: Runs) -> None:
    """QEMU passes every error but -EAGAIN as "invalid operand"."""
    guest = Calls((MAP_GPA, GPA | SHARED, PAGE), (MAP_GPA, 0xFE000000, PAGE))
    r = run(guest).go()
    assert [status for status, _ in guest.results] == [0, INVALID]
    assert r.vm.vmm.exits["failed conversion"] == 1
    r.assert_clean()


@pytest.mark.parametrize("backing", ["4k", "thp", "hugetlb-2m"])
@pytest.mark.parametrize("in_place", [False, True])
def test_conversion_on_guest_memfd(run: Runs, backing: str, in_place: bool) -> None:
    """vm_memory_attributes=N, with the shared half in the same memory or beside it."""
    script = [
        AcceptRange(GPA),
        Write(GPA, 512),
        Convert(GPA + PAGE, PAGE),
        Verify(GPA, 512),
        Convert(GPA + PAGE, PAGE, shared=False),
        Accept(GPA + PAGE),
        Verify(GPA, 512),
    ]
    config = VmmConfig(backing=backing, in_place=in_place)
    r = run([script], backing=backing, config=config, vm_memory_attributes=False).go()
    results = r.vm.results[0]
    assert [results[i] for i in (0, 2, 3, 4, 5, 6)] == [0] * 6
    r.assert_clean()
