"""How the designs of this package are declared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from septum.designs.registry import Design, on_v3

if TYPE_CHECKING:
    from septum.module import Module


def seeded(
    name: str,
    place: str,
    summary: str,
    scenario: str,
    *promises: str,
    module: type[Module] | None = None,
    **units: Any,
) -> Design:
    """v3 with one mistake: in these `units` of the host (by the names of `HostUnits`), or in the
    TDX `module`. `place` is the code that it would be in, or who had it; `scenario` is where it
    shows."""
    return Design(
        f"bug-{name}",
        f"seeded: {place}",
        summary,
        on_v3(**units),
        kind="seeded-bug",
        module=None if module is None else lambda: module,
        breaks=promises,
        scenarios=(scenario,),
    )
