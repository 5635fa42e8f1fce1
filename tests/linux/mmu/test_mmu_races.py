"""Faults, conversions and prefaults at once: the mirror and the S-EPT stay alike."""

from __future__ import annotations

import random

import pytest

from septum.abi.kvm import RET_PF_FIXED, RET_PF_RETRY, RET_PF_SPURIOUS
from septum.abi.spte import FROZEN_SPTE
from septum.linux.kvm.tdp_iter import TdpIter
from septum.linux.kvm.types import KVM_FILTER_PRIVATE, KvmGfnRange, KvmVcpu
from septum.sim import Mutex, RandomSchedule, WaitQueue


def add_vcpu(world, n):
    vcpu = KvmVcpu(world.kvm, n, n, Mutex(world.sim, f"vcpu{n}"), WaitQueue(world.sim, f"v{n}"))
    world.kvm.vcpus.append(vcpu)
    return vcpu


def convert(world, start, end):
    """Split, zap, in one invalidation, as guest_memfd does."""
    kvm = world.kvm
    rng = KvmGfnRange(world.slot, start, end, KVM_FILTER_PRIVATE, True)
    kvm.mmu_lock.write_lock()
    world.mmu.kvm_mmu_invalidate_begin(kvm)
    world.mmu.kvm_mmu_invalidate_range_add(kvm, start, end)
    kvm.mmu_lock.write_unlock()
    kvm.mmu_lock.write_lock()
    assert world.mmu.kvm_split_cross_boundary_leafs(kvm, rng, False) == 0
    kvm.mmu_lock.write_unlock()
    kvm.mmu_lock.write_lock()
    world.mmu.kvm_unmap_gfn_range(kvm, rng)
    world.mmu.kvm_mmu_invalidate_end(kvm)
    kvm.mmu_lock.write_unlock()


@pytest.mark.parametrize("seed", range(30))
def test_faults_against_conversions(make_world, seed):
    world = make_world()
    sim = world.sim
    sim.schedule = RandomSchedule(seed)
    rng = random.Random(seed)
    for name in ("set", "link", "split"):
        world.tdx.hooks[name] = lambda *args: sim.point("seamcall")

    def vcpu_thread(n, gfns):
        def body():
            vcpu = world.kvm.vcpus[n]
            assert world.mmu.kvm_mmu_reload(vcpu) == 0
            for gfn in gfns:
                while True:
                    r = world.mmu.kvm_mmu_page_fault(vcpu, gfn << 12, (1 << 49) | 2)
                    assert r in (RET_PF_FIXED, RET_PF_SPURIOUS, RET_PF_RETRY)
                    if r != RET_PF_RETRY:
                        break

        return body

    for n in range(1, 4):
        add_vcpu(world, n)
        sim.spawn(f"vcpu{n}", vcpu_thread(n, [rng.randrange(0x800) for _ in range(12)]), cpu=n)
    spans = [(start := rng.randrange(0x7F0), start + rng.randrange(1, 16)) for _ in range(6)]

    def vmm():
        for start, end in spans:
            convert(world, start, end)

    sim.spawn("vmm", vmm)
    sim.run()
    assert world.mirror() == world.tdx.sept
    assert sim.findings == []
    assert world.main.bugs == []
    stat = world.kvm.stat
    levels = [level for _, level in world.mirror()]
    assert stat.get("pages_4k") == levels.count(1)
    assert stat.get("pages_2m") == levels.count(2)
    tables = world.host.machine.tables.values()
    assert not any(FROZEN_SPTE in table.values() for table in tables)
    assert world.kvm.arch.tdp_mmu_pages == len(world.host.page_private) - 2


def test_without_the_freeze_two_vcpus_map_one_gfn(make_world, monkeypatch):
    """The races above do find a broken model: SEAMCALLs without a frozen entry run twice."""
    from septum.linux.kvm.tdp_mmu import TdpMmu

    class NoFreeze(TdpMmu):
        __slots__ = ()

        def set_external_spte_present(self, kvm, it, old_spte, new_spte):
            if new_spte & 1 << 7:
                ret = self.host.tdx.set_external_spte(kvm, it.gfn, it.level, new_spte)
                if not ret:
                    it.table.set_entry(it.index, new_spte)
                return ret
            return super().set_external_spte_present(kvm, it, old_spte, new_spte)

    doubles = 0
    for seed in range(80):
        world = make_world(NoFreeze)
        sim = world.sim
        sim.schedule = RandomSchedule(seed)
        world.tdx.hooks["set"] = lambda *args, sim=sim: sim.point("seamcall")

        def body(n, world=world):
            vcpu = world.kvm.vcpus[n]
            world.mmu.kvm_mmu_reload(vcpu)
            world.mmu.kvm_mmu_page_fault(vcpu, 0x200 << 12, (1 << 49) | 2)

        for n in (1, 2):
            add_vcpu(world, n)
            sim.spawn(f"vcpu{n}", lambda n=n, body=body: body(n), cpu=n)
        sim.run()
        doubles += world.names().count("set") > 1
    assert doubles


@pytest.mark.parametrize("seed", range(20))
def test_skip_nonpresent_is_as_many_next(world, seed):
    """The fast walk meets exactly the present entries that the plain walk meets."""
    rng = random.Random(seed)
    for _ in range(40):
        world.gmem.order = rng.choice((0, 9))
        world.fault(rng.randrange(1 << 18))
    root = world.kvm.arch.mirror_root
    tables = world.host.machine.tables
    for _ in range(20):
        start = rng.randrange(1 << 18)
        end = min(start + rng.randrange(1, 1 << rng.randrange(1, 18)), 1 << 18)
        min_level = rng.choice((1, 1, 2, 3))
        plain = []
        it = TdpIter(tables, root, min_level, start, 0)
        while it.valid and it.gfn < end:
            if it.old_spte & 1 << 11:
                plain.append((it.gfn, it.level, it.old_spte, it.next_last_level_gfn))
            it.next()
        fast = []
        it = TdpIter(tables, root, min_level, start, 0)
        while it.valid and it.gfn < end:
            if not it.old_spte & 1 << 11:
                it.skip_nonpresent(end)
                continue
            fast.append((it.gfn, it.level, it.old_spte, it.next_last_level_gfn))
            it.next()
        assert fast == plain
