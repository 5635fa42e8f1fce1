"""The 24 patches of v3 by title, and how a design without one of them is named."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.designs.registry import Design

if TYPE_CHECKING:
    from collections.abc import Callable

    from septum.linux.host import HostUnits

TITLES = (
    "x86/tdx: Enhance tdh_mem_page_aug() to support huge pages",
    "x86/virt/tdx: Add SEAMCALL wrapper tdh_mem_page_demote()",
    "x86/tdx: Enhance tdh_phymem_page_wbinvd_hkid() to invalidate huge pages",
    "x86/tdx: Introduce tdx_quirk_reset_folio() to reset private huge pages",
    "x86/virt/tdx: Enhance tdh_phymem_page_reclaim() to support huge pages",
    "KVM: x86/mmu: Disallow page merging (huge page adjustment) for mirror root",
    "KVM: x86/tdp_mmu: Introduce split_external_spte() under write mmu_lock",
    "KVM: TDX: Enable huge page splitting under write mmu_lock",
    "KVM: x86: Reject splitting huge pages under shared mmu_lock in TDX",
    "KVM: x86/tdp_mmu: Alloc external_spt page for mirror page table splitting",
    "KVM: x86/mmu: Introduce kvm_split_cross_boundary_leafs()",
    "KVM: x86: Introduce hugepage_set_guest_inhibit()",
    "KVM: TDX: Honor the guest's accept level contained in an EPT violation",
    "KVM: Change the return type of gfn_handler_t() from bool to int",
    "KVM: x86: Split cross-boundary mirror leafs for KVM_SET_MEMORY_ATTRIBUTES",
    "KVM: guest_memfd: Split for punch hole and private-to-shared conversion",
    "KVM: TDX: Get/Put DPAMT page pair only when mapping size is 4KB",
    "x86/virt/tdx: Add loud warning when tdx_pamt_put() fails",
    "KVM: x86: Introduce per-VM external cache for splitting",
    "KVM: TDX: Implement per-VM external cache for splitting in TDX",
    "KVM: TDX: Add/Remove DPAMT pages for the new S-EPT page for splitting",
    "x86/tdx: Add/Remove DPAMT pages for guest private memory to demote",
    "x86/tdx: Pass guest memory's PFN info to demote for updating pamt_refcount",
    "KVM: TDX: Turn on PG_LEVEL_2M",
)
DATE = "2026-01-06"

VM_DIES = ("no-bug", "mapping-in-folio", "teardown")
"""What breaks when a split bugs the VM: the leaf stays over what is shared, and pages leak."""
WHOLE_LEAF_GOES = ("precise-zap", "guest-data", "accept-once")
"""What breaks when a zap takes more than it was asked for."""


def ablation(
    patch: int,
    summary: str,
    units: Callable[[], HostUnits],
    *,
    breaks: tuple[str, ...],
    scenarios: tuple[str, ...],
    piece: str = "",
    base: str = "v3",
) -> Design:
    """`base` without patch `patch`, or without one `piece` of it. `breaks` is empty where the
    absence is seen in counts only."""
    name = f"v3-without-{patch:02}"
    return Design(
        f"{name}-{piece}" if piece else name,
        f"PATCH v3 {patch:02}/24, {DATE}, {TITLES[patch - 1]}",
        summary,
        units,
        kind="ablation",
        breaks=breaks,
        scenarios=scenarios,
        patch=patch,
        base=base,
    )
