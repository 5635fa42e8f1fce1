"""Sleepable RCU as kvm->srcu uses it: readers never wait, an updater waits for earlier readers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.linux.rcu import ReadSection
from septum.sim import WaitQueue

if TYPE_CHECKING:
    from septum.sim import Sim, Task


class Srcu(ReadSection):
    """struct srcu_struct with its two reader counters."""

    __slots__ = ("idx", "nr_readers", "readers", "wq")

    def __init__(self, sim: Sim, name: str) -> None:
        super().__init__(sim, name)
        self.idx = 0
        self.nr_readers = [0, 0]
        self.readers: list[Task] = []
        self.wq = WaitQueue(sim, f"synchronize_srcu({name})")

    def read_lock(self) -> int:
        """srcu_read_lock(); returns the index to hand to `read_unlock`."""
        idx = self.idx
        self.nr_readers[idx] += 1
        self.readers.append(self.sim.current)
        self.enter()
        return idx

    def read_unlock(self, idx: int) -> None:
        """srcu_read_unlock()."""
        if not self.leave():
            return
        self.nr_readers[idx] -= 1
        self.readers.remove(self.sim.current)
        if not self.nr_readers[idx] and self.wq.waiters:
            self.wq.wake_up_all()

    def synchronize(self) -> None:
        """synchronize_srcu(): returns when every reader that was inside has left.

        A reader must not take a lock that the caller holds (Documentation/virt/kvm/locking.rst).
        """
        sim = self.sim
        sim.might_sleep("synchronize_srcu", self.name)
        if self.held():
            sim.find(
                "locking",
                "lockdep: Illegal synchronize_srcu() in same-type SRCU (or in RCU) read-side"
                f" critical section: {sim.current.name} is a reader of {self.name}",
                where="synchronize_srcu",
            )
        if sim.lock_observer is not None and sim.current.held:
            sim.lock_observer(sim.current, self, "lock")
        old = self.idx
        self.idx = 1 - old
        nr_readers = self.nr_readers
        self.wq.spin_until(lambda: not nr_readers[old])
