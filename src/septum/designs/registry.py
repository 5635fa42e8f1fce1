"""The designs by name: the base, and what each subject of `septum.designs` says is a design."""

from __future__ import annotations

from dataclasses import dataclass, replace
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from septum.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from septum.linux.host import HostUnits
    from septum.module import Module

Kind = Literal["base", "ablation", "proposal", "seeded-bug", "user"]
KINDS: dict[str, str] = {
    "base": "Bases: what the others change, and are compared with",
    "ablation": "Ablations: v3 with one patch left out",
    "proposal": "Proposals: what the review of v3 proposed, and what came after it",
    "seeded-bug": "Seeded bugs: what somebody could write, and a search must find",
}
"""The kinds of the registry's designs, in order, with the heading of each."""


@dataclass(frozen=True, slots=True)
class Design:
    """A host to run against.

    `origin` says where it was proposed (series or message), `summary` what it is in one line;
    `units` returns the classes to build the host from, `module` the class of the TDX module when
    the design has one of its own. `breaks` are promises that it is known to break, `scenarios`
    those of the library that show it best; `patch` is the number of the patch that an ablation
    leaves out. `base` is the design that it changes, and that it is compared with. `digest` is that
    of the file of a user's own design.
    """

    name: str
    origin: str
    summary: str
    units: Callable[[], HostUnits]
    kind: Kind = "proposal"
    module: Callable[[], type[Module]] | None = None
    breaks: tuple[str, ...] = ()
    scenarios: tuple[str, ...] = ()
    patch: int = 0
    base: str = "v3"
    digest: str = ""

    @property
    def reference(self) -> str:
        """The name that a replay token carries: with the digest of a user's file."""
        return f"{self.name}@{self.digest}" if self.digest else self.name

    def module_class(self) -> type[Module]:
        """The class of the TDX module."""
        if self.module is not None:
            return self.module()
        from septum.module import Module

        return Module


def _v3_units() -> HostUnits:
    from septum.linux.host import v3_units

    return v3_units()


def on_v3(**units: Any) -> Callable[[], HostUnits]:
    """v3 with these classes in the place of its own, by the names of `HostUnits`:
    `on_v3(mmu=MyMmu, tdx=MyTdx)`."""
    return lambda: replace(_v3_units(), **units)


V3 = Design(
    "v3",
    "PATCH v3 00/24, 2026-01-06, 20260106101646",
    "KVM: TDX huge page support for private memory, as posted",
    _v3_units,
    kind="base",
)

# Each of these modules has a tuple DESIGNS. They are read when a design other than v3 is asked for.
_SUBJECTS = ("septum.designs.ablations", "septum.designs.proposals", "septum.designs.bugs")
_designs: dict[str, Design] = {}


def designs() -> dict[str, Design]:
    """All designs by name, in the order of their kinds, v3 first."""
    if not _designs:
        _designs[V3.name] = V3
        found: list[Design] = []
        for subject in _SUBJECTS:
            found += import_module(subject).DESIGNS
        _designs.update((design.name, design) for design in in_order(found))
    return _designs


def in_order(chosen: Iterable[Design]) -> list[Design]:
    """By kind, in the order of `KINDS`, a user's own last; those of a kind stay as they are."""
    kinds = [*KINDS, "user"]
    return sorted(chosen, key=lambda design: kinds.index(design.kind))


def design_names() -> list[str]:
    """The names of all designs, the base first."""
    return list(designs())


def find_design(name: str) -> Design:
    """The design called `name`, or a user's own, `PATH.py:Class`. Raises InputError."""
    if name == V3.name:
        return V3
    found = designs().get(name)
    if found is not None:
        return found
    from septum.designs.own import is_own, own_design

    if is_own(name):
        return own_design(name)
    near = get_close_matches(name, design_names(), 3, 0.5)
    meant = f"did you mean {' or '.join(near)}? " if near else ""
    raise InputError(
        f"no design is called {name!r}; {meant}`septum designs` lists them, and one of your own"
        " is PATH.py:Class"
    )
