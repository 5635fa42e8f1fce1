"""When the checker looks, and at what, so that what is lost is known for what it is."""

from __future__ import annotations

import pytest

from septum.abi.sept import FREE_ENTRY
from septum.checks import Checker
from septum.checks.operation import Aim, vm_spans
from septum.checks.pace import OPERATIONS_PER_THOROUGH_LOOK, STEPS_PER_ACTIVE_LOOK
from septum.linux.kvm.types import KvmVcpu
from septum.sim import Mutex, WaitQueue


@pytest.fixture
def world(tiny):
    world = tiny()
    for gfn in (0, 0x200, 0x400):
        world.map(gfn, 2)
    return world


def no_full_looks(checker):
    """Nothing is looked at but what is named."""
    checker._pace.looked_at_all(1 << 12)
    checker._pace.spend()


def test_what_an_operation_may_lose_is_looked_at_before(world):
    """Nobody looked since the page was mapped; and the whole leaf goes, for a few of its pages."""
    checker = world.checker(["precise-zap"])
    no_full_looks(checker)
    op = world.begin(checker, "convert", 0x10, 0x20)
    world.unmap(0, 2)
    checker.operation_end(op, 0)
    assert "GFNs [0x0, 0x10) (16 pages) lost the guest's ACCEPT" in world.texts()[0]


@pytest.mark.parametrize("at", ["all", "a window"])
def test_what_has_ended_may_take_nothing_any_more(world, at):
    """After a look, though that saw nothing change."""
    checker = world.checker(["precise-zap"])
    checker.look_now("before")
    if at == "a window":
        no_full_looks(checker)
    op = world.begin(checker, "convert", 0x200, 0x400)
    checker.operation_end(op, 0)
    world.unmap(0x200, 2)
    world.quiet(checker, 0x200, 0x400)
    assert "(asked last: convert [0x200, 0x400))" in world.texts()[0]


@pytest.mark.parametrize("at", ["all", "a window"])
def test_what_was_accepted_again_is_not_taken_any_more(world, at):
    checker = world.checker(["precise-zap", "accept-once"])
    checker.look_now("before")
    if at == "a window":
        no_full_looks(checker)
    op = world.begin(checker, "convert", 0x200, 0x400)
    checker.operation_end(op, -11)
    world.quiet(checker, 0x200, 0x400)
    world.set_sept(0x200, 2, world.leaf(world.pfn_of(0x200), pending=True))
    world.quiet(checker, 0x200, 0x400)
    assert {finding.promise for finding in world.sim.findings} == {"precise-zap", "accept-once"}


def test_the_guests_record_may_change_under_what_is_as_it_was(world):
    """Pages that are pending at each look; and now the guest says that it has accepted them."""
    world.map(0x600, 2, pending=True)
    checker = world.checker(["accept-once"])
    checker.look_now("before")
    assert world.texts() == []
    world.memory.write(0x600 << 12, 512, 0)
    checker.look_now("after")
    assert len(world.texts()) == 1


@pytest.mark.parametrize("given", [Aim.TO_PRIVATE, Aim.TO_PRIVATE_AFRESH])
def test_what_is_private_again_is_the_guests(world, given):
    """The next conversion to private may not unmap it, though nobody has accepted it."""
    checker = world.checker(["precise-zap"])
    checker.look_now("before")
    for aim in (Aim.TO_SHARED, given):
        op = world.begin(checker, "convert", 0x200, 0x400, aim)
        if aim is Aim.TO_SHARED:
            world.unmap(0x200, 2)
        checker.operation_end(op, 0)
    world.map(0x200, 2, pending=True)
    checker.look_now("mapped")
    op = world.begin(checker, "convert", 0x200, 0x400, Aim.TO_PRIVATE_AFRESH)
    world.unmap(0x200, 2)
    checker.operation_end(op, 0)
    (text,) = world.texts()
    assert "lost the (pending) mapping" in text


def test_who_makes_private_what_is_bound_meanwhile_ends_once(world):
    checker = world.checker(["precise-zap"])
    bound = [(0, 0x200)]

    def named():
        return vm_spans(world.kvm, bound)

    op = checker.operation_begin("convert", named(), Aim.TO_PRIVATE_AFRESH, named)
    bound.append((0x200, 0x400))
    checker.slot_bound()
    checker.operation_end(op, 0)
    world.unmap(0x400, 2)
    checker.look_now("after")
    assert "(asked last: convert " in world.texts()[0]


def test_the_end_of_an_operation_is_a_return_to_user_space(world):
    checker = world.checker(["locking"])
    op = world.begin(checker, "convert", 0x200, 0x400)
    world.kvm.slots_lock.lock()
    checker.operation_end(op, 0)
    assert world.texts() == ["locking: main has ended convert and still holds kvm0.slots_lock"]


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("mode", ["quiet", "end"])
def test_a_huge_entry_that_was_written_is_looked_at(world, level, mode):
    checker = world.checker(["precise-zap"])
    checker.look_now("before")
    checker.mode = mode
    checker.entry_changes(world.kvm, 0x200, level)
    world.unmap(0x200, 2)
    checker.entry_changed(world.kvm, 0x200, level)
    assert len(world.texts()) == (level > 1 and mode == "quiet")


def test_in_the_end_alone_nothing_is_looked_at_before(world):
    checker = Checker(world, ["precise-zap"], "end")
    checker.start()
    op = world.begin(checker, "convert", 0x10, 0x20)
    world.unmap(0, 2)
    checker.operation_end(op, 0)
    assert checker.nr_looks == checker.nr_full_looks == 0


def test_every_so_often_all_of_a_frame_is_looked_at(world):
    """By promises that take their time, too, which else see what is near by."""
    checker = world.checker(["mapping-in-folio"])
    checker.look_now("before")
    no_full_looks(checker)
    world.split(0x200)
    world.set_sept(0x300, 1, world.leaf(world.pfn_of(0x301)))
    for nr in range(1, OPERATIONS_PER_THOROUGH_LOOK + 1):
        op = world.begin(checker, "convert", 0x200, 0x201, Aim.TO_PRIVATE)
        checker.operation_end(op, 0)
        assert bool(world.texts()) == (nr == OPERATIONS_PER_THOROUGH_LOOK)


@pytest.mark.parametrize("who", ["an operation", "a vCPU", "a vCPU in shared memory", "nobody"])
def test_every_so_many_steps_look_at_what_tasks_are_at(world, who):
    """Though no page table was written."""
    checker = world.checker(["mapping-in-folio"])
    checker.look_now("before")
    checker.mode = "every-step"
    no_full_looks(checker)
    world.kvm.arch.gfn_direct_bits = 1 << 35
    if who == "an operation":
        world.begin(checker, "convert", 0x200, 0x400)
    elif who != "nobody":
        vcpu = KvmVcpu(world.kvm, 0, 0, Mutex(world.sim, "mutex"), WaitQueue(world.sim, "wq"))
        vcpu.tdx.exit_gpa = (0x234 | (1 << 35) * ("shared" in who)) << 12
        world.kvm.vcpus.append(vcpu)
    del world.inode.folios[0x200]
    for nr in range(1, STEPS_PER_ACTIVE_LOOK + 1):
        checker._step("x")
        found = nr == STEPS_PER_ACTIVE_LOOK and who in ("an operation", "a vCPU")
        assert bool(world.texts()) == found


def test_who_is_over_is_not_told_any_more(world):
    checker = Checker(world, ["precise-zap"], "every-step")
    checker.start()
    assert world.sim.point_observer is not None
    checker.finish()
    assert world.sim.point_observer is None


def test_only_so_many_findings_of_a_promise_are_kept(world):
    checker = world.checker(["precise-zap"])
    for nr in range(20):
        checker.report("precise-zap", f"{nr}")
    checker.report("mirror", "another")
    assert len(world.texts()) == 9
    world.set_sept(0, 2, FREE_ENTRY)
    assert checker.finish()["precise-zap"] == "broken"
