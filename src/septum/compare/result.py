"""What a comparison found, as plain structures: `septum compare --json` prints `Comparison`."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from septum.checks.modes import Mode

SCHEMA = "septum.compare"
SCHEMA_VERSION = 2
AS_EXPECTED = "as-expected"
"""The last column: results, counts and pages are those that the scenario expects of v3."""
V3 = "v3"


class Mark(StrEnum):
    """What a cell says of a design, compared with its base: v3, or the design that it changes.

    `differs`: a run does not end as the scenario expects of v3, which is no broken promise. `base`:
    broken, and the base breaks the same promise in the same scenario; `otherwise`: the same, but
    the finding has another text. `mended`: held where the base breaks it. `failed`: the search
    raised, which is a defect.
    """

    HELD = "held"
    BROKEN = "broken"
    DIFFERS = "differs"
    OTHERWISE = "otherwise"
    BASE = "base"
    MENDED = "mended"
    UNDETERMINED = "undetermined"
    FAILED = "failed"


class Bounds(msgspec.Struct, frozen=True):
    """The bounds of every search. `time_s` and `schedules` are for one search each."""

    preemptions: int = 2
    failures: int = 1
    schedules: int = 10_000
    time_s: float = 20.0
    seed: int = 0
    check: Mode = "quiet"


class Broken(msgspec.Struct, frozen=True):
    """A promise that broke in a search, and the shrunk run that shows it.

    Without a token: the scenario foresees it, so the search went on; the scenario's plain run shows
    it.
    """

    promise: str
    text: str
    token: str
    steps: int
    preemptions: int
    failures: int
    story: list[str] = []
    """Lines of 80 columns; of a long one, the beginning and the end."""


class Searched(msgspec.Struct, frozen=True):
    """The search of one scenario on one design.

    `complete`: every schedule and failure within the bounds was tried; `level` is the number of
    preemptions up to which that is so, -1 none. `known` are the promises that broke as the
    scenario says that they do on v3, with what was said. `failed` is what the search raised.
    """

    design: str
    scenario: str
    complete: bool
    level: int
    why: str
    schedules: int
    states: int
    steps: int
    seconds: float
    out_of_time: bool = False
    broken: list[Broken] = []
    known: dict[str, str] = {}
    interrupted: bool = False
    failed: str = ""

    def breaks(self, promise: str) -> bool:
        """Whether the promise broke, foreseen or not."""
        return promise in self.known or any(b.promise == promise for b in self.broken)

    def says(self, promise: str) -> str:
        """What was said of the promise when it broke; "" when it did not."""
        found = (broken.text for broken in self.broken if broken.promise == promise)
        return next(found, self.known.get(promise, ""))


class Cost(msgspec.Struct, frozen=True):
    """What one load costs on one design, up to the guest's report (or its end).

    Times are virtual. `seamcalls` are by leaf, whatever they returned. `allocs_under_lock` counts
    pages and folios allocated while mmu_lock or another spinning lock was held. `pamt_pages` and
    `table_pages` (Secure EPT) are what the module holds then; `huge` the 2 MB mappings, `small`
    those of 4 KB. `ended` says why the VM ended early, "" when it did not.
    """

    design: str
    load: str
    write_locks: int = 0
    write_hold_ns: int = 0
    read_locks: int = 0
    kicks: int = 0
    ipis: int = 0
    seamcalls: dict[str, int] = {}
    allocs_under_lock: int = 0
    pamt_pages: int = 0
    table_pages: int = 0
    huge: int = 0
    small: int = 0
    splits: int = 0
    time_ns: int = 0
    ended: str = ""


class Cell(msgspec.Struct, frozen=True):
    """One promise on one design. `number` is that of the example for what it broke itself, else 0;
    `finding` that of docs/findings.md, "" for none; `scenario` where it was seen. `base_open`: of
    the base, not every schedule with as many preemptions was tried there: it may break it, too."""

    mark: Mark
    number: int = 0
    finding: str = ""
    scenario: str = ""
    base_open: bool = False


class Row(msgspec.Struct, frozen=True):
    """A design, and its `base`, which its cells are compared with. `level` is the lowest of its
    searches; `unseen` are promises that it is said to break and that were not seen broken."""

    design: str
    kind: str
    origin: str
    summary: str
    cells: dict[str, Cell]
    complete: bool
    level: int
    unseen: list[str] = []
    base: str = V3


class Example(msgspec.Struct, frozen=True):
    """A numbered counterexample: `broken` first, `then` what broke later in the same run. `file`
    is that of its story in the report folder.

    `base_says`: of these promises the base says something else there. `base_open`: those that it
    may break, too, as its search there did not come to its end, for the reason `base_why`.
    """

    number: int
    design: str
    scenario: str
    broken: Broken
    then: list[Broken] = []
    file: str = ""
    base: str = V3
    base_says: dict[str, str] = {}
    base_open: list[str] = []
    base_why: str = ""


class Comparison(msgspec.Struct, kw_only=True):
    """All of it."""

    schema: str = SCHEMA
    schema_version: int = SCHEMA_VERSION
    septum_version: str
    command: str
    bounds: Bounds
    promises: list[str]
    rows: list[Row]
    examples: list[Example]
    searches: list[Searched]
    costs: list[Cost]
    loads: dict[str, str]
    interrupted: bool = False
    left_out: int = 0
    """Searches and loads that an interrupt kept from being run."""
