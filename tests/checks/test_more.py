"""`private-unreachable`, `pamt`, `cache`, `locking`, `progress`, `all-or-nothing` by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from septum.abi.kvm import RET_PF_FIXED, RET_PF_RETRY
from septum.abi.sept import FREE_ENTRY
from septum.checks.progress import MAX_REPEATS
from septum.linux.kvm.types import KvmVcpu
from septum.linux.ranges import range_store
from septum.linux.srcu import Srcu
from septum.module.pamt import PT_PAMT
from septum.sim import Mutex, RunStopped, SpinLock, WaitQueue

HKID = 33
MMAP = 1


@pytest.fixture
def world(tiny):
    world = tiny()
    world.map(0, 2)
    world.map(0x200, 2, pending=True)
    return world


def found(world, name):
    world.checker([name]).finish()
    return world.texts()


class TestPrivateUnreachable:
    def test_holds(self, world):
        world.inode.flags = MMAP
        range_store(world.inode.attributes, 0x400, 0x401, 0)
        world.inode.user_mapped.add(0x400)
        assert found(world, "private-unreachable") == []

    def test_a_page_in_host_page_tables(self, world):
        world.inode.user_mapped.add(0x1FF)
        assert "GFN 0x1ff (PFN 0x401ff)" in found(world, "private-unreachable")[0]

    def test_a_pinned_page(self, world):
        world.inode.pins[0x201] = 1
        assert "is pinned for host user space" in found(world, "private-unreachable")[0]

    def test_a_shared_page_that_is_still_mapped(self, world):
        world.inode.flags = MMAP
        range_store(world.inode.attributes, 0x210, 0x220, 0)
        assert "GFN 0x210" in found(world, "private-unreachable")[0]


class TestPamt:
    @pytest.fixture
    def dynamic(self, tiny):
        world = tiny(dynamic_pamt=True)
        world.map(0, 2)
        world.map(0x200, 1)
        counts = world.host.x86_tdx.state.pamt_refcounts
        for leaf in world.module.pamt.entries_2m():
            if leaf.used:
                counts[leaf.hpa >> 21] = leaf.used
        return world

    def test_holds(self, dynamic):
        assert found(dynamic, "pamt") == []

    def test_a_count_too_high(self, dynamic):
        frame = dynamic.pfn_of(0x200) >> 9
        dynamic.host.x86_tdx.state.pamt_refcounts[frame] += 1
        assert (
            "1 of its 4 KB pages is in TDX use, and the kernel counts 2"
            in (found(dynamic, "pamt")[0])
        )

    def test_a_pair_that_leaked(self, dynamic):
        dynamic.module.pamt.entry_2m(dynamic.pfn_of(0x400) << 12).pt = PT_PAMT
        assert "has a pair, 0 of its" in found(dynamic, "pamt")[0]

    def test_a_count_of_nothing(self, dynamic):
        dynamic.host.x86_tdx.state.pamt_refcounts[0x12345] = 3
        assert "which the TDX module never used" in found(dynamic, "pamt")[0]

    def test_in_the_middle_of_a_change_nothing_is_said(self, dynamic):
        dynamic.host.x86_tdx.state.pamt_refcounts[0x12345] = 3
        dynamic.kvm.mmu_lock.read_lock()
        assert found(dynamic, "pamt") == []


class TestCache:
    def test_holds(self, world):
        world.machine.mem.write(world.pfn_of(0x400), 0, 7)
        assert found(world, "cache") == []

    def test_host_lines_over_a_page_of_the_td(self, world):
        world.machine.mem.write(world.pfn_of(0x203), 0, 7)
        (text,) = found(world, "cache")
        assert "PFN 0x40203 is the TD's at GFN 0x203" in text
        assert "with HKID 0" in text

    def test_lines_of_the_td_over_a_free_page(self, world):
        world.module.pamt.entry_2m(world.pfn_of(0x400) << 12)
        world.machine.mem.write(world.pfn_of(0x400), HKID, 7)
        assert "PFN 0x40400 belongs to no TD, and has dirty lines" in found(world, "cache")[0]

    def test_no_reset_on_parts_that_need_it(self, world):
        world.host.params.x86_bug_tdx_pw_mce = True
        world.module.pamt.entry_2m(world.pfn_of(0x400) << 12)
        world.machine.mem.write(world.pfn_of(0x400), HKID, 7)
        world.machine.mem.wbinvd()
        assert "was not reset after HKID 33" in found(world, "cache")[0]


class TestLocking:
    @pytest.fixture
    def locks(self, world):
        sim = world.sim
        return [Mutex(sim, "vm1 a"), SpinLock(sim, "vm1 b"), SpinLock(sim, "vm2 a")]

    def take(self, *locks):
        for lock in locks:
            lock.lock()
        for lock in reversed(locks):
            lock.unlock()

    def test_one_order_holds(self, world, locks):
        checker = world.checker(["locking"])
        self.take(*locks[:2])
        self.take(*locks[:2])
        assert checker.finish() == {"locking": "held"}

    def test_both_orders(self, world, locks):
        a, b, _ = locks
        checker = world.checker(["locking"])
        self.take(a, b)
        b.lock()
        a.sim.current.atomic = 0
        self.take(a)
        b.unlock()
        assert checker.finish() == {"locking": "broken"}
        assert "takes vm# a while it holds vm# b" in world.texts()[0]

    def test_against_the_documented_order(self, world):
        checker = world.checker(["locking"])
        world.kvm.mmu_lock.name = "vm1 mmu_lock"
        world.kvm.slots_lock.name = "vm1 slots_lock"
        world.kvm.mmu_lock.write_lock()
        world.sim.current.atomic = 0
        world.kvm.slots_lock.lock()
        checker.finish()
        assert "vm# mmu_lock inside invalidate_lock vm#.# (documented)" in world.texts()[0]

    def test_who_waits_for_readers_waits_for_what_they_take(self, world, locks):
        a, _, _ = locks
        srcu = Srcu(world.sim, "vm1 srcu")
        checker = world.checker(["locking"])
        with a:
            srcu.synchronize()
        idx = srcu.read_lock()
        with a:
            pass
        srcu.read_unlock(idx)
        assert checker.finish() == {"locking": "broken"}
        assert "takes vm# a while it holds vm# srcu" in world.texts()[0]

    def test_a_try_lock_waits_for_nobody(self, world, locks):
        a, b, _ = locks
        checker = world.checker(["locking"])
        self.take(a, b)
        b.lock()
        assert a.trylock()
        assert checker.finish() == {"locking": "held"}

    def test_sleeping_in_atomic_context_is_told_by_the_primitive(self, world, locks):
        a, b, _ = locks
        checker = world.checker(["locking"])
        self.take(b, a)
        assert checker.finish() == {"locking": "broken"}
        assert "may sleep, in atomic context" in world.texts()[0]

    def test_it_stops_observing(self, world):
        world.checker(["locking"]).finish()
        assert world.sim.lock_observer is None


class TestProgress:
    @pytest.fixture
    def vcpu(self, world):
        vcpu = KvmVcpu(world.kvm, 0, 0, Mutex(world.sim, "mutex"), WaitQueue(world.sim, "wq"))
        vcpu.tdx.exit_gpa = 0x200 << 12
        return vcpu

    def test_faults_that_get_somewhere(self, world, vcpu):
        checker = world.checker(["progress"])
        for i in range(4 * MAX_REPEATS):
            checker.fault_tried(vcpu, 0x200 << 12, RET_PF_FIXED if i % 8 == 0 else RET_PF_RETRY)
        assert checker.finish() == {"progress": "held"}

    def test_an_endless_retry(self, world, vcpu):
        checker = world.checker(["progress"])
        with pytest.raises(RunStopped):
            for _ in range(MAX_REPEATS + 1):
                checker.fault_tried(vcpu, 0x200 << 12, RET_PF_RETRY)
        assert "the fault of GPA 0x200000 is retried for the 65th time" in world.texts()[0]

    def test_an_endless_violation(self, world, vcpu):
        checker = world.checker(["progress"])
        with pytest.raises(RunStopped):
            for _ in range(MAX_REPEATS + 2):
                checker.ept_violation_handled(vcpu)
        assert "the S-EPT has PENDING PFN 0x40200 at 2M" in world.texts()[0]

    def test_a_violation_that_changes_something(self, world, vcpu):
        checker = world.checker(["progress"])
        for i in range(4 * MAX_REPEATS):
            world.set_sept(0x200, 2, world.leaf(world.pfn_of(0x200 * (i % 2))))
            checker.ept_violation_handled(vcpu)
        assert world.texts() == []

    def test_while_somebody_gets_on_patience_is_longer(self, world, vcpu):
        checker = world.checker(["progress"])
        other = world.sim.spawn("other", lambda: None)
        for _ in range(4 * MAX_REPEATS):
            checker.fault_tried(vcpu, 0x200 << 12, RET_PF_RETRY)
        assert world.texts() == []
        other.blocked_on = "what never comes"
        with pytest.raises(RunStopped):
            for _ in range(MAX_REPEATS):
                checker.fault_tried(vcpu, 0x200 << 12, RET_PF_RETRY)

    def test_who_repeats_itself_does_not_get_on(self, world, vcpu):
        checker = world.checker(["progress"])
        another = KvmVcpu(world.kvm, 1, 1, Mutex(world.sim, "mutex"), WaitQueue(world.sim, "wq"))
        another.tdx.exit_gpa = 0x201 << 12

        def stuck(who):
            for _ in range(4 * MAX_REPEATS):
                checker.fault_tried(who, who.tdx.exit_gpa, RET_PF_RETRY)
                world.sim.point("cond_resched")

        world.sim.spawn("vcpu0", lambda: stuck(vcpu), cpu=0)
        world.sim.spawn("vcpu1", lambda: stuck(another), cpu=1)
        with pytest.raises(RunStopped):
            world.sim.run()
        assert "nothing changes" in world.texts()[0]

    def test_an_invalidation_without_end(self, world):
        world.kvm.mmu_invalidate_in_progress = 1
        assert "1 invalidation of" in (text := found(world, "progress")[0])
        assert "was begun and never ended" in text


class TestAllOrNothing:
    @pytest.fixture
    def checker(self, world):
        return world.checker(["all-or-nothing"])

    def end(self, checker, op, ret):
        checker.operation_end(op, ret)
        return checker.finish()["all-or-nothing"]

    def test_success_may_change_things(self, world, checker):
        op = world.begin(checker, "convert", 0x10, 0x20)
        world.set_sept(0, 2, FREE_ENTRY)
        assert self.end(checker, op, 0) == "held"

    def test_failure_may_not_lose_mappings(self, world, checker):
        op = world.begin(checker, "convert", 0x10, 0x20)
        world.set_sept(0, 2, FREE_ENTRY)
        assert self.end(checker, op, -12) == "broken"
        assert (
            "convert [0x10, 0x20) failed (-12), and GFNs [0x0, 0x200) (512 pages) lost"
            in (world.texts()[0])
        )

    @pytest.mark.parametrize(("gfn", "level", "whose"), [(0, 2, "their"), (0x403, 1, "its")])
    def test_it_says_whose_mapping(self, world, checker, gfn, level, whose):
        world.map(0x403, 1, pending=True)
        op = world.begin(checker, "convert", 0x10, 0x410)
        world.set_sept(gfn, level, FREE_ENTRY)
        assert self.end(checker, op, -12) == "broken"
        assert world.texts()[-1].endswith(f"lost {whose} mapping")

    def test_failure_may_split(self, world, checker):
        op = world.begin(checker, "convert", 0x10, 0x20)
        world.split(0)
        assert self.end(checker, op, -12) == "held"

    def test_failure_may_not_change_attributes(self, world, checker):
        op = world.begin(checker, "convert", 0x10, 0x20)
        range_store(world.inode.attributes, 0x10, 0x20, 0)
        assert self.end(checker, op, -12) == "broken"
        assert "changed between private and shared" in world.texts()[0]

    def test_what_another_operation_took_is_its_own(self, world, checker):
        op = world.begin(checker, "convert", 0x10, 0x20)
        other = world.begin(checker, "punch", 0, 0x200)
        world.set_sept(0, 2, FREE_ENTRY)
        checker.operation_end(other, 0)
        assert self.end(checker, op, -12) == "held"

    def test_what_the_contract_lets_it_do_before_it_fails(self, world, checker):
        op = world.begin(checker, "convert", 0, 0x400)
        world.set_sept(0, 2, FREE_ENTRY)
        kept = world.begin(checker, "x", 0x200, 0x400)
        op.kept = kept.spans
        checker.operation_end(kept, 0)
        assert self.end(checker, op, -12) == "held"


def test_hooks_need_the_units(world):
    checker = world.checker([])
    assert not checker.told
    assert isinstance(world.host, SimpleNamespace)
