"""What a promise sees of a VM, when it looks, and what it says then: each answer by itself."""

from __future__ import annotations

import re
from copy import copy

import pytest

from septum.abi.sept import FREE_ENTRY
from septum.checks import PROMISES, consequence
from septum.checks.pace import (
    FRAME,
    NEAR,
    OPERATIONS_PER_THOROUGH_LOOK,
    STEPS_PER_ACTIVE_LOOK,
    VIOLATIONS_PER_WIDE_LOOK,
    Pace,
)
from septum.checks.view import VmView
from septum.linux.ranges import range_store
from septum.module.state import TD_KEYS_CONFIGURED


@pytest.fixture
def vm(tiny):
    world = tiny()
    world.map(0, 2)
    world.map(0x200, 2)
    return VmView(world, world.kvm, None)


def test_its_td_is_its_own(vm):
    """A TD that another VM has made of the page is not, once KVM has given the page up."""
    world = vm.world
    assert vm.td is world.td
    world.module.tds[world.td_pfn] = other = copy(world.td)
    assert vm.td is other  # KVM says that the page is the VM's
    world.kvm.tdx.tdr_page = None
    vm.refresh()
    assert vm.td is None and not vm.has_key() and vm.runs() == []
    world.module.tds[world.td_pfn] = world.td
    assert vm.td is world.td
    del world.module.tds[world.td_pfn]
    assert vm.td is None


@pytest.mark.parametrize("lifecycle", [TD_KEYS_CONFIGURED, TD_KEYS_CONFIGURED + 1])
def test_without_a_key_the_sept_means_nothing(vm, lifecycle):
    vm.world.td.lifecycle = lifecycle
    keyed = lifecycle == TD_KEYS_CONFIGURED
    assert vm.has_key() == keyed and bool(vm.runs()) == keyed
    vm.begin_look(0, 0x200)
    assert vm.has_key() == keyed and bool(vm.runs(0, 0x200)) == keyed
    vm.end_look()
    vm.changed()
    assert vm.keyed == keyed


def test_what_was_read_for_a_look_is_read_once(vm):
    """In the window of the look; elsewhere, and after it, as it is then."""
    vm.begin_look(0, 0x200)
    vm.world.set_sept(0, 2, FREE_ENTRY)
    vm.world.set_sept(0x200, 2, FREE_ENTRY)
    assert len(vm.runs(0, 0x200)) == 1 and vm.runs(0x200, 0x400) == []
    vm.end_look()
    assert vm.runs(0, 0x200) == []


def test_slots_begin_and_end(vm):
    vm.world.slot.base_gfn, vm.world.slot.npages = 0x10, 0x20
    at = [gfn for gfn in range(0x40) if vm.slot_at(gfn) is not None]
    assert at == list(range(0x10, 0x30))


@pytest.mark.parametrize("whose", ["the VM's", "the file's", "no file"])
def test_whose_attributes_count(vm, whose):
    """Those of the file by its own indexes."""
    world, slot = vm.world, vm.world.slot
    slot.base_gfn, slot.gmem_pgoff = 0x1000, 0x100
    world.host.params.vm_memory_attributes = whose == "the VM's"
    range_store(world.kvm.mem_attr_array, 0x1000, 0x1010, 8)
    world.inode.attributes.clear()
    range_store(world.inode.attributes, 0x100, 0x120, 8)
    if whose == "no file":
        slot.gmem_file = None
    assert vm.attributes(slot, 0x1004) == (8, 0x1020 if whose == "the file's" else 0x1010)


@pytest.mark.parametrize("name", PROMISES)
def test_what_comes_of_each_kind_of_finding(name):
    """By how its text begins; of any other, what comes of the promise in general."""
    promise = PROMISES[name]
    general = consequence(promise)
    for beginning, words in promise.consequences.items():
        for kind in beginning.split("|"):
            text = re.sub(r"(\.|\\[dw])[*+]", "1", kind) + " and so on"
            assert consequence(promise, text) == words, text
    assert consequence(promise, "anything else") == general
    assert general not in promise.consequences.values()


def test_full_looks_are_as_rare_as_they_cost():
    pace = Pace()
    assert pace.is_time_for_all()
    pace.spend()
    pace.looked_at_all(8)  # 8 * 8 // 16 quiet points
    for _ in range(4):
        assert not pace.is_time_for_all()
        pace.earn()
    assert pace.is_time_for_all()
    pace.spend()
    assert not pace.is_time_for_all()


def test_every_so_often_a_look_is_wider():
    pace = Pace()
    wide = [pace.operation_is_wide() for _ in range(2 * OPERATIONS_PER_THOROUGH_LOOK)]
    assert [at + 1 for at, is_wide in enumerate(wide) if is_wide] == [
        OPERATIONS_PER_THOROUGH_LOOK,
        2 * OPERATIONS_PER_THOROUGH_LOOK,
    ]
    active = [pace.step_is_active() for _ in range(2 * STEPS_PER_ACTIVE_LOOK)]
    assert sum(active) == 2 and active[STEPS_PER_ACTIVE_LOOK - 1]
    around = [pace.around_violation() for _ in range(2 * VIOLATIONS_PER_WIDE_LOOK)]
    assert around.count(FRAME) == 2 and around.count(NEAR) == len(around) - 2


def test_what_is_looked_at_rarely():
    pace = Pace(rarely=4)
    around = [pace.around_violation() for _ in range(2 * VIOLATIONS_PER_WIDE_LOOK)]
    assert around.count(0) == len(around) * 3 // 4 and around.count(FRAME) == 2
    pace.looked_at_all(2)
    pace.spend()
    assert not pace.is_time_for_all()
    pace.earn()
    assert pace.is_time_for_all()
