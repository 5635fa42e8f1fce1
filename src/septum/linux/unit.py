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
