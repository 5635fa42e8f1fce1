"""`precise-zap` and `accept-once`: what is lost is told from what user space asked to take."""

from __future__ import annotations

from dataclasses import replace

import pytest

from septum.abi.kvm import KVM_MEMORY_ATTRIBUTE_PRIVATE
from septum.abi.sept import FREE_ENTRY
from septum.checks.operation import Aim, vm_spans
from septum.designs.registry import Design, designs
from septum.linux.host import v3_units
from septum.linux.kvm.guest_memfd import GuestMemfd
from septum.linux.kvm.mmu import KvmMmu
from septum.linux.kvm.types import KVM_FILTER_PRIVATE, KVM_FILTER_SHARED
from septum.scenarios.reader import read_scenario
from septum.scenarios.run import run_scenario

TO_PRIVATE = [Aim.TO_PRIVATE, Aim.TO_PRIVATE_AFRESH]


@pytest.fixture
def world(tiny):
    """Three accepted 2 MB pages and, at 0x600, a pending one."""
    world = tiny()
    for gfn in (0, 0x200, 0x400):
        world.map(gfn, 2)
        world.memory.write(gfn << 12, 512, 0)
    world.map(0x600, 2, pending=True)
    return world


@pytest.fixture
def checker(world):
    checker = world.checker(["precise-zap", "accept-once"])
    checker.quiet_point("start")
    return checker


def convert(world, checker, start, end, change, aim=Aim.TO_SHARED, ret=0):
    """User space asks for [start, end), and `change` is what the kernel does."""
    op = world.begin(checker, "convert", start, end, aim)
    change()
    checker.operation_end(op, ret)


def test_a_precise_conversion_holds(world, checker):
    def change():
        world.split(0)
        for gfn in range(0x10, 0x20):
            world.unmap(gfn, 1)
            world.memory.forget(gfn << 12, 1)

    convert(world, checker, 0x10, 0x20, change)
    assert checker.finish() == {"precise-zap": "held", "accept-once": "held"}


def test_the_zap_of_a_whole_2m_leaf_for_a_few_pages(world, checker):
    convert(world, checker, 0x10, 0x20, lambda: world.unmap(0, 2))
    texts = world.texts()
    assert "precise-zap: vm0: GFNs [0x0, 0x10) (16 pages) lost the guest's ACCEPT" in texts[0]
    assert "GFNs [0x20, 0x200) (480 pages)" in texts[1]
    assert checker.finish()["accept-once"] == "held"


def test_what_was_zapped_beside_comes_back_pending(world, checker):
    convert(world, checker, 0x10, 0x20, lambda: world.unmap(0, 2))
    world.map(0, 2, pending=True)
    results = checker.finish()
    assert results == {"precise-zap": "broken", "accept-once": "broken"}
    assert "accept-once: vm0: GFNs [0x0, 0x10)" in world.texts()[-2]


@pytest.mark.parametrize("aim", TO_PRIVATE)
def test_a_conversion_to_private_may_take_nothing(world, checker, aim):
    convert(world, checker, 0x200, 0x400, lambda: world.unmap(0x200, 2), aim)
    (text,) = world.texts()
    assert "nobody asked to take it (asked last: convert [0x200, 0x400) to private)" in text


def take(world, checker, aim=Aim.TO_SHARED, ret=0):
    """User space takes the frame at 0x200, which is zapped."""

    def change():
        world.unmap(0x200, 2)
        world.memory.forget(0x200 << 12, 512)

    convert(world, checker, 0x200, 0x400, change, aim, ret)
    assert world.texts() == []


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("had", [(), [(0, 0x200)]])
def test_a_slot_may_be_bound_while_its_memory_is_taken(world, checker, had, told):
    """Who asked for a hole in a guest_memfd asked for the GFNs of the slot, too, that it is bound
    to meanwhile."""
    bound = [*had]

    def named():
        return vm_spans(world.kvm, bound) if bound else {}

    op = checker.operation_begin("hole", named(), Aim.TAKE, named)
    bound.append((0x200, 0x400))
    if told:
        checker.slot_bound()
    world.unmap(0x200, 2)
    world.memory.forget(0x200 << 12, 512)
    checker.operation_end(op, 0)
    checker.finish()
    assert world.texts() == [] if told else world.texts()[0].startswith("precise-zap: ")


@pytest.mark.parametrize("had", [(), [(0, 0x200)]])
@pytest.mark.parametrize("look", ["in a window", "at all"])
def test_looks_while_memory_that_was_bound_meanwhile_is_taken(world, checker, had, look):
    """Nobody is told of what was asked for, then or when it is pending again after that."""
    bound = [*had]

    def named():
        return vm_spans(world.kvm, bound) if bound else {}

    def looks():
        if look == "at all":
            checker.look_now("all")
        else:
            world.quiet(checker, 0x200, 0x400)

    op = checker.operation_begin("hole", named(), Aim.TAKE, named)
    bound.append((0x200, 0x400))
    checker.slot_bound()
    checker.slot_bound()  # by another slot, which names nothing more
    world.unmap(0x200, 2)
    looks()
    checker.operation_end(op, 0)
    world.map(0x200, 2, pending=True)
    looks()
    assert world.texts() == []
    world.unmap(0x200, 2)
    looks()
    assert len(world.texts()) == 1


@pytest.mark.parametrize("first", [0, 1])
def test_each_of_two_operations_under_way_may_take_what_it_asked_for(world, checker, first):
    """Also when the other has ended, and been looked at."""
    ops = [world.begin(checker, name, *at) for name, at in (("a", (0, 512)), ("b", (512, 1024)))]
    checker.operation_end(ops.pop(first), 0)
    checker.look_now("after the first")
    world.unmap(0 if first else 0x200, 2)
    checker.look_now("in the second")
    checker.operation_end(ops[0], 0)
    assert world.texts() == []
    world.unmap(0x400, 2)
    checker.look_now("after both")
    assert f"(asked last: {ops[0]})" in world.texts()[0]


@pytest.mark.parametrize("aim", [Aim.TAKE, Aim.TO_PRIVATE])
def test_it_says_what_is_asked_for_meanwhile(world, checker, aim):
    world.unmap(0x600, 2)
    world.begin(checker, "convert", 0x200, 0x210, aim)
    checker.look_now("meanwhile")
    private = " to private" * (aim is Aim.TO_PRIVATE)
    assert f"(asked: convert [0x200, 0x210){private})" in world.texts()[0]


@pytest.mark.parametrize("after", ["once", "for good"])
def test_what_an_operation_took_was_taken_once(world, checker, after):
    """A look at it has seen what it took: what goes later was not asked for."""
    convert(world, checker, 0x200, 0x400, lambda: None)
    world.quiet(checker, 0x200, 0x400)
    if after == "for good":
        world.unmap(0x200, 2)
        world.quiet(checker, 0x200, 0x400)
    assert len(world.texts()) == (after == "for good")


def map_pending(world, checker):
    """A fault maps it again."""
    world.map(0x200, 2, pending=True)
    world.quiet(checker, 0, 0x800)


def test_what_was_mapped_while_shared_may_go_when_it_becomes_private(world, checker):
    """A fault was late (F6): no guest has anything there, and `mapping-in-folio` tells of it. The
    conversion to private names it."""
    take(world, checker)
    map_pending(world, checker)
    convert(world, checker, 0x200, 0x400, lambda: world.unmap(0x200, 2), Aim.TO_PRIVATE_AFRESH)
    assert checker.finish() == {"precise-zap": "held", "accept-once": "held"}


def test_looks_at_a_conversion_to_private_half_way_say_the_same(world, checker):
    take(world, checker)
    map_pending(world, checker)
    op = world.begin(checker, "convert", 0x200, 0x400, Aim.TO_PRIVATE_AFRESH)
    world.unmap(0x200, 2)
    world.quiet(checker, 0x200, 0x400)  # in a window
    checker.look_now("all")
    checker.operation_end(op, 0)
    assert world.texts() == []


@pytest.mark.parametrize(
    ("gfn", "lost"), [(0x600, r"(pending) mapping"), (0x400, "the guest's ACCEPT")]
)
def test_a_conversion_to_private_may_take_nothing_beside_either(world, checker, gfn, lost):
    """A host that zaps too much, while it gives back what user space had taken."""
    take(world, checker)
    convert(world, checker, 0x200, 0x400, lambda: world.unmap(gfn, 2), Aim.TO_PRIVATE_AFRESH)
    (text,) = world.texts()
    assert lost in text
    assert "(asked last: convert [0x200, 0x400) to private)" in text


def test_what_the_guest_accepted_while_shared_is_a_loss(world, checker):
    """It was told that it has the page, so that its conversion takes something away."""
    take(world, checker)
    world.map(0x200, 2)
    world.quiet(checker, 0x200, 0x400)
    convert(world, checker, 0x200, 0x400, lambda: world.unmap(0x200, 2), Aim.TO_PRIVATE_AFRESH)
    (text,) = world.texts()
    assert "lost the guest's ACCEPT" in text


def test_a_later_zap_of_what_was_given_back_counts(world, checker):
    """Only the conversion to private may take it: what is mapped afterwards stays."""
    take(world, checker)
    convert(world, checker, 0x200, 0x400, lambda: None, Aim.TO_PRIVATE_AFRESH)
    world.map(0x200, 2, pending=True)
    world.quiet(checker, 0x200, 0x400)
    convert(world, checker, 0x400, 0x410, lambda: world.unmap(0x200, 2))
    (text,) = world.texts()
    assert "(pending) mapping" in text


@pytest.mark.parametrize(
    ("taken", "ret", "given"),
    [
        (Aim.TO_SHARED, 0, Aim.TO_PRIVATE),
        *((Aim.TO_SHARED, -12, aim) for aim in TO_PRIVATE),
        *((Aim.TAKE, 0, aim) for aim in TO_PRIVATE),
    ],
)
def test_only_what_became_shared_may_go_and_by_one_ioctl_only(world, checker, taken, ret, given):
    """KVM_SET_MEMORY_ATTRIBUTES unmaps what is shared alone; and what is mapped after a hole, or
    after a conversion that failed, is the guest's: it is private, whoever makes it private."""
    take(world, checker, taken, ret)
    map_pending(world, checker)
    convert(world, checker, 0x200, 0x400, lambda: world.unmap(0x200, 2), given)
    (text,) = world.texts()
    assert "[0x200, 0x400) (512 pages) lost the (pending) mapping" in text
    assert "(asked last: convert [0x200, 0x400) to private)" in text


def test_what_a_conversion_to_private_left_when_it_failed_may_go_with_the_next(world, checker):
    take(world, checker)
    convert(world, checker, 0x200, 0x400, lambda: None, Aim.TO_PRIVATE_AFRESH, -11)
    map_pending(world, checker)
    convert(world, checker, 0x200, 0x400, lambda: world.unmap(0x200, 2), Aim.TO_PRIVATE_AFRESH)
    assert world.texts() == []


def test_a_conversion_to_shared_may_come_after_one_to_private_that_began_later(world, checker):
    op = world.begin(checker, "convert", 0x200, 0x400, Aim.TO_SHARED)
    convert(world, checker, 0x200, 0x400, lambda: None, Aim.TO_PRIVATE_AFRESH)
    world.unmap(0x200, 2)
    checker.operation_end(op, 0)
    map_pending(world, checker)
    convert(world, checker, 0x200, 0x400, lambda: world.unmap(0x200, 2), Aim.TO_PRIVATE_AFRESH)
    assert world.texts() == []


def test_a_pending_mapping_may_not_go_either(world, checker):
    convert(world, checker, 0x400, 0x410, lambda: world.unmap(0x600, 2))
    (text,) = world.texts()
    assert "(pending) mapping" in text


def test_a_page_flips_to_pending_in_place(world, checker):
    world.set_sept(0x200, 2, world.leaf(world.pfn_of(0x200), pending=True))
    world.quiet(checker, 0x200, 0x201)
    assert {f.promise for f in world.sim.findings} == {"precise-zap", "accept-once"}


def test_the_guests_own_record_is_enough(world):
    """No look came between the accept and the loss."""
    checker = world.checker(["accept-once"])
    world.set_sept(0x200, 2, world.leaf(world.pfn_of(0x200), pending=True))
    checker.finish()
    (text,) = world.texts()
    assert "GFNs [0x200, 0x400) (512 pages), which the guest had accepted" in text
    assert ", are pending again" in text


def test_one_page_is_and_many_are(world):
    world.split(0x200)
    checker = world.checker(["accept-once"])
    world.set_sept(0x203, 1, world.leaf(world.pfn_of(0x203), pending=True))
    checker.finish()
    (text,) = world.texts()
    assert "GFN 0x203 (1 page), which the guest had accepted and not given up, is pending" in text


def test_what_user_space_takes_against_the_guest_is_not_the_kernels_fault(world, checker):
    convert(world, checker, 0x200, 0x400, lambda: world.unmap(0x200, 2))
    world.map(0x200, 2, pending=True)
    assert checker.finish() == {"precise-zap": "held", "accept-once": "held"}


def test_after_a_second_accept_it_counts_again(world, checker):
    convert(world, checker, 0x200, 0x400, lambda: world.unmap(0x200, 2))
    world.map(0x200, 2)
    world.quiet(checker, 0x200, 0x400)
    world.set_sept(0x200, 2, FREE_ENTRY)
    assert checker.finish()["precise-zap"] == "broken"


def test_an_operation_under_way_covers_what_it_asked_for(world, checker):
    op = world.begin(checker, "punch_hole", 0x200, 0x400)
    world.unmap(0x200, 2)
    world.quiet(checker, 0, 0x800)
    checker.operation_end(op, 0)
    assert world.texts() == []


def test_teardown_is_no_loss(world, checker):
    world.td.lifecycle = 2
    assert checker.finish() == {"precise-zap": "held", "accept-once": "held"}


class UnmapsBothHalves(KvmMmu):
    """KVM_SET_MEMORY_ATTRIBUTES unmaps as KVM_SET_MEMORY_ATTRIBUTES2 does."""

    def kvm_unmap_gfn_range(self, kvm, rng):
        rng.attr_filter = KVM_FILTER_SHARED | KVM_FILTER_PRIVATE
        return super().kvm_unmap_gfn_range(kvm, rng)


class UnmapsTheOtherHalf(KvmMmu):
    """KVM_SET_MEMORY_ATTRIBUTES unmaps what memory becomes, and not what it was."""

    def kvm_arch_pre_set_memory_attributes(self, kvm, rng):
        rng.attributes ^= KVM_MEMORY_ATTRIBUTE_PRIVATE
        return super().kvm_arch_pre_set_memory_attributes(kvm, rng)


class KeepsWhatBecomesShared(GuestMemfd):
    """KVM_SET_MEMORY_ATTRIBUTES2 unmaps on the way back alone."""

    def _kvm_gmem_convert_mappings(self, inode, start, end, to_private):
        return super()._kvm_gmem_convert_mappings(inode, start, end, True) if to_private else 0


BACK = """
summary = "Pages are made shared, or are taken by a hole, and become private again."
source = "kvm_arch_pre_set_memory_attributes(), kvm_gmem_convert()"

[vm]
backing = "4k"

[kernel]
attributes = "{attributes}"

[host]
vmm = ["{vmm}"]
"""
THERE_AND_BACK = ("prefault page 5", "set-attributes page 5 to shared")
HOLE_AND_BACK = ("punch page 5", "prefault page 5", "set-attributes page 6 to shared")


@pytest.mark.parametrize(
    ("attributes", "units", "before", "broken"),
    [
        ("vm", {}, THERE_AND_BACK, False),
        ("vm", {"mmu": UnmapsTheOtherHalf}, THERE_AND_BACK, True),
        ("guest_memfd", {}, THERE_AND_BACK, False),
        ("guest_memfd", {"gmem": KeepsWhatBecomesShared}, THERE_AND_BACK, False),
        ("vm", {}, HOLE_AND_BACK, False),
        ("vm", {"mmu": UnmapsBothHalves}, HOLE_AND_BACK, True),
        ("guest_memfd", {}, HOLE_AND_BACK, True),  # v3: F10
    ],
)
def test_runs_in_which_pages_become_private_again(monkeypatch, attributes, units, before, broken):
    """Each ioctl is told for what it is, and a host that unmaps more is caught."""
    design = Design("mine", "", "", lambda: replace(v3_units(), **units))
    monkeypatch.setitem(designs(), "mine", design)
    vmm = '", "'.join((*before, "set-attributes pages 5-6 to private"))
    text = BACK.format(attributes=attributes, vmm=vmm)
    outcome = run_scenario(read_scenario("back", text, "back"), "mine")
    texts = [found.text for found in outcome.findings if found.promise == "precise-zap"]
    assert ["lost the (pending) mapping" in text for text in texts] == [True] * broken
