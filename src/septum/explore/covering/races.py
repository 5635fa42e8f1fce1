"""Where KVM notices that somebody else came in between, and begins again.

These are the windows that its page faults are written around: the functions that look whether one
was hit return true, and no error begins there. While a search watches they tell.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from septum.explore.covering.errors import entry_of
from septum.scenarios.names import RACES

if TYPE_CHECKING:
    from collections.abc import Callable

    from septum.linux.host import Host


def noticing_hooks(
    host: Host, reach: Callable[[str], None]
) -> list[tuple[object, str, Callable[..., bool]]]:
    """(class, method, what tells): `reach` hears `race:FUNCTION:ENTRY`, the function that noticed
    it and the outermost kernel function on the stack."""
    hooks: list[tuple[object, str, Callable[..., bool]]] = []
    for name, unit in RACES.items():
        kind = type(getattr(host, unit))
        hooks.append((kind, name, _telling(getattr(kind, name), name, reach)))
    return hooks


def _telling(
    plain: Callable[..., bool], name: str, reach: Callable[[str], None]
) -> Callable[..., bool]:
    def noticing(*given: Any) -> bool:
        noticed = plain(*given)
        if noticed:
            reach(f"race:{name}:{entry_of()}")
        return noticed

    return noticing
