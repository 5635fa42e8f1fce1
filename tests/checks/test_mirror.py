"""`mirror`: every way in which KVM's mirror and the S-EPT can disagree is seen, and no other."""

from __future__ import annotations

import pytest

from septum.abi.kvm import KVM_LPAGE_GUEST_INHIBIT_FLAG
from septum.abi.sept import FREE_ENTRY
from septum.abi.spte import FROZEN_SPTE, SHADOW_NONPRESENT_VALUE, make_spte
from septum.linux.kvm.types import KvmMmuPage


@pytest.fixture
def world(tiny):
    """2 MB at GFN 0 and 0x200, 4 KB at 0x400..0x403, one of them pending."""
    world = tiny()
    world.map(0, 2)
    world.map(0x200, 2)
    for gfn in range(0x400, 0x404):
        world.map(gfn, 1, pending=gfn == 0x403)
    return world


def found(world):
    checker = world.checker(["mirror"])
    checker.quiet_point("test")
    result = checker.finish()["mirror"]
    assert (result == "broken") == bool(world.sim.findings)
    return world.texts()


def test_an_honest_world_holds(world):
    world.split(0)
    world.unmap(5, 1)
    assert found(world) == []


@pytest.mark.parametrize(
    ("level", "gfn", "entry"),
    [
        (2, 0x200, "free"),
        (1, 0x401, "free"),
        (2, 0x200, "other"),
        (1, 0x402, "other"),
        (1, 0x402, "blocked"),
        (2, 0x200, "blocked"),
    ],
)
def test_the_sept_differs(world, level, gfn, entry):
    value = {
        "free": FREE_ENTRY,
        "other": world.leaf(world.pfn_of(gfn) + 0x200),
        "blocked": world.leaf(world.pfn_of(gfn), blocked=True),
    }[entry]
    world.set_sept(gfn, level, value)
    (text,) = found(world)
    assert f"GFN {gfn:#x}" in text


@pytest.mark.parametrize(("level", "gfn"), [(2, 0x200), (1, 0x402)])
def test_the_mirror_forgot_a_leaf(world, level, gfn):
    world.set_mirror(gfn, level, SHADOW_NONPRESENT_VALUE)
    size = {1: "4K", 2: "2M"}[level]
    assert f"GFN {gfn:#x} at {size}: the mirror has not present (" in found(world)[0]


def test_the_mirror_is_split_and_the_sept_is_not(world):
    before = world.leaf(world.pfn_of(0))
    world.split(0)
    world.set_sept(0, 2, before)
    (text,) = found(world)
    assert "at 2M" in text
    assert "a table" in text


def test_one_wrong_pfn_in_a_split_page(world):
    world.split(0)
    world.set_sept(7, 1, world.leaf(world.pfn_of(9)))
    (text,) = found(world)
    assert "GFN 0x7 at 4K" in text


def test_a_frozen_entry_is_in_transition(world):
    world.set_mirror(0x402, 1, FROZEN_SPTE)
    checker = world.checker(["mirror"])
    world.kvm.mmu_lock.read_lock()
    checker.quiet_point("test")
    assert world.texts() == []
    world.kvm.mmu_lock.read_unlock()
    checker.quiet_point("test")
    assert "frozen" in world.texts()[0]
    assert "nobody holds mmu_lock" in world.texts()[0]


@pytest.mark.parametrize("nr_mapped", [0, 1, 4])
def test_a_frozen_entry_of_what_is_free(tiny, nr_mapped):
    """Whatever else is in the table."""
    world = tiny()
    for gfn in range(nr_mapped):
        world.map(gfn, 1)
    world.set_mirror(5, 1, FROZEN_SPTE)
    checker = world.checker(["mirror"])
    world.kvm.mmu_lock.read_lock()
    checker.look_now("test")
    assert world.texts() == []
    world.kvm.mmu_lock.read_unlock()
    checker.look_now("test")
    (text,) = world.texts()
    assert "GFN 0x5 at 4K: the mirror has frozen" in text
    assert text.endswith("the S-EPT has FREE (0x80e0000000000000), and nobody holds mmu_lock")


@pytest.mark.parametrize("seen", ["at all", "in a window"])
def test_a_step_looks_at_what_was_frozen_before(tiny, seen):
    """What ends a freeze is looked at, though the table did not agree when it was looked at last:
    another frame than the S-EPT has is seen at once."""
    world = tiny()
    world.map(5, 1)
    checker = world.checker(["mirror"])
    checker.mode = "every-step"
    checker.look_now("before")
    world.kvm.mmu_lock.read_lock()
    world.set_mirror(5, 1, FROZEN_SPTE)
    if seen == "at all":
        checker.look_now("frozen")
    else:
        world.quiet(checker, 5, 6)
    world.set_mirror(5, 1, make_spte(world.pfn_of(6), 1, False, True))
    checker._step("after")
    (text,) = world.texts()
    assert "GFN 0x5 at 4K: the mirror has a leaf, PFN 0x40006" in text


def test_the_entry_that_a_writer_changes_may_differ_and_no_other(world):
    world.set_mirror(0x402, 1, SHADOW_NONPRESENT_VALUE)
    checker = world.checker(["mirror"])
    world.kvm.mmu_lock.write_lock()
    checker.entry_changes(world.kvm, 0x402, 1)
    checker.quiet_point("test")
    assert world.texts() == []
    world.set_mirror(0x401, 1, SHADOW_NONPRESENT_VALUE)
    checker.quiet_point("test")
    (text,) = world.texts()
    assert "GFN 0x401" in text
    checker.entry_changed(world.kvm, 0x402, 1)
    checker.quiet_point("test")
    assert len(world.texts()) == 2


@pytest.mark.parametrize(
    ("changing", "differs", "covered"),
    [
        *(((0x200, 2), (0x200, 2), True), ((0x200, 1), (0x200, 2), False)),
        *(((0x401, 1), (0x402, 1), False), ((0x401, 1), (0x401, 1), True)),
        *(((0x400, 2), (0x403, 1), True), ((0x200, 2), (0x400, 1), False)),
    ],
)
def test_what_a_writer_changes_is_its_entry_and_what_is_below(world, changing, differs, covered):
    world.set_mirror(*differs, SHADOW_NONPRESENT_VALUE)
    checker = world.checker(["mirror"])
    world.kvm.mmu_lock.write_lock()
    checker.entry_changes(world.kvm, *changing)
    checker.look_now("test")
    assert len(world.texts()) == (not covered)


def test_the_wrong_sept_page(world):
    for sp in world.host.page_private.values():
        if sp.level == 1:
            sp.external_spt += 1
    assert "KVM believes the S-EPT page is" in found(world)[0]


def test_statistics_count_leaves(world):
    world.kvm.stat.add("pages_2m")
    assert "statistics say" in found(world)[0]


def test_a_2m_leaf_under_the_inhibit_flag(world):
    world.slot.lpage_info[0][1] = KVM_LPAGE_GUEST_INHIBIT_FLAG
    assert "guest-inhibit" in found(world)[0]


def test_the_inhibit_flag_of_the_next_2m_forbids_nothing(world):
    world.slot.lpage_info[0][2] = KVM_LPAGE_GUEST_INHIBIT_FLAG
    assert found(world) == []


def test_a_bugged_vm_may_differ(world):
    world.set_sept(0x401, 1, FREE_ENTRY)
    world.kvm.vm_bugged = True
    assert found(world) == []


@pytest.mark.parametrize("what", ["no TD", "no S-EPT"])
def test_without_a_sept_there_is_nothing_to_agree_with(world, what):
    if what == "no TD":
        world.module.tds.clear()
    else:
        world.td.root = None
    assert found(world) == []


def test_no_mirror_root_above_leaves(world):
    world.kvm.arch.tdp_mmu_roots.clear()
    (text,) = found(world)
    assert text.endswith("there is no mirror root, and the S-EPT maps GFN 0x0 at 2M to PFN 0x40000")


def test_no_mirror_root_and_no_leaf(tiny):
    world = tiny()
    world.kvm.arch.tdp_mmu_roots.clear()
    assert found(world) == []


def test_roots_of_unlike_levels(world):
    world.kvm.arch.tdp_mmu_roots[0].level = 5
    assert found(world) == ["mirror: vm0: the mirror has 5 levels, and the S-EPT has 4"]


def test_statistics_count_leaves_of_the_other_root_too(world):
    """Shared memory has a root of its own."""
    spt = world.machine.alloc_table(world._page(), SHADOW_NONPRESENT_VALUE)
    spt.set_entry(3, make_spte(0x90000, 3, False, True))
    world.kvm.arch.tdp_mmu_roots.append(KvmMmuPage(spt, 3, 0, False))
    world.kvm.stat.add("pages_1g")
    assert found(world) == []
    spt.set_entry(4, make_spte(0xD0000, 3, False, True))
    (text,) = found(world)
    assert text.endswith("its page tables have pages_4k 4, pages_2m 2, pages_1g 2")


def test_a_leaf_after_the_key_is_gone(world):
    world.td.lifecycle = 2
    assert "HKID is released" in found(world)[0]


def test_16_gib_in_4k_pages_are_quick(tiny, nr_lines):
    world = tiny(16 << 18)
    for gfn in range(0, 16 << 18, 512):
        world.map(gfn, 1)
        sept, spt, _ = world.tables_for(gfn, 1)
        sept.fill(world.leaf(world.pfn_of(gfn)), 4096)
        spt.fill(make_spte(world.pfn_of(gfn), 1, False, True), 4096)
        if gfn % 1024:
            sept._expand()
            spt._expand()
    world.kvm.stat.values["pages_4k"] = 16 << 18
    checker = world.checker(["mirror"])
    nr = nr_lines(checker.finish)
    assert world.texts() == []
    # One look at each entry would be more than one line a page.
    assert nr / (16 << 18) < 0.6, nr
