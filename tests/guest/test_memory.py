"""The guest's record of its pages against the obvious one, a dict by page."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from septum.guest.memory import GuestMemory

numbers = st.tuples(st.integers(0, 40), st.integers(1, 20), st.integers(0, 3))
operations = st.lists(st.tuples(st.sampled_from(["write", "forget"]), numbers), max_size=30)


@given(operations)
def test_ranges_behave_like_pages(ops: list[tuple[str, tuple[int, int, int]]]) -> None:
    memory = GuestMemory()
    pages: dict[int, int] = {}
    for op, (gfn, nr, token) in ops:
        if op == "write":
            memory.write(gfn << 12, nr, token)
            pages.update(dict.fromkeys(range(gfn, gfn + nr), token))
        else:
            memory.forget(gfn << 12, nr)
            for page in range(gfn, gfn + nr):
                pages.pop(page, None)
    ranges = list(memory.ranges())
    assert {gfn + i: t for gfn, nr, t in ranges for i in range(nr)} == pages
    assert memory.nr_pages == len(pages)
    assert all(memory.token_at(gfn << 12) == pages.get(gfn) for gfn in range(65))
    for (a, nr, t), (b, _, u) in itertools.pairwise(ranges):
        assert a + nr < b or (a + nr == b and t != u), "joined, sorted and disjoint"
    for first in range(0, 60, 7):
        inside = memory.ranges_in(first << 12, 10)
        assert {g + i: t for g, nr, t in inside for i in range(nr)} == {
            g: t for g, t in pages.items() if first <= g < first + 10
        }


def test_uniform_memory_is_one_range() -> None:
    memory = GuestMemory()
    for frame in range(1024):
        memory.write(frame << 21, 512, 0)
    assert list(memory.ranges()) == [(0, 1024 * 512, 0)]


def test_tokens_are_new() -> None:
    memory = GuestMemory()
    assert [memory.new_token() for _ in range(3)] == [1, 2, 3]
