"""A TD is built and taken down to the last page, whatever fails on the way."""

from collections.abc import Callable
from typing import Any

import pytest

from septum.abi.errno import EBUSY, EINVAL, EIO, ENOSPC, EOPNOTSUPP
from septum.abi.features import TDX_CONFIG_FLAGS_NO_RBP_MOD
from septum.abi.status import TDX_OPERAND_INVALID
from septum.abi.tdvf import TdvfSection
from septum.abi.types import PAGE_SIZE
from septum.linux.host import HostUnits, v3_units
from septum.linux.kvm.tdx import KvmTdxUnit
from septum.linux.kvm.tdx_defs import (
    KVM_TDX_FINALIZE_VM,
    KVM_TDX_INIT_MEM_REGION,
    KVM_TDX_INIT_VM,
    KvmTdxCmd,
    KvmTdxInitMemRegion,
    KvmTdxInitVm,
)
from septum.sim import WaitQueue
from septum.vmm.qemu import Vmm

Benches = Callable[..., Any]
MB2 = 2 << 20
FREE_GPA = 32 << 20  # nothing of the image is here


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("backing", ["4k", "thp", "hugetlb-2m", "hugetlb-1g"])
def test_build_prefault_teardown_leaves_nothing(
    bench: Benches, backing: str, dynamic: bool
) -> None:
    b = bench(backing, dynamic_pamt=dynamic, x86_bug_tdx_pw_mce=True)
    b.prefault(FREE_GPA, 3 * MB2)
    b.vmm.teardown()
    assert b.texts() == []
    b.assert_nothing_left()


class KeepsSeptPages(KvmTdxUnit):
    """Broken: S-EPT pages are not reclaimed."""

    def tdx_sept_free_private_spt(self, kvm, gfn, level, private_spt):  # type: ignore[no-untyped-def]
        return -EIO


def test_teardown_shows_a_leak(bench: Benches) -> None:
    units = v3_units()
    broken = HostUnits(**{**{f: getattr(units, f) for f in units.__slots__}, "tdx": KeepsSeptPages})
    b = bench(units=broken)
    b.vmm.teardown()
    assert any("external_spt" in site or "prealloc" in site for _, _, site in b.leftovers())
    # The TD's pages are still its own, so its TDR cannot go either.
    assert any(site == "tdr" for _, _, site in b.leftovers())


SITES = [
    "tdr",
    "tdcs",
    "td_params",
    "tdvpr",
    "tdcx",
    "gmem_folio",
    "user_page",
    "tdx_prealloc",
    "kvm_create_vm",
    "kvm_vcpu",
    "kvm_memory_slot",
    "mem_attr_array",
    "mmu_topup_memory_caches.shadow_page",
    "mmu_topup_memory_caches.page_header",
]


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("site", [*SITES, "tdx_pamt_page"])
@pytest.mark.parametrize("nth", [0, 2])
def test_failed_allocation_while_building_leaks_nothing(
    bench: Benches, site: str, nth: int, dynamic: bool
) -> None:
    b = bench("4k", build=False, dynamic_pamt=dynamic)
    b.choices.wanted[f"alloc:{site}"] = [0] * nth + [1]
    ret = b.vmm.build()
    fired = not b.choices.wanted[f"alloc:{site}"]
    assert ret < 0 if fired else ret == 0
    if nth == 0 and (dynamic or site != "tdx_pamt_page"):
        assert fired, "no such allocation was made"
    b.vmm.teardown()
    assert b.texts() == []
    b.assert_nothing_left()


def test_key_ids_run_out(bench: Benches) -> None:
    b = bench()
    state = b.host.x86_tdx.state
    config = b.world.machine.config
    state.keyid_ida.update(range(config.private_hkid_min, config.private_hkid_max + 1))
    ret, kvm = b.host.main.kvm_create_vm()
    assert ret == 0 and kvm is not None
    cmd = KvmTdxCmd(KVM_TDX_INIT_VM, data=KvmTdxInitVm())
    assert b.host.main.kvm_vm_ioctl_mem_enc_op(kvm, cmd) == -ENOSPC


def test_state_checks_of_the_tdx_ioctls(bench: Benches) -> None:
    b = bench()
    main = b.host.main
    vcpu = b.vmm.vcpus[0]
    init_vm = KvmTdxCmd(KVM_TDX_INIT_VM, data=KvmTdxInitVm())
    assert main.kvm_vm_ioctl_mem_enc_op(b.kvm, init_vm) == -EINVAL  # again
    finalize = KvmTdxCmd(KVM_TDX_FINALIZE_VM)
    assert main.kvm_vm_ioctl_mem_enc_op(b.kvm, finalize) == -EINVAL  # again
    region = KvmTdxInitMemRegion(1 << 40, FREE_GPA, 1)
    add = KvmTdxCmd(KVM_TDX_INIT_MEM_REGION, data=region)
    assert main.kvm_vcpu_ioctl_mem_enc_op(vcpu, add) == -EINVAL  # after finalize
    assert main.kvm_vm_ioctl_mem_enc_op(b.kvm, KvmTdxCmd(99)) == -EINVAL
    assert main.kvm_vm_ioctl_mem_enc_op(b.kvm, KvmTdxCmd(0, hw_error=1)) == -EINVAL


def test_what_the_module_wants_set_is_set(bench: Benches) -> None:
    """setup_tdparams() adds the XFAM bits that must be 1, and NO_RBP_MOD."""
    b = bench("4k")
    ret, kvm = b.host.main.kvm_create_vm()
    assert ret == 0 and kvm is not None
    init_vm = KvmTdxCmd(KVM_TDX_INIT_VM, data=KvmTdxInitVm(xfam=0))
    assert b.host.main.kvm_vm_ioctl_mem_enc_op(kvm, init_vm) == 0
    td = b.world.module.tds[kvm.tdx.tdr_page]
    assert kvm.tdx.xfam == td.xfam == 3
    assert td.config_flags & TDX_CONFIG_FLAGS_NO_RBP_MOD


def test_tsc_fields_that_cannot_be_read_are_only_logged(
    bench: Benches, monkeypatch: pytest.MonkeyPatch
) -> None:
    """td_tdcs_exec_read64() says so with pr_err(), and KVM_TDX_INIT_VM goes on."""
    b = bench("4k")
    monkeypatch.setattr(
        type(b.host.x86_tdx), "tdh_mng_rd", lambda self, td, field: (TDX_OPERAND_INVALID, 7)
    )
    ret, kvm = b.host.main.kvm_create_vm()
    assert ret == 0 and kvm is not None
    init_vm = KvmTdxCmd(KVM_TDX_INIT_VM, data=KvmTdxInitVm())
    assert b.host.main.kvm_vm_ioctl_mem_enc_op(kvm, init_vm) == 0
    assert (kvm.tdx.tsc_offset, kvm.tdx.tsc_multiplier, kvm.vm_dead) == (0, 0, False)
    assert b.texts() == []


def test_all_the_locks_guard(bench: Benches) -> None:
    b = bench()
    b.kvm.created_vcpus += 1
    finalize = KvmTdxCmd(KVM_TDX_FINALIZE_VM)
    assert b.host.main.kvm_vm_ioctl_mem_enc_op(b.kvm, finalize) == -EBUSY
    b.kvm.created_vcpus -= 1
    assert not b.kvm.lock.locked() and not b.kvm.slots_lock.locked()


def test_all_the_locks_wait_for_a_vcpu(bench: Benches) -> None:
    """kvm_lock_all_vcpus() waits for a vCPU that runs; it does not give up."""
    b = bench()
    vcpu = b.vmm.vcpus[0]
    done: list[object] = []
    leaves_guest = WaitQueue(b.sim, "leaves guest")

    def run() -> None:
        with vcpu.mutex:
            leaves_guest.wait_event(lambda: "kick" in done)
            done.append("ran")

    def finalize() -> None:
        cmd = KvmTdxCmd(KVM_TDX_FINALIZE_VM)
        done.append(b.host.main.kvm_vm_ioctl_mem_enc_op(b.kvm, cmd))

    def kick() -> None:
        done.append("kick")
        leaves_guest.wake_up_all()

    for task in (run, finalize, kick):
        b.sim.spawn(task.__name__, task)
    b.sim.run()
    assert done == ["kick", "ran", -EINVAL] and b.texts() == []  # finalized already


def test_page_of_the_image_needs_a_source(bench: Benches, monkeypatch: pytest.MonkeyPatch) -> None:
    """`source_addr` 0 gets as far as TDX's callback, which refuses it: -EOPNOTSUPP."""
    b = bench(build=False)
    add_section = Vmm.add_section
    got: list[int] = []

    def without_source(vmm: Vmm, section: TdvfSection) -> int:
        region = KvmTdxInitMemRegion(0, section.memory_address, 1)
        cmd = KvmTdxCmd(KVM_TDX_INIT_MEM_REGION, data=region)
        got.append(b.host.main.kvm_vcpu_ioctl_mem_enc_op(vmm.vcpus[0], cmd))
        return add_section(vmm, section)

    monkeypatch.setattr(Vmm, "add_section", without_source)
    assert b.vmm.build() == 0
    assert got and set(got) == {-EOPNOTSUPP} and b.texts() == []


def test_prefault_must_not_wrap(bench: Benches) -> None:
    """The end of the range is a u64, as in C."""
    b = bench()
    prefault = b.host.main.kvm_vcpu_ioctl_pre_fault_memory
    left = (FREE_GPA, (1 << 64) - FREE_GPA)
    assert prefault(b.vmm.vcpus[0], *left) == (-EINVAL, *left)


def test_prefault_by_a_vcpu_that_was_not_initialised(bench: Benches) -> None:
    """KVM_PRE_FAULT_MEMORY does not ask for KVM_TDX_INIT_VCPU. Its roots are loaded, and TDH.VP.WR
    has no TDVPR to write the shared EPT pointer to: KVM_BUG_ON(), then the WARN about -EIO."""
    b = bench("4k", scripts=[[], []], build=False)
    vmm = b.vmm
    for step in (vmm.create_vm, vmm.create_vcpus, vmm.create_memory):
        b.ok(step())
    vcpu = vmm.vcpus.pop()
    vmm.contexts.pop()
    b.ok(vmm.add_image())
    vmm.vcpus.append(vcpu)
    main = b.host.main
    assert main.kvm_vcpu_ioctl_run(vcpu) == -EINVAL and b.texts() == []
    left = (FREE_GPA, PAGE_SIZE)
    assert main.kvm_vcpu_ioctl_pre_fault_memory(vcpu, *left) == (-EIO, *left)
    broken, warned = b.texts()
    assert "SEAMCALL TDH_VP_WR failed" in broken and "a fault came to -5" in warned
    vmm.teardown()
    b.assert_nothing_left()


def test_dead_vm_refuses_every_ioctl(bench: Benches) -> None:
    b = bench()
    main = b.host.main
    b.prefault(FREE_GPA)
    main.kvm_bug_on(b.kvm, True, "for the test")
    vcpu = b.vmm.vcpus[0]
    assert b.kvm.vm_dead and b.kvm.vm_bugged
    assert b.set_attributes(FREE_GPA, MB2, private=False) == -EIO
    assert main.kvm_vcpu_ioctl_run(vcpu) == -EIO
    assert main.kvm_vcpu_ioctl_pre_fault_memory(vcpu, FREE_GPA, MB2)[0] == -EIO
    assert main.kvm_vm_ioctl_create_vcpu(b.kvm, 7)[0] == -EIO
    assert main.kvm_vm_ioctl_mem_enc_op(b.kvm, KvmTdxCmd(KVM_TDX_FINALIZE_VM)) == -EIO
    assert b.texts() == ["KVM_BUG_ON: for the test"]
    # Teardown works all the same.
    b.vmm.teardown()
    b.assert_nothing_left()


def test_pages_of_a_bugged_vm_leak(bench: Benches) -> None:
    """BLOCK fails once and for all: the page stays the TD's, and with it the TDR."""
    b = bench()
    b.prefault(FREE_GPA)
    b.host.x86_tdx.state.inject = frozenset({7})
    b.choices.wanted["seamcall:TDH.MEM.RANGE.BLOCK"] = [1, 1]
    assert b.set_attributes(FREE_GPA, MB2, private=False) == 0  # a zap cannot fail
    assert b.kvm.vm_bugged
    b.vmm.teardown()
    sites = {site for _, _, site in b.leftovers()}
    assert sites == {"tdr"}
    assert any("TDH_PHYMEM_PAGE_RECLAIM failed" in text for text in b.texts())
