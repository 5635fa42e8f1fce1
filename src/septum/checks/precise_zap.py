"""The promise `precise-zap`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.checks.promise import Promise
from septum.checks.sept import END_GFN
from septum.checks.text import entry_text, level_text, pages_text

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
        losses = self.checker.losses
        if not losses.unaccepted.starts and not losses.unmapped.starts:
            return
        asked = self.checker.history(vm).asked()
        kinds = (
            ("accepted", "the guest's ACCEPT", losses.unaccepted),
            ("mapped", "the (pending) mapping", losses.unmapped.minus(losses.unaccepted)),
        )
        for kind, what, lost in kinds:
            for start, end in lost:
                level, entry = vm.walk(start)
                self.broken(
                    (vm.name, kind, start, end),
                    f"{vm.name}: {pages_text(start, end)} lost {what} though nobody asked to take "
                    f"it ({asked}); the S-EPT {level_text(level)} entry of GFN {start:#x} is now "
                    f"{entry_text(entry, vm.hpa_mask)}",
                )
