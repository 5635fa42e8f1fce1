"""Read sections of RCU and SRCU. As for lockdep, a task holds one like a lock."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from septum.sim import Sim


class ReadSection:
    """A section that a task may enter more than once, and must leave before it returns to user
    space."""

    __slots__ = ("name", "sim")
    spins = False

    def __init__(self, sim: Sim, name: str) -> None:
        self.sim = sim
        self.name = name

    def enter(self) -> None:
        """The current task enters the section."""
        self.sim.current.held.append((self, "sh"))

    def leave(self) -> bool:
        """The current task leaves the section. If it was not inside: False, and a finding like
        lockdep's "bad unlock balance".
        """
        held = self.sim.current.held
        for at in range(len(held) - 1, -1, -1):
            if held[at][0] is self:
                del held[at]
                return True
        self.sim.find(
            "locking",
            f"lockdep: {self.sim.current.name} leaves {self.name} without having entered it",
            where=self.name,
        )
        return False

    def held(self) -> bool:
        """rcu_read_lock_held(), srcu_read_lock_held(): the current task is in the section."""
        for section, _ in self.sim.current.held:  # noqa: SIM110 (asked at each step of a walk)
            if section is self:
                return True
        return False


class Rcu(ReadSection):
    """rcu_read_lock() to rcu_read_unlock(), where a task must not sleep."""

    __slots__ = ()
    spins = True

    def enter(self) -> None:
        """rcu_read_lock()."""
        super().enter()
        self.sim.current.atomic += 1

    def leave(self) -> bool:
        """rcu_read_unlock()."""
        if not super().leave():
            return False
        self.sim.current.atomic -= 1
        return True
