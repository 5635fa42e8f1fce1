"""A fault maps what it should, at the level that every filter allows, and undoes what fails."""

from __future__ import annotations

from types import SimpleNamespace

from septum.abi.errno import EBUSY, EFAULT, EIO, ENOMEM, EOPNOTSUPP
from septum.abi.kvm import (
    KVM_EXIT_MEMORY_FAULT,
    KVM_EXIT_UNKNOWN,
    KVM_MEMORY_EXIT_FLAG_PRIVATE,
    KVM_MEMSLOT_INVALID,
    KVM_PFN_ERR_FAULT,
    RET_PF_EMULATE,
    RET_PF_FIXED,
    RET_PF_RETRY,
    RET_PF_SPURIOUS,
)
from septum.abi.spte import FROZEN_SPTE
from septum.linux.kvm.mmu import KvmMmu
from septum.linux.kvm.types import KvmPageFault
from septum.sim import RwSem

GUEST_PFN = 0x40000


def test_first_2m_fault_links_two_tables_and_sets_one_leaf(world):
    assert world.fault(0x12345) == RET_PF_FIXED
    assert world.tdx.calls[-3:] == [("link", 0, 4), ("link", 0, 3), ("set", 0x12200, 2)]
    assert world.mirror() == {(0x12200, 2): GUEST_PFN + 0x12200}
    assert world.kvm.stat.get("pages_2m") == 1
    assert world.fault(0x12346) == RET_PF_SPURIOUS
    assert world.gmem.folio.refcount == 1  # every lookup's reference was dropped
    assert world.sim.findings == []


def test_4k_folio_maps_4k(world):
    world.gmem.order = 0
    assert world.fault(0x12345) == RET_PF_FIXED
    assert world.names() == ["link", "link", "link", "set"]
    assert world.mirror() == {(0x12345, 1): GUEST_PFN + 0x12345}
    assert world.kvm.stat.get("pages_4k") == 1


def test_a_level_that_is_none_is_a_bug_of_who_says_it(world, monkeypatch):
    """An error where a level is asked for: nothing in C keeps it from being used as one."""
    monkeypatch.setattr(KvmMmu, "kvm_mmu_max_mapping_level", lambda *args: -EIO)
    world.fault(0x12345)
    assert list(world.mirror()) == [(0x12345, 1)]
    assert [f.text for f in world.sim.findings] == [
        "BUG: gfn 0x12345 is to be mapped at level -5 of 1 to 3"
    ]


def test_private_is_never_1g(world):
    world.gmem.order = 18
    assert world.fault(0x12345) == RET_PF_FIXED
    assert list(world.mirror()) == [(0x12200, 2)]


def test_guest_inhibit_and_mixed_and_slot_edge_hold_a_fault_at_4k(world):
    world.mmu.hugepage_set_guest_inhibit(world.slot, 0x200, 2)
    world.mmu.hugepage_set_mixed(world.slot, 0x400, 2)
    world.mmu.kvm_mmu_gfn_disallow_lpage(world.slot, 0x600)
    for gfn in (0x200, 0x400, 0x600):
        assert world.fault(gfn + 5) == RET_PF_FIXED
    world.mmu.kvm_mmu_gfn_allow_lpage(world.slot, 0x600)
    assert world.fault(0x805) == RET_PF_FIXED
    assert list(world.mirror()) == [(0x205, 1), (0x405, 1), (0x605, 1), (0x800, 2)]


def test_no_promotion_over_a_mirror_table(world):
    world.gmem.order = 0
    assert world.fault(0x203) == RET_PF_FIXED
    world.gmem.order = 9
    assert world.fault(0x204) == RET_PF_FIXED
    assert world.mirror() == {(0x203, 1): GUEST_PFN + 0x203, (0x204, 1): GUEST_PFN + 0x204}


def test_without_patch_06_promotion_is_attempted(make_world, monkeypatch):
    """The check above fails on a broken model: promotion reaches the S-EPT and bugs the VM."""
    world = make_world()
    monkeypatch.setattr(
        type(world.mmu), "disallowed_hugepage_adjust", lambda self, fault, spte, level: None
    )
    world.gmem.order = 0
    world.fault(0x203)
    world.gmem.order = 9
    world.fault(0x204)
    assert world.main.bugs


def test_busy_seamcall_restores_the_entry_and_retries(world):
    world.fault(0x200)
    world.tdx.ret["set"] = [-EBUSY]
    assert world.fault(0x400) == RET_PF_RETRY
    assert (0x400, 2) not in world.mirror()
    assert world.fault(0x400) == RET_PF_FIXED


def test_failed_link_frees_the_table(world):
    world.tdx.ret["link"] = [-EIO]
    used = world.host.mm.nr_free_pages
    assert world.fault(0x200) == RET_PF_RETRY
    assert world.mirror() == {}
    # The table's page left the vCPU's cache and was freed; its S-EPT page too.
    assert world.host.mm.nr_free_pages == used + 1
    assert len(world.host.page_private) == 2  # the roots


def test_entry_is_frozen_while_the_seamcall_runs(world):
    world.fault(0x200)
    seen = []

    def look(gfn: int, level: int) -> None:
        table = world.tdp_mmu.spte_to_child_sp(
            world.host.machine.tables[
                world.kvm.arch.mirror_root.spt.entry(0) >> 12 & (1 << 40) - 1
            ].entry(0)
        )
        seen.append(table.spt.entry(gfn >> 9))
        # Another vCPU meets the frozen entry and gives up at once.
        seen.append(world.fault(gfn))

    world.tdx.hooks["set"] = look
    assert world.fault(0x400) == RET_PF_FIXED
    assert seen == [FROZEN_SPTE, RET_PF_RETRY]


def test_lost_cmpxchg_is_retried_and_keeps_the_stale_old_spte_of_a_mirror(world):
    world.fault(0x200)
    world.kvm.mmu_lock.read_lock()
    from septum.linux.kvm.tdp_iter import TdpIter

    it = TdpIter(world.host.machine.tables, world.kvm.arch.mirror_root, 1, 0x400, 0)
    while it.level != 2:
        it.next()
    stale = it.old_spte
    it.table.set_entry(it.index, FROZEN_SPTE)
    assert world.tdp_mmu.tdp_mmu_set_spte_atomic(world.kvm, it, 0x8600001234400BB7) == -EBUSY
    assert it.old_spte == stale
    world.kvm.mmu_lock.read_unlock()


def test_shared_fault_uses_the_other_root(world):
    world.kvm.mem_attr_array = []
    assert world.fault(0x12345, private=False) == RET_PF_FIXED
    assert world.mirror() == {}
    assert list(world.shared()) == [(0x12345 | 1 << 35, 1)]
    assert world.names() == []


def test_attribute_mismatch_is_a_memory_fault_exit(world):
    assert world.fault(0x123, private=False) == -EFAULT
    assert world.vcpu.run.exit_reason == KVM_EXIT_MEMORY_FAULT
    assert world.vcpu.run.gpa == 0x123000
    assert world.vcpu.run.flags == 0
    world.kvm.mem_attr_array = []
    assert world.fault(0x123) == -EFAULT
    assert world.vcpu.run.flags == KVM_MEMORY_EXIT_FLAG_PRIVATE


def test_no_host_page_is_an_error_without_an_exit_reason(world):
    world.vcpu.run.exit_reason = KVM_EXIT_UNKNOWN
    fault = KvmPageFault(0x400000, 0, 0x400, 3)
    fault.pfn = KVM_PFN_ERR_FAULT
    assert world.mmu.kvm_handle_error_pfn(world.vcpu, fault) == -EFAULT
    assert world.vcpu.run.exit_reason == KVM_EXIT_UNKNOWN


def test_mmio_is_marked_and_left_to_the_guest(world):
    world.kvm.mem_attr_array = []
    assert world.fault(1 << 20, private=False) == 1
    assert world.vcpu.stat.get("pf_mmio_spte_created") == 1
    assert world.vcpu.stat.get("pf_emulate") == 1
    assert RET_PF_EMULATE == 2


def test_invalidation_under_way_makes_faults_retry(world):
    kvm = world.kvm
    kvm.mmu_lock.write_lock()
    world.mmu.kvm_mmu_invalidate_begin(kvm)
    world.mmu.kvm_mmu_invalidate_range_add(kvm, 0x400, 0x500)
    kvm.mmu_lock.write_unlock()
    assert world.fault(0x410) == RET_PF_RETRY
    assert world.fault(0x600) == RET_PF_FIXED
    kvm.mmu_lock.write_lock()
    world.mmu.kvm_mmu_invalidate_end(kvm)
    kvm.mmu_lock.write_unlock()
    assert world.fault(0x410) == RET_PF_FIXED


def test_invalidation_between_lookup_and_map_is_seen(world, monkeypatch):
    """The snapshot protocol: begin and end both pass while the fault holds no lock."""
    original = type(world.gmem).kvm_gmem_get_pfn
    done = []

    def get_pfn(self, kvm, slot, gfn):
        if not done:
            done.append(1)
            kvm.mmu_invalidate_seq += 1
        return original(self, kvm, slot, gfn)

    monkeypatch.setattr(type(world.gmem), "kvm_gmem_get_pfn", get_pfn)
    assert world.fault(0x400) == RET_PF_RETRY
    assert world.gmem.folio.refcount == 1
    assert world.fault(0x400) == RET_PF_FIXED


def test_deleted_slot_retries_and_prefault_says_eagain(world):
    world.slot.flags |= KVM_MEMSLOT_INVALID
    assert world.fault(0x400) == RET_PF_RETRY
    assert world.mmu.kvm_arch_vcpu_pre_fault_memory(world.vcpu, 0x400000, 4096) == -11


def test_topup_without_memory_fails_the_fault(world):
    world.vcpu.mmu_shadow_page_cache = []
    world.choices.wanted["alloc:mmu_topup_memory_caches.shadow_page"] = [0, 0, 1]
    assert world.fault(0x400) == -ENOMEM
    # Beyond the minimum a failure does no harm.
    world.choices.wanted["alloc:mmu_topup_memory_caches.shadow_page"] = [0, 0, 0, 1]
    assert world.fault(0x400) == RET_PF_FIXED


def test_prefault_maps_huge_without_the_accessed_bit(world):
    assert world.mmu.kvm_arch_vcpu_pre_fault_memory(world.vcpu, 0x201000, 1 << 30) == 0x1FF000
    assert list(world.mirror()) == [(0x200, 2)]
    assert world.fault(0x205) == RET_PF_SPURIOUS
    world.kvm.arch.pre_fault_allowed = False
    assert world.mmu.kvm_arch_vcpu_pre_fault_memory(world.vcpu, 0, 4096) == -EOPNOTSUPP


def test_map_private_pfn_needs_an_empty_entry(world):
    invalidate_lock = RwSem(world.sim, "invalidate_lock")
    world.slot.gmem_file = SimpleNamespace(inode=SimpleNamespace(invalidate_lock=invalidate_lock))
    world.kvm.slots_lock.lock()
    invalidate_lock.down_write()
    assert world.mmu.kvm_tdp_mmu_map_private_pfn(world.vcpu, 0x300, 0x999) == 0
    assert world.mirror() == {(0x300, 1): 0x999}
    assert world.mmu.kvm_tdp_mmu_map_private_pfn(world.vcpu, 0x300, 0x999) == -EIO
    assert world.sim.findings == []
    invalidate_lock.up_write()
    assert world.mmu.kvm_tdp_mmu_map_private_pfn(world.vcpu, 0x301, 0x99A) == 0
    assert [f.text for f in world.sim.findings] == ["lockdep: invalidate_lock not held"]
    world.kvm.slots_lock.unlock()


def test_split_in_the_fault_path_is_refused_and_retried(world):
    """Patch 09: a huge mirror leaf above the goal level cannot be split by a fault."""
    world.fault(0x200)
    world.mmu.hugepage_set_guest_inhibit(world.slot, 0x200, 2)  # set without a split
    assert world.fault(0x205) == RET_PF_RETRY
    assert world.tdx.calls[-1] == ("split", 0x200, 2, True)
    assert list(world.mirror()) == [(0x200, 2)]
    assert world.fault(0x205) == RET_PF_RETRY
