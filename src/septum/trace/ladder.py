"""The trace as a ladder: time downwards, one lane for each task, at most 80 columns.

One or two tasks have their words in their lanes; more have a mark in a narrow lane and the words
beside it. Quiet steps and repetitions are folded into a line that says how many there were.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

import msgspec

from septum.sim.events import ChoiceEvent, FindingEvent
from septum.trace.describe import Step, describe
from septum.trace.filters import tag_of
from septum.trace.textlayout import WIDTH, clock, wrap_to
from septum.words import plural

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Sequence

    from septum.sim.events import Event

QUIET = frozenset(
    ("switch", "kvm_entry", "td_exit", "kvm_mmu_spte_requested", "kvm_mmu_set_spte", "guest_access")
)
"""Folded unless the ladder is asked for every step. Locks are quiet unless they are waited for."""

TIME_WIDTH = 12
WORDS_IN_LANES_MAX = 2
MARK_LANES_MAX = 40
FOLD_FROM = 4
"""From so many equal rounds on they are folded."""
QUIET_FROM = 3
"""From so many quiet steps in a row on, a line counts them; fewer are left out silently."""
PERIOD_MAX = 32
"""The longest round that is recognised, in rows."""


Key = tuple[str, str, str]
"""(task, verb, result): what rows of a repetition have in common."""


class Row(msgspec.Struct, frozen=True):
    """One line of a ladder before layout; `task` is "" for a fold that spans tasks.

    `event` is what the line tells of; None for a fold.
    """

    time_ns: int
    task: str
    text: str
    mark: str = "*"
    event: Event | None = None


def is_quiet(event: Event) -> bool:
    """Whether an event is folded by default."""
    tag = tag_of(type(event))
    if tag == "lock":
        return getattr(event, "op", "") != "wait"
    return tag in QUIET


def _mark(event: Event) -> str:
    if isinstance(event, FindingEvent):
        return "X"
    return "!" if isinstance(event, ChoiceEvent) else "*"


def _row(event: Event, step: Step) -> Row:
    return Row(event.time_ns, event.task, step.text, _mark(event), event)


def _key(row: Row, step: Step | None) -> Key:
    return (row.task, step.verb, step.result) if step is not None else ("", row.text, "")


def _rows(events: Sequence[Event], every_step: bool) -> Iterator[tuple[Row, Key]]:
    """(row, its key) in order. Neighbouring quiet events are one row."""
    for quiet, same in groupby(events, lambda e: not every_step and is_quiet(e)):
        group = list(same)
        if quiet:
            if len(group) >= QUIET_FROM:
                row = Row(group[0].time_ns, "", f"... {len(group)} quiet steps ...", "")
                yield row, _key(row, None)
            continue
        for event in group:
            step = describe(event)
            row = _row(event, step)
            yield row, _key(row, step)


def _longest_repeat(
    keys: Sequence[Hashable], at: int, end: int, period_max: int
) -> tuple[int, int]:
    """(period, rounds) of the repetition from `at` on that covers most rows; (1, 1) without one."""
    best = (1, 1)
    for period in range(1, period_max + 1):
        upto = at + period
        while upto < end and keys[upto] == keys[upto - period]:
            upto += 1
        rounds = (upto - at) // period
        if rounds >= FOLD_FROM and rounds * period > best[0] * best[1]:
            best = (period, rounds)
    return best


def fold(events: Sequence[Event], every_step: bool = False) -> Iterator[Row]:
    """The rows to show: quiet events counted, and of a repetition the first and the last round."""
    pairs = list(_rows(events, every_step))
    rows = [row for row, _ in pairs]
    for part in folded([key for _, key in pairs], 0 if every_step else PERIOD_MAX):
        if isinstance(part, int):
            yield rows[part]
        else:
            task = rows[part.first].task if part.period == 1 else ""
            yield Row(rows[part.first].time_ns, task, part.text, ":")


class Fold(msgspec.Struct, frozen=True):
    """`rounds` rounds of `period` rows each are not shown, from the row at index `first` on."""

    first: int
    rounds: int
    period: int

    @property
    def text(self) -> str:
        """The line that is shown in their place."""
        return self.text_of(self.period)

    def text_of(self, nr_steps: int) -> str:
        """The same where not every row is a step."""
        alike = f"rounds of these {plural(nr_steps, 'step')}" if self.period > 1 else "like it"
        return f"... {self.rounds} more {alike} ..."


def folded(keys: Sequence[Hashable], period_max: int = PERIOD_MAX) -> Iterator[int | Fold]:
    """What to show of rows with these keys, in order: the index of a row, or a fold.

    Where up to `period_max` rows repeat, the first and the last round are shown. Either may contain
    shorter repetitions, which are folded, too.
    """
    yield from _folded(keys, 0, len(keys), period_max)


def _folded(keys: Sequence[Hashable], at: int, end: int, period_max: int) -> Iterator[int | Fold]:
    while at < end:
        period, rounds = _longest_repeat(keys, at, end, period_max)
        if rounds == 1:
            yield at
            at += 1
            continue
        after = at + rounds * period
        yield from _folded(keys, at, at + period, period - 1)
        yield Fold(at + period, rounds - 2, period)
        yield from _folded(keys, after - period, after, period - 1)
        at = after


def ladder_lines(events: Sequence[Event], every_step: bool = False) -> Iterator[str]:
    """The lines of the ladder, without line ends."""
    tasks = list(dict.fromkeys(event.task for event in events))
    rows = fold(events, every_step)
    latest_ns = max((event.time_ns for event in events), default=0)
    left = max(TIME_WIDTH, len(clock(latest_ns)) + 1)
    if len(tasks) <= WORDS_IN_LANES_MAX:
        yield from _wide(tasks, rows, left)
    else:
        yield from _narrow(tasks, rows, left)


def _wide(tasks: list[str], rows: Iterable[Row], left: int) -> Iterator[str]:
    """Words in the lanes, which begin at column `left`."""
    room = WIDTH - left
    lane = room // max(1, len(tasks)) - 1
    margin = " " * left
    yield (margin + "".join(f"|{task[: lane - 1]:<{lane}}" for task in tasks)).rstrip()
    yield margin + "".join("|" + "-" * lane for _ in tasks)
    for row in rows:
        if not row.task:
            yield f"{margin}|{row.text:^{room - 1}}".rstrip()
            continue
        at = tasks.index(row.task)
        mark = "" if row.mark in ("*", ":") else f"{row.mark} "
        for number, words in enumerate(wrap_to(f"{mark}{row.text}", lane - 1)):
            stamp = clock(row.time_ns) if number == 0 else ""
            cells = "".join(f"|{words if n == at else '':<{lane}}" for n in range(len(tasks)))
            yield f"{stamp:>{left - 1}} {cells}".rstrip()


def _narrow(tasks: list[str], rows: Iterable[Row], left: int) -> Iterator[str]:
    """A mark in the task's lane, from column `left` on; the words to the right of all lanes."""
    lanes = min(len(tasks), MARK_LANES_MAX)
    for number, task in enumerate(tasks[:lanes]):
        yield f"{'':{left}}{'|' * number}+- {task}"
    if lanes < len(tasks):
        yield f"{'':{left}}{len(tasks) - lanes} more tasks share the last lane"
    room = WIDTH - left - lanes - 1
    for row in rows:
        if not row.task:
            yield f"{'':{left}}{'|' * lanes} {row.text}"
            continue
        at = min(tasks.index(row.task), lanes - 1)
        for number, words in enumerate(wrap_to(row.text, room)):
            mark = row.mark if number == 0 else "|"
            stamp = clock(row.time_ns) if number == 0 else ""
            marks = "|" * at + mark + "|" * (lanes - at - 1)
            yield f"{stamp:>{left - 1}} {marks} {words}".rstrip()
