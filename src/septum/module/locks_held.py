"""Locks that "another logical processor" holds during a call, for tests and transcripts.

A hold takes the lock as that processor would (a host's success clears host priority) and drops it
with the release of its kind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.sept import HP, LOCK
from septum.module.common import walk_sept
from septum.module.locks import (
    HasLock,
    PlainLock,
    hp_lock_ex,
    hp_lock_sh,
    hp_unlock_ex,
    hp_unlock_sh,
)
from septum.module.state import TD_TEARDOWN

if TYPE_CHECKING:
    from septum.machine import TablePage
    from septum.module.module import Module
    from septum.module.pamt import PamtWalk


class LockHold:
    """One lock held by someone else, until `release`."""

    __slots__ = ("_entry", "_exclusive", "_m", "_owner", "_plain", "_walk")

    def __init__(self, m: Module, exclusive: bool) -> None:
        self._m = m
        self._exclusive = exclusive
        self._owner: HasLock | None = None
        self._plain: PlainLock | None = None
        self._walk: PamtWalk | None = None
        self._entry: tuple[TablePage, int] | None = None

    def release(self) -> None:
        """Drop the lock."""
        if self._walk is not None:
            self._m.pamt.unwalk(self._walk, self._exclusive)
        if self._owner is not None:
            (hp_unlock_ex if self._exclusive else hp_unlock_sh)(self._owner)
        if self._plain is not None:
            if self._exclusive:
                self._plain.unlock_ex()
            else:
                self._plain.unlock_sh()
        if self._entry is not None:
            page, index = self._entry
            page.set_lock(index, page.entry(index) & ~LOCK)

    def hold_pamt(self, hpa: int, level: int) -> bool:
        """A PAMT entry, and the levels above it shared."""
        if self._m.pamt.entry_2m(hpa) is None:
            return False
        self._walk = self._m.pamt.walk(hpa, level, self._exclusive)
        return self._walk is not None

    def hold_hp(self, owner: HasLock) -> bool:
        """A host-priority lock that stands alone."""
        self._owner = owner
        return (hp_lock_ex if self._exclusive else hp_lock_sh)(owner)

    def hold_plain(self, lock: PlainLock) -> bool:
        """A plain lock."""
        self._plain = lock
        return lock.try_ex() if self._exclusive else lock.try_sh()

    def hold_entry(self, tdr_hpa: int, gpa: int, level: int, by_host: bool) -> bool:
        """The lock bit of an S-EPT entry, and the TDR shared, as its holder would."""
        self._exclusive = False
        self._walk = self._m.pamt.walk(tdr_hpa, 0, False)
        td = self._m.td_by_hpa.get(tdr_hpa)
        if self._walk is None or td is None or td.lifecycle == TD_TEARDOWN:
            # A TD in teardown has no S-EPT to walk, and no call gets as far as an entry.
            return self._walk is not None
        page, index, entry, reached = walk_sept(self._m, td, gpa, level)
        if reached != level or entry & LOCK:
            self.release()
            return False
        page.set_lock(index, (entry & ~HP if by_host else entry) | LOCK)
        self._entry = page, index
        return True


def hold_lock(
    m: Module, obj: str, mode: str, hpa: int, level: int, td: int, gpa: int, by: str
) -> LockHold:
    """Take a lock by its name; see `Module.hold_lock`."""
    hold = LockHold(m, mode == "ex")
    of_td = m.td_by_hpa.get(td)
    if obj == "pamt":
        taken = hold.hold_pamt(hpa, level)
    elif obj == "kot":
        taken = hold.hold_plain(m.kot.lock)
    elif obj == "sept_entry":
        taken = hold.hold_entry(td, gpa, level, by == "host")
    elif obj not in ("op_state", "secure_ept", "epoch"):
        raise ValueError(f"no lock of kind {obj!r}")
    elif of_td is None:
        taken = True  # a TD that is gone: no call can reach its locks
    elif obj == "epoch":
        taken = hold.hold_plain(of_td.epoch_lock)
    else:
        taken = hold.hold_hp(of_td.op_state_lock if obj == "op_state" else of_td.sept_lock)
    if not taken:
        raise ValueError(f"the {obj} lock is not free")
    return hold
