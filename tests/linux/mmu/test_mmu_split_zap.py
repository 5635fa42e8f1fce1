"""Splits and zaps: precise, faithful to what v3 does on failure, and nothing left at the end."""

from __future__ import annotations

from septum.abi.errno import EIO, EOPNOTSUPP
from septum.abi.kvm import KVM_MEMORY_ATTRIBUTE_PRIVATE, RET_PF_FIXED
from septum.linux.kvm.types import KVM_FILTER_PRIVATE, KvmGfnRange
from septum.linux.ranges import range_store

GUEST_PFN = 0x40000


def private_range(world, start, end, may_block=True):
    return KvmGfnRange(world.slot, start, end, KVM_FILTER_PRIVATE, may_block)


def split(world, start, end):
    """What guest_memfd does before it zaps."""
    kvm = world.kvm
    kvm.mmu_lock.write_lock()
    world.mmu.kvm_mmu_invalidate_begin(kvm)
    world.mmu.kvm_mmu_invalidate_range_add(kvm, start, end)
    ret = world.mmu.kvm_split_cross_boundary_leafs(kvm, private_range(world, start, end), False)
    world.mmu.kvm_mmu_invalidate_end(kvm)
    kvm.mmu_lock.write_unlock()
    return ret


def unmap(world, start, end):
    kvm = world.kvm
    kvm.slots_lock.lock()
    kvm.mmu_lock.write_lock()
    flush = world.mmu.kvm_unmap_gfn_range(kvm, private_range(world, start, end))
    kvm.mmu_lock.write_unlock()
    kvm.slots_lock.unlock()
    return flush


def test_split_then_zap_takes_exactly_the_range(world):
    for gfn in (0x200, 0x400, 0x600):
        world.fault(gfn)
    assert split(world, 0x3F0, 0x610) == 0
    # Head and tail cross the range, the middle does not.
    assert [c[1] for c in world.tdx.calls if c[0] == "split"] == [0x200, 0x600]
    assert unmap(world, 0x3F0, 0x610)
    left = {gfn for gfn, _ in world.mirror()}
    assert left == set(range(0x200, 0x3F0)) | set(range(0x610, 0x800))
    assert world.mirror() == world.tdx.sept
    stat = world.kvm.stat
    assert stat.get("pages_4k") == len(left)
    assert stat.get("pages_2m") == 0
    assert stat.get("split.conversion") == 2
    assert world.sim.findings == []


def test_zap_without_split_takes_the_whole_huge_leaf(world):
    """The broken model that precise-zap is about: patch 16 left out."""
    world.fault(0x200)
    assert unmap(world, 0x205, 0x206)
    assert world.mirror() == {}


def test_split_order_is_mirror_first_then_hook(world):
    world.fault(0x200)
    seen = []
    world.tdx.hooks["split"] = lambda gfn, level, shared: seen.append(
        (world.kvm.stat.get("pages_2m"), len(world.mirror()))
    )
    assert split(world, 0x205, 0x206) == 0
    assert seen == [(0, 512)]


def test_split_hook_failure_is_not_seen_by_the_mmu(world):
    """Suspect of patches 07 and 11: the return value is dropped, the split counts as done."""
    world.fault(0x200)
    world.tdx.ret["split"] = [-EIO]
    assert split(world, 0x205, 0x206) == 0
    assert len(world.mirror()) == 512
    assert list(world.tdx.sept) == [(0x200, 2)]
    assert world.kvm.stat.get("pages_4k") == 512


def test_split_without_memory_returns_1_and_leaves_everything(world):
    """Suspect of patch 11: -ENOMEM goes through a C bool."""
    world.fault(0x200)
    for site in (
        "tdp_mmu_alloc_sp_for_split",
        "tdp_mmu_alloc_sp_for_split.spt",
        "tdp_mmu_alloc_sp_for_split.external_spt",
    ):
        free = world.host.mm.nr_free_pages
        world.choices.wanted[f"alloc:{site}"] = [1]
        assert split(world, 0x205, 0x206) == 1
        assert list(world.mirror()) == [(0x200, 2)]
        assert world.host.mm.nr_free_pages == free
        assert world.host.rcu_readers == 0
    assert not world.kvm.mmu_lock.held()
    assert world.sim.findings == []


def test_split_cache_topup_drops_the_lock_and_looks_again(world):
    world.fault(0x200)
    world.tdx.split_cache, world.tdx.split_cache_min = 0, 4
    assert split(world, 0x205, 0x206) == 0
    assert ("topup_split", False) in world.tdx.calls
    world.fault(0x400)
    world.tdx.split_cache = 0
    world.tdx.ret["topup_split"] = [-12]
    free = world.host.mm.nr_free_pages
    assert split(world, 0x405, 0x406) == 1
    assert world.host.mm.nr_free_pages == free
    assert world.host.rcu_readers == 0


def test_leaf_that_vanished_while_allocating_is_not_split(world):
    world.fault(0x200)

    def vanish(held):
        unmap(world, 0x200, 0x400)

    world.tdx.split_cache, world.tdx.split_cache_min = 0, 4
    world.tdx.hooks["topup_split"] = vanish
    free = world.host.mm.nr_free_pages
    assert split(world, 0x205, 0x206) == 0
    assert "split" not in world.names()
    assert world.host.mm.nr_free_pages == free


def test_range_that_may_not_block_is_refused(world):
    world.kvm.slots_lock.lock()
    world.kvm.mmu_lock.write_lock()
    rng = private_range(world, 0, 1, may_block=False)
    assert world.mmu.kvm_split_cross_boundary_leafs(world.kvm, rng, False) == -EOPNOTSUPP


def test_lockdep_assertion_of_the_split_is_checked(world):
    world.kvm.mmu_lock.write_lock()
    world.mmu.kvm_split_cross_boundary_leafs(world.kvm, private_range(world, 0, 1), False)
    assert [f.promise for f in world.sim.findings] == ["locking"]


def test_pre_and_post_set_memory_attributes(world):
    kvm = world.kvm
    for gfn in (0x200, 0x400):
        world.fault(gfn)

    def convert(start, end, attrs):
        rng = KvmGfnRange(world.slot, start, end, 0, True, attrs)
        kvm.slots_lock.lock()
        kvm.mmu_lock.write_lock()
        world.mmu.kvm_mmu_invalidate_begin(kvm)
        world.mmu.kvm_mmu_invalidate_range_add(kvm, start, end)
        pre = world.mmu.kvm_arch_pre_set_memory_attributes(kvm, rng)
        covered = (kvm.mmu_invalidate_range_start, kvm.mmu_invalidate_range_end)
        range_store(kvm.mem_attr_array, start, end, attrs)
        post = world.mmu.kvm_arch_post_set_memory_attributes(kvm, rng)
        world.mmu.kvm_mmu_invalidate_end(kvm)
        kvm.mmu_lock.write_unlock()
        kvm.slots_lock.unlock()
        return pre, post, covered

    # The whole 1G page around is in the invalidation: nothing there was mixed yet.
    assert convert(0x205, 0x210, 0) == (1, 0, (0, 1 << 18))
    assert len(world.mirror()) == 512 - 11 + 1
    assert world.mmu.hugepage_test_mixed(world.slot, 0x200, 2)
    assert world.mmu.hugepage_test_mixed(world.slot, 0x200, 3)
    assert not world.mmu.hugepage_test_mixed(world.slot, 0x400, 2)
    # Now it is mixed: only what was asked for, and 2M neighbours.
    assert convert(0x405, 0x406, 0)[2] == (0x400, 0x600)
    assert convert(0x405, 0x406, KVM_MEMORY_ATTRIBUTE_PRIVATE)[0] == 0
    assert not world.mmu.hugepage_test_mixed(world.slot, 0x400, 2)
    assert convert(0x205, 0x210, KVM_MEMORY_ATTRIBUTE_PRIVATE)[0] == 0
    assert not world.mmu.hugepage_test_mixed(world.slot, 0x200, 3)


def test_failed_split_lets_attributes_change_over_mapped_memory(world):
    """Suspect of patches 11 and 15 together: 1 is "flush", not an error; nothing is unmapped."""
    kvm = world.kvm
    world.fault(0x200)
    world.choices.wanted["alloc:tdp_mmu_alloc_sp_for_split"] = [1]
    kvm.slots_lock.lock()
    kvm.mmu_lock.write_lock()
    world.mmu.kvm_mmu_invalidate_begin(kvm)
    rng = KvmGfnRange(world.slot, 0x205, 0x206, 0, True, 0)
    assert world.mmu.kvm_arch_pre_set_memory_attributes(kvm, rng) == 1
    assert list(world.mirror()) == [(0x200, 2)]


def test_memslot_zap_and_fast_zap(world):
    world.fault(0x200)
    world.kvm.mem_attr_array = [(0, 0x1000, 8)]
    world.fault(0x2000, private=False)
    world.kvm.slots_lock.lock()
    world.mmu.kvm_arch_flush_shadow_memslot(world.kvm, world.slot)
    assert world.mirror() == {} and world.shared() == {}
    assert world.main.flushes == 1
    # kvm_mmu_zap_all_fast() is not for mirror roots.
    world.fault(0x200)
    world.fault(0x2000, private=False)
    mirror_root = world.kvm.arch.mirror_root
    world.mmu.kvm_mmu_zap_all_fast(world.kvm)
    assert list(world.mirror()) == [(0x200, 2)]
    assert world.kvm.arch.mirror_root is mirror_root
    assert world.kvm.arch.direct_root is None
    world.kvm.slots_lock.unlock()
    assert world.mmu.kvm_mmu_reload(world.vcpu) == 0
    assert world.fault(0x2000, private=False) == RET_PF_FIXED
    assert world.sim.findings == []


def test_teardown_gives_every_page_back(world):
    world.gmem.order = 0
    for gfn in (0x200, 0x201, 0x12345):
        world.fault(gfn)
    world.gmem.order = 9
    world.fault(0x800)
    split(world, 0x805, 0x806)
    world.kvm.mem_attr_array = []
    world.fault(0x3000, private=False)
    unmap(world, 0, 1 << 18)  # guest_memfd is released before the VM
    assert world.tdx.sept == {}
    world.mmu.kvm_mmu_zap_all(world.kvm)
    world.mmu.kvm_mmu_destroy(world.vcpu)
    world.kvm.vcpus.clear()
    world.kvm.created_vcpus = 0
    world.mmu.kvm_mmu_uninit_vm(world.kvm)
    # Children before parents, each S-EPT page once, the root none.
    frees = [c[1:] for c in world.tdx.calls if c[0] == "free"]
    assert frees == [(0x200, 1), (0x800, 1), (0x12200, 1), (0, 2), (0, 3)]
    assert world.host.mm.nr_free_pages == world.free_pages
    assert world.host.page_private == {} and world.host.machine.tables == {}
    assert world.sim.findings == []


def test_leaked_sept_page_is_not_freed(world):
    world.fault(0x200)
    unmap(world, 0, 1 << 18)
    world.tdx.ret["free"] = [-EIO]
    world.mmu.kvm_mmu_destroy(world.vcpu)
    world.kvm.created_vcpus = 0
    world.mmu.kvm_mmu_uninit_vm(world.kvm)
    assert world.host.mm.nr_free_pages == world.free_pages - 1
    assert [f.promise for f in world.sim.findings] == ["no-bug"]


def test_leaves_left_at_teardown_are_removed_one_by_one(world):
    world.fault(0x200)
    world.fault(0x400)
    world.mmu.kvm_mmu_destroy(world.vcpu)
    world.kvm.created_vcpus = 0
    world.mmu.kvm_mmu_uninit_vm(world.kvm)
    # The passes of ever larger tables take leaves before the tables above them.
    assert world.names()[-5:] == ["remove", "remove", "free", "free", "free_split_cache"]


def test_yield_in_zap_walks_again_and_flushes_once_more(world):
    for gfn in range(0, 0x1000, 0x200):
        world.fault(gfn)
    # At the two tables, then at leaves; a yield walks down through the tables again.
    world.choices.wanted["need_resched"] = [0, 0, 1, 1, 0, 0, 0, 1]
    assert unmap(world, 0, 0x1000)
    assert world.mirror() == {}
    assert world.main.flushes == 2
    assert [c[1] for c in world.tdx.calls if c[0] == "remove"] == list(range(0, 0x1000, 0x200))


def test_zapping_many_4k_leaves_costs_little(world, monkeypatch, nr_lines):
    """The share of the MMU of one zapped 4 KB leaf, in lines of Python."""
    for gfn in range(0, 0x4000, 0x200):
        world.fault(gfn)
    for gfn in range(0, 0x4000, 0x200):
        assert split(world, gfn + 1, gfn + 2) == 0
    monkeypatch.setattr(type(world.tdx), "remove_external_spte", lambda *args: None)
    nr = nr_lines(lambda: unmap(world, 0, 0x4000))
    assert world.mirror() == {}
    assert nr / 0x4000 < 100, nr
