"""From searches to cells: what a design breaks that its base does not."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from septum.checks import PROMISES
from septum.compare.result import AS_EXPECTED, Broken, Cell, Example, Mark, Row, Searched
from septum.scenarios.findings import FINDINGS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from septum.designs import Design

COLUMNS = (*PROMISES, AS_EXPECTED)
_RANK = (
    Mark.BROKEN,
    Mark.DIFFERS,
    Mark.OTHERWISE,
    Mark.FAILED,
    Mark.BASE,
    Mark.UNDETERMINED,
    Mark.MENDED,
    Mark.HELD,
)
"""A design's cell is the first of these that a scenario gives it."""
_OWN = (Mark.BROKEN, Mark.DIFFERS, Mark.OTHERWISE)
"""What has a counterexample of its own."""
_VARYING = re.compile(r"0x[0-9a-f]+|\d+|\s*\([^()]*\)$")
"""In what is said of a broken promise: numbers, and where it was seen."""


def finding_of(scenario: str, promise: str, text: str) -> str:
    """The number in docs/findings.md of what v3 does wrong in that scenario; "" for none."""
    told = f"{promise}: {text}"
    for finding in FINDINGS:
        if finding.scenario == scenario or (" " in finding.shows and finding.shows in told):
            return finding.id
    return ""


def alike(one: str, other: str) -> bool:
    """Whether two texts of a finding say the same, apart from addresses and counts."""
    return _VARYING.sub("", one) == _VARYING.sub("", other)


class _Decided(NamedTuple):
    """A cell's mark, and the searches behind it: the design's, and its base's of that scenario."""

    mark: Mark
    own: Searched | None = None
    base: Searched | None = None

    def base_open(self, promise: str) -> bool:
        """Whether the design breaks the promise and it is not known if the base does: not every
        schedule with as many preemptions was tried on the base."""
        if self.own is None or self.mark not in (Mark.BROKEN, Mark.DIFFERS):
            return False
        if self.base is None:
            return True
        needed = (b.preemptions for b in self.own.broken if b.promise == promise)
        return not self.base.complete and self.base.level < next(needed, 0)


class Table:
    """The rows, and the numbered examples of what they broke."""

    __slots__ = ("_found", "examples", "rows")

    def __init__(self, chosen: Sequence[Design], searches: Sequence[Searched]) -> None:
        """`searches` has, of every scenario of a design, its base's, too."""
        self._found = {(s.design, s.scenario): s for s in searches}
        self.examples: list[Example] = []
        self.rows: list[Row] = []
        for design in chosen:
            own = [s for s in searches if s.design == design.name]
            self.rows.append(self._row(design, own))

    def _row(self, design: Design, own: list[Searched]) -> Row:
        decided = {promise: self._decide(promise, design.base, own) for promise in COLUMNS}
        numbers: dict[str, int] = {}
        for searched in own:
            shown = [
                broken
                for broken in (*searched.broken, *_foreseen(searched))
                if decided[broken.promise].own is searched and _shown(broken, decided)
            ]
            self._number(searched, shown, decided, design.base, numbers)
        return Row(
            design.name,
            design.kind,
            design.origin,
            design.summary,
            {promise: _cell(promise, decided[promise], numbers) for promise in COLUMNS},
            complete=bool(own) and all(s.complete for s in own),
            level=min((s.level for s in own), default=-1),
            unseen=[p for p in design.breaks if not any(s.breaks(p) for s in own)],
            base=design.base,
        )

    def _decide(self, promise: str, base: str, own: list[Searched]) -> _Decided:
        """What the scenarios of a design say of one promise together."""
        found = []
        for searched in own:
            other = self._found.get((base, searched.scenario))
            found.append(_Decided(_mark(promise, searched, other), searched, other))
        if not found:
            return _Decided(Mark.UNDETERMINED)
        return min(found, key=lambda one: (_RANK.index(one.mark), one.base_open(promise)))

    def _number(
        self,
        searched: Searched,
        shown: list[Broken],
        decided: dict[str, _Decided],
        base: str,
        numbers: dict[str, int],
    ) -> None:
        """Number what broke, in the order of being found; what broke in one run is one example."""
        runs: dict[str, list[Broken]] = {}
        for broken in shown:
            # That a run comes out otherwise than expected is no news when a promise broke in it.
            run = broken.token
            if broken.promise == AS_EXPECTED and runs:
                run = next(iter(runs))
            runs.setdefault(run, []).append(broken)
        other = self._found.get((base, searched.scenario))
        for first, *then in runs.values():
            number = len(self.examples) + 1
            told = [broken.promise for broken in (first, *then)]
            numbers.update((promise, number) for promise in told)
            self.examples.append(
                Example(
                    number,
                    searched.design,
                    searched.scenario,
                    first,
                    then,
                    base=base,
                    base_says={
                        promise: other.says(promise)
                        for promise in told
                        if other is not None and decided[promise].mark is Mark.OTHERWISE
                    },
                    base_open=[p for p in told if decided[p].base_open(p)],
                    base_why=other.why if other is not None else "it was not searched",
                )
            )


def _mark(promise: str, searched: Searched, base: Searched | None) -> Mark:
    """The mark of one promise, by the search of the design and that of its base."""
    if searched.failed:
        return Mark.FAILED
    by_base = base is not None and base.breaks(promise)
    if searched.breaks(promise):
        # A finding that the scenario foresees is v3's, even if v3's search ended before it.
        if by_base or promise in searched.known:
            said = base.says(promise) if base is not None else ""
            same = promise == AS_EXPECTED or not said or alike(searched.says(promise), said)
            return Mark.BASE if same else Mark.OTHERWISE
        return Mark.DIFFERS if promise == AS_EXPECTED else Mark.BROKEN
    if not searched.complete:
        return Mark.UNDETERMINED
    return Mark.MENDED if by_base else Mark.HELD


def _foreseen(searched: Searched) -> list[Broken]:
    """What the scenario foresees and the search has no counterexample of, as it went on there."""
    found = {broken.promise for broken in searched.broken}
    return [Broken(p, text, "", 0, 0, 0) for p, text in searched.known.items() if p not in found]


def _shown(broken: Broken, decided: dict[str, _Decided]) -> bool:
    """Whether the table gives it a number. What v3 breaks gets one only if docs/findings.md has no
    number for it."""
    mark, searched, _ = decided[broken.promise]
    if mark is Mark.BASE and searched is not None:
        return broken.token != "" and not finding_of(searched.scenario, broken.promise, broken.text)
    return mark in _OWN


def _cell(promise: str, decided: _Decided, numbers: dict[str, int]) -> Cell:
    mark, searched, _ = decided
    if searched is None:
        return Cell(mark)
    finding = ""
    if mark in (Mark.BASE, Mark.OTHERWISE):
        finding = finding_of(searched.scenario, promise, searched.says(promise))
    return Cell(
        mark, numbers.get(promise, 0), finding, searched.scenario, decided.base_open(promise)
    )
