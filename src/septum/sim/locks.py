"""Locks with the kernel's rules: who may sleep, who spins, who waits for whom.

Mutex and RwSem sleep; SpinLock and RwLock spin, and their holders are atomic. Taking
any of them is a scheduling point. Each keeps the virtual time at which it was last released: a task
whose clock is behind that when it takes the lock is charged the wait, also when it did not block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from septum.sim.events import LockEvent
from septum.sim.sim import Sim

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from septum.sim.task import Task


class _Lock:
    """What all locks share: a name, waiters, and telling observers. Who holds one that `spins` may
    not sleep."""

    __slots__ = ("name", "sim", "waiters")
    spins = False

    def __init__(self, sim: Sim, name: str) -> None:
        self.sim = sim
        self.name = name
        self.waiters: list[Task] = []

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    def _acquired(self, mode: str, op: str = "lock") -> None:
        sim = self.sim
        task = sim.current
        held = task.held
        held.append((self, mode))
        if sim.lock_observer is not None and len(held) > 1:
            sim.lock_observer(task, self, op)
        if sim.tracing:
            sim.emit(LockEvent(task.time_ns, task.name, task.cpu, "lock", self.name, mode))

    def _released(self, mode: str) -> None:
        sim = self.sim
        task = sim.current
        held = task.held
        if held and held[-1][0] is self and held[-1][1] == mode:
            held.pop()
        else:
            self._drop_inner(task, mode)
        if sim.tracing:
            sim.emit(LockEvent(task.time_ns, task.name, task.cpu, "unlock", self.name, mode))
        if self.waiters:
            sim.wake(self.waiters)
        if sim.design_files:
            sim.released(self)

    def _drop_inner(self, task: Task, mode: str) -> None:
        """Remove this lock from `task.held`, where locks taken after it follow."""
        held = task.held
        for position in range(len(held) - 1, -1, -1):
            if held[position][0] is self and held[position][1] == mode:
                del held[position]
                return

    def _not_held(self, mode: str) -> bool:
        """The current task releases what it does not hold: a finding as lockdep's "bad unlock
        balance", and the lock stays as it is. False."""
        what = f"{self.name} for {'reading' if mode == 'sh' else 'writing'}" if mode else self.name
        name = self.sim.current.name
        self.sim.find("locking", f"{name} releases {what}, which it does not hold", where=self.name)
        return False

    def _wait(self, mode: str) -> None:
        sim = self.sim
        if sim.tracing:
            task = sim.current
            holders = ", ".join([holder.name for holder in self.holders()])
            sim.emit(LockEvent(task.time_ns, task.name, task.cpu, "wait", self.name, mode, holders))
        sim.block(self.waiters, self.name)

    def holders(self) -> list[Task]:
        """The tasks that hold it."""
        raise NotImplementedError


class _Exclusive(_Lock):
    """A lock with one owner."""

    __slots__ = ("free_at_ns", "owner")

    def __init__(self, sim: Sim, name: str) -> None:
        super().__init__(sim, name)
        self.owner: Task | None = None
        self.free_at_ns = 0

    def _take(self) -> None:
        task = self.sim.current
        if self.owner is task:
            self.sim.find("locking", f"{task.name} takes {self.name} twice", where=self.name)
        while self.owner is not None:
            self._wait("ex")
        self.owner = task
        if task.time_ns < self.free_at_ns:
            task.time_ns = self.free_at_ns
        self._acquired("ex")

    def _try(self) -> bool:
        self.sim.point("trylock", self)
        if self.owner is not None:
            return False
        self.owner = self.sim.current
        self._acquired("ex", "trylock")
        return True

    def _drop(self) -> bool:
        task = self.sim.current
        if self.owner is not task:
            return self._not_held("")
        self.owner = None
        self.free_at_ns = task.time_ns
        self._released("ex")
        return True

    def lock(self) -> None:
        """Take it, without what a subclass adds: a scheduling point, a check, atomic context."""
        self._take()

    def unlock(self) -> None:
        """Give it back."""
        self._drop()

    def __enter__(self) -> Self:
        self.lock()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.unlock()

    def holders(self) -> list[Task]:
        return [self.owner] if self.owner is not None else []

    def locked(self) -> bool:
        """Whether anybody holds it."""
        return self.owner is not None

    def held(self) -> bool:
        """Whether the current task holds it (lockdep_assert_held)."""
        return self.owner is self.sim.current


class Mutex(_Exclusive):
    """struct mutex: sleeping, exclusive."""

    __slots__ = ()

    def lock(self) -> None:
        """mutex_lock()."""
        self.sim.might_sleep("mutex_lock", self.name)
        self.sim.point("mutex_lock", self)
        self._take()

    def trylock(self) -> bool:
        """mutex_trylock(): true when taken."""
        return self._try()

    def unlock(self) -> None:
        """mutex_unlock()."""
        self._drop()


class SpinLock(_Exclusive):
    """spinlock_t: spinning, exclusive; the holder is atomic."""

    __slots__ = ()
    spins = True

    def lock(self) -> None:
        """spin_lock()."""
        self.sim.point("spin_lock", self)
        self._take()
        self.sim.current.atomic += 1

    def trylock(self) -> bool:
        """spin_trylock(): true when taken."""
        if not self._try():
            return False
        self.sim.current.atomic += 1
        return True

    def unlock(self) -> None:
        """spin_unlock()."""
        if self._drop():
            self.sim.current.atomic -= 1


class _ReaderWriter(_Lock):
    """Shared by readers or owned by one writer; a waiting writer keeps new readers out."""

    __slots__ = (
        "max_write_hold_ns",
        "nr_read_locks",
        "nr_write_locks",
        "nr_writers_waiting",
        "read_free_at_ns",
        "readers",
        "write_free_at_ns",
        "write_taken_at_ns",
        "writer",
    )

    def __init__(self, sim: Sim, name: str) -> None:
        super().__init__(sim, name)
        self.writer: Task | None = None
        self.readers: list[Task] = []
        self.nr_writers_waiting = 0
        self.nr_write_locks = 0
        self.nr_read_locks = 0
        self.max_write_hold_ns = 0
        self.write_taken_at_ns = 0
        self.write_free_at_ns = 0
        self.read_free_at_ns = 0

    def holders(self) -> list[Task]:
        return [self.writer] if self.writer is not None else self.readers

    def _read(self) -> None:
        sim = self.sim
        task = sim.current
        if self.writer is task:
            sim.find(
                "locking", f"{task.name} read-locks {self.name} while writing", where=self.name
            )
        elif task in self.readers:  # a deadlock, if a writer comes in between
            sim.find("locking", f"{task.name} read-locks {self.name} twice", where=self.name)
        while self.writer is not None or self.nr_writers_waiting:
            self._wait("sh")
        self.readers.append(task)
        self.nr_read_locks += 1
        if task.time_ns < self.write_free_at_ns:
            task.time_ns = self.write_free_at_ns
        self._acquired("sh")

    def _unread(self) -> bool:
        task = self.sim.current
        try:
            self.readers.remove(task)
        except ValueError:
            return self._not_held("sh")
        if self.read_free_at_ns < task.time_ns:
            self.read_free_at_ns = task.time_ns
        self._released("sh")
        return True

    def _write(self) -> None:
        sim = self.sim
        task = sim.current
        if self.writer is task or task in self.readers:
            sim.find("locking", f"{task.name} takes {self.name} twice", where=self.name)
        self.nr_writers_waiting += 1
        while self.writer is not None or self.readers:
            self._wait("ex")
        self.nr_writers_waiting -= 1
        self.writer = task
        self.nr_write_locks += 1
        now = task.time_ns
        if now < self.write_free_at_ns:
            now = self.write_free_at_ns
        if now < self.read_free_at_ns:
            now = self.read_free_at_ns
        task.time_ns = self.write_taken_at_ns = now
        self._acquired("ex")

    def _unwrite(self) -> bool:
        task = self.sim.current
        if self.writer is not task:
            return self._not_held("ex")
        self.writer = None
        self.write_free_at_ns = task.time_ns
        held_ns = task.time_ns - self.write_taken_at_ns
        if held_ns > self.max_write_hold_ns:
            self.max_write_hold_ns = held_ns
        self._released("ex")
        return True

    def held_write(self) -> bool:
        """lockdep_assert_held_write(): the current task writes."""
        return self.writer is self.sim.current

    def held_read(self) -> bool:
        """The current task reads."""
        return self.sim.current in self.readers

    def held(self) -> bool:
        """lockdep_assert_held(): the current task reads or writes."""
        current = self.sim.current
        return self.writer is current or current in self.readers


class RwLock(_ReaderWriter):
    """rwlock_t: spinning; holders are atomic. KVM's mmu_lock is one."""

    __slots__ = ()
    spins = True

    def read_lock(self) -> None:
        """read_lock()."""
        self.sim.point("read_lock", self)
        self._read()
        self.sim.current.atomic += 1

    def read_unlock(self) -> None:
        """read_unlock()."""
        if self._unread():
            self.sim.current.atomic -= 1

    def write_lock(self) -> None:
        """write_lock()."""
        self.sim.point("write_lock", self)
        self._write()
        self.sim.current.atomic += 1

    def write_unlock(self) -> None:
        """write_unlock()."""
        if self._unwrite():
            self.sim.current.atomic -= 1

    def is_contended(self) -> bool:
        """rwlock_is_contended(): somebody waits."""
        return bool(self.waiters)


class RwSem(_ReaderWriter):
    """struct rw_semaphore: sleeping. A mapping's invalidate_lock is one."""

    __slots__ = ()

    def down_read(self) -> None:
        """down_read()."""
        self.sim.might_sleep("down_read", self.name)
        self.sim.point("down_read", self)
        self._read()

    def up_read(self) -> None:
        """up_read()."""
        self._unread()

    def down_write(self) -> None:
        """down_write()."""
        self.sim.might_sleep("down_write", self.name)
        self.sim.point("down_write", self)
        self._write()

    def up_write(self) -> None:
        """up_write()."""
        self._unwrite()


class WaitQueue:
    """wait_queue_head_t: tasks that wait until a condition holds."""

    __slots__ = ("name", "sim", "waiters")

    def __init__(self, sim: Sim, name: str) -> None:
        self.sim = sim
        self.name = name
        self.waiters: list[Task] = []

    def wait_event(self, pred: Callable[[], bool]) -> None:
        """Sleep until `pred()`; it is tested now and at each wake-up."""
        self.sim.might_sleep("wait_event", self.name)
        self.spin_until(pred)

    def spin_until(self, pred: Callable[[], bool]) -> None:
        """Wait until `pred()` without sleeping: allowed in atomic context."""
        self.sim.point("wait", self)
        while not pred():
            self.sim.block(self.waiters, self.name)

    def active(self) -> bool:
        """waitqueue_active(): whether somebody waits."""
        return bool(self.waiters)

    def wake_up_all(self, preempt: bool = True) -> None:
        """wake_up_all(): the waiters test their conditions again (see `Sim.wake`)."""
        if self.waiters:
            self.sim.wake(self.waiters, preempt)
