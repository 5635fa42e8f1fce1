"""The promise `tlb`."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

from septum.abi.kvm import KVM_REQ_TLB_FLUSH, PAGES_PER_HPAGE
from septum.abi.sept import PS
from septum.checks.promise import Promise
from septum.checks.sept import END_GFN
from septum.checks.shared_leaves import why_not_shared
from septum.checks.text import entry_text, level_text
from septum.module.state import Vcpu

if TYPE_CHECKING:
    from septum.checks.sept import LeafRun
    from septum.checks.view import VmView
    from septum.machine import LogicalProcessor, TlbEntry
    from septum.module.state import Td


class StaleTlb(Promise):
    """No logical processor can use a translation to a frame that was removed, or a huge one that
    was split, once the frame is reused.

    On real hardware the guest reads and writes through it with its own key: the frame's new owner
    loses data or takes a machine check, and the guest sees memory that is not its own.
    """

    __slots__ = ()
    name = "tlb"

    def look(self, vm: VmView, first_gfn: int = 0, end_gfn: int = END_GFN) -> None:
        """Every usable translation of the TD leads to frames that the S-EPT has at those GFNs.

        An entry that is blocked still counts: its frame is not free before it is removed. One that
        was split counts as long as all of its frames are still there. A shared one leads to what
        is shared, and there.
        """
        tag = vm.tdr_pfn
        cached = [lp for lp in vm.world.machine.lps if lp.tlb.entries_of(tag)]
        if not cached or (td := vm.td) is None:
            return
        lps = self._usable(td, cached)
        if not lps:
            return
        runs = vm.runs(first_gfn, end_gfn)
        starts = [run[0] for run in runs]
        for lp in lps:
            for entry in lp.tlb.entries_of(tag):
                gfn = entry.gfn
                if gfn & vm.kvm.arch.gfn_direct_bits:
                    self._check_shared(vm, lp, entry, first_gfn, end_gfn)
                elif first_gfn < gfn + PAGES_PER_HPAGE[entry.level] and gfn < end_gfn:
                    self._check(vm, lp, entry, runs, bisect_right(starts, gfn) - 1)

    def _usable(self, td: Td, lps: list[LogicalProcessor]) -> list[LogicalProcessor]:
        """Of `lps`, those where the TD runs, or where a vCPU that ran there last would go on
        without a flush."""
        epoch = td.td_epoch
        associated = {
            vcpu.assoc_lp
            for vcpu in self.checker.world.module.vcpus.values()
            if vcpu.td is td and vcpu.vcpu_epoch == epoch
        }
        return [
            lp
            for lp in lps
            if (
                lp.id in associated
                if (guest := lp.guest) is None
                else isinstance(guest, Vcpu) and guest.td is td
            )
        ]

    def _check(
        self, vm: VmView, lp: LogicalProcessor, entry: TlbEntry, runs: list[LeafRun], nr_run: int
    ) -> None:
        """`runs[nr_run]` is the last run that begins at or before the entry's first GFN."""
        at = entry.gfn
        end = at + PAGES_PER_HPAGE[entry.level]
        offset = entry.pfn - at
        while at < end and 0 <= nr_run < len(runs):
            gfn, nr, _, _, pfn = runs[nr_run]
            if not gfn <= at < gfn + nr or pfn - gfn != offset:
                break
            at = gfn + nr
            nr_run += 1
        if at < end:
            found = vm.walk(at)[1] if vm.has_key() else 0
            self._stale(vm, lp, entry, at, found)

    def _check_shared(
        self, vm: VmView, lp: LogicalProcessor, entry: TlbEntry, first_gfn: int, end_gfn: int
    ) -> None:
        """KVM flushes before the page is anybody else's, with a request to each vCPU."""
        gfn = entry.gfn & ~vm.kvm.arch.gfn_direct_bits
        pages = PAGES_PER_HPAGE[entry.level]
        if not (first_gfn < gfn + pages and gfn < end_gfn) or _flush_is_due(vm, lp):
            return
        wrong = why_not_shared(vm, gfn, pages, entry.pfn)
        if wrong is not None:
            self.broken(
                (vm.name, lp.id, entry.gfn, entry.level),
                f"{vm.name}: cpu{lp.id} can still use its {level_text(entry.level)} translation of "
                f"shared GFN {gfn:#x} to PFN {entry.pfn:#x}, though {wrong[2]}",
            )

    def _stale(
        self, vm: VmView, lp: LogicalProcessor, entry: TlbEntry, gfn: int, found: int
    ) -> None:
        now = entry_text(found, vm.hpa_mask) if found else "gone"
        what = "maps another frame now" if found & PS else "is not mapped any more"
        self.broken(
            (vm.name, lp.id, entry.gfn, entry.level),
            f"{vm.name}: cpu{lp.id} can still use its {level_text(entry.level)} translation of GFN "
            f"{entry.gfn:#x} to PFN {entry.pfn:#x}, though GFN {gfn:#x} in it {what} "
            f"(S-EPT: {now})",
        )


def _flush_is_due(vm: VmView, lp: LogicalProcessor) -> bool:
    """Each vCPU of the VM that might go on at `lp` flushes all of it before."""
    return lp.guest is None and all(
        KVM_REQ_TLB_FLUSH in vcpu.requests for vcpu in vm.kvm.vcpus if vcpu.cpu == lp.id
    )
