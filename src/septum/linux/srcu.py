"""Sleepable RCU as kvm->srcu uses it: readers never wait, an updater waits for earlier readers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.sim import WaitQueue

if TYPE_CHECKING:
    from septum.sim import Sim, Task


class Srcu:
    """struct srcu_struct with its two reader counters."""

    __slots__ = ("idx", "name", "nr_readers", "readers", "sim", "wq")

    def __init__(self, sim: Sim, name: str) -> None:
        self.sim = sim
        self.name = name
        self.idx = 0
        self.nr_readers = [0, 0]
        self.readers: list[Task] = []
        self.wq = WaitQueue(sim, f"synchronize_srcu({name})")

    def read_lock(self) -> int:
        """srcu_read_lock(); returns the index to hand to `read_unlock`."""
        idx = self.idx
        self.nr_readers[idx] += 1
        self.readers.append(self.sim.current)
        return idx

    def read_unlock(self, idx: int) -> None:
        """srcu_read_unlock()."""
        self.nr_readers[idx] -= 1
        self.readers.remove(self.sim.current)
        if not self.nr_readers[idx] and self.wq.waiters:
            self.wq.wake_up_all()

    def held(self) -> bool:
        """srcu_read_lock_held(): the current task is a reader."""
        return self.sim.current in self.readers

    def synchronize(self) -> None:
        """synchronize_srcu(): returns when every reader of before has left."""
        self.sim.might_sleep("synchronize_srcu", self.name)
        old = self.idx
        self.idx = 1 - old
        nr_readers = self.nr_readers
        self.wq.wait_event(lambda: not nr_readers[old])
