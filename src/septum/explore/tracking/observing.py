"""Who looks on while a run is searched: the checker with its promises, and the record of the
operations. What they read and note is no access of the step in which they do so, but what promises
can see is learned, and that they look, and what operations come to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from septum.explore.tracking.track import Tracker

    Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]

UNDER_WAY = 1
"""Stands for what comes of an operation of which something must come."""


def observers(tracker: Tracker) -> list[tuple[type, str, Wrap]]:
    """What the checker reads and notes is no access of the step in which it looks; nor is what is
    looked at to judge the end."""
    from septum.scenarios.world import ScenarioWorld

    unseen = _unseen(tracker)
    return [
        *_promises(tracker, unseen),
        *_operations(tracker, unseen),
        *[(ScenarioWorld, name, unseen) for name in ("_look", "gave_up", "remains")],
    ]


def _unseen(tracker: Tracker) -> Wrap:
    """What the method touches is told to `watched` alone."""
    log = tracker.log

    def unseen(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            mark = len(log)
            outer, tracker.unseen = tracker.unseen, True
            try:
                return method(*args, **named)
            finally:
                tracker.unseen = outer
                if len(log) > mark:
                    tracker.watched.note(log[mark:])
                    del log[mark:]

        return call

    return unseen


def _promises(tracker: Tracker, unseen: Wrap) -> list[tuple[type, str, Wrap]]:
    """That promises look is a fact about the step in which they do."""
    from septum.checks.checker import Checker

    def look(method: Callable[..., Any]) -> Callable[..., Any]:
        unseen_look = unseen(method)

        def call(*args: Any, **named: Any) -> Any:
            tracker.watched.count_views()
            tracker.steps.looked = True
            return unseen_look(*args, **named)

        return call

    def begin(method: Callable[..., Any]) -> Callable[..., Any]:
        unseen_begin = unseen(method)

        def call(*args: Any) -> Any:
            tracker.steps.viewed = True
            return unseen_begin(*args)

        return call

    def end(method: Callable[..., Any]) -> Callable[..., Any]:
        """What a failed operation leaves is compared with what there was when it began."""
        unseen_end = unseen(method)

        def call(checker: Any, op: Any, ret: int) -> Any:
            tracker.steps.viewed = True
            if ret:
                tracker.watched.count_views()
                tracker.steps.looked = True
            return unseen_end(checker, op, ret)

        return call

    plain = (
        *("quiet_point", "ept_violation_handled", "fault_tried"),
        *("_step", "entry_changes", "entry_changed", "vm_destroyed"),
    )
    return [
        *[(Checker, name, unseen) for name in plain],
        (Checker, "_look", look),
        (Checker, "operation_begin", begin),
        (Checker, "operation_end", end),
    ]


def _operations(tracker: Tracker, unseen: Wrap) -> list[tuple[type, str, Wrap]]:
    """What comes of operations, where it counts, is a result of the step in which they end."""
    from septum.scenarios.record import Record

    sim, steps = tracker.sim, tracker.steps
    results, numbers = steps.results, steps.nr_results

    def begin(method: Callable[..., Any]) -> Callable[..., Any]:
        unseen_begin = unseen(method)

        def call(record: Any, actor: str, op: Any) -> Any:
            if op.results:
                task = sim.current.index
                results.append((task << 32 | numbers.get(task, 0) + 1, UNDER_WAY))
            return unseen_begin(record, actor, op)

        return call

    def end(method: Callable[..., Any]) -> Callable[..., Any]:
        unseen_end = unseen(method)

        def call(record: Any, actor: str, op: Any, result: str) -> Any:
            value = unseen_end(record, actor, op, result)
            task = sim.current.index
            number = numbers[task] = numbers.get(task, 0) + 1
            if steps.all_results or not record.results[-1].fits:
                results.append((task << 32 | number, hash((actor, op.text, result))))
            elif op.results:
                results.append((task << 32 | number, None))
            return value

        return call

    return [
        (Record, "begin", begin),
        (Record, "end", end),
        (Record, "memory_fault", unseen),
    ]
