"""SEAMCALL wrappers that take a PFN and a level and do not look at folios.

Agreed on by Sean Christopherson (KVM) and Dave Hansen (x86), 2026-01-16, after the first's NAK of
2026-01-14 to folios in TDX. Asked for by Ackerley Tng, 2026-01-08, and Vishal Annapurve,
2026-01-09: guest_memfd vouches for contiguous private memory, whatever its folios are. What may
stay is a warning of memory that TDX cannot convert, which no memory is here.

Before that, Yan Zhao (author of v3), 2026-01-09, 12 and 14: WARN_ON_ONCE() in the place of the
error, "1. Loudly warn of subtle KVM bugs".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from septum.designs.registry import Design, on_v3
from septum.linux.kvm.guest_memfd import GuestMemfd
from septum.linux.x86.tdx import TdxArch

if TYPE_CHECKING:
    from septum.linux.kvm.types import Folio


class PfnTdxArch(TdxArch):
    """Wrappers without the sanity check of patches 01, 03, 04, 05 and 23.

    MODEL: they still take a folio and an index, of which only the sum is used, as the PFN.
    """

    __slots__ = ()

    def _folio_holds(self, folio: Folio, start_idx: int, npages: int) -> bool:
        return True


class PfnGuestMemfd(GuestMemfd):
    """guest_memfd vouches for its memory, not for its folios."""

    __slots__ = ()
    mapping_may_exceed_folio: ClassVar[bool] = True


class WarnTdxArch(TdxArch):
    """Wrappers that warn where the folio does not hold the range, and go on with it.

    MODEL: one WARN_ON_ONCE() for all wrappers, where each would have its own.
    """

    __slots__ = ()

    def _folio_holds(self, folio: Folio, start_idx: int, npages: int) -> bool:
        if not super()._folio_holds(folio, start_idx, npages):
            self.warn_on_once("the range is not in one folio", "SEAMCALL wrapper")
        return True


DESIGN = Design(
    "pfn-wrappers",
    "Sean Christopherson (KVM), Dave Hansen (x86), 2026-01-16, review of 00/24",
    "SEAMCALL wrappers take PFN and level; a mapping may be larger than its folio",
    on_v3(gmem=PfnGuestMemfd, x86_tdx=PfnTdxArch),
    scenarios=("folio-1g-convert-4k", "folio-1g-convert-2m"),
)

WARN = Design(
    "warn-wrappers",
    "Yan Zhao (author of v3), 2026-01-09, 12 and 14, review of 01 and 03/24",
    "SEAMCALL wrappers warn where a folio does not hold the range, and go on",
    on_v3(x86_tdx=WarnTdxArch),
    scenarios=("folio-1g-convert-4k", "folio-1g-convert-2m"),
)
