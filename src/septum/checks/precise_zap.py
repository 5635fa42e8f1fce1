"""The promise `precise-zap`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.checks.promise import Promise
from septum.checks.sept import END_GFN
from septum.checks.text import pages_text

if TYPE_CHECKING:
    from septum.checks.view import VmView


class PreciseZap(Promise):
    """No GFN outside the requested range loses its mapping or its accepted state.

    On real hardware a page that KVM zaps beside the range comes back PENDING and zeroed: the guest
    takes a #VE that it does not expect, or is shut down, and its data is lost.
    """

    __slots__ = ()
    name = "precise-zap"

    def look(self, vm: VmView, first_gfn: int = 0, end_gfn: int = END_GFN) -> None:
        """The mapped and accepted GFNs are compared with those of the last look."""
        losses = self.checker.losses(vm, first_gfn, end_gfn)
        if not losses.unaccepted and not losses.unmapped:
            return
        asked = self.checker.history(vm).asked()
        for start, end in losses.unaccepted:
            level, entry = vm.walk(start)
            self.broken(
                (vm.name, "accepted", start, end),
                f"{vm.name}: {pages_text(start, end)} lost the guest's ACCEPT though nobody asked "
                f"for them ({asked}); the S-EPT entry of GFN {start:#x} at level {level} is "
                f"now {entry:#x}",
            )
        for start, end in losses.unmapped.minus(losses.unaccepted):
            level, entry = vm.walk(start)
            self.broken(
                (vm.name, "mapped", start, end),
                f"{vm.name}: {pages_text(start, end)} lost their (pending) mapping though nobody "
                f"asked for them ({asked}); the S-EPT entry of GFN {start:#x} at level "
                f"{level} is now {entry:#x}",
            )
