"""The level at which a guest ACCEPTs is honoured (patch 13), and what that costs."""

from collections.abc import Callable
from typing import Any

import pytest

from septum.abi.errno import EIO
from septum.guest.script import Accept, AcceptRange, Verify, Write
from septum.linux.host import HostUnits, v3_units
from septum.linux.kvm.mmu import KvmMmu
from septum.linux.kvm.tdx import KvmTdxUnit
from septum.sim import RandomSchedule

Runs = Callable[..., Any]
PAGE = 4096
MB2 = 2 << 20
GPA = 32 << 20


def units(**changed: Any) -> HostUnits:
    v3 = v3_units()
    return HostUnits(**{f: changed.get(f, getattr(v3, f)) for f in v3.__slots__})


def test_accept_of_2m_takes_one_fault_and_one_page(run: Runs) -> None:
    r = run([[Accept(GPA, 1), Write(GPA, 512), Verify(GPA, 512)]]).go()
    assert r.vm.results[0][0] == 0 and r.vm.results[0][2] == 0
    assert r.vm.stat("ept_violation.accept.2m") == 1
    assert r.vm.stat("accept_level.write_lock") == 1
    r.assert_clean()


def test_accept_of_4k_splits_a_huge_page(run: Runs) -> None:
    r = run([[Accept(GPA + PAGE), Accept(GPA)]], prefault=((GPA, MB2),)).go()
    assert r.vm.results == [[0, 0]]
    assert r.vm.stat("split.accept") == 1
    # The second ACCEPT found a small page: no fault.
    assert r.vm.stat("ept_violation.accept.4k") == 1
    r.assert_clean()


def test_write_lock_is_taken_once_for_a_frame(run: Runs) -> None:
    """512 ACCEPTs of 4 KB fault 512 times; the lockless look at the flag spares 511 locks."""
    r = run([[Accept(GPA + i * PAGE) for i in range(512)]]).go()
    assert r.vm.results == [[0] * 512]
    assert r.vm.stat("accept_level.checked") == 512
    assert r.vm.stat("accept_level.write_lock") == 1
    r.assert_clean()


class NeverInhibited(KvmMmu):
    """Without the cheap check: the flag always reads as clear."""

    __slots__ = ()

    def hugepage_test_guest_inhibit(self, slot: Any, gfn: int, level: int) -> bool:
        return False


def test_without_the_check_every_accept_takes_the_lock(run: Runs) -> None:
    r = run([[Accept(GPA + i * PAGE) for i in range(64)]], units=units(mmu=NeverInhibited)).go()
    assert r.vm.stat("accept_level.write_lock") == 64
    r.assert_clean()


class NoLevel(KvmTdxUnit):
    """Broken: whatever level the guest wants is ignored. Gives up after 50 faults."""

    __slots__ = ()

    def tdx_honor_guest_accept_level(self, vcpu: Any, gfn: int) -> int:
        if vcpu.kvm.stat.get("ept_violation.accept.4k") < 50:
            return 0
        self.host.main.kvm_vm_dead(vcpu.kvm)
        return -EIO


def test_without_honouring_the_guest_faults_for_ever(run: Runs) -> None:
    """The mapping is there, so KVM has nothing to do, and the module exits again."""
    r = run([[Accept(GPA)]], prefault=((GPA, MB2),), units=units(tdx=NoLevel)).go()
    assert r.vm.results == [[]] and r.vm.stat("ept_violation.accept.4k") == 50
    assert r.vm.stat("split.accept") == 0
    assert "KVM_RUN failed: -EIO" in r.vm.vmm.fatal[0]
    r.assert_nothing_left()


def test_2m_accept_over_4k_pages_falls_back(run: Runs) -> None:
    """The module says "size mismatch" and the guest accepts page by page."""
    r = run([[Accept(GPA, 1), AcceptRange(GPA)]], backing="4k", prefault=((GPA, MB2),)).go()
    refused, accepted = r.vm.results[0]
    assert refused >> 32 == 0xC0000B0B and accepted == 0
    assert r.vm.stat("ept_violation.accept.2m") == 0
    r.assert_clean()


def test_accept_at_2m_of_memory_that_is_not_there(run: Runs) -> None:
    """Backing by small pages: the fault maps 4 KB, and the retried ACCEPT mismatches."""
    r = run([[AcceptRange(GPA)]], backing="4k").go()
    assert r.vm.results == [[0]]
    assert r.vm.stat("ept_violation.accept.2m") == 1
    assert r.vm.stat("ept_violation.accept.4k") == 511
    r.assert_clean()


def test_failed_split_lets_the_guest_try_again(run: Runs) -> None:
    """As posted: -ENOMEM becomes 1, the guest is resumed, and the next fault splits. The change
    log says that the error goes to user space."""

    class FailOnce(RandomSchedule):
        left = 3

        def pick(self, n: int, forced: bool) -> int:
            return 0

        def choose(self, name: str, n: int) -> int:
            if name == "alloc:tdp_mmu_alloc_sp_for_split.spt" and self.left:
                self.left -= 1
                return 1
            return 0

    r = run([[Accept(GPA)]], prefault=((GPA, MB2),), schedule=FailOnce(0)).go()
    assert r.vm.results == [[0]] and r.vm.stat("split.accept") == 1
    assert r.vm.stat("ept_violation.accept.4k") == 4
    r.assert_clean()


@pytest.mark.parametrize("seed", range(12))
def test_two_vcpus_accept_one_frame_at_once(run: Runs, seed: int) -> None:
    """Splits, faults and ACCEPTs of two vCPUs in any order end in 512 accepted pages."""
    scripts = [
        [Accept(GPA + i * PAGE) for i in range(first, 24, 2)] + [Write(GPA + first * PAGE)]
        for first in (0, 1)
    ]
    r = run(
        scripts,
        prefault=((GPA, MB2),) if seed % 2 else (),
        dynamic_pamt=seed % 3 == 0,
        schedule=RandomSchedule(seed),
    ).go()
    assert all(status == 0 for results in r.vm.results for status in results[:-1])
    r.assert_clean()
