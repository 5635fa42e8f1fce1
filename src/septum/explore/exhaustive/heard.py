"""What other workers tell of what is shared, taken as if it had been seen here."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from septum.explore.exhaustive.known import Step
    from septum.explore.tracking.footprint import Footprints, Held, Opened
    from septum.explore.tracking.track import Tracker

    Segments = list[tuple[Held, Held, list[int]]]
    """(locks held, of those exclusively, what was touched under them)."""

    Key = tuple[int, int, bool]
    """Whose step, from where (its chain), and whether it was alone."""

    Told = tuple[Key, Step, Segments, list[int], dict[int, int]]
    """A step with what it touched, and what it made; the parts among that, with their wholes."""


def learn_of(told: Told, footprints: Footprints) -> None:
    """Know what was touched in a step as if it had been made here. News are in the footprints."""
    (task, _, _), step, segments, makes, parts = told
    for part, whole in parts.items():
        footprints.add_part(whole, part)
    kept: set[int] = set()
    touched = {access >> 2 for access in makes}
    for held, exclusive, accesses in segments:
        context = footprints.context(task, held, exclusive)
        fresh = set(accesses) - context.known
        if fresh:
            footprints.register(context, sorted(fresh))
        kept |= context.kept.intersection(accesses)
        touched.update([access >> 2 for access in accesses])
    for access in makes:
        footprints.make(access >> 2, 1 << task)
    step.masks = footprints.masks(kept)
    step.touched = footprints.numbers_of(touched)


def look_at(opened: Opened, tracker: Tracker) -> None:
    """Another worker has come to look at something: so does this one. That it did not is news."""
    what, at, name = opened
    if what == "slot":
        assert isinstance(at, type)
        tracker.log_slot(at, name)
        return
    assert isinstance(at, int)
    if what == "read":
        tracker.watched.learn(at)
    elif what == "views":
        tracker.watched.count_views()
    elif what == "orders":
        tracker.orders_count(at)
    elif at in tracker.names.of_base:
        # Where it is told of a dict of the built world, that is a tracked one.
        tracker.names.of_base[at].look_at_order()  # type: ignore[attr-defined]
