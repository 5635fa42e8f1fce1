"""What a comparison runs: designs, the scenarios of each, and v3 on all of those."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from septum.designs import Design, designs, find_design
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
    """`designs` begin with v3; `searches` are (design, scenario), v3's first."""

    designs: list[Design]
    searches: list[tuple[str, str]]


def make_plan(names: Sequence[str], kinds: Sequence[str], scenarios: Sequence[str]) -> Plan:
    """The plan for the designs of these names, and all of these kinds; without any, for all
    ablations and proposals. `scenarios` replace the designs' own.

    Raises InputError for an unknown name.
    """
    chosen = [find_design("v3")]
    if not names and not kinds:
        kinds = ("ablation", "proposal")
    chosen += [design for design in designs().values() if design.kind in kinds]
    chosen += [find_design(name) for name in names]
    by_name = {design.name: design for design in chosen}
    for name in scenarios:
        load_scenario(name)
    of = {name: tuple(scenarios) or design.scenarios or CORE for name, design in by_name.items()}
    others = [name for name in by_name if name != "v3"]
    for_v3 = [scenario for name in others for scenario in of[name]]
    of["v3"] = tuple(dict.fromkeys(for_v3 or of["v3"]))
    return Plan(
        list(by_name.values()),
        [(name, scenario) for name in by_name for scenario in dict.fromkeys(of[name])],
    )
