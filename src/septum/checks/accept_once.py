"""The promise `accept-once`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.checks.intervals import Intervals
from septum.checks.promise import Promise
from septum.checks.sept import END_GFN
from septum.checks.text import agree, entry_text, level_text, pages_text

if TYPE_CHECKING:
    from septum.checks.view import VmView


class AcceptOnce(Promise):
    """A page the guest accepted never becomes pending behind its back.

    On real hardware the guest's next access is a #VE, or with SEPT_VE_DISABLE a TD exit that ends
    the VM; and a guest that accepts again in good faith lets the host replay zeroed memory.
    """

    __slots__ = ()
    name = "accept-once"

    def look(self, vm: VmView, first_gfn: int = 0, end_gfn: int = END_GFN) -> None:
        """What is pending is compared with what was seen accepted, and with the guest's record.

        Pages that user space took and did not give back yet are not behind the guest's back: it
        asked for that, or its VMM is against it, which no kernel can help.
        """
        losses = self.checker.losses
        pending = losses.pending
        if not pending.starts:
            return
        again = pending.intersect(losses.unaccepted)
        if vm.memory is not None:
            owned = Intervals()
            for start, end in pending:
                for gfn, nr, _ in vm.memory.ranges_in(start << 12, end - start):
                    owned.append(gfn, gfn + nr)
            again = again.union(owned)
        for start, end in again:
            level, entry = vm.walk(start)
            self.broken(
                (vm.name, start, end),
                f"{vm.name}: {pages_text(start, end)}, which the guest had accepted and not given "
                f"up, {agree(end - start, 'is', 'are')} pending again (S-EPT {level_text(level)} "
                f"entry of GFN {start:#x}: {entry_text(entry, vm.hpa_mask)})",
            )
