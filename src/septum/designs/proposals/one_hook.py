"""One hook for every change of an external page table, which returns its error.

Proposed by Sean Christopherson (KVM), 2026-01-28 22:38, against the hook for each transition of
patch 07; RFC v5 20 to 38/45; merged in 2026-05. Only freeing an S-EPT page keeps a hook of its own,
as the TDX module wants a table empty before it goes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.errno import EIO
from septum.abi.kvm import PG_LEVEL_4K
from septum.abi.spte import PT_PAGE_SIZE_MASK, is_last_spte, is_shadow_present_pte
from septum.designs.registry import Design, on_v3
from septum.linux.kvm.tdp_mmu import TdpMmu
from septum.linux.kvm.tdx import KvmTdxUnit

if TYPE_CHECKING:
    from septum.linux.kvm.types import Kvm


class OneHookTdx(KvmTdxUnit):
    """TDX behind one op: it looks at the old and the new value, and knows what is asked."""

    __slots__ = ()

    def set_external_spte_from(
        self, kvm: Kvm, gfn: int, old_spte: int, new_spte: int, level: int
    ) -> int:
        """kvm_x86_ops.set_external_spte with both values: 0 or -errno.

        Source: tdx_sept_set_private_spte() of the message.
        """
        was_present = is_shadow_present_pte(old_spte)
        is_present = is_shadow_present_pte(new_spte)
        if was_present and is_present:
            shared = not kvm.mmu_lock.held_write()
            external_spt = self.tdx_spte_to_external_spt(gfn, new_spte, level)
            return self.tdx_sept_split_private_spte(kvm, gfn, level, old_spte, external_spt, shared)
        if was_present:
            return self.tdx_sept_remove_private_spte(kvm, gfn, level, old_spte)
        if self.host.main.kvm_bug_on(kvm, not is_present, f"gfn {gfn:#x}: nothing is set"):
            return -EIO
        if not is_last_spte(new_spte, level):
            external_spt = self.tdx_spte_to_external_spt(gfn, new_spte, level)
            return self.tdx_sept_link_private_spt(kvm, gfn, level, external_spt)
        return self.tdx_sept_set_private_spte(kvm, gfn, level, new_spte)

    def tdx_spte_to_external_spt(self, gfn: int, new_spte: int, level: int) -> int:
        """The S-EPT page of the table that `new_spte` points to. Source: RFC v5."""
        external_spt = self.host.tdp_mmu.get_external_spt(gfn, new_spte, level)
        assert external_spt is not None
        return external_spt


class OneHookTdpMmu(TdpMmu):
    """A TDP MMU that hands every change of a mirror leaf on, in one place for each lock mode.

    Under mmu_lock for writing an error is KVM_BUG_ON; for reading it puts the old entry back.
    Assumed: bookkeeping comes before the hook, as in v3 and in RFC v5.
    """

    __slots__ = ()

    def _hook(self, kvm: Kvm, gfn: int, old_spte: int, new_spte: int, level: int) -> int:
        tdx = self.host.tdx
        assert isinstance(tdx, OneHookTdx)
        return tdx.set_external_spte_from(kvm, gfn, old_spte, new_spte, level)

    def _propagate_to_external_shared(
        self, kvm: Kvm, gfn: int, old_spte: int, new_spte: int, level: int
    ) -> int:
        return self._hook(kvm, gfn, old_spte, new_spte, level)

    def _propagate_to_external(
        self, kvm: Kvm, gfn: int, old_spte: int, new_spte: int, level: int
    ) -> None:
        was_table = level != PG_LEVEL_4K and not old_spte & PT_PAGE_SIZE_MASK
        if was_table:
            return  # its leaves are gone one by one, and then the table: free_external_spt
        ret = self._hook(kvm, gfn, old_spte, new_spte, level)
        self.host.main.kvm_bug_on(kvm, ret != 0, f"set_external_spte of gfn {gfn:#x}: {ret}")

    def remove_external_spte(self, kvm: Kvm, gfn: int, old_spte: int, level: int) -> None:
        self._propagate_to_external(kvm, gfn, old_spte, 0, level)


DESIGN = Design(
    "one-hook",
    "Sean Christopherson (KVM), 2026-01-28, review of 07/24; RFC PATCH v5 20 to 38/45",
    "one set_external_spte(old, new) for link, map, split and remove, with its error returned",
    on_v3(tdp_mmu=OneHookTdpMmu, tdx=OneHookTdx),
    scenarios=("convert-one-page", "dying-vm", "accept-parallel-4k"),
)
