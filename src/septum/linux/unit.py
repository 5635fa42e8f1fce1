"""The common base of the host's units: a C file as a class whose methods are its functions."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from septum.linux.host import Host


class Unit:
    """One C file of the kernel. Holds no state of its own: only the way to everything else.

    A design subclasses a unit and overrides the functions that it changes.
    """

    __slots__ = ("host", "machine", "sim")

    def __init__(self, host: Host) -> None:
        self.host = host
        self.sim = host.sim
        self.machine = host.machine

    def warn_on(self, text: str, where: str) -> None:
        """WARN_ON() has fired in the kernel function `where`: a finding of the promise `no-bug`."""
        self.sim.find("no-bug", f"WARN: {text}", where=where)

    def warn_on_once(self, text: str, where: str) -> None:
        """WARN_ON_ONCE(): as `warn_on`, the first time at each `where` only."""
        warned = self.host.warned
        if where not in warned:
            warned[where] = True
            self.sim.find("no-bug", f"WARN: {text}", where=where)

    def lockdep_assert(self, held: bool, text: str, where: str) -> None:
        """lockdep_assert_held() and its kin: finding `locking` when `held` is false."""
        if not held:
            self.sim.find("locking", f"lockdep: {text}", where=where)
