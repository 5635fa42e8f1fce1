"""Splitting 2 MB leaves: the SEAMCALLs, the Dynamic PAMT accounts, and every way to fail.

Source: patches 01-05, 08, 15, 17, 20-24.
"""

from collections.abc import Callable
from typing import Any

import pytest

from septum.abi.kvm import PG_LEVEL_2M, PG_LEVEL_4K
from septum.abi.status import TDX_OPERAND_INVALID, TDX_SW_ERROR
from septum.abi.types import Pfn
from septum.linux.host import HostUnits, v3_units
from septum.linux.kvm.tdx import KvmTdxUnit
from septum.linux.mm.folio import Folio
from septum.module.events import SeamcallEvent

Benches = Callable[..., Any]
PAGE = 4096
MB2 = 2 << 20
FREE_GPA = 32 << 20
BLOCK, TRACK, REMOVE = "TDH.MEM.RANGE.BLOCK", "TDH.MEM.TRACK", "TDH.MEM.PAGE.REMOVE"
DEMOTE, WBINVD, AUG = "TDH.MEM.PAGE.DEMOTE", "TDH.PHYMEM.PAGE.WBINVD", "TDH.MEM.PAGE.AUG"
PAMT_ADD, PAMT_REMOVE = "TDH.PHYMEM.PAMT.ADD", "TDH.PHYMEM.PAMT.REMOVE"
LEAF = {BLOCK: 7, DEMOTE: 15, REMOVE: 29, WBINVD: 41, PAMT_ADD: 58, PAMT_REMOVE: 59}


def with_tdx(unit: type[KvmTdxUnit]) -> HostUnits:
    units = v3_units()
    return HostUnits(**{**{f: getattr(units, f) for f in units.__slots__}, "tdx": unit})


def inject(b: Any, leaf: str, *outcomes: int) -> None:
    """Let the next calls of `leaf` come out so: 1 BUSY, 2 another error."""
    b.host.x86_tdx.state.inject = frozenset({LEAF[leaf]})
    b.choices.wanted[f"seamcall:{leaf}"] = list(outcomes)


def test_prefault_maps_two_megabytes(bench: Benches) -> None:
    b = bench()
    made = b.seamcalls(lambda: b.prefault(FREE_GPA))
    assert made[AUG] == 1
    assert b.walk(FREE_GPA) == (1, True)
    assert b.kvm.stat.get("pages_2m") == 1


@pytest.mark.parametrize("option", [{"tdx_huge_page": False}, {"module": "1.5.25"}])
def test_no_huge_page_without_the_parameter_or_the_feature(
    bench: Benches, option: dict[str, Any]
) -> None:
    b = bench(**option)
    assert not b.host.tdx.state.enable_tdx_huge_page
    b.prefault(FREE_GPA, PAGE)
    assert b.walk(FREE_GPA) == (0, True)


def test_a_seamcall_takes_nothing_over_from_the_one_before(bench: Benches) -> None:
    """The kernel's struct tdx_module_args is zero where a wrapper sets nothing."""
    b = bench()
    x86, td = b.host.x86_tdx, b.kvm.tdx
    err, _, level_state = x86.tdh_mem_range_block(td, FREE_GPA, 0)  # nothing is mapped there
    assert err and level_state
    events: list[Any] = []
    b.sim.set_sink(events.append)
    assert x86.tdh_mem_track(td)[0] == 0
    page = b.host.mm.alloc_folio(0, "test")
    assert x86.tdh_phymem_page_wbinvd_hkid(td.hkid, page, 0, 1) == 0
    b.sim.set_sink(None)
    assert [event.rdx for event in events if isinstance(event, SeamcallEvent)] == [0, 0]


def test_convert_one_page_inside_a_huge_page(bench: Benches) -> None:
    b = bench()
    b.prefault(FREE_GPA)
    middle = FREE_GPA + 5 * PAGE
    made = b.seamcalls(lambda: b.ok(b.set_attributes(middle, PAGE, private=False)))
    assert made == {BLOCK: 2, TRACK: 2, DEMOTE: 1, REMOVE: 1, WBINVD: 1}
    assert b.walk(middle) == (0, False)
    assert b.walk(middle + PAGE) == (0, True)
    assert b.kvm.stat.get("split.conversion") == 1
    assert b.texts() == []
    b.vmm.teardown()
    b.assert_nothing_left()


def test_whole_huge_page_goes_with_one_block(bench: Benches) -> None:
    b = bench()
    b.prefault(FREE_GPA)
    made = b.seamcalls(lambda: b.ok(b.set_attributes(FREE_GPA, MB2, private=False)))
    assert made == {BLOCK: 1, TRACK: 1, REMOVE: 1, WBINVD: 512}


# Dynamic PAMT


def test_dynamic_pamt_accounts_of_a_split(bench: Benches) -> None:
    b = bench(dynamic_pamt=True)
    x86 = b.host.x86_tdx
    b.prefault(FREE_GPA)
    pfn = b.gmem.inode.folios[FREE_GPA >> 12].pfn
    assert x86.tdx_pamt_refcount(pfn) == 0
    made = b.seamcalls(lambda: b.ok(b.set_attributes(FREE_GPA, PAGE, private=False)))
    assert made[DEMOTE] == 1 and PAMT_ADD not in made
    assert x86.tdx_pamt_refcount(pfn) == 511
    cache = b.kvm.tdx.prealloc_split_cache
    assert (cache.cnt, len(cache.page_list)) == (2, 2)  # of 4, one pair went into DEMOTE
    made = b.seamcalls(lambda: b.ok(b.set_attributes(FREE_GPA, MB2, private=False)))
    assert made[REMOVE] == 511 and made[PAMT_REMOVE] == 1
    assert x86.tdx_pamt_refcount(pfn) == 0
    b.vmm.teardown()
    assert b.texts() == []
    b.assert_nothing_left()


def test_failed_pamt_add_returns_success_as_posted(bench: Benches) -> None:
    """tdx_pamt_get() returns 0 although nothing was installed, so the next SEAMCALL fails."""
    b = bench("4k", dynamic_pamt=True)
    x86 = b.host.x86_tdx
    inject(b, PAMT_ADD, 2)
    page = b.host.mm.alloc_folio(9, "test").pfn
    assert x86.tdx_pamt_get(page) == 0
    assert x86.tdx_pamt_refcount(page) == 0


def test_failed_pamt_remove_keeps_the_pair_and_warns(bench: Benches) -> None:
    b = bench("4k", dynamic_pamt=True)
    x86 = b.host.x86_tdx
    page = b.host.mm.alloc_folio(9, "test").pfn
    assert x86.tdx_pamt_get(page) == 0
    inject(b, PAMT_REMOVE, 2)
    x86.tdx_pamt_put(page)
    assert x86.tdx_pamt_refcount(page) == 1
    assert "TDH_PHYMEM_PAMT_REMOVE failed" in b.texts()[0]


def test_busy_demote_uses_up_the_split_cache(bench: Benches) -> None:
    """As posted: the pair of the first attempt is freed, not put back. When the new S-EPT page
    needed the other pair, none is left for the second attempt and the VM is bugged."""
    b = bench(dynamic_pamt=True)
    b.prefault(FREE_GPA)
    inject(b, DEMOTE, 1)
    # The cache is at its minimum and the S-EPT page is the first of its 2 MB frame.
    take_pages_until_new_frame(b)
    b.set_attributes(FREE_GPA, PAGE, private=False)
    assert b.kvm.vm_bugged
    assert f"{TDX_SW_ERROR:#x}" in b.texts()[0]


def take_pages_until_new_frame(b: Any) -> None:
    """Allocate until the page after next begins a 2 MB frame, so that spt takes the last of the
    old frame and external_spt the first of a new one; the host's own pages have no pair."""
    mm = b.host.mm
    while True:
        pfn = mm.alloc_page("filler")
        if (pfn + 2) & 511 == 0:
            return


def test_busy_demote_is_retried_when_the_cache_suffices(bench: Benches) -> None:
    b = bench(dynamic_pamt=True)
    b.prefault(FREE_GPA)
    inject(b, DEMOTE, 1)
    b.ok(b.set_attributes(FREE_GPA, PAGE, private=False))
    assert not b.kvm.vm_bugged
    assert b.kvm.tdx.prealloc_split_cache.cnt == 0
    assert b.walk(FREE_GPA + PAGE) == (0, True)
    b.vmm.teardown()
    b.assert_nothing_left()


# Failures of a split


@pytest.mark.parametrize("leaf", [BLOCK, DEMOTE, REMOVE])
def test_busy_once_is_retried_busy_twice_bugs_the_vm(bench: Benches, leaf: str) -> None:
    b = bench()
    b.prefault(FREE_GPA)
    inject(b, leaf, 1)
    b.ok(b.set_attributes(FREE_GPA, PAGE, private=False))
    assert b.texts() == [] and b.kvm.stat.get("tdh_do_no_vcpus.busy") == 1
    assert not b.kvm.tdx.wait_for_sept_zap
    b = bench()
    b.prefault(FREE_GPA)
    inject(b, leaf, 1, 1)
    b.set_attributes(FREE_GPA, PAGE, private=False)
    assert b.kvm.vm_bugged and "OPERAND_BUSY" in b.texts()[0]


def test_failed_allocation_in_a_conversion_converts_all_the_same(bench: Benches) -> None:
    """As posted: kvm_split_cross_boundary_leafs() keeps -ENOMEM in a bool, its caller takes the 1
    for `flush`, and the attributes change while the 2 MB leaf stays mapped."""
    b = bench()
    b.prefault(FREE_GPA)
    b.choices.wanted["alloc:tdp_mmu_alloc_sp_for_split.spt"] = [1]
    assert b.set_attributes(FREE_GPA, PAGE, private=False) == 0
    assert not b.host.main.kvm_mem_is_private(b.kvm, FREE_GPA >> 12)
    assert b.walk(FREE_GPA) == (1, True)
    assert b.kvm.mmu_invalidate_in_progress == 0


def test_failed_cache_topup_fails_the_same_way(bench: Benches) -> None:
    b = bench(dynamic_pamt=True)
    b.prefault(FREE_GPA)
    b.choices.wanted["alloc:tdx_split_cache"] = [0, 1]
    assert b.set_attributes(FREE_GPA, PAGE, private=False) == 0
    assert b.walk(FREE_GPA) == (1, True)
    assert b.kvm.tdx.prealloc_split_cache.cnt == 1
    b.ok(b.set_attributes(FREE_GPA, PAGE, private=True))
    b.ok(b.set_attributes(FREE_GPA, PAGE, private=False))  # topped up this time
    assert b.walk(FREE_GPA + PAGE) == (0, True)
    b.vmm.teardown()
    b.assert_nothing_left()


class NoTrack(KvmTdxUnit):
    """Broken: pages go without TLB tracking."""

    def tdx_track(self, kvm: Any) -> None:
        return


class NoBlock(KvmTdxUnit):
    """Broken: BLOCK is forgotten."""

    def tdh_do_no_vcpus(self, tdh_func: Any, kvm: Any, *args: Any) -> tuple[int, int, int]:
        if tdh_func.__name__ == "tdh_mem_range_block":
            return 0, 0, 0
        return super().tdh_do_no_vcpus(tdh_func, kvm, *args)


@pytest.mark.parametrize(
    ("unit", "status"), [(NoTrack, "TLB_TRACKING_NOT_DONE"), (NoBlock, "GPA_RANGE_NOT_BLOCKED")]
)
def test_module_refuses_a_broken_sequence(
    bench: Benches, unit: type[KvmTdxUnit], status: str
) -> None:
    b = bench(units=with_tdx(unit))
    b.prefault(FREE_GPA)
    b.set_attributes(FREE_GPA, PAGE, private=False)
    assert b.kvm.vm_bugged and status in b.texts()[0]


def test_split_under_shared_lock_is_refused(bench: Benches) -> None:
    b = bench()
    b.prefault(FREE_GPA)
    spte = 0x8600000000000BB7
    kvm = b.kvm
    kvm.mmu_lock.read_lock()
    ret = b.host.tdx.split_external_spte(kvm, FREE_GPA >> 12, PG_LEVEL_2M, spte, 0x1234, True)
    kvm.mmu_lock.read_unlock()
    assert ret == -95
    assert "under shared lock" in b.texts()[0] and not kvm.vm_bugged


def test_only_two_megabyte_leaves_of_a_running_td_are_split(bench: Benches) -> None:
    b = bench()
    ret = b.host.tdx.split_external_spte(b.kvm, FREE_GPA >> 12, PG_LEVEL_4K, 0, 0x1234, False)
    assert ret == -5 and b.kvm.vm_bugged


# Wrappers: patches 01, 03, 04, 05


def test_wrappers_refuse_ranges_outside_the_folio(bench: Benches) -> None:
    b = bench()
    x86 = b.host.x86_tdx
    td = b.kvm.tdx
    small = Folio(Pfn(0x200000), 0)
    huge = Folio(Pfn(0x200000), 9)

    def calls() -> None:
        assert x86.tdh_mem_page_aug(td, FREE_GPA, 1, small, 0)[0] == TDX_OPERAND_INVALID
        assert x86.tdh_mem_page_aug(td, FREE_GPA, 1, huge, 1)[0] == TDX_OPERAND_INVALID
        assert x86.tdh_phymem_page_wbinvd_hkid(33, huge, 1, 512) == TDX_OPERAND_INVALID
        assert x86.tdh_phymem_page_reclaim(small, 0, 2)[0] == TDX_OPERAND_INVALID

    assert b.seamcalls(calls) == {}
    x86.tdx_quirk_reset_folio(huge, 1, 512)
    assert b.texts() == ["WARN: range outside the folio"]


def test_wbinvd_stops_at_the_first_error(bench: Benches) -> None:
    b = bench("4k")
    head = b.host.mm.alloc_folio(9, "test")
    inject(b, WBINVD, 0, 0, 2)
    x86 = b.host.x86_tdx

    def call() -> None:
        assert x86.tdh_phymem_page_wbinvd_hkid(33, head, 0, 8) == TDX_OPERAND_INVALID

    assert b.seamcalls(call) == {WBINVD: 2}


def test_mapping_level_rule(bench: Benches) -> None:
    b = bench()
    level = b.host.tdx.gmem_max_mapping_level
    assert level(b.kvm, 0, False) == 0
    assert level(b.kvm, 0, True) == PG_LEVEL_2M
    b.kvm.tdx.state = 1
    assert level(b.kvm, 0, True) == PG_LEVEL_4K
