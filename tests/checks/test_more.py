"""`private-unreachable`, `pamt`, `cache`, `locking`, `all-or-nothing` by hand."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

from septum.abi.sept import FREE_ENTRY
from septum.checks.operation import Aim, vm_spans
from septum.linux.kvm.types import KvmMemorySlot
from septum.linux.ranges import range_store
from septum.linux.srcu import Srcu
from septum.module.pamt import PT_NDA, PT_PAMT, PT_REG
from septum.sim import Mutex, SpinLock

HKID = 33
MMAP = 1


@pytest.fixture
def world(two_frames):
    return two_frames


class TestPrivateUnreachable:
    def test_holds(self, world):
        world.inode.flags = MMAP
        range_store(world.inode.attributes, 0x400, 0x401, 0)
        world.inode.user_mapped.add(0x400)
        assert world.found("private-unreachable") == []

    def test_a_page_in_host_page_tables(self, world):
        world.inode.user_mapped.add(0x1FF)
        assert "GFN 0x1ff (PFN 0x401ff)" in world.found("private-unreachable")[0]

    def test_a_pinned_page(self, world):
        world.inode.pins[0x201] = 1
        assert "is pinned for host user space" in world.found("private-unreachable")[0]

    @pytest.mark.parametrize("reachable", [True, False])
    def test_a_shared_page_of_a_file_that_cannot_be_mapped(self, world, reachable):
        """Nobody faults it in; what a driver has of it is another matter."""
        range_store(world.inode.attributes, 0x10, 0x20, 0)
        if reachable:
            world.inode.pins[0x30] = 1
        texts = [
            text.partition(" is in the S-EPT as ")[2] for text in world.found("private-unreachable")
        ]
        assert texts == ["2M memory and is pinned for host user space"] * reachable

    @pytest.mark.parametrize("last", [True, False])
    def test_only_what_is_mapped_is_told_of(self, world, last):
        """The last page of a leaf, and the one after it."""
        world.unmap(0x200, 2)
        world.inode.user_mapped.add(0x200 - last)
        assert len(world.found("private-unreachable")) == last

    def test_a_leaf_without_a_slot_beside_a_slot_that_is_reachable(self, world):
        """Is what `mapping-in-folio` tells of."""
        world.slot.npages = 0x200
        world.inode.pins[0x201] = 1
        assert world.found("private-unreachable") == []

    def test_a_shared_page_that_is_still_mapped(self, world):
        world.inode.flags = MMAP
        range_store(world.inode.attributes, 0x210, 0x220, 0)
        assert "GFN 0x210" in world.found("private-unreachable")[0]


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
        assert dynamic.found("pamt") == []

    def test_a_count_too_high(self, dynamic):
        frame = dynamic.pfn_of(0x200) >> 9
        dynamic.host.x86_tdx.state.pamt_refcounts[frame] += 1
        assert (
            "1 of its 4 KB pages is in TDX use, and the kernel counts 2"
            in (dynamic.found("pamt")[0])
        )

    @pytest.mark.parametrize("ahead", [True, False])
    def test_a_page_that_is_counted_ahead(self, dynamic, ahead):
        """KVM counts a page that it has not given to the TD yet; one that the TD has is no such."""
        pfn = dynamic.pfn_of(0x200)
        dynamic.host.x86_tdx.state.pamt_refcounts[pfn >> 9] += 1
        dynamic.host.x86_tdx.pages_counted_ahead = lambda: [pfn + ahead]
        assert len(dynamic.found("pamt")) == (not ahead)

    def test_a_count_too_low(self, dynamic):
        frame = dynamic.pfn_of(0x200) >> 9
        dynamic.host.x86_tdx.state.pamt_refcounts[frame] -= 1
        assert (
            "has a pair, 1 of its 4 KB pages is in TDX use, and the kernel counts 0"
            in (dynamic.found("pamt")[0])
        )

    def test_a_pair_that_is_missing(self, dynamic):
        dynamic.module.pamt.entry_2m(dynamic.pfn_of(0x200) << 12).pt = PT_NDA
        assert (
            "has no pair, 1 of its 4 KB pages is in TDX use, and the kernel counts 1"
            in (dynamic.found("pamt")[0])
        )

    def test_a_pair_that_leaked(self, dynamic):
        dynamic.module.pamt.entry_2m(dynamic.pfn_of(0x400) << 12).pt = PT_PAMT
        assert "has a pair, 0 of its" in dynamic.found("pamt")[0]

    def test_a_count_of_nothing(self, dynamic):
        dynamic.host.x86_tdx.state.pamt_refcounts[0x12345] = 3
        assert "which the TDX module never used" in dynamic.found("pamt")[0]

    def test_in_the_middle_of_a_change_nothing_is_said(self, dynamic):
        dynamic.host.x86_tdx.state.pamt_refcounts[0x12345] = 3
        dynamic.kvm.mmu_lock.read_lock()
        assert dynamic.found("pamt") == []


class TestCache:
    def test_holds(self, world):
        world.machine.mem.write(world.pfn_of(0x400), 0, 7)
        assert world.found("cache") == []

    def test_host_lines_over_a_page_of_the_td(self, world):
        world.machine.mem.write(world.pfn_of(0x203), 0, 7)
        (text,) = world.found("cache")
        assert "PFN 0x40203 is the TD's at GFN 0x203" in text
        assert "with HKID 0" in text

    @pytest.mark.parametrize("nr", [1, 512])
    def test_host_lines_over_the_first_page_of_a_leaf(self, world, nr):
        world.machine.mem.fill(world.pfn_of(0), nr, 0, 7)
        assert "PFN 0x40000 is the TD's at GFN 0x0" in world.found("cache")[0]

    @pytest.mark.parametrize("what", ["1 GB of the TD", "the module's own", "PAMT", "free"])
    def test_whose_lines_may_be_in_the_cache(self, world, what):
        pfn, hkid = world.pfn_of(0x400), HKID
        leaf = world.module.pamt.entry_2m(pfn << 12)
        if what == "1 GB of the TD":
            leaf.parent.pt = PT_REG
        elif what == "the module's own":
            hkid = world.module.global_hkid
        elif what == "PAMT":
            leaf.bitmap = 1 << 3
        world.machine.mem.write(pfn + 3, hkid, 7)
        assert len(world.found("cache")) == (what == "free")

    def test_lines_of_the_td_over_a_free_page(self, world):
        world.module.pamt.entry_2m(world.pfn_of(0x400) << 12)
        world.machine.mem.write(world.pfn_of(0x400), HKID, 7)
        assert "PFN 0x40400 belongs to no TD, and has dirty lines" in world.found("cache")[0]

    def test_no_reset_on_parts_that_need_it(self, world):
        world.host.params.x86_bug_tdx_pw_mce = True
        world.module.pamt.entry_2m(world.pfn_of(0x400) << 12)
        world.machine.mem.write(world.pfn_of(0x400), HKID, 7)
        world.machine.mem.wbinvd()
        assert "was not reset after HKID 33" in world.found("cache")[0]


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

    def test_a_cycle_is_told_once(self, world, locks):
        """By who closes it, and by nobody who goes the same way after that."""
        a, b, _ = locks
        a_too, b_too = SpinLock(world.sim, "vm3 a"), SpinLock(world.sim, "vm3 b")
        world.checker(["locking"])
        self.take(a, b)
        b.lock()
        a.sim.current.atomic = 0
        self.take(a)
        b.unlock()
        assert len(world.texts()) == 1
        self.take(a_too, b_too)
        self.take(b_too, a_too)
        assert len(world.texts()) == 1

    @pytest.mark.parametrize("name", ["vm1 lock", "vm1 vcpu0 mutex", "vm1 slots_lock"])
    def test_a_reader_takes_what_updaters_hold(self, world, name):
        """Though no updater has been seen."""
        srcu = Srcu(world.sim, "vm1 srcu")
        world.checker(["locking"])
        idx = srcu.read_lock()
        self.take(Mutex(world.sim, name))
        srcu.read_unlock(idx)
        kind = re.sub(r"\d", "#", name)
        (text,) = world.texts()
        assert text == (
            f"locking: main takes {kind} while it holds vm# srcu, and elsewhere the order is: "
            f"vm# srcu inside {kind} (documented)"
        )

    def test_back_in_user_space_with_a_lock(self, world, locks):
        checker = world.checker(["locking"])
        checker.returned("KVM_RUN")
        assert world.texts() == []
        locks[0].lock()
        checker.returned("KVM_RUN")
        (text,) = world.texts()
        assert text == "locking: main has ended KVM_RUN and still holds vm1 a"

    def test_who_observed_before_goes_on(self, world, locks):
        seen = []
        world.sim.lock_observer = lambda task, lock, op: seen.append(lock.name)
        checker = world.checker(["locking"])
        self.take(*locks[:2])
        assert seen == ["vm1 b"]
        checker.finish()
        self.take(*locks[:2])
        assert seen == ["vm1 b"] * 2

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

    def test_of_a_vm_that_is_gone_meanwhile_nothing_is_said(self, world, checker):
        op = world.begin(checker, "convert", 0x10, 0x20)
        del checker._vms[0]
        world.host.kvms.clear()
        assert self.end(checker, op, -12) == "held"

    def test_of_a_vm_that_is_bugged_nothing_is_said(self, world, checker):
        op = world.begin(checker, "convert", 0x10, 0x20)
        world.set_sept(0, 2, FREE_ENTRY)
        world.kvm.vm_bugged = True
        assert self.end(checker, op, -5) == "held"

    @pytest.mark.parametrize("slot", [1, 2, 0])
    def test_attributes_of_each_slot(self, world, checker, slot):
        """And between slots there are none."""
        world.slot.npages = 0x10
        other = KvmMemorySlot(2, 0x40, 0x10, 4, 0)
        other.gmem_file, other.gmem_pgoff = world.slot.gmem_file, 0x40
        world.kvm.memslots[2] = other
        op = world.begin(checker, "convert", 0, 0x100)
        start = {1: 8, 2: 0x48, 0: 0x20}[slot]
        range_store(world.inode.attributes, start, start + 8, 0)
        assert self.end(checker, op, -12) == ("broken" if slot else "held")
        if slot:
            assert f"[{start:#x}, {start + 8:#x}) (8 pages) changed between" in world.texts()[0]

    def test_each_range_of_an_operation(self, world, checker):
        spans = vm_spans(world.kvm, [(0x700, 0x701), (0x210, 0x220)])
        op = checker.operation_begin("convert", spans, Aim.TO_SHARED)
        world.unmap(0x200, 2)
        assert self.end(checker, op, -12) == "broken"

    @pytest.mark.parametrize("when", ["before", "after"])
    @pytest.mark.parametrize("nr", [0, 1, 2])
    def test_each_of_those_that_go_on_at_the_same_time(self, world, checker, when, nr):
        ranges = [(0x400 * i, 0x400 * i + 0x200) for i in (1, 2, 3)]
        ranges[nr] = (0, 0x200)
        if when == "after":
            op = world.begin(checker, "convert", 0x10, 0x20)
        for start, end in ranges:
            world.begin(checker, "punch", start, end)
        if when == "before":
            op = world.begin(checker, "convert", 0x10, 0x20)
        world.set_sept(0, 2, FREE_ENTRY)
        assert self.end(checker, op, -12) == "held"

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
