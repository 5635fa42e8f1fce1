"""The automaton's table for people: per call, what its answer depends on, and which gives which."""

from __future__ import annotations

import textwrap
from itertools import combinations

import msgspec

from septum.conform.automaton import CALLS, LEVEL, Row, State, facts_that_differ
from septum.conform.figures import LEAF_BY_STATE, STATES

_LABELS = {
    "child": "first child {}",
    "child_tracking": "its blocking: {}",
    "others": "others {}",
    "vcpu": "vCPU {}",
    "tracking": "{}",
    "accept": "accepted {}",
    "priority": "{}",
    "entry": "{}",
}
_NONE = {
    "priority": "no host priority",
    "accept": "not accepted in part",
    "tracking": "not blocked",
    "child_tracking": "first child not blocked",
}
Cube = tuple[frozenset[str], ...]
"""A product of sets of values, one set for each field."""


def determining_fields(rows: list[Row]) -> tuple[str, ...]:
    """The fewest fields of the state, with the entry's own, that determine the answer to a call."""
    for size in range(len(State._fields) + 1):
        for fields in combinations(State._fields, size):
            if size and fields[0] != "entry":
                continue
            answers: dict[tuple[str, ...], str] = {}
            for state, _, answer in rows:
                key = tuple(getattr(state, field) for field in fields)
                if answers.setdefault(key, answer) != answer:
                    break
            else:
                return fields
    raise AssertionError("the state does not determine the answer: the search's is too coarse")


def merged(keys: set[tuple[str, ...]]) -> list[Cube]:
    """`keys` as few products of sets: two that differ in one field only become one."""
    cubes: list[Cube] = sorted(
        (tuple(frozenset({value}) for value in key) for key in keys), key=_cube_order
    )
    changed = True
    while changed:
        changed = False
        for one, two in combinations(cubes, 2):
            differing = [i for i, (a, b) in enumerate(zip(one, two, strict=True)) if a != b]
            if len(differing) == 1:
                at = differing[0]
                cubes.remove(one)
                cubes.remove(two)
                cubes.append((*one[:at], one[at] | two[at], *one[at + 1 :]))
                cubes.sort(key=_cube_order)
                changed = True
                break
    return cubes


def _cube_order(cube: Cube) -> list[list[str]]:
    return [sorted(values) for values in cube]


def cube_text(fields: tuple[str, ...], cube: Cube, states: set[State]) -> str:
    """One product in words; a field that can have no other value there is left out."""
    parts = []
    entries = cube[0] if cube else frozenset()
    for field, values in zip(fields, cube, strict=True):
        possible = {
            getattr(state, field) for state in states if field == "entry" or state.entry in entries
        }
        if values < possible:
            words = sorted(value for value in values if value)
            text = _LABELS[field].format(" or ".join(words)) if words else _NONE[field]
            parts.append(text)
    return ", ".join(parts) or "always"


def render_table(rows: list[Row]) -> str:
    """Every call, every answer, and the states that give it; at most 80 columns."""
    states = {state for state, _, _ in rows}
    lines = [
        "Secure EPT automaton: a 2 MB entry of a running TD with one vCPU",
        f"{len(states)} reachable states, {len(rows)} (state, call, answer) rows",
    ]
    for call in CALLS:
        mine = [row for row in rows if row[1] == call]
        fields = determining_fields(mine)
        lines += ["", call]
        for answer in sorted({answer for _, _, answer in mine}):
            lines.append(f"  {answer}")
            keys = {
                tuple(getattr(state, field) for field in fields)
                for state, _, given in mine
                if given == answer
            }
            for cube in merged(keys):
                text = cube_text(fields, cube, {state for state, _, _ in mine})
                lines += textwrap.wrap(text, 80, initial_indent="    - ", subsequent_indent=" " * 6)
    wrong = facts_that_differ(rows)
    cells = sum(leaf in CALLS for leaf in LEAF_BY_STATE[LEVEL]) * len(STATES)
    lines += ["", f"facts, host leaf by entry state: {cells - len(wrong)} of {cells} cells agree"]
    lines += [f"  {text}" for text in wrong]
    return "\n".join(lines) + "\n"


def rows_to_json(rows: list[Row]) -> str:
    """The rows as JSON: version, and one object per row."""
    table = [
        {"state": state._asdict(), "call": call, "answer": answer} for state, call, answer in rows
    ]
    body = {"schema": "septum.module-table", "version": 1, "rows": table}
    return msgspec.json.format(msgspec.json.encode(body), indent=1).decode()
