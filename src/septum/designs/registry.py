"""The designs by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from septum.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from septum.linux.host import HostUnits


@dataclass(frozen=True, slots=True)
class Design:
    """A host to run against.

    `origin` says where it was proposed (series or message), `summary` what it is in one line;
    `units` returns the classes to build the host from.
    """

    name: str
    origin: str
    summary: str
    units: Callable[[], HostUnits]


def _v3_units() -> HostUnits:
    from septum.linux.host import v3_units

    return v3_units()


_DESIGNS = {
    design.name: design
    for design in (
        Design(
            "v3",
            "PATCH v3 00/24, 2026-01-06, 20260106101646",
            "KVM: TDX huge page support for private memory, as posted",
            _v3_units,
        ),
    )
}


def design_names() -> list[str]:
    """The names of all designs, the base first."""
    return list(_DESIGNS)


def find_design(name: str) -> Design:
    """The design called `name`. Raises InputError for an unknown one."""
    try:
        return _DESIGNS[name]
    except KeyError:
        known = ", ".join(_DESIGNS)
        raise InputError(f"no design is called {name!r}; there is {known}") from None
