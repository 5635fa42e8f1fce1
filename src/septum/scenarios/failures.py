"""Which choice points are open in a scenario: its alternatives, the failures it allows, and those
that it injects itself."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from septum.abi.leaves import SEAMCALL_NAMES
from septum.sim import ALTERNATIVE, Memo

if TYPE_CHECKING:
    from collections.abc import Iterable

    from septum.scenarios.scenario import Injection

SEAMCALL = "seamcall:"
BUSY_ONLY = "=busy"
"""Ends the name of a SEAMCALL in `allow` that may be BUSY and nothing else."""


class Failures:
    """The choice rules of a scenario (see `septum.sim`).

    Everything comes out the ordinary way while `open` is false. `nr_failures` counts failures that
    the schedule chose, not those that the scenario injects. `met` counts injected names.
    """

    __slots__ = ("_allowed", "allow", "injections", "met", "nr_failures", "open")

    def __init__(self, allow: tuple[str, ...], injections: tuple[Injection, ...]) -> None:
        self.allow = allow
        self.injections = injections
        self.open = False
        self.met: dict[str, int] = {}
        self.nr_failures = 0
        self._allowed = Memo(self.allows)

    def settled(self, name: str) -> int | None:
        """The outcome that the scenario prescribes; None leaves it to the schedule."""
        if not self.open:
            return 0
        if self.injections:
            injected = self._injected(name)
            if injected is not None:
                return injected
        return None if self._allowed[name] else 0

    def _injected(self, name: str) -> int | None:
        named = [injection for injection in self.injections if injection.name == name]
        if named:
            # Once, however many of them name it.
            met = self.met[name] = self.met.get(name, 0) + 1
            for injection in named:
                if injection.first <= met <= injection.last:
                    return injection.value
        return None

    def taken(self, name: str, value: int) -> None:
        """The schedule injected a failure, or chose an alternative."""
        if self.is_failure(name):
            self.nr_failures += 1

    def allows(self, name: str) -> bool:
        """Whether a search may try other outcomes than the ordinary one."""
        return not self.is_failure(name) or any(
            fnmatchcase(name, pattern.removesuffix(BUSY_ONLY)) for pattern in self.allow
        )

    @staticmethod
    def is_failure(name: str) -> bool:
        """A failure, not an alternative of the scenario's programs."""
        return not name.startswith(ALTERNATIVE)

    def seamcall_leaves(self) -> frozenset[int]:
        """The leaves whose wrappers must have a choice point."""
        names = [injection.name for injection in self.injections] + list(self.allow)
        return self._leaves(name.removesuffix(BUSY_ONLY) for name in names)

    def busy_leaves(self) -> frozenset[int]:
        """Those of them that a search may let be BUSY, and nothing else."""
        return self._leaves(
            name.removesuffix(BUSY_ONLY) for name in self.allow if name.endswith(BUSY_ONLY)
        )

    @staticmethod
    def _leaves(names: Iterable[str]) -> frozenset[int]:
        patterns = [name.removeprefix(SEAMCALL) for name in names if name.startswith(SEAMCALL)]
        return frozenset(
            leaf
            for leaf, known in SEAMCALL_NAMES.items()
            if any(fnmatchcase(known, pattern) for pattern in patterns)
        )
