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
_RANK = (Mark.BROKEN, Mark.DIFFERS, Mark.FAILED, Mark.V3, Mark.UNDETERMINED, Mark.MENDED, Mark.HELD)
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
        decided = {promise: self._decide(promise, own) for promise in COLUMNS}
        numbers: dict[str, int] = {}
        for searched in own:
            shown = [
                broken
                for broken in searched.broken
                if decided[broken.promise][1] is searched and self._shown(broken, decided)
            ]
            self._number(searched, shown, numbers)
        return Row(
            design.name,
            design.kind,
            design.origin,
            design.summary,
            {promise: _cell(promise, *decided[promise], numbers) for promise in COLUMNS},
            complete=bool(own) and all(s.complete for s in own),
            level=min((s.level for s in own), default=-1),
            unseen=[p for p in design.breaks if not any(s.breaks(p) for s in own)],
        )

    def _decide(self, promise: str, own: list[Searched]) -> tuple[Mark, Searched | None]:
        """The cell's mark, and the search that gave it."""
        found = [(self._mark(promise, searched), searched) for searched in own]
        if not found:
            return Mark.UNDETERMINED, None
        return min(found, key=lambda one: _RANK.index(one[0]))

    def _shown(self, broken: Broken, decided: dict[str, tuple[Mark, Searched | None]]) -> bool:
        """Whether it needs a number: what v3 breaks has one when docs/findings.md has none."""
        mark, searched = decided[broken.promise]
        if mark is Mark.V3 and searched is not None:
            return not finding_of(searched.scenario, broken.promise, broken.text)
        return mark in (Mark.BROKEN, Mark.DIFFERS)

    def _number(self, searched: Searched, shown: list[Broken], numbers: dict[str, int]) -> None:
        """Number what broke, in the order of being found; what broke in one run is one example."""
        runs: dict[str, list[Broken]] = {}
        for broken in shown:
            # That a run comes out otherwise than expected is no news when a promise broke in it.
            run = broken.token
            if broken.promise == AS_EXPECTED and runs:
                run = next(iter(runs))
            runs.setdefault(run, []).append(broken)
        for first, *then in runs.values():
            number = len(self.examples) + 1
            self.examples.append(Example(number, searched.design, searched.scenario, first, then))
            numbers.update((broken.promise, number) for broken in (first, *then))

    def _mark(self, promise: str, searched: Searched) -> Mark:
        """What one search says of one promise."""
        if searched.failed:
            return Mark.FAILED
        v3 = self._of_v3.get(searched.scenario)
        by_v3 = v3 is not None and v3.breaks(promise)
        if searched.breaks(promise):
            if by_v3 or promise in searched.known:
                return Mark.V3
            return Mark.DIFFERS if promise == AS_EXPECTED else Mark.BROKEN
        if not searched.complete:
            return Mark.UNDETERMINED
        return Mark.MENDED if by_v3 else Mark.HELD


def _cell(promise: str, mark: Mark, searched: Searched | None, numbers: dict[str, int]) -> Cell:
    if searched is None:
        return Cell(mark)
    finding = ""
    if mark is Mark.V3:
        text = next((b.text for b in searched.broken if b.promise == promise), "")
        finding = finding_of(searched.scenario, promise, text or searched.known.get(promise, ""))
    return Cell(mark, numbers.get(promise, 0), finding, searched.scenario)
