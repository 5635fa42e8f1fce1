"""From searches to cells: what a design breaks that v3 does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.checks import PROMISES
from septum.compare.result import AS_EXPECTED, Cell, Example, Mark, Row, Searched
from septum.scenarios.findings import FINDINGS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from septum.compare.result import Broken
    from septum.designs import Design

COLUMNS = (*PROMISES, AS_EXPECTED)
V3 = "v3"
_RANK = (Mark.BROKEN, Mark.FAILED, Mark.V3, Mark.UNDETERMINED, Mark.MENDED, Mark.HELD)
"""A design's cell is the first of these that a scenario gives it."""


def finding_of(scenario: str, promise: str, text: str) -> str:
    """The number in docs/findings.md of what v3 does wrong in that scenario; "" for none."""
    told = f"{promise}: {text}"
    for finding in FINDINGS:
        if finding.scenario == scenario or (" " in finding.shows and finding.shows in told):
            return finding.id
    return ""


class Table:
    """The rows, and the numbered examples of what they broke."""

    __slots__ = ("_of_v3", "examples", "rows")

    def __init__(self, chosen: Sequence[Design], searches: Sequence[Searched]) -> None:
        """`searches` has v3's of every scenario, and each design's."""
        self._of_v3 = {s.scenario: s for s in searches if s.design == V3}
        self.examples: list[Example] = []
        self.rows: list[Row] = []
        for design in chosen:
            own = [s for s in searches if s.design == design.name]
            self.rows.append(self._row(design, own))

    def _row(self, design: Design, own: list[Searched]) -> Row:
        cells = {promise: self._cell(promise, own) for promise in COLUMNS}
        seen = {s.scenario: s for s in own}
        unseen = [p for p in design.breaks if not any(s.breaks(p) for s in seen.values())]
        return Row(
            design.name,
            design.kind,
            design.origin,
            design.summary,
            cells,
            complete=bool(own) and all(s.complete for s in own),
            level=min((s.level for s in own), default=-1),
            unseen=unseen,
        )

    def _cell(self, promise: str, own: list[Searched]) -> Cell:
        cells = [(self._mark(promise, searched), searched) for searched in own]
        if not cells:
            return Cell(Mark.UNDETERMINED)
        mark, searched = min(cells, key=lambda cell: _RANK.index(cell[0]))
        broken = _example_of(promise, searched)
        if mark is Mark.BROKEN and broken is not None:
            return Cell(mark, self._number(searched, broken), "", searched.scenario)
        if mark is Mark.V3:
            text = broken.text if broken is not None else searched.known.get(promise, "")
            finding = finding_of(searched.scenario, promise, text)
            number = self._number(searched, broken) if broken is not None and not finding else 0
            return Cell(mark, number, finding, searched.scenario)
        return Cell(mark, 0, "", searched.scenario)

    def _mark(self, promise: str, searched: Searched) -> Mark:
        """What one search says of one promise."""
        if searched.failed:
            return Mark.FAILED
        v3 = self._of_v3.get(searched.scenario)
        by_v3 = v3 is not None and v3.breaks(promise)
        if searched.breaks(promise):
            return Mark.V3 if by_v3 or promise in searched.known else Mark.BROKEN
        if not searched.complete:
            return Mark.UNDETERMINED
        return Mark.MENDED if by_v3 else Mark.HELD

    def _number(self, searched: Searched, broken: Broken) -> int:
        number = len(self.examples) + 1
        self.examples.append(Example(number, searched.design, searched.scenario, broken))
        return number


def _example_of(promise: str, searched: Searched) -> Broken | None:
    return next((broken for broken in searched.broken if broken.promise == promise), None)
