"""The protocol that keeps faults from mapping what is being taken away.

An invalidation has a begin, ranges and an end; a fault takes a snapshot of the sequence number,
and is retried when an invalidation of its GFN is under way or has ended since. A begin without an
end makes every fault in the ranges retry for ever.

Source: virt/kvm/kvm_main.c, include/linux/kvm_host.h.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.kvm import INVALID_GPA
from septum.linux.unit import Unit

if TYPE_CHECKING:
    from septum.linux.kvm.types import Kvm


class MmuInvalidate(Unit):
    """kvm->mmu_invalidate_*."""

    __slots__ = ()

    def kvm_mmu_invalidate_begin(self, kvm: Kvm) -> None:
        """mmu_lock is held for writing. Source: kvm_main.c kvm_mmu_invalidate_begin."""
        if not kvm.mmu_lock.held_write():
            self.lockdep_assert(False, "mmu_lock not written", "kvm_mmu_invalidate_begin")
        kvm.mmu_invalidate_in_progress += 1
        if kvm.mmu_invalidate_in_progress == 1:
            kvm.mmu_invalidate_range_start = INVALID_GPA
            kvm.mmu_invalidate_range_end = INVALID_GPA

    def kvm_mmu_invalidate_range_add(self, kvm: Kvm, start: int, end: int) -> None:
        """Add [start, end) to the one range kept; it may grow over GFNs that nobody named.

        Source: kvm_main.c kvm_mmu_invalidate_range_add.
        """
        if not kvm.mmu_lock.held_write():
            self.lockdep_assert(False, "mmu_lock not written", "kvm_mmu_invalidate_range_add")
        if not kvm.mmu_invalidate_in_progress:
            self.warn_on_once("no invalidation is under way", "kvm_mmu_invalidate_range_add")
        if kvm.mmu_invalidate_range_start == INVALID_GPA:
            kvm.mmu_invalidate_range_start = start
            kvm.mmu_invalidate_range_end = end
        else:
            kvm.mmu_invalidate_range_start = min(kvm.mmu_invalidate_range_start, start)
            kvm.mmu_invalidate_range_end = max(kvm.mmu_invalidate_range_end, end)

    def kvm_mmu_invalidate_end(self, kvm: Kvm) -> None:
        """The sequence number goes up first, then the count goes down.

        Source: kvm_main.c kvm_mmu_invalidate_end.
        """
        if not kvm.mmu_lock.held_write():
            self.lockdep_assert(False, "mmu_lock not written", "kvm_mmu_invalidate_end")
        kvm.mmu_invalidate_seq += 1
        kvm.mmu_invalidate_in_progress -= 1
        self.host.main.kvm_bug_on(
            kvm, kvm.mmu_invalidate_in_progress < 0, "an invalidation ends that did not begin"
        )
        if kvm.mmu_invalidate_range_start == INVALID_GPA:
            self.warn_on_once("an invalidation had no range", "kvm_mmu_invalidate_end")

    def mmu_invalidate_retry_gfn(self, kvm: Kvm, mmu_seq: int, gfn: int) -> bool:
        """Whether a fault of `gfn` with snapshot `mmu_seq` must start over; mmu_lock is held.

        Source: kvm_host.h mmu_invalidate_retry_gfn.
        """
        if not kvm.mmu_lock.held():
            self.lockdep_assert(False, "mmu_lock is not held", "mmu_invalidate_retry_gfn")
        if kvm.mmu_invalidate_in_progress:
            # A range that is not set yet cannot be told from one that covers everything.
            if kvm.mmu_invalidate_range_start == INVALID_GPA:
                self.warn_on_once("no range yet", "mmu_invalidate_retry_gfn")
                return True
            if kvm.mmu_invalidate_range_start <= gfn < kvm.mmu_invalidate_range_end:
                return True
        return kvm.mmu_invalidate_seq != mmu_seq

    def mmu_invalidate_retry_gfn_unsafe(self, kvm: Kvm, mmu_seq: int, gfn: int) -> bool:
        """The same without mmu_lock: true may be relied on, false may be stale.

        Source: kvm_host.h mmu_invalidate_retry_gfn_unsafe.
        """
        if (
            kvm.mmu_invalidate_in_progress
            and kvm.mmu_invalidate_range_start <= gfn < kvm.mmu_invalidate_range_end
        ):
            return True
        return kvm.mmu_invalidate_seq != mmu_seq
