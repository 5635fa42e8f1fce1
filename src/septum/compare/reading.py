"""A comparison as it is read: in groups, in words. Text and page only lay it out."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from septum.compare.result import V3
from septum.compare.words import (
    base_note,
    bounds_text,
    says,
    short,
    sign,
    spoken,
    summary,
    tried,
)
from septum.designs import KINDS
from septum.words import plural, time_text

if TYPE_CHECKING:
    from septum.compare.result import Comparison, Cost, Example, Row

YOURS = "Your own"
COST_HEADS = (
    ("write", "takes"),
    ("longest", "hold"),
    ("", "kicks"),
    ("", "IPIs"),
    ("SEAM-", "CALLs"),
    ("under", "lock"),
    ("PAMT", "pages"),
    ("S-EPT", "pages"),
    ("2M", "kept"),
)
COST_NOTE = (
    "write takes, longest hold: of mmu_lock, virtual time; under lock: pages allocated with a"
    " spinning lock held; PAMT (Dynamic), S-EPT: pages at the end of the load; 2M kept: mappings"
    " then."
)


class Head(NamedTuple):
    """A column: two letters, the promise, what it says."""

    short: str
    promise: str
    says: str


class CellRead(NamedTuple):
    """A cell: what it shows, its mark, the number of its counterexample or 0, and it in words."""

    sign: str
    mark: str
    number: int
    spoken: str


class RowRead(NamedTuple):
    """A design. `note` says what it is compared with when that is not v3, `sought` what was tried
    in each scenario."""

    design: str
    note: str
    about: str
    cells: list[CellRead]
    tried: str
    sought: str
    unseen: list[str]


class Group(NamedTuple):
    """The designs of a kind."""

    heading: str
    rows: list[RowRead]


class CostRow(NamedTuple):
    """A design under a load: (figure, whether it is not its base's) for each of COST_HEADS; the
    leaves that it calls more or less often. `as_base`: all figures are the base's."""

    design: str
    base: str
    ended: str
    figures: list[tuple[str, bool]]
    as_base: bool
    leaves: list[str]


class Load(NamedTuple):
    """A load; `leaves` are v3's SEAMCALLs, if v3 was measured."""

    name: str
    what: str
    rows: list[CostRow]
    leaves: list[tuple[str, int]]


class Reading:
    """All of a comparison that is not there as it is read."""

    __slots__ = ("bounds", "groups", "heads", "interrupted", "loads", "slow", "summary")

    def __init__(self, comparison: Comparison) -> None:
        self.summary = summary(comparison)
        self.bounds = bounds_text(comparison.bounds)
        self.interrupted = ""
        if comparison.interrupted:
            left = plural(comparison.left_out, "search or load", "searches and loads")
            self.interrupted = f"Interrupted: {left} not run."
        self.heads = [Head(short(p), p, says(p)) for p in comparison.promises]
        self.groups = _groups(comparison)
        self.slow = [
            f"{s.design} in {s.scenario}"
            for s in comparison.searches
            if s.out_of_time and not s.failed
        ]
        self.loads = [_load(comparison, load, what) for load, what in comparison.loads.items()]


def _groups(comparison: Comparison) -> list[Group]:
    groups: dict[str, Group] = {}
    for row in comparison.rows:
        heading = KINDS.get(row.kind, YOURS)
        groups.setdefault(heading, Group(heading, [])).rows.append(_row(comparison, row))
    return list(groups.values())


def _row(comparison: Comparison, row: Row) -> RowRead:
    cells = [(promise, row.cells[promise]) for promise in comparison.promises]
    return RowRead(
        row.design,
        base_note(row),
        f"{row.summary} ({row.origin})",
        [CellRead(sign(c), c.mark.value, c.number, spoken(p, c, row)) for p, c in cells],
        tried(row, comparison.bounds),
        "; ".join(
            f"{s.scenario}: {plural(s.schedules, 'schedule')}, {s.why}"
            for s in comparison.searches
            if s.design == row.design
        ),
        row.unseen,
    )


def example_notes(example: Example) -> list[str]:
    """Notes on a counterexample: what broke later in the same run, and what the base does there."""
    told = [f"then {later.promise}: {later.text}" for later in example.then]
    told += [f"{example.base} there, {p}: {text}" for p, text in example.base_says.items()]
    if example.base_open:
        promises = ", ".join(example.base_open)
        told.append(f"{example.base} there, {promises}: undetermined ({example.base_why})")
    return told


def example_counts(example: Example) -> str:
    """The size of a counterexample; or, if the scenario foresees it, the command that shows it."""
    broken = example.broken
    if not broken.token:
        return f"the scenario foresees it: septum run {example.scenario} --design {example.design}"
    return (
        f"{plural(broken.steps, 'step')}, {plural(broken.preemptions, 'preemption')},"
        f" {plural(broken.failures, 'injected failure')}"
    )


# Costs


def _load(comparison: Comparison, load: str, what: str) -> Load:
    costs = {cost.design: cost for cost in comparison.costs if cost.load == load}
    bases = {row.design: row.base for row in comparison.rows}
    v3 = costs.get(V3)
    return Load(
        load,
        what,
        [_cost_row(cost, costs.get(bases.get(cost.design, V3))) for cost in costs.values()],
        sorted(v3.seamcalls.items()) if v3 is not None else [],
    )


def _cost_row(cost: Cost, base: Cost | None) -> CostRow:
    figures = _figures(cost)
    theirs = _figures(base) if base is not None else figures
    other = base is not None and base is not cost
    return CostRow(
        cost.design,
        base.design if base is not None else "",
        cost.ended,
        [(figure, figure != its) for figure, its in zip(figures, theirs, strict=True)],
        as_base=other and figures == theirs and not cost.ended,
        leaves=_leaf_changes(cost, base) if base is not None and not cost.ended else [],
    )


def _figures(cost: Cost) -> list[str]:
    """In the order of COST_HEADS."""
    return [
        str(cost.write_locks),
        time_text(cost.write_hold_ns),
        str(cost.kicks),
        str(cost.ipis),
        str(sum(cost.seamcalls.values())),
        str(cost.allocs_under_lock),
        str(cost.pamt_pages),
        str(cost.table_pages),
        str(cost.huge),
    ]


def _leaf_changes(cost: Cost, base: Cost) -> list[str]:
    """`TDH.MEM.TRACK 7 -> 9` for every leaf that a design calls more or less often."""
    leaves = sorted(base.seamcalls.keys() | cost.seamcalls.keys())
    pairs = [(name, base.seamcalls.get(name, 0), cost.seamcalls.get(name, 0)) for name in leaves]
    return [f"{name} {was} -> {now}" for name, was, now in pairs if was != now]
