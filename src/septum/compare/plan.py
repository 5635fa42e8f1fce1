"""What a comparison runs: designs, the scenarios of each, and its base on all of those."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from septum.compare.result import V3
from septum.designs import Design, designs, find_design, in_order
from septum.errors import InputError
from septum.scenarios.run import load_scenario

if TYPE_CHECKING:
    from collections.abc import Sequence

CORE = (
    "convert-against-fault",
    "convert-against-accept",
    "convert-against-convert",
    "convert-straddling",
    "punch-against-accept",
    "accept-level-a",
    "accept-level-b",
    "dpamt-accept-parallel",
    "busy-once",
    "teardown-split",
)
"""For a design that names no scenarios."""


class Plan(msgspec.Struct, frozen=True):
    """`designs`: v3 first, then sorted by kind. `searches`: (design, scenario), v3's first."""

    designs: list[Design]
    searches: list[tuple[str, str]]


def make_plan(names: Sequence[str], kinds: Sequence[str], scenarios: Sequence[str]) -> Plan:
    """The plan for the designs of these names and those of these kinds; by default all ablations
    and proposals. `scenarios` replace the designs' own.

    The base of each design is in the plan, too, and searched in the same scenarios, down to v3.

    Raises InputError for an unknown name, and for two files of scenarios with one name.
    """
    if not names and not kinds:
        kinds = ("ablation", "proposal")
    chosen = [design for design in designs().values() if design.kind in kinds]
    chosen += [find_design(name) for name in names]
    _check_scenarios(scenarios)
    by_name = {V3: find_design(V3)}
    of: dict[str, dict[str, None]] = {V3: {}}
    for design in [d for d in chosen if d.name != V3] or [find_design(V3)]:
        wanted = dict.fromkeys(scenarios or design.scenarios or CORE)
        under = design
        while under.name != V3:
            by_name[under.name] = under
            of.setdefault(under.name, {}).update(wanted)
            under = find_design(under.base)
        of[V3].update(wanted)
    ordered = in_order(by_name.values())
    return Plan(ordered, [(d.name, scenario) for d in ordered for scenario in of[d.name]])


def _check_scenarios(names: Sequence[str]) -> None:
    """The table names a scenario by its file's name, so no two files may have one name."""
    called: dict[str, str] = {}
    for name in names:
        stem = load_scenario(name).name
        other = called.setdefault(stem, name)
        if other != name:
            raise InputError(
                f"--scenarios: {other} and {name} are both called {stem!r}, and the table could not"
                " tell them apart; rename one of the files"
            )
