"""Ranges of a guest_memfd are locked, where filemap_invalidate_lock() locks all of the file.

Ackerley Tng (guest_memfd), 2026-01-15 18:13, when Yan Zhao (author of v3) had asked whether a long
hold of the lock would be a soft lockup of the guest: "because the vCPUs are all blocked on page
faults, right? We can definitely optimize later, perhaps lock by guest_memfd index ranges." No more
is said; what a range has to cover is the question that the two designs here answer differently.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.designs.registry import Design, on_v3
from septum.linux.kvm.guest_memfd import GuestMemfd
from septum.linux.kvm.types import GmemInode
from septum.linux.rcu import ReadSection
from septum.sim import LockEvent, WaitQueue

if TYPE_CHECKING:
    from septum.sim import RwSem, Sim, Task

PMD_ORDER = 9
RELEASED_MAX = 64


class RangeLock:
    """A range that a task has, or waits for: alone if `write`."""

    __slots__ = ("end", "granted", "start", "task", "write")

    def __init__(self, start: int, end: int, write: bool, task: Task) -> None:
        self.start = start
        self.end = end
        self.write = write
        self.task = task
        self.granted = False

    def excludes(self, other: RangeLock) -> bool:
        """Whether not both can be had at once."""
        overlap = self.start < other.end and other.start < self.end
        return overlap and (self.write or other.write)


class RangeLocks(ReadSection):
    """The ranges of one file that are locked, and those that are waited for, as they came. Nobody
    overtakes whom it excludes, so that readers do not starve a writer.

    A task has one range of a file at a time, and lockdep sees one lock. `released` has the virtual
    times at which ranges were given back: waiting costs as much as with other locks.
    MODEL: of the last 64.
    """

    __slots__ = ("ranges", "released", "wq")

    def __init__(self, sim: Sim, name: str) -> None:
        super().__init__(sim, name)
        self.ranges: list[RangeLock] = []
        self.released: list[tuple[RangeLock, int]] = []
        self.wq = WaitQueue(sim, name)

    def lock(self, start: int, end: int, write: bool) -> None:
        """Take [start, end). May sleep."""
        sim = self.sim
        sim.might_sleep("range_lock", self.name)
        task = sim.current
        mine = RangeLock(start, end, write, task)
        self.ranges.append(mine)
        if self._is_excluded(mine):
            self._emit("wait", mine)
        self.wq.wait_event(lambda: not self._is_excluded(mine))
        mine.granted = True
        for other, time_ns in self.released:
            if mine.excludes(other) and task.time_ns < time_ns:
                task.time_ns = time_ns
        self.enter()
        if sim.lock_observer is not None and len(task.held) > 1:
            sim.lock_observer(task, self, "lock")
        self._emit("lock", mine)

    def unlock(self) -> None:
        """Give back what the current task has."""
        mine = self._mine()
        assert mine is not None
        self.leave()
        self.ranges.remove(mine)
        self.released = [*self.released, (mine, self.sim.current.time_ns)][-RELEASED_MAX:]
        self._emit("unlock", mine)
        self.wq.wake_up_all()

    def has_writer(self) -> bool:
        """Whether somebody has a range alone."""
        return any(lock.granted and lock.write for lock in self.ranges)

    def has_any(self) -> bool:
        """Whether somebody has a range."""
        return any(lock.granted for lock in self.ranges)

    def _mine(self) -> RangeLock | None:
        task = self.sim.current
        return next((lock for lock in self.ranges if lock.task is task), None)

    def _is_excluded(self, mine: RangeLock) -> bool:
        for other in self.ranges:
            if other is mine:
                return False
            if mine.excludes(other):
                return True
        return False

    def _emit(self, op: str, lock: RangeLock) -> None:
        sim = self.sim
        if sim.tracing:
            task = sim.current
            mode = "ex" if lock.write else "sh"
            sim.emit(LockEvent(task.time_ns, task.name, task.cpu, op, self.name, mode))


class RangeLockInode(GmemInode):
    """An inode whose mapping has range locks; the invalidate_lock is there, and nobody's."""

    __slots__ = ("range_locks",)

    def __init__(self, i_size: int, flags: int, page_order: int, invalidate_lock: RwSem) -> None:
        super().__init__(i_size, flags, page_order, invalidate_lock)
        self.range_locks = RangeLocks(invalidate_lock.sim, invalidate_lock.name)

    def is_changing(self) -> bool:
        return self.range_locks.has_writer()

    def is_locked(self) -> bool:
        return self.range_locks.has_any()


class ExactRangeLocks(GuestMemfd):
    """guest_memfd that locks the indexes which a caller names: a fault its page, a conversion or a
    hole its range, a binding its slot, the release of a file all there is.

    Assumed: what files share else (the attributes' tree, the page cache, the subpool) has locks of
    its own, as it has in the kernel, and a store for which memory was set aside cannot fail,
    whoever has stored something else in between.
    """

    __slots__ = ()

    def new_inode(
        self, i_size: int, flags: int, page_order: int, invalidate_lock: RwSem
    ) -> GmemInode:
        return RangeLockInode(i_size, flags, page_order, invalidate_lock)

    def filemap_invalidate_lock(self, inode: GmemInode, start: int, end: int) -> None:
        _locks(inode).lock(*self._range_to_lock(inode, start, end), True)

    def filemap_invalidate_unlock(self, inode: GmemInode) -> None:
        _locks(inode).unlock()

    def filemap_invalidate_lock_shared(self, inode: GmemInode, start: int, end: int) -> None:
        _locks(inode).lock(*self._range_to_lock(inode, start, end), False)

    def filemap_invalidate_unlock_shared(self, inode: GmemInode) -> None:
        _locks(inode).unlock()

    def filemap_invalidate_lock_held(self, inode: GmemInode) -> bool:
        return _locks(inode).held()

    def _range_to_lock(self, inode: GmemInode, start: int, end: int) -> tuple[int, int]:
        return start, end


class FolioRangeLocks(ExactRangeLocks):
    """guest_memfd that locks whole original folios, as they are what it splits and merges; where
    the page allocator may give a folio of 2 MB, that."""

    __slots__ = ()

    def _range_to_lock(self, inode: GmemInode, start: int, end: int) -> tuple[int, int]:
        pages = 1 << max(inode.page_order, PMD_ORDER)
        return start & -pages, -(-end // pages) * pages


def _locks(inode: GmemInode) -> RangeLocks:
    assert isinstance(inode, RangeLockInode)
    return inode.range_locks


_ORIGIN = "Ackerley Tng (guest_memfd), 2026-01-15, review of 00/24"

DESIGN = Design(
    "range-locks",
    _ORIGIN,
    "guest_memfd locks the original folios around a range, in the place of all of the file",
    on_v3(gmem=FolioRangeLocks),
    scenarios=("convert-both-ways", "upm-parallel-convert"),
)

EXACT = Design(
    "range-locks-exact",
    _ORIGIN,
    "guest_memfd locks just the indexes that are named, so that two tasks meet in one folio",
    on_v3(gmem=ExactRangeLocks),
    breaks=("no-bug", "mapping-in-folio", "private-unreachable"),
    scenarios=("convert-both-ways",),
)
