"""The promises: observers that look at the whole world and never change it.

Each promise is one class in a file of its own; the first paragraph of its docstring is the
sentence that a report prints, the second what happens on real hardware when it is broken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.checks.accept_once import AcceptOnce
from septum.checks.all_or_nothing import AllOrNothing
from septum.checks.cache import CacheLines
from septum.checks.checker import Checker
from septum.checks.guest_data import GuestData
from septum.checks.locking import Locking
from septum.checks.mapping_in_folio import MappingInFolio
from septum.checks.mirror import Mirror
from septum.checks.no_bug import NoBug
from septum.checks.observe import observed_units
from septum.checks.operation import Operation
from septum.checks.pamt import PamtPairs
from septum.checks.precise_zap import PreciseZap
from septum.checks.private_unreachable import PrivateUnreachable
from septum.checks.progress import Progress
from septum.checks.promise import Promise, consequence, sentence
from septum.checks.teardown import Teardown
from septum.checks.tlb import StaleTlb
from septum.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable

PROMISES: dict[str, type[Promise]] = {
    promise.name: promise
    for promise in (
        Mirror,
        PreciseZap,
        MappingInFolio,
        GuestData,
        AcceptOnce,
        StaleTlb,
        NoBug,
        Teardown,
        PrivateUnreachable,
        PamtPairs,
        CacheLines,
        Locking,
        Progress,
        AllOrNothing,
    )
}


def find_promises(names: Iterable[str] | None = None) -> list[type[Promise]]:
    """The promises of these names, all for None. Raises InputError for an unknown one."""
    if names is None:
        return list(PROMISES.values())
    found = []
    for name in names:
        if name not in PROMISES:
            raise InputError(f"no promise is called {name!r}; there are {', '.join(PROMISES)}")
        found.append(PROMISES[name])
    return found


__all__ = [
    "PROMISES",
    "Checker",
    "Operation",
    "Promise",
    "consequence",
    "find_promises",
    "observed_units",
    "sentence",
]
