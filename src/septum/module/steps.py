"""Steps of the leaves that a module can get wrong by itself, each a method that a design replaces.

Leaves are functions of the module (`m`); what is here they ask of it, so that a variant of the
module changes one step and nothing else (`septum.designs.bugs.module`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.sept import (
    ACCEPT_COUNTER,
    ACCEPT_COUNTER_SHIFT,
    BLOCKED,
    HP,
    HPA_MASK,
    LOCK,
    PENDING,
    RWX,
)
from septum.abi.status import TDX_OPERAND_BUSY, TDX_OPERAND_BUSY_HOST_PRIORITY
from septum.module.locks import HP as LOCK_HP
from septum.module.locks import READER

if TYPE_CHECKING:
    from septum.machine import LogicalProcessor, TablePage
    from septum.module.state import Td, Vcpu
    from septum.sim import Sim


def end(td: Td, exclusive: bool) -> None:
    """Drop the tree lock, op_state and TDR that `begin` took (the entry lock is the leaf's)."""
    tree = td.sept_lock
    if exclusive:
        tree.lock &= LOCK_HP
    else:
        tree.lock -= READER
    td.op_state_lock.lock -= READER
    td.p4k.lock -= READER
    td.p2m.lock -= READER
    td.p1g.lock -= READER


class Steps:
    """What `Module` does for its leaves."""

    __slots__ = ()

    sim: Sim

    # S-EPT entries

    def lock_entry_host(self, page: TablePage, index: int, entry: int) -> int:
        """Take the lock of an entry that is not locked, for the host, and clear host priority.

        Returns the entry without lock and host priority. Source: sept_lock_acquire_host.
        """
        entry &= ~HP
        page.set_lock(index, entry | LOCK)
        return entry

    def lock_entry_guest(self, page: TablePage, index: int) -> int:
        """Take an entry's lock for the guest; host priority makes it fail. 0 or the status.

        Source: sept_lock_acquire_guest.
        """
        self.sim.point("module.sept_entry")
        entry = page.entry(index)
        if entry & LOCK:
            return TDX_OPERAND_BUSY
        if entry & HP:
            return TDX_OPERAND_BUSY_HOST_PRIORITY
        page.set_lock(index, entry | LOCK)
        return 0

    def entry_busy(self, td: Td, page: TablePage, index: int, entry: int, exclusive: bool) -> None:
        """The host finds an entry locked: it gets priority, and the call drops what it has."""
        page.set_lock(index, entry | HP)
        end(td, exclusive)

    def demoted_entry(self, td: Td, entry: int, hpa: int) -> int:
        """The first of the 512 entries that a blocked large page becomes: the same state,
        unblocked. Source: TDH.MEM.PAGE.DEMOTE."""
        child = entry & ~(BLOCKED | HPA_MASK) | hpa | td.hkid_bits
        if not child & PENDING:
            child |= RWX
        return child

    def accept_resumes_at(self, entry: int) -> int:
        """The first 4 KB chunk of a 2 MB page that an interrupted ACCEPT has not initialised."""
        return (entry & ACCEPT_COUNTER) >> ACCEPT_COUNTER_SHIFT

    # Epochs

    def enter_epoch(self, lp: LogicalProcessor, td: Td, vcpu: Vcpu, associated: bool) -> int:
        """A vCPU enters: it joins the TD's current epoch and counts in that epoch's REFCOUNT.

        If its epoch is older, its translations are flushed, unless a new association has just done
        so. Returns the epoch.
        """
        epoch = td.td_epoch
        td.refcount[epoch & 1] += 1
        td.epoch_lock.unlock_sh()
        if epoch != vcpu.vcpu_epoch:
            if not associated:
                lp.tlb.flush(td.tdr_pfn)
            vcpu.vcpu_epoch = epoch
        return epoch

    def leave_epoch(self, lp: LogicalProcessor, td: Td, vcpu: Vcpu) -> None:
        """A vCPU has left the TD on `lp`: the REFCOUNT of the epoch that it entered in goes down.

        MODEL: if no translation of the TD is left on `lp`, the next entry has nothing to flush.
        The vCPU's epoch is reset then, so that a search does not tell apart states that differ in
        nothing else.
        """
        td.refcount[vcpu.vcpu_epoch & 1] -= 1
        if not lp.tlb.entries_of(td.tdr_pfn):
            vcpu.vcpu_epoch = 0
