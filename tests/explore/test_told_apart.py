"""What is told to other workers, and what tells states apart: small things, each by itself."""

from types import SimpleNamespace
from typing import Any

import pytest

from septum.abi.regs import Regs
from septum.explore.states.fingerprint import Fingerprint
from septum.explore.states.stand import sign_of
from septum.explore.states.values import Contents
from septum.explore.subject import Options, Strategy
from septum.explore.toybox import LOST_UPDATE
from septum.explore.toys import Toy
from septum.explore.tracking.footprint import Footprints, X
from septum.explore.tracking.locations import PART_LOCATION
from septum.explore.tracking.own import _Tally
from septum.explore.workers.exchange import make_files
from septum.explore.workers.search import Job, Searcher


def test_who_begins_anew_parts_company() -> None:
    """What it missed nobody knows: no other takes its steps over, nor it theirs."""
    tags = set()
    for index in (0, 1):
        searcher = Searcher(LOST_UPDATE, Options())
        try:
            searcher.prepare()
            searcher.exchange_by(make_files(2), index)
            transitions = searcher.transitions
            assert transitions is not None and transitions.exchange is not None
            tags.add(transitions.exchange.tag)
            searcher._begin_anew(transitions)
            tags.add(transitions.exchange.tag)
        finally:
            searcher.close()
    assert len(tags) >= 3


@pytest.mark.parametrize("strategy", [Strategy.PLAIN, Strategy.EXHAUSTIVE])
def test_where_runs_are_cut_a_search_is_not_complete(strategy: Strategy) -> None:
    long = Toy("long", [(("point",), ("write", 0, 1)) * 12, (("write", 0, 2), ("read", 0))])
    for most, through in ((20, False), (2000, True)):
        searcher = Searcher(long, Options(max_points=most, failures=0))
        try:
            result = searcher.do(Job(1, strategy, preemptions=0))
        finally:
            searcher.close()
        assert result.complete == through and bool(result.note) != through


def test_registers_go_by_all_that_they_hold() -> None:
    """Whether they are small numbers or not."""
    told = set()
    values = (0, 1, 2, -1, 1 << 63)
    for value in values:
        regs = Regs()
        regs.rcx = value
        told.add(Contents(lambda oid: 0).of_value(regs))
    assert len(told) == len(values)


def test_what_cannot_be_told_goes_by_the_step_that_left_it() -> None:
    """Of a whole, and of a part."""
    whole, part = 256, PART_LOCATION | 1
    tracker: Any = SimpleNamespace(is_as_built=lambda location, content: content == 5)
    told = set()
    for contents in ({whole: None}, {whole: None, part: None}, {whole: 5, part: 5}, {part: None}):
        for event in (98, 99):
            footprints = Footprints()
            footprints.add_part(whole, part)
            state = Fingerprint(footprints, dict.fromkeys((whole, part), True))
            state.write(dict.fromkeys(contents, X), event, contents, tracker)
            told.add(state.value)
            assert state.is_sound()
    assert len(told) == 7


def test_what_is_handed_on_is_of_the_world_with_all_that_stands_for_it() -> None:
    world, handed = _Tally(), _Tally()
    world.put(256, sign_of(256, 1), watched=True, silent=False)
    handed.put(512, sign_of(512, 2), watched=False, silent=True)
    handed.put(513, 0, watched=True, silent=False)
    both = _Tally()
    both.put(256, sign_of(256, 1), watched=True, silent=False)
    both.put(512, sign_of(512, 2), watched=False, silent=True)
    both.put(513, 0, watched=True, silent=False)
    world.add(handed)
    for name in _Tally.__slots__:
        assert getattr(world, name) == getattr(both, name), name
