"""A snapshot puts back what it knows to change, sees what it did not know, and learns it."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from septum.sim import Memo
from septum.sim.state import Snapshot

NAMES = ("a", "b", "c", "d")


class Slotted:
    """Four numbers, of which `d` may be missing."""

    __slots__ = NAMES

    def __init__(self) -> None:
        self.a = self.b = self.c = 0


class Counted(msgspec.Struct):
    """The same as a struct."""

    a: int = 0
    b: int = 0
    c: int = 0
    d: int = 0


def world() -> list[Slotted | Counted]:
    return [Slotted(), Counted(), Slotted()]


def state(roots: list[Slotted | Counted]) -> list[list[object]]:
    return [[getattr(obj, name, None) for name in NAMES] for obj in roots]


writes = st.lists(st.tuples(st.integers(0, 2), st.sampled_from(NAMES), st.integers(1, 3)))


@given(st.lists(writes, min_size=1, max_size=6))
def test_everything_is_put_back_and_learned(runs: list[list[tuple[int, str, int]]]) -> None:
    roots = world()
    before = state(roots)
    snapshot = Snapshot([roots])
    known: set[tuple[int, str]] = set()
    for run in runs:
        for index, name, value in run:
            setattr(roots[index], name, value)
        snapshot.restore()
        missed = snapshot.verify()
        assert state(roots) == before
        written = {(index, name) for index, name, _ in run}
        assert bool(missed) <= bool(written - known)
        known |= written
    for index, name in known:
        setattr(roots[index], name, 9)
    snapshot.restore()
    assert state(roots) == before
    assert snapshot.verify() == []


def test_a_slot_that_was_never_seen_to_change_is_missed_and_found() -> None:
    roots = world()
    del roots[2]
    roots[0].d = 0
    snapshot = Snapshot([roots])
    for obj in roots:
        obj.a = 1
    snapshot.verify()
    for obj in roots:
        obj.a = obj.b = 1
    snapshot.restore()
    assert state(roots) == [[0, 1, 0, 0], [0, 1, 0, 0]]
    assert len(snapshot.verify()) == 2
    assert state(roots) == [[0, 0, 0, 0], [0, 0, 0, 0]]


def test_a_memo_is_no_state() -> None:
    """What it learned stays, and is not looked at."""
    asked: list[int] = []

    class Asks:
        __slots__ = ("memo",)

        def __init__(self) -> None:
            self.memo = Memo[int, int](lambda key: asked.append(key) or key * key)

    asks = Asks()
    snapshot = Snapshot([asks])
    assert asks.memo[3] == asks.memo[3] == 9
    snapshot.restore()
    assert snapshot.verify() == []
    assert asks.memo[3] == 9
    assert asked == [3]
