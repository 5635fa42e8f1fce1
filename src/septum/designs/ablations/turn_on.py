"""Without turning 2 MB on: patch 24."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.kvm import PG_LEVEL_4K
from septum.designs.ablations.patches import VM_DIES, ablation
from septum.designs.registry import on_v3
from septum.linux.kvm.tdx import KvmTdxUnit

if TYPE_CHECKING:
    from septum.linux.kvm.types import Kvm


class OnlySmallPages(KvmTdxUnit):
    """tdx_gmem_max_mapping_level() as it was: 4 KB for whatever is private."""

    __slots__ = ()

    def gmem_max_mapping_level(self, kvm: Kvm, pfn: int, is_private: bool) -> int:
        return PG_LEVEL_4K if is_private else 0


class HugePagesOnAnyModule(KvmTdxUnit):
    """__tdx_bringup() does not look whether the module's DEMOTE can be interrupted."""

    __slots__ = ()

    def tdx_bringup(self) -> int:
        ret = super().tdx_bringup()
        self.state.enable_tdx_huge_page = self.host.params.tdx_huge_page
        return ret


DESIGNS = (
    ablation(
        24,
        "everything private is mapped by 4 KB",
        on_v3(tdx=OnlySmallPages),
        breaks=(),
        scenarios=("accept-one-frame",),
    ),
    ablation(
        24,
        "huge pages are on with a module whose DEMOTE patch 02 refuses to call",
        on_v3(tdx=HugePagesOnAnyModule),
        breaks=VM_DIES,
        scenarios=("old-module-convert",),
        piece="check",
    ),
)
