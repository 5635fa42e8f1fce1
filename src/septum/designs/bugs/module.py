"""The TDX module: one step of one leaf goes wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.sept import HP, LOCK, PENDING, RWX
from septum.designs.bugs._seeded import seeded
from septum.module.locks import READER
from septum.module.module import Module

if TYPE_CHECKING:
    from septum.machine import LogicalProcessor, TablePage
    from septum.module.state import Td, Vcpu


class DemoteForgetsAccept(Module):
    """DEMOTE makes 512 pending pages of an accepted one."""

    __slots__ = ()

    def demoted_entry(self, td: Td, entry: int, hpa: int) -> int:
        return super().demoted_entry(td, entry, hpa) & ~RWX | PENDING


class DemoteAccepts(Module):
    """DEMOTE maps the pages of a pending one, which nobody has initialised."""

    __slots__ = ()

    def demoted_entry(self, td: Td, entry: int, hpa: int) -> int:
        return super().demoted_entry(td, entry & ~PENDING, hpa)


class AcceptUnlocked(Module):
    """ACCEPT looks at the entry's lock and does not take it."""

    __slots__ = ()

    def lock_entry_guest(self, page: TablePage, index: int) -> int:
        status = super().lock_entry_guest(page, index)
        if not status:
            page.set_lock(index, page.entry(index) & ~LOCK)
        return status


class ExitFromNewEpoch(Module):
    """A TD exit counts down the TD's epoch, not the one that the vCPU entered in."""

    __slots__ = ()

    def leave_epoch(self, lp: LogicalProcessor, td: Td, vcpu: Vcpu) -> None:
        td.refcount[td.td_epoch & 1] -= 1


class NoFlushOnEntry(Module):
    """A vCPU that enters in a new epoch keeps the translations of the old one."""

    __slots__ = ()

    def enter_epoch(self, lp: LogicalProcessor, td: Td, vcpu: Vcpu, associated: bool) -> int:
        return super().enter_epoch(lp, td, vcpu, True)


class BusyKeepsTdr(Module):
    """A host call that finds its S-EPT entry locked keeps a reference to the TDR."""

    __slots__ = ()

    def entry_busy(self, td: Td, page: TablePage, index: int, entry: int, exclusive: bool) -> None:
        super().entry_busy(td, page, index, entry, exclusive)
        td.p4k.lock += READER


class PriorityStays(Module):
    """Host priority of an entry outlives the host's success: every later ACCEPT of the guest is
    BUSY, though nobody has the entry.

    No promise names that. Host and module agree on every page, and nothing of the guest's is lost:
    the module gives the guest a wrong answer, which is for the scenario to expect or not. Linux
    would end at it, as accept_memory() panics.
    """

    __slots__ = ()

    def lock_entry_host(self, page: TablePage, index: int, entry: int) -> int:
        page.set_lock(index, entry | LOCK)
        return entry & ~HP


class AcceptSkipsChunk(Module):
    """An interrupted ACCEPT of 2 MB goes on one 4 KB chunk too far."""

    __slots__ = ()

    def accept_resumes_at(self, entry: int) -> int:
        done = super().accept_resumes_at(entry)
        return done + 1 if done else 0


DESIGNS = (
    seeded(
        "module-demote-pending",
        "TDX module, TDH.MEM.PAGE.DEMOTE; v3 patch 08 relies on it",
        "TDH.MEM.PAGE.DEMOTE makes pending pages of an accepted one",
        "convert-one-page",
        "precise-zap",
        "accept-once",
        module=DemoteForgetsAccept,
    ),
    seeded(
        "module-demote-accepts",
        "TDX module, TDH.MEM.PAGE.DEMOTE; v3 patch 13 relies on it",
        "TDH.MEM.PAGE.DEMOTE makes mapped pages of a pending one",
        "accept-level-prefault",
        "no-bug",
        module=DemoteAccepts,
    ),
    seeded(
        "module-accept-unlocked",
        "TDX module, sept_lock_acquire_guest",
        "TDG.MEM.PAGE.ACCEPT does not hold the lock of the S-EPT entry",
        "accept-against-block",
        "no-bug",
        "accept-once",
        module=AcceptUnlocked,
    ),
    seeded(
        "module-exit-epoch",
        "TDX module, REFCOUNT of an epoch",
        "A TD exit counts down the TD's epoch, not the one that the vCPU entered in",
        "convert-against-write",
        "no-bug",
        module=ExitFromNewEpoch,
    ),
    seeded(
        "module-entry-unflushed",
        "TDX module, TD_EPOCH in TDH.VP.ENTER",
        "TDH.VP.ENTER in a new epoch does not flush the TLB",
        "write-against-convert",
        "tlb",
        module=NoFlushOnEntry,
    ),
    seeded(
        "module-busy-keeps-tdr",
        "a reference count wrong by one on an error path",
        "A host call that is BUSY on an S-EPT entry keeps its shared lock of the TDR",
        "accept-against-block",
        "no-bug",
        "teardown",
        module=BusyKeepsTdr,
    ),
    seeded(
        "module-priority-stays",
        "TDX module, host priority of S-EPT entries",
        "The host priority of an S-EPT entry stays when the host has got its lock",
        "accept-against-block",
        "expectation",
        module=PriorityStays,
    ),
    seeded(
        "module-accept-skips-chunk",
        "TDX module, interrupted TDG.MEM.PAGE.ACCEPT",
        "An interrupted ACCEPT of 2 MB leaves a 4 KB chunk uninitialised",
        "accept-against-convert",
        "no-bug",
        "guest-data",
        module=AcceptSkipsChunk,
    ),
)
