"""Without the SEAMCALL wrappers for huge pages: patches 01 to 04.

Patch 05 has no design: every caller of tdh_phymem_page_reclaim() in the series reclaims one page.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.status import TDX_SW_ERROR
from septum.designs.ablations.patches import VM_DIES, ablation
from septum.designs.registry import on_v3
from septum.linux.x86.tdx import TdxArch

if TYPE_CHECKING:
    from septum.linux.kvm.types import Folio


class AugOfOnePage(TdxArch):
    """tdh_mem_page_aug() as it was: tdx_clflush_page(page), whatever the level.

    The check that the folio holds the whole mapping is the patch's, too, and stays: the KVM MMU
    never asks for a level that is larger than the folio.
    """

    __slots__ = ()

    def _clflush_each(self, pfn: int, npages: int) -> None:
        self.tdx_clflush_page(pfn)


class NoDemote(TdxArch):
    """There is no tdh_mem_page_demote(); who wants to split gets an error at once."""

    __slots__ = ()

    def tdh_mem_page_demote(self, *args: object, **kwargs: object) -> tuple[int, int, int]:
        return TDX_SW_ERROR, 0, 0


class DemoteOnAnyModule(TdxArch):
    """tdx_supports_demote_nointerrupt(), which patch 02 adds, is not asked, here nor in patch 24:
    DEMOTE is called on every module, and TDX_INTERRUPTED_RESTARTABLE is an error like others."""

    __slots__ = ()

    def tdx_demote_usable(self) -> bool:
        return True


class WbinvdOfOnePage(TdxArch):
    """tdh_phymem_page_wbinvd_hkid(hkid, page): one page, whatever the level."""

    __slots__ = ()

    def tdh_phymem_page_wbinvd_hkid(
        self, hkid: int, folio: Folio, start_idx: int, npages: int
    ) -> int:
        return super().tdh_phymem_page_wbinvd_hkid(hkid, folio, start_idx, 1)


class QuirkResetOfOnePage(TdxArch):
    """tdx_quirk_reset_page(page), whatever the level."""

    __slots__ = ()

    def tdx_quirk_reset_folio(self, folio: Folio, start_idx: int, npages: int) -> None:
        self.tdx_quirk_reset_page(folio.pfn + start_idx)


DESIGNS = (
    ablation(
        1,
        "AUG at 2 MB flushes the cache lines of the first 4 KB only",
        on_v3(x86_tdx=AugOfOnePage),
        breaks=("cache",),
        scenarios=("aug-dirty-lines",),
    ),
    ablation(
        2,
        "there is no DEMOTE: a split fails after BLOCK and bugs the VM",
        on_v3(x86_tdx=NoDemote),
        breaks=VM_DIES,
        scenarios=("convert-one-page",),
    ),
    ablation(
        2,
        "DEMOTE is called on modules that let an interrupt end it",
        on_v3(x86_tdx=DemoteOnAnyModule),
        breaks=(*VM_DIES, "cache"),
        scenarios=("demote-interrupted",),
        piece="check",
    ),
    ablation(
        3,
        "the zap of a 2 MB leaf flushes the TD's cache lines of its first 4 KB only",
        on_v3(x86_tdx=WbinvdOfOnePage),
        breaks=("cache",),
        scenarios=("convert-aligned-2m",),
    ),
    ablation(
        4,
        "the zap of a 2 MB leaf resets its first 4 KB only, on parts with the erratum",
        on_v3(x86_tdx=QuirkResetOfOnePage),
        breaks=("cache", "teardown"),
        scenarios=("convert-aligned-2m-erratum",),
    ),
)
