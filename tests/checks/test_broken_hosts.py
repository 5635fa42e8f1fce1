"""Hosts and modules that are broken on purpose run whole scenarios, and are caught.

Every promise is broken here by code that a person could have written, not by poked state.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest

from septum.abi.errno import EAGAIN
from septum.abi.kvm import KVM_MEMORY_ATTRIBUTE_PRIVATE as PRIVATE
from septum.abi.sept import PENDING, RWX
from septum.abi.status import TDX_SUCCESS
from septum.checks import PROMISES
from septum.designs.registry import Design, designs
from septum.linux.host import v3_units
from septum.linux.kvm.guest_memfd import GuestMemfd
from septum.linux.kvm.mmu import KvmMmu
from septum.linux.kvm.tdp_mmu import TdpMmu
from septum.linux.kvm.tdx import KvmTdxUnit
from septum.linux.ranges import range_store
from septum.linux.x86.tdx import TdxArch
from septum.module import Module
from septum.scenarios.bench import ScenarioBench
from septum.scenarios.run import RandomRun, load_scenario
from septum.sim import RoundRobin


class NoTrack(KvmTdxUnit):
    """Blocks and demotes without a new epoch in between."""

    def tdx_track(self, kvm):
        """Nothing."""


class NoZapOnConversion(GuestMemfd):
    """Lets memory become shared while guests still have it mapped as private."""

    def kvm_gmem_zap(self, inode, start, end):
        """Nothing."""


class AllocatesUnderMmuLock(TdpMmu):
    """Allocates with waiting while it holds mmu_lock."""

    def kvm_tdp_mmu_unmap_gfn_range(self, kvm, rng, flush):
        page = self.host.mm.alloc_page("under_mmu_lock")
        if page is not None:
            self.host.mm.free_page(page)
        return super().kvm_tdp_mmu_unmap_gfn_range(kvm, rng, flush)


class TakesSlotsLockInside(GuestMemfd):
    """Takes slots_lock under the invalidate_lock; release() takes them the other way round."""

    def kvm_gmem_zap(self, inode, start, end):
        for f in inode.file_list:
            f.kvm.slots_lock.lock()
            f.kvm.slots_lock.unlock()
        super().kvm_gmem_zap(inode, start, end)


class DoesNotSplit(KvmMmu):
    """A zap takes the whole leaf."""

    def kvm_split_cross_boundary_leafs(self, kvm, rng, shared):
        return 0


class SplitsTheMirrorOnly(KvmTdxUnit):
    """The split hook says 0 and does nothing."""

    def split_external_spte(self, kvm, gfn, level, old_mirror_spte, new_external_spt, shared):
        return 0


class DemotePends(Module):
    """DEMOTE makes 512 pages that the guest has to accept again."""

    def demoted_entry(self, td, entry, hpa):
        return super().demoted_entry(td, entry, hpa) & ~RWX | PENDING


class KeepsTranslations(Module):
    """A vCPU that enters in a new epoch keeps what it has cached of the old one."""

    def enter_epoch(self, lp, td, vcpu, associated):
        return super().enter_epoch(lp, td, vcpu, True)


class ClearsTheWholeFolio(GuestMemfd):
    """Clears what becomes shared, by folio instead of by page."""

    def kvm_gmem_restructure(self, inode, start, nr_pages, to_private):
        ret = super().kvm_gmem_restructure(inode, start, nr_pages, to_private)
        split = inode.split_folios.get(start & -512)
        if not to_private and split is not None:
            for pfn in range(split.pfn, split.pfn + split.nr_pages):
                self.machine.mem.write(pfn, 0, 0)
        return ret


class NeverPuts(TdxArch):
    """Dynamic PAMT references are never dropped."""

    def tdx_pamt_put(self, page):
        """Nothing."""


class DoesNotFlushAfter(TdxArch):
    """No TDH.PHYMEM.PAGE.WBINVD after REMOVE."""

    def tdh_phymem_page_wbinvd_hkid(self, hkid, folio, start_idx, npages):
        return TDX_SUCCESS


class ForgetsTheVirtualApic(KvmTdxUnit):
    """Looks at posted interrupts alone when a guest halts."""

    def tdx_protected_apic_has_interrupt(self, vcpu):
        return vcpu.pi_desc.on


class LeavesInvalidationOpen(GuestMemfd):
    """Begins an invalidation with each conversion, and does not end it."""

    def kvm_gmem_invalidate_end(self, inode, start, end):
        """Nothing."""


class StoresBeforeItLooks(GuestMemfd):
    """Stores attributes before it knows whether anybody holds a page of the range."""

    def kvm_gmem_convert(self, inode, start, nr_pages, attrs):
        range_store(inode.attributes, start, start + nr_pages, attrs)
        return super().kvm_gmem_convert(inode, start, nr_pages, attrs)


class StoresUpToThePageThatIsHeld(GuestMemfd):
    """Converts what comes before a page that somebody holds, and says that it stopped there."""

    def kvm_gmem_convert(self, inode, start, nr_pages, attrs):
        ret, index = super().kvm_gmem_convert(inode, start, nr_pages, attrs)
        if ret == -EAGAIN:
            range_store(inode.attributes, start, index, attrs)
        return ret, index


class ZapsTheFolioOnTheWayBack(GuestMemfd):
    """A page that becomes private again takes the rest of its 2 MB with it."""

    def kvm_gmem_zap(self, inode, start, end):
        if not self.kvm_gmem_range_has_attributes(inode, start, end - start, PRIVATE):
            start, end = self._kvm_gmem_compute_invalidate_range(inode, start, end)
        super().kvm_gmem_zap(inode, start, end)


class KeepsTheKey(KvmTdxUnit):
    """The key id is never given back to the kernel."""

    def tdx_hkid_free(self, kvm_tdx):
        kvm_tdx.hkid = -1


CASES = [
    ({"tdx": NoTrack}, "convert-one-page", "no-bug"),
    ({"gmem": NoZapOnConversion}, "private-mem-punch-all", "mapping-in-folio"),
    ({"gmem": NoZapOnConversion}, "gmem-private-and-shared-4k", "private-unreachable"),
    ({"tdp_mmu": AllocatesUnderMmuLock}, "convert-one-page", "locking"),
    ({"gmem": TakesSlotsLockInside}, "convert-one-page", "locking"),
    ({"mmu": DoesNotSplit}, "convert-one-page", "precise-zap"),
    ({"gmem": ZapsTheFolioOnTheWayBack}, "upm-explicit", "precise-zap"),
    ({"tdx": SplitsTheMirrorOnly}, "convert-one-page", "mirror"),
    ({"module": DemotePends}, "convert-one-page", "accept-once"),
    ({"module": KeepsTranslations}, "slot-delete-in-use", "tlb"),
    ({"gmem": ClearsTheWholeFolio}, "convert-one-page", "guest-data"),
    ({"x86_tdx": NeverPuts}, "dpamt-convert", "pamt"),
    ({"x86_tdx": DoesNotFlushAfter}, "convert-one-page", "cache"),
    ({"tdx": ForgetsTheVirtualApic}, "wake-before-halt", "progress"),
    ({"gmem": LeavesInvalidationOpen}, "gmem-convert-fault-race", "progress"),
    ({"gmem": StoresBeforeItLooks}, "gmem-conversions-pinned", "all-or-nothing"),
    ({"gmem": StoresUpToThePageThatIsHeld}, "gmem-conversions-pinned", "all-or-nothing"),
    ({"tdx": KeepsTheKey}, "teardown-split", "teardown"),
]
SEEDS = 8


def add_design(monkeypatch: pytest.MonkeyPatch, parts: dict[str, type]) -> str:
    """A design of these units and this module, for the length of a test: its name."""
    units = {name: part for name, part in parts.items() if name != "module"}
    module = parts.get("module")
    hook: Callable[[], type] | None = (lambda: module) if module is not None else None
    design = Design("broken", "", "", lambda: replace(v3_units(), **units), module=hook)
    monkeypatch.setitem(designs(), "broken", design)
    return "broken"


def broken_promises(scenario: str, design: str, wanted: str = "") -> set[str]:
    """Promises that break in some of a few schedules; not all are tried when `wanted` is there."""
    broken: set[str] = set()
    bench = ScenarioBench(load_scenario(scenario), design)
    for schedule in (RoundRobin(), *map(RandomRun, range(SEEDS))):
        broken |= {finding.promise for finding in bench.run(schedule).findings}
        if wanted in broken or not bench.was_asked:
            break
    return broken


@pytest.mark.parametrize(
    ("parts", "scenario", "promise"),
    CASES,
    ids=[f"{next(iter(parts.values())).__name__}-{promise}" for parts, _, promise in CASES],
)
def test_a_broken_host_is_caught(parts, scenario, promise, monkeypatch):
    broken = broken_promises(scenario, add_design(monkeypatch, parts), promise)
    assert promise in broken
    assert promise not in broken_promises(scenario, "v3")


def test_every_promise_is_broken_by_some_host():
    assert {promise for _, _, promise in CASES} == set(PROMISES)
