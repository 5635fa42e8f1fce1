"""What is learned of one location goes for those that are alike, so that searches rarely start
over: the parts of one whole, and locks."""

from septum.explore.tracking.footprint import IX, Footprints, S, X
from septum.explore.tracking.locations import made_names

NONE: frozenset[int] = frozenset()
LOCK = frozenset((7,))
WHOLE, PARTS = 100, (1 << 62 | 1, 1 << 62 | 2, 1 << 62 | 3)


def made() -> Footprints:
    """Three parts of one whole."""
    footprints = Footprints()
    for part in PARTS:
        footprints.add_part(WHOLE, part)
    return footprints


def touch(footprints: Footprints, task: int, location: int, kind: int, held=NONE) -> None:  # type: ignore[no-untyped-def]
    context = footprints.context(task, held, held)
    footprints.register(context, [location << 2 | kind])


def test_where_one_part_is_shared_all_are() -> None:
    """A table of what is in pages: which page a task gets says nothing of how it is used."""
    footprints = made()
    touch(footprints, 1, PARTS[0], X)
    touch(footprints, 1, PARTS[1], X)
    assert not footprints.is_shared(PARTS[0])
    assert footprints.owner_of(PARTS[1]) == 1 << 1
    touch(footprints, 2, PARTS[0], S)
    assert footprints.is_shared(PARTS[0])
    assert footprints.is_shared(PARTS[1])
    footprints.forget_news()
    # Of one that nobody had touched, nothing that was computed before lacks anything.
    touch(footprints, 1, PARTS[2], X)
    assert footprints.is_shared(PARTS[2])
    assert not footprints.news


def test_where_one_part_is_touched_without_the_lock_none_is_guarded() -> None:
    footprints = made()
    for part in PARTS[:2]:
        for task in (1, 2):
            touch(footprints, task, part, X, LOCK)
    context = footprints.context(1, LOCK, LOCK)
    assert not context.kept
    footprints.forget_news()
    touch(footprints, 2, PARTS[0], S)
    assert {access >> 2 for access in context.kept} == set(PARTS[:2])
    assert footprints.news
    footprints.forget_news()
    touch(footprints, 1, PARTS[2], X, LOCK)
    assert PARTS[2] << 2 | X in context.kept
    assert not footprints.news


def test_parts_of_other_wholes_are_other_matters() -> None:
    footprints = made()
    other = 1 << 62 | 9
    footprints.add_part(200, other)
    touch(footprints, 1, other, X)
    touch(footprints, 1, PARTS[0], X)
    touch(footprints, 2, PARTS[0], S)
    assert footprints.is_shared(PARTS[0])
    assert not footprints.is_shared(other)


def test_locks_count_from_the_first() -> None:
    footprints = Footprints()
    footprints.always = {5}
    touch(footprints, 1, 5, X)
    touch(footprints, 1, 6, X)
    assert footprints.is_shared(5)
    assert not footprints.is_shared(6)
    assert not footprints.news


def test_where_one_table_has_entries_all_have() -> None:
    """Of a page table that a run made, entries are told of when they are first looked at. That it
    has some is known beforehand once another of its class had: else every new one begins a search
    anew."""
    footprints = Footprints()
    first, second = ((made_names(0, 7) + number) << 8 for number in (1, 2))
    touch(footprints, 1, first, IX)
    footprints.add_part(first, PARTS[0])
    assert not footprints.news  # nobody shares it yet
    touch(footprints, 2, first, S)
    footprints.forget_news()
    touch(footprints, 1, second, IX)
    assert footprints.is_shared(second)
    footprints.add_part(second, PARTS[1])
    assert not footprints.news


def test_what_was_taken_for_undivided_is_news() -> None:
    footprints = Footprints()
    first, second = ((made_names(0, 7) + number) << 8 for number in (1, 2))
    for location in (first, second):
        touch(footprints, 1, location, X)
        touch(footprints, 2, location, S)
    footprints.forget_news()
    footprints.add_part(first, PARTS[0])
    assert footprints.news == {first, second}
