"""Worlds from creation to the last page: backings, modules, ends, several VMs, determinism."""

from collections.abc import Callable
from typing import Any

import pytest

from septum.abi import tdvmcall
from septum.guest.cpu import GuestCpu
from septum.guest.program import Guest
from septum.guest.script import Accept, AcceptRange, Barrier, Convert, Halt, Verify, Write
from septum.sim import RandomSchedule

Runs = Callable[..., Any]
PAGE = 4096
MB = 1 << 20
MB2 = 2 << 20
GPA = 32 << 20
WORK = [
    AcceptRange(GPA, 2 * MB2),
    Write(GPA, 1024),
    Convert(GPA + MB, 2 * MB),
    Verify(GPA, 1024),
    Convert(GPA + MB, 2 * MB, shared=False),
    AcceptRange(GPA + MB, 2 * MB),
    Write(GPA + MB, 512),
    Verify(GPA, 1024),
]


@pytest.mark.parametrize("backing", ["4k", "thp", "hugetlb-2m"])
@pytest.mark.parametrize("dynamic_pamt", [False, True])
@pytest.mark.parametrize("vm_memory_attributes", [False, True])
def test_every_backing_comes_back_whole(
    run: Runs, backing: str, dynamic_pamt: bool, vm_memory_attributes: bool
) -> None:
    r = run(
        [WORK],
        backing=backing,
        dynamic_pamt=dynamic_pamt,
        vm_memory_attributes=vm_memory_attributes,
    ).go()
    assert [r.vm.results[0][i] for i in (0, 2, 3, 4, 5, 7)] == [0] * 6
    r.assert_clean()


@pytest.mark.parametrize("attributes", [False, True])
def test_gigabyte_pages(run: Runs, attributes: bool) -> None:
    r = run([WORK], backing="hugetlb-1g", memory=1 << 30, vm_memory_attributes=attributes).go()
    assert r.vm.stat("split.conversion") == 2
    r.assert_clean()


@pytest.mark.parametrize(
    "option",
    [
        {"module": "1.5.01"},
        {"tdx_huge_page": False},
        {"x86_bug_tdx_pw_mce": True},
        {"nr_packages": 2},
        {"five_level_ept": True},
    ],
)
def test_machines_and_modules(run: Runs, option: dict[str, Any]) -> None:
    run([WORK], **option).go().assert_clean()


class Panics(Guest):
    """Reports a fatal error."""

    __slots__ = ()

    def run(self, cpu: GuestCpu) -> None:
        cpu.tdvmcall(tdvmcall.TDVMCALL_REPORT_FATAL_ERROR, 0)
        cpu.idle()


def test_fatal_error_ends_the_vm(run: Runs) -> None:
    r = run(Panics(1)).go()
    assert r.vm.vmm.fatal == ["vCPU 0: the guest reported a fatal error"]
    r.assert_nothing_left()


def test_access_before_accept_ends_the_vm(run: Runs) -> None:
    r = run([[Write(GPA)]]).go()
    assert r.texts() == [f"Guest access before accepting {GPA:#x} on vCPU 0"]
    assert "KVM_RUN failed: -EIO" in r.vm.vmm.fatal[0]
    r.assert_nothing_left()


def test_halted_vcpus_wait(run: Runs) -> None:
    """HLT without a wake-up; the VM ends around them."""
    r = run([[Barrier(), Accept(GPA)], [Barrier()], [Barrier()]]).go()
    r.assert_clean()
    assert r.vm.kvm.stat.get("ipi") <= r.vm.kvm.stat.get("kick") * 3


def test_two_vms_side_by_side(run: Runs) -> None:
    r = run([WORK], [WORK, [AcceptRange(GPA + 4 * MB2)]], schedule=RandomSchedule(7)).go()
    r.assert_clean()


def outcome(run: Runs, seed: int) -> tuple[object, ...]:
    scripts = [WORK, [AcceptRange(GPA + 2 * MB2), Convert(GPA + 2 * MB2), Halt()][:2]]
    r = run(scripts, schedule=RandomSchedule(seed), dynamic_pamt=True).go()
    r.assert_clean()
    return (
        sorted(r.world.module.counts.items()),
        sorted(r.vm.kvm.stat.values.items()),
        r.world.sim.now_ns(),
        list(r.world.sim.answers),
        r.vm.results,
    )


def test_a_run_is_a_function_of_its_schedule(run: Runs) -> None:
    assert outcome(run, 3) == outcome(run, 3)
    assert outcome(run, 3) != outcome(run, 4)


@pytest.mark.parametrize("seed", range(10))
def test_conversions_beside_accepts(run: Runs, seed: int) -> None:
    """One vCPU converts pages of frames in which others accept and write, in any order."""
    scripts = [
        [Convert(GPA + (128 + i) * PAGE, 2 * PAGE) for i in range(0, 16, 4)],
        [Accept(GPA + i * PAGE) for i in range(8)] + [Write(GPA, 8), Verify(GPA, 8)],
        [AcceptRange(GPA + MB, MB // 2), Write(GPA + MB, 128), Verify(GPA + MB, 128)],
    ]
    backing = ("thp", "hugetlb-2m", "4k")[seed % 3]
    r = run(
        scripts,
        backing=backing,
        dynamic_pamt=bool(seed & 1),
        vm_memory_attributes=bool(seed & 2),
        schedule=RandomSchedule(seed),
    ).go()
    assert r.vm.results[1][-1] == r.vm.results[2][-1] == 0
    r.assert_clean()
