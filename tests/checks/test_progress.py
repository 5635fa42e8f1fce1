"""`progress` by hand: who repeats what changes nothing, for how long, and who gets on meanwhile."""

from __future__ import annotations

import pytest

from septum.abi.kvm import RET_PF_FIXED, RET_PF_RETRY
from septum.checks import progress
from septum.checks.operation import Aim
from septum.checks.progress import MAX_REPEATS
from septum.linux.kvm.types import KvmVcpu
from septum.sim import Mutex, RunStopped, WaitQueue


@pytest.fixture
def world(two_frames):
    return two_frames


def met(world):
    """A checker that has begun, and knows the VM."""
    checker = world.checker(["progress"])
    checker.look_now("met")
    return checker


class TestProgress:
    @pytest.fixture
    def vcpu(self, world):
        vcpu = KvmVcpu(world.kvm, 0, 0, Mutex(world.sim, "mutex"), WaitQueue(world.sim, "wq"))
        vcpu.tdx.exit_gpa = 0x200 << 12
        return vcpu

    def test_faults_that_get_somewhere(self, world, vcpu):
        checker = met(world)
        for i in range(4 * MAX_REPEATS):
            checker.fault_tried(vcpu, 0x200 << 12, RET_PF_FIXED if i % 8 == 0 else RET_PF_RETRY)
        assert checker.finish() == {"progress": "held"}

    def test_an_endless_retry(self, world, vcpu):
        checker = met(world)
        with pytest.raises(RunStopped):
            for _ in range(MAX_REPEATS + 1):
                checker.fault_tried(vcpu, 0x200 << 12, RET_PF_RETRY)
        assert "the fault of GPA 0x200000 is retried for the 65th time" in world.texts()[0]

    def test_an_endless_violation(self, world, vcpu):
        checker = met(world)
        with pytest.raises(RunStopped):
            for _ in range(MAX_REPEATS + 2):
                checker.ept_violation_handled(vcpu)
        assert "the S-EPT has PENDING PFN 0x40200 at 2M" in world.texts()[0]

    def test_a_violation_that_changes_something(self, world, vcpu):
        checker = met(world)
        for i in range(4 * MAX_REPEATS):
            world.set_sept(0x200, 2, world.leaf(world.pfn_of(0x200 * (i % 2))))
            checker.ept_violation_handled(vcpu)
        assert world.texts() == []

    def test_while_somebody_gets_on_patience_is_longer(self, world, vcpu):
        checker = met(world)
        other = world.sim.spawn("other", lambda: None)
        for _ in range(4 * MAX_REPEATS):
            checker.fault_tried(vcpu, 0x200 << 12, RET_PF_RETRY)
        assert world.texts() == []
        other.blocked_on = "what never comes"
        with pytest.raises(RunStopped):
            for _ in range(MAX_REPEATS):
                checker.fault_tried(vcpu, 0x200 << 12, RET_PF_RETRY)

    def test_patience_has_an_end(self, world, vcpu, monkeypatch):
        """Though another task can run, and for all that is known gets on."""
        monkeypatch.setattr(progress, "MAX_REPEATS_UNDER_CHANGE", 3 * MAX_REPEATS)
        checker = met(world)
        world.sim.spawn("other", lambda: None)
        with pytest.raises(RunStopped):
            for _ in range(4 * MAX_REPEATS):
                checker.fault_tried(vcpu, 0x200 << 12, RET_PF_RETRY)
        assert " is retried for the 193rd time" in world.texts()[0]

    def test_who_repeats_itself_does_not_get_on(self, world, vcpu):
        checker = met(world)
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

    @pytest.mark.parametrize("but", ["a lock is held", "an operation takes"])
    def test_an_invalidation_that_goes_on(self, world, but):
        checker = met(world)
        if but == "a lock is held":
            world.kvm.slots_lock.lock()
        else:
            world.begin(checker, "hole", 0, 0x200, Aim.TAKE)
        world.kvm.mmu_invalidate_in_progress = 1
        checker.look_now("now")
        assert world.texts() == []

    def test_what_changes_counts_afresh(self, world, vcpu):
        checker = met(world)
        for _ in range(MAX_REPEATS - 1):
            checker.fault_tried(vcpu, 0x200 << 12, RET_PF_RETRY)
        world.set_sept(0x200, 2, world.leaf(world.pfn_of(0x600)))
        with pytest.raises(RunStopped):
            for _ in range(MAX_REPEATS + 1):
                checker.fault_tried(vcpu, 0x200 << 12, RET_PF_RETRY)
        assert " for the 65th time" in world.texts()[0]

    def test_shared_memory_is_not_in_the_sept(self, world, vcpu):
        """What is private at the same GFN may come and go: that is no change."""
        world.kvm.arch.gfn_direct_bits = 1 << 35
        gpa = (1 << 35 | 0x200) << 12
        checker = met(world)
        with pytest.raises(RunStopped):
            for i in range(MAX_REPEATS + 1):
                world.set_sept(0x200, 2, world.leaf(world.pfn_of(0x200 * (i % 2))))
                checker.fault_tried(vcpu, gpa, RET_PF_RETRY)
        assert world.texts()[0].endswith("for the 65th time, and nothing changes")

    @pytest.mark.parametrize("key", ["released", "never there"])
    def test_without_a_key_nothing_is_in_the_sept(self, world, vcpu, key):
        if key == "released":
            world.td.lifecycle = 2
        else:
            world.module.tds.clear()
        checker = met(world)
        with pytest.raises(RunStopped):
            for _ in range(MAX_REPEATS + 1):
                checker.fault_tried(vcpu, 0x200 << 12, RET_PF_RETRY)
        assert world.texts()[0].endswith("for the 65th time, and nothing changes")

    def test_what_the_guest_retires_is_a_change(self, world, vcpu):
        entered = world.enter(0)
        vcpu.tdx.tdvpr_page = entered.tdvpr_pfn
        checker = met(world)
        for _ in range(4 * MAX_REPEATS):
            entered.nr_retired += 1
            checker.ept_violation_handled(vcpu)
        assert world.texts() == []

    @pytest.mark.parametrize("alone", ["in a task", "beside a daemon"])
    def test_who_does_not_count_as_another(self, world, vcpu, alone):
        """The task itself, and daemons."""
        checker = met(world)

        def retries():
            for _ in range(MAX_REPEATS + 1):
                checker.fault_tried(vcpu, 0x200 << 12, RET_PF_RETRY)

        if alone == "beside a daemon":
            world.sim.spawn("kworker", lambda: None, daemon=True)
            with pytest.raises(RunStopped):
                retries()
        else:
            world.sim.spawn("vcpu0", retries)
            with pytest.raises(RunStopped):
                world.sim.run()
        assert " for the 65th time" in world.texts()[0]

    @pytest.mark.parametrize("nr", [1, MAX_REPEATS, MAX_REPEATS + 2])
    @pytest.mark.parametrize("change", ["", "its violation", "the S-EPT"])
    def test_who_may_still_get_on(self, world, vcpu, nr, change):
        """Another vCPU that has not repeated itself so often, or that finds something new."""
        checker = met(world)
        another = KvmVcpu(world.kvm, 1, 1, Mutex(world.sim, "mutex"), WaitQueue(world.sim, "wq"))
        texts = []

        def first():
            for _ in range(nr):
                checker.fault_tried(another, 0, RET_PF_RETRY)
            if change == "its violation":
                another.tdx.ext_exit_qual += 1
            elif change == "the S-EPT":
                world.set_sept(0, 2, world.leaf(world.pfn_of(0x600)))
            world.sim.point("cond_resched")

        def second():
            for _ in range(MAX_REPEATS + 1):
                checker.fault_tried(vcpu, 0x200 << 12, RET_PF_RETRY)
            texts.append(world.texts())

        world.sim.spawn("vcpu1", first, cpu=1)
        world.sim.spawn("vcpu0", second, cpu=0)
        if nr > MAX_REPEATS and not change:
            with pytest.raises(RunStopped):
                world.sim.run()
        else:
            world.sim.run()
            assert texts == [[]]

    def test_an_invalidation_without_end(self, world):
        world.kvm.mmu_invalidate_in_progress = 1
        assert "1 invalidation of" in (text := world.found("progress")[0])
        assert "was begun and never ended" in text
