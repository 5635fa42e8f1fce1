"""Dynamic PAMT: pairs, reference counts, and the cache of a split."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.designs.bugs._seeded import seeded
from septum.linux.kvm.tdx import KvmTdxUnit
from septum.linux.x86.state import PTE_SHIFT
from septum.linux.x86.tdx import TdxArch

if TYPE_CHECKING:
    from septum.abi.types import Pfn
    from septum.linux.kvm.types import Kvm


class AugFailureLeaks(KvmTdxUnit):
    """AUG fails and the reference to the pair is kept."""

    __slots__ = ()

    def _tdx_page_unused(self, pfn: int) -> None:
        """Nothing."""


class GetNotRechecked(TdxArch):
    """tdx_pamt_get() does not look at the count again under pamt_lock."""

    __slots__ = ()

    def _pamt_get_lost_race(self, frame: int) -> bool:
        return False


class PutNotRechecked(TdxArch):
    """tdx_pamt_put() does not look at the count again under pamt_lock."""

    __slots__ = ()

    def _pamt_put_lost_race(self, frame: int) -> bool:
        return False


class OnePair(KvmTdxUnit):
    """The cache is filled for the guest's page, and not for the new S-EPT page."""

    __slots__ = ()

    def tdx_min_split_cache_sz(self, kvm: Kvm, level: int) -> int:
        return super().tdx_min_split_cache_sz(kvm, level) // 2


class CacheNotLocked(KvmTdxUnit):
    """The split cache is filled without prealloc_split_cache_lock."""

    __slots__ = ()

    def _put_into_split_cache(self, kvm: Kvm, page: Pfn) -> None:
        self.host.x86_tdx.add_tdx_prealloc_page(kvm.tdx.prealloc_split_cache, page)


class DemotedOneShort(TdxArch):
    """After a DEMOTE the count is the number of pages beside the one that was split for."""

    __slots__ = ()

    def _demoted(self, guest_base_pfn: int) -> None:
        super()._demoted(guest_base_pfn)
        self.state.pamt_refcounts[guest_base_pfn >> PTE_SHIFT] -= 1


class ResetBehindFree(TdxArch):
    """free_pamt_array() frees each page and resets it then."""

    __slots__ = ()

    def free_pamt_array(self, pages: list[Pfn]) -> None:
        for page in pages:
            self.host.mm.free_page(page)
            self.tdx_quirk_reset_paddr(page, 1)


DESIGNS = (
    seeded(
        "pamt-aug-failure",
        "v3 patch 17, tdx_sept_set_private_spte()",
        "When AUG fails the PAMT reference of its page is not dropped",
        "dpamt-fault-against-fault",
        "pamt",
        tdx=AugFailureLeaks,
    ),
    seeded(
        "pamt-get-not-rechecked",
        "Dynamic PAMT v4 08/16",
        "Two tdx_pamt_get() of one 2 MB frame both think that they are the first",
        "dpamt-fault-against-fault",
        "pamt",
        "no-bug",
        x86_tdx=GetNotRechecked,
    ),
    seeded(
        "pamt-put-not-rechecked",
        "Dynamic PAMT v4 08/16",
        "tdx_pamt_put() removes the pair that a tdx_pamt_get() counts on",
        "dpamt-slot-against-fault",
        "no-bug",
        x86_tdx=PutNotRechecked,
    ),
    seeded(
        "split-cache-one-pair",
        "v3 patches 20 and 21",
        "The split cache is filled for one pair, where a split can take two",
        "dpamt-fresh-sept-page",
        "no-bug",
        tdx=OnePair,
    ),
    seeded(
        "split-cache-not-locked",
        "v3 patch 20, tdx_topup_vm_split_cache()",
        "The split cache is filled without its lock, while another split takes pages out of it",
        "dpamt-accept-parallel",
        "no-bug",
        tdx=CacheNotLocked,
    ),
    seeded(
        "pamt-demote-511",
        "v3 patch 23",
        "After DEMOTE the reference count of the frame is 511",
        "dpamt-convert",
        "pamt",
        "no-bug",
        x86_tdx=DemotedOneShort,
    ),
    seeded(
        "reset-behind-free",
        "Dynamic PAMT, tdx.c free_pamt_array()",
        "PAMT pages are reset with MOVDIR64B when they are free, under their next owner",
        "dpamt-accept-parallel",
        "no-bug",
        x86_tdx=ResetBehindFree,
    ),
)
