"""No huge pages where private or shared is an attribute of the VM.

Demanded by Sean Christopherson (KVM), 2026-01-16, against patch 14: per-VM attributes are to go.
Yan Zhao (author) agreed the same day; how, in RFC v5 45/45: tdx_huge_page is off with
vm_memory_attributes=Y.
"""

from __future__ import annotations

from septum.designs.registry import Design, on_v3
from septum.linux.kvm.tdx import KvmTdxUnit


class NoVmAttributesTdx(KvmTdxUnit):
    """TDX that turns huge pages off at bring-up when VMs hold their attributes.

    v3's patches 14 and 15 stay, and never meet a huge leaf.
    """

    __slots__ = ()

    def tdx_bringup(self) -> int:
        ret = super().tdx_bringup()
        if self.host.params.vm_memory_attributes:
            self.state.enable_tdx_huge_page = False
        return ret


DESIGN = Design(
    "no-vm-attributes",
    "Sean Christopherson (KVM), 2026-01-16, review of 14/24; agreed by Yan Zhao (author)",
    "huge pages are off with vm_memory_attributes=Y",
    on_v3(tdx=NoVmAttributesTdx),
    scenarios=("finding-attributes-enomem", "reference-per-vm"),
)
