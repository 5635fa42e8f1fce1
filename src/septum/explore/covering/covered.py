"""What a search reached, told as text of 80 columns: the items of `covering.coverage`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.words import plural, wrap

if TYPE_CHECKING:
    from collections.abc import Iterable

    from septum.explore.verdict import Verdict

NAME_WIDTH = 24
STATE_WIDTH = 19

Table = dict[str, dict[str, list[str]]]
"""What happened, by call (or lock) and by state (or mode)."""

_NOUNS = {
    "call": ("SEAMCALL outcome",),
    "tdcall": ("TDCALL outcome",),
    "sept": ("outcome of a call on an S-EPT state", "outcomes of a call on an S-EPT state"),
    "error": ("error of the host", "errors of the host"),
    "race": ("race that KVM noticed", "races that KVM noticed"),
    "wait": ("lock waited for", "locks waited for"),
    "contend": ("pair of tasks at a lock", "pairs of tasks at a lock"),
    "choice": ("choice other than the ordinary", "choices other than the ordinary"),
}
"""What items of each kind in `scenarios.names.REACHED` are called: one of them, and many."""


def summary(coverage: Iterable[str]) -> str:
    """How many of each kind, in a sentence."""
    kinds = [item.partition(":")[0] for item in coverage]
    words = (plural(kinds.count(kind), *nouns) for kind, nouns in _NOUNS.items() if kind in kinds)
    return f"reached: {', '.join(words)}"


def coverage_lines(verdict: Verdict) -> list[str]:
    """All of it, by kind. Nothing depends on how often something was reached, so that two complete
    searches of one scenario print the same, however many workers there were."""
    by_kind: dict[str, list[str]] = {}
    for item in verdict.coverage:
        kind, _, rest = item.partition(":")
        by_kind.setdefault(kind, []).append(rest)
    on = f" on {verdict.design}" if verdict.design else ""
    lines = [f"What was reached in {verdict.subject}{on}"]
    for title, table in (
        ("Calls, by the state of the S-EPT entry that they worked on", _states(by_kind)),
        ("Calls that worked on none", _others(by_kind)),
        ("Errors of the host, and the function that they began in", _errors(by_kind)),
        ("Races that KVM noticed, and in what", _races(by_kind)),
        ("Locks that tasks waited for", _locks(by_kind)),
        ("Choices other than the ordinary", _choices(by_kind)),
    ):
        if table:
            lines += ["", f"  {title}"]
            lines += _rows(table)
    if verdict.missing_witnesses:
        lines += ["", "  Never reached, though the scenario says that it must be"]
        lines += [f"    {name}" for name in verdict.missing_witnesses]
    return lines


def _tell(table: Table, name: str, happened: str, state: str = "") -> None:
    table.setdefault(name, {}).setdefault(state, []).append(happened)


def _states(by_kind: dict[str, list[str]]) -> Table:
    table: Table = {}
    for rest in by_kind.get("sept", ()):
        state, call, status = rest.split(":")
        _tell(table, call, status, state)
    return table


def _others(by_kind: dict[str, list[str]]) -> Table:
    """Outcomes that calls came to without an S-EPT entry, such as a TDR that is locked."""
    on_entries = {rest.partition(":")[2] for rest in by_kind.get("sept", ())}
    table: Table = {}
    for rest in by_kind.get("call", []) + by_kind.get("tdcall", []):
        if rest not in on_entries:
            call, status = rest.split(":")
            _tell(table, call, status)
    return table


def _errors(by_kind: dict[str, list[str]]) -> Table:
    table: Table = {}
    for rest in by_kind.get("error", ()):
        function, number, *entry = rest.split(":")
        text = f"{function} (in {entry[0]})" if entry else function
        _tell(table, number, text)
    return table


def _races(by_kind: dict[str, list[str]]) -> Table:
    table: Table = {}
    for rest in by_kind.get("race", ()):
        function, entry = rest.split(":")
        _tell(table, function, entry)
    return table


def _locks(by_kind: dict[str, list[str]]) -> Table:
    table: Table = {}
    for rest in by_kind.get("wait", ()):
        lock, mode = rest.rsplit(":", 1)
        _tell(table, lock, f"({mode})")
    for rest in by_kind.get("contend", ()):
        lock, waiter, holder = rest.rsplit(":", 2)
        _tell(table, lock, f"{waiter} for {holder}")
    return table


def _choices(by_kind: dict[str, list[str]]) -> Table:
    table: Table = {}
    for rest in by_kind.get("choice", ()):
        name, value = rest.rsplit("=", 1)
        _tell(table, name, value)
    return table


def _rows(table: Table) -> list[str]:
    column = " " * len(f"    {'':<{NAME_WIDTH}} ")
    lines: list[str] = []
    for name, states in table.items():
        head = name
        for state, happened in states.items():
            begins = f"    {head:<{NAME_WIDTH}} "
            goes_on = column
            if state:
                begins += f"{state:<{STATE_WIDTH}} "
                goes_on = " " * len(begins)
            lines += wrap(", ".join(happened), begins, goes_on, break_long=False)
            head = ""
    return lines
