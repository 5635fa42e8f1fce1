"""What a search knows of a loop that waits: how far it is in a list, a tuple or a range that a
variable names, where each element can be told from the others."""

import sys
from collections.abc import Callable
from contextlib import closing

import pytest

from septum.abi.regs import Regs
from septum.explore import Options
from septum.explore.scenario import ScenarioSubject
from septum.explore.states.stacks import Stacks
from septum.explore.states.values import Contents
from septum.explore.subject import Strategy
from septum.explore.toys import Toy
from septum.explore.workers.search import Job, Searcher
from septum.linux.kvm.gmem_attrs import KvmMemoryAttributes2
from septum.module.state import MeasurementHash
from septum.scenarios.bench import ScenarioBench
from septum.scenarios.run import load_scenario
from septum.sim import OfTime, Sim

TOUR = Toy("tour", [(("tour", 0, 1, 2),), (("write", 0, 1), ("write", 0, 0), ("write", 1, 1))])
SAME_AGAIN = Toy("same-again", [(("tour", 0, 0, 0),), (("write", 0, 1), ("write", 0, 2))])


def says_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stacks, "_tells_how_far", lambda self, variables, name: True)


@pytest.mark.parametrize("preemptions", [1, 2, None])
def test_elements_that_are_alike_do_not_tell_how_far_a_loop_is(
    preemptions: int | None, notices: Callable[..., None]
) -> None:
    notices(SAME_AGAIN, says_it_is_told, preemptions)


def states_of(toy: Toy, options: Options) -> int:
    searcher = Searcher(toy, options)
    try:
        result = searcher.do(Job(1, Strategy.EXHAUSTIVE, preemptions=2, failures=0))
    finally:
        searcher.close()
    assert result.complete
    return result.states


def test_elements_that_are_not_tell_it(
    monkeypatch: pytest.MonkeyPatch,
    compare: Callable[..., object],
    options_for: Callable[..., Options],
) -> None:
    """Both judges agree, and there are fewer states than where a loop hides how far it is."""
    compare(TOUR, 2)
    told = states_of(TOUR, options_for(TOUR, 2))
    monkeypatch.setattr(Stacks, "_tells_how_far", lambda self, variables, name: False)
    assert told < states_of(TOUR, options_for(TOUR, 2))


def tells(variables: dict[str, object]) -> bool:
    return Stacks(Sim(), Contents(lambda oid: 0))._tells_how_far(variables, "items")


def test_what_others_may_change_or_is_in_no_order_tells_nothing() -> None:
    items: object = [1, 2]
    assert isinstance(items, list)
    through = iter(items)
    assert tells({"items": items})
    another = items
    assert not tells({"items": items})
    del another
    items = (1, 2)
    assert tells({"items": items, "another": items}) and tells({"items": range(9)})
    for other in ({1, 2}, {1: 2}, "ab", (1, 1), [1, 1], iter((1, 2)), (object(),)):
        assert not tells({"items": other}), other
    assert through is not None


def test_what_an_ioctl_is_given_goes_by_what_it_holds_now() -> None:
    told = Contents(lambda oid: 0)
    args = KvmMemoryAttributes2(0, 4096, 1)
    before = told.of_value(args)
    assert id(args) in told.held  # it may change without a word
    assert told.of_value(KvmMemoryAttributes2(0, 4096, 1)) == before
    args.error_offset = 4096
    assert told.of_value(args) != before


def test_registers_and_arguments_that_are_got_hold_of_may_be_changed() -> None:
    """Whoever reads a slot that holds such is taken for one that writes to it."""
    searcher = Searcher(ScenarioSubject("accept-2m-on-4k", "v3", "end"), Options())
    try:
        searcher.prepare()
        assert searcher.tracker is not None
        assert {KvmMemoryAttributes2, Regs, list} <= searcher.tracker.leaks
    finally:
        searcher.close()


def test_a_measurement_is_told_and_can_be_put_back() -> None:
    told = Contents(lambda oid: 0)
    measured = MeasurementHash()
    measured.update(b"a")
    slot, kept = "_hash", measured._hash
    contents = [told.of_value(measured._hash)]
    digest = measured.digest()
    measured.update(b"b")
    contents.append(told.of_value(measured._hash))
    assert contents[0] != contents[1]
    setattr(measured, slot, kept)
    assert measured.digest() == digest


def test_numbers_of_virtual_time_are_all_alike() -> None:
    """KVM reads a TD's TSC offset through registers: what it was decides nothing."""
    told = Contents(lambda oid: 0)
    offsets = [OfTime(5), OfTime(1 << 63)]
    registers = [Regs(), Regs(), Regs()]
    for one, value in zip(registers, [*offsets, 5], strict=True):
        one.r8 = value
    contents = [told.of_value(one) for one in registers]
    assert contents[0] == contents[1] != contents[2]
    assert len({told.of_value(one) for one in offsets}) == 1
    with closing(ScenarioBench(load_scenario("accept-2m-on-4k"))) as bench:
        tds = bench._build().world.module.tds.values()
        assert tds and all(type(td.tsc_offset) is OfTime for td in tds)


def test_a_list_that_another_frame_has_tells_nothing() -> None:
    """As the frame itself says, whatever kind of look at its variables a Python gives."""
    stacks = Stacks(Sim(), Contents(lambda oid: 0))
    told: list[bool] = []

    def look() -> None:
        told.append(stacks._tells_how_far(sys._getframe(1).f_locals, "items"))

    def goes_through(first: int) -> None:
        items = [first, first + 1]
        for _ in items:
            look()

    def goes_through_anothers(items: list[int]) -> None:
        for _ in items:
            look()

    goes_through(1)
    assert told == [True, True]
    told.clear()
    another = [1, 2]
    goes_through_anothers(another)
    assert told == [False, False]
