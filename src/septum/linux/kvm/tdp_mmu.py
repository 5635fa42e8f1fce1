"""The TDP MMU: installing the mapping that a fault asks for.

`TdpMmu` is the whole of arch/x86/kvm/mmu/tdp_mmu.c; its other parts are in tdp_mmu_roots (pages and
roots), tdp_mmu_spte (changing an entry), tdp_mmu_zap and tdp_mmu_split.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.kvm import (
    PG_LEVEL_4K,
    RET_PF_EMULATE,
    RET_PF_FIXED,
    RET_PF_RETRY,
    RET_PF_SPURIOUS,
)
from septum.abi.spte import (
    PT_PAGE_SIZE_MASK,
    PT_WRITABLE_MASK,
    SPTE_MMU_PRESENT_MASK,
    VMX_EPT_EXECUTABLE_MASK,
    VMX_EPT_READABLE_MASK,
    is_last_spte,
    is_mmio_spte,
    is_shadow_present_pte,
    make_mmio_spte,
    make_spte,
    spte_to_pfn,
)
from septum.linux.kvm.events import KvmMmuSetSpte, KvmMmuSpteRequested
from septum.linux.kvm.tdp_iter import TdpIter
from septum.linux.kvm.tdp_mmu_roots import kvm_gfn_root_bits, kvm_has_mirrored_tdp
from septum.linux.kvm.tdp_mmu_split import TdpMmuSplit
from septum.linux.kvm.tdp_mmu_zap import TdpMmuZap

if TYPE_CHECKING:
    from septum.linux.kvm.types import Kvm, KvmMmuPage, KvmPageFault, KvmVcpu


def is_access_allowed(fault: KvmPageFault, spte: int) -> bool:
    """is_access_allowed(): whether a present entry permits what the fault wanted."""
    if fault.exec:
        return spte & VMX_EPT_EXECUTABLE_MASK != 0
    if fault.write:
        return spte & PT_WRITABLE_MASK != 0
    return spte & VMX_EPT_READABLE_MASK != 0


class TdpMmu(TdpMmuZap, TdpMmuSplit):
    """arch/x86/kvm/mmu/tdp_mmu.c."""

    __slots__ = ()

    def kvm_is_addr_direct(self, kvm: Kvm, gpa: int) -> bool:
        """kvm_is_addr_direct(): the address is shared, or nothing is private in this VM."""
        bits = kvm.arch.gfn_direct_bits
        return not bits or gpa & (bits << 12) != 0

    def tdp_mmu_get_root_for_fault(self, vcpu: KvmVcpu, fault: KvmPageFault) -> KvmMmuPage | None:
        """The vCPU's mirror root for a private address, else its direct root.

        Source: tdp_mmu.h tdp_mmu_get_root_for_fault.
        """
        if not self.kvm_is_addr_direct(vcpu.kvm, fault.addr):
            return vcpu.mmu_mirror_root
        return vcpu.mmu_root

    def tdp_mmu_map_handle_target_level(
        self, vcpu: KvmVcpu, fault: KvmPageFault, it: TdpIter
    ) -> int:
        """Install the leaf where the iterator stands.

        RET_PF_FIXED; SPURIOUS when it is already there; RETRY when the entry or the S-EPT changed
        under us; EMULATE for MMIO. Source: tdp_mmu.c tdp_mmu_map_handle_target_level.
        """
        kvm = vcpu.kvm
        ret = RET_PF_FIXED
        old_spte = it.old_spte
        level = it.level
        if self.host.page_private[it.table.pfn].level != fault.goal_level:
            self.warn_on_once(f"gfn {fault.gfn:#x}", "tdp_mmu_map_handle_target_level")
            return RET_PF_RETRY
        was_present = is_shadow_present_pte(old_spte)
        if (
            was_present
            and (fault.prefetch or is_access_allowed(fault, old_spte))
            and is_last_spte(old_spte, level)
        ):
            if fault.pfn != spte_to_pfn(old_spte):
                self.warn_on_once(
                    f"gfn {fault.gfn:#x} is mapped to pfn {spte_to_pfn(old_spte):#x}, "
                    f"not to {fault.pfn:#x}",
                    "tdp_mmu_map_handle_target_level",
                )
            return RET_PF_SPURIOUS
        if fault.slot is None:
            new_spte = make_mmio_spte(it.gfn, kvm.arch.shadow_mmio_value)
        else:
            new_spte = make_spte(fault.pfn, level, fault.prefetch, fault.map_writable)
        if new_spte == old_spte:
            ret = RET_PF_SPURIOUS
        elif self.tdp_mmu_set_spte_atomic(kvm, it, new_spte):
            return RET_PF_RETRY
        elif was_present and not is_last_spte(old_spte, level):
            # A table was replaced by a huge leaf. Never of a mirror (patch 06).
            self.host.main.kvm_flush_remote_tlbs(kvm)
        if is_mmio_spte(new_spte, kvm.arch.shadow_mmio_value):
            vcpu.stat.add("pf_mmio_spte_created")
            return RET_PF_EMULATE
        if self.sim.tracing:
            task = self.sim.current
            self.sim.emit(
                KvmMmuSetSpte(
                    task.time_ns,
                    task.name,
                    task.cpu,
                    it.gfn,
                    it.table.entry(it.index),
                    level,
                    (it.table.pfn << 12) + it.index * 8,
                )
            )
        return ret

    def kvm_tdp_mmu_map(self, vcpu: KvmVcpu, fault: KvmPageFault) -> int:
        """Map the fault's PFN at the level it may have, making tables on the way down.

        Returns a RET_PF_*. mmu_lock is held for reading; whatever fails comes back as RET_PF_RETRY.
        Source: tdp_mmu.c kvm_tdp_mmu_map; patches 06 (no promotion) and 09 (split refused by TDX).
        """
        kvm = vcpu.kvm
        root = self.tdp_mmu_get_root_for_fault(vcpu, fault)
        hugepage_adjust_disallowed = fault.nx_huge_page_workaround_enabled or kvm_has_mirrored_tdp(
            kvm
        )
        if root is None or root.invalid:
            self.warn_on_once("no valid root", "kvm_tdp_mmu_map")
            return RET_PF_RETRY
        mmu = self.host.mmu
        mmu.kvm_mmu_hugepage_adjust(vcpu, fault)
        if self.sim.tracing:
            task = self.sim.current
            self.sim.emit(
                KvmMmuSpteRequested(
                    task.time_ns, task.name, task.cpu, fault.gfn, fault.pfn, fault.goal_level
                )
            )
        self.rcu_read_lock()
        ret = RET_PF_RETRY
        end = fault.gfn + 1
        it = TdpIter(
            self.machine.tables, root, PG_LEVEL_4K, fault.gfn, kvm_gfn_root_bits(kvm, root)
        )
        while it.valid and it.gfn < end:
            if hugepage_adjust_disallowed:
                mmu.disallowed_hugepage_adjust(fault, it.old_spte, it.level)
            # Another task is at this entry: give up before allocating anything.
            if self.is_frozen_spte(it.old_spte):
                break
            if it.level == fault.goal_level:
                ret = self.tdp_mmu_map_handle_target_level(vcpu, fault, it)
                break
            spte = it.old_spte
            if spte & SPTE_MMU_PRESENT_MASK and not spte & PT_PAGE_SIZE_MASK:
                it.next()
                continue
            # Not present, or a huge page that must be split.
            if self._map_make_table(vcpu, fault, it):
                break
            it.next()
        else:
            # An upper entry was frozen or removed under the walk.
            if it.level == fault.goal_level:
                self.warn_on_once(f"gfn {fault.gfn:#x}", "kvm_tdp_mmu_map")
        self.rcu_read_unlock()
        return ret

    def _map_make_table(self, vcpu: KvmVcpu, fault: KvmPageFault, it: TdpIter) -> int:
        """The body of kvm_tdp_mmu_map() above its goal level: link a new table, or split.

        MODEL: no list of possible NX huge pages, and no worker that recovers them.
        """
        kvm = vcpu.kvm
        sp = self.tdp_mmu_alloc_sp(vcpu)
        self.tdp_mmu_init_child_sp(sp, it)
        if sp.is_mirror:
            self.kvm_mmu_alloc_external_spt(vcpu, sp)
        sp.nx_huge_page_disallowed = fault.huge_page_disallowed
        if is_shadow_present_pte(it.old_spte):
            # For a mirror TDX refuses, as mmu_lock is held for reading. SUSPECT: if a leaf above
            # the goal level could be met here, the fault would be retried for ever.
            r = self.tdp_mmu_split_huge_page(kvm, it, sp, True)
        else:
            r = self.tdp_mmu_link_sp(kvm, it, sp, True)
        if r:
            self.tdp_mmu_free_sp(sp)
        return r
