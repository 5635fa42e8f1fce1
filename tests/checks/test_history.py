"""`precise-zap` and `accept-once`: what is lost is told from what user space asked to take."""

from __future__ import annotations

import pytest

from septum.abi.sept import FREE_ENTRY


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


def convert(world, checker, start, end, change, takes=True):
    """User space asks for [start, end), and `change` is what the kernel does."""
    op = world.begin(checker, "convert", start, end, takes, not takes)
    change()
    checker.operation_end(op, 0)


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


def test_a_conversion_to_private_may_take_nothing(world, checker):
    convert(world, checker, 0x200, 0x400, lambda: world.unmap(0x200, 2), takes=False)
    (text,) = world.texts()
    assert "nobody asked to take it (asked last: convert [0x200, 0x400) to private)" in text


def to_shared(world, checker):
    """The frame at 0x200 becomes shared, and is zapped."""

    def change():
        world.unmap(0x200, 2)
        world.memory.forget(0x200 << 12, 512)

    convert(world, checker, 0x200, 0x400, change)
    assert world.texts() == []


def test_what_was_mapped_while_shared_may_go_when_it_becomes_private(world, checker):
    """A fault was late (F6): no guest has anything there, and `mapping-in-folio` tells of it. The
    conversion to private names it."""
    to_shared(world, checker)
    world.map(0x200, 2, pending=True)
    world.quiet(checker, 0, 0x800)
    convert(world, checker, 0x200, 0x400, lambda: world.unmap(0x200, 2), takes=False)
    assert checker.finish() == {"precise-zap": "held", "accept-once": "held"}


def test_looks_at_a_conversion_to_private_half_way_say_the_same(world, checker):
    to_shared(world, checker)
    world.map(0x200, 2, pending=True)
    world.quiet(checker, 0, 0x800)
    op = world.begin(checker, "convert", 0x200, 0x400, False, True)
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
    to_shared(world, checker)
    convert(world, checker, 0x200, 0x400, lambda: world.unmap(gfn, 2), takes=False)
    (text,) = world.texts()
    assert lost in text
    assert "(asked last: convert [0x200, 0x400) to private)" in text


def test_what_the_guest_accepted_while_shared_is_a_loss(world, checker):
    """It was told that it has the page, so that its conversion takes something away."""
    to_shared(world, checker)
    world.map(0x200, 2)
    world.quiet(checker, 0x200, 0x400)
    convert(world, checker, 0x200, 0x400, lambda: world.unmap(0x200, 2), takes=False)
    (text,) = world.texts()
    assert "lost the guest's ACCEPT" in text


def test_a_later_zap_of_what_was_given_back_counts(world, checker):
    """Only the conversion to private may take it: what is mapped afterwards stays."""
    to_shared(world, checker)
    convert(world, checker, 0x200, 0x400, lambda: None, takes=False)
    world.map(0x200, 2, pending=True)
    world.quiet(checker, 0x200, 0x400)
    convert(world, checker, 0x400, 0x410, lambda: world.unmap(0x200, 2))
    (text,) = world.texts()
    assert "(pending) mapping" in text


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
    op = world.begin(checker, "punch_hole", 0x200, 0x400, True)
    world.unmap(0x200, 2)
    world.quiet(checker, 0, 0x800)
    checker.operation_end(op, 0)
    assert world.texts() == []


def test_teardown_is_no_loss(world, checker):
    world.td.lifecycle = 2
    assert checker.finish() == {"precise-zap": "held", "accept-once": "held"}
