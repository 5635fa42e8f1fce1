"""A conversion splits the folio first, then the S-EPT: the order of the WIP guest_memfd.

What v3 was rebased on, and what its FIXUP 2 turns round. Defended in the review by Ackerley Tng and
Vishal Annapurve (guest_memfd), 2026-01-09 to 12: a folio split may fail, a zap cannot be undone,
and contiguity is what TDX needs, not folios.
"""

from __future__ import annotations

from septum.designs.proposals.pfn_wrappers import PfnGuestMemfd, PfnTdxArch
from septum.designs.registry import Design, on_v3
from septum.linux.kvm.guest_memfd import GuestMemfd


class FolioFirst(GuestMemfd):
    """guest_memfd without FIXUP 2: the folio is split before the invalidation begins."""

    __slots__ = ()

    def _kvm_gmem_zaps_before_restructure(self) -> bool:
        return False


class FolioFirstByPfn(FolioFirst, PfnGuestMemfd):
    """The same where mappings may be larger than folios, as its defenders mean it."""

    __slots__ = ()


DESIGN = Design(
    "folio-first",
    "WIP guest_memfd (hugetlb), 2025-12-08; without FIXUP 2 of v3",
    "conversion splits the folio before it touches the S-EPT; v3's folio checks stay",
    on_v3(gmem=FolioFirst),
    breaks=("no-bug", "cache", "mapping-in-folio", "teardown"),
    scenarios=("convert-aligned-2m", "dpamt-convert", "finding-folio-split-enomem"),
)

BY_PFN = Design(
    "folio-first-pfn",
    "Ackerley Tng and Vishal Annapurve (guest_memfd), 2026-01-09, review of 00/24",
    "the same with SEAMCALL wrappers that do not look at folios",
    on_v3(gmem=FolioFirstByPfn, x86_tdx=PfnTdxArch),
    scenarios=("finding-folio-split-enomem", "finding-without-fixup-2", "folio-1g-convert-4k"),
)
