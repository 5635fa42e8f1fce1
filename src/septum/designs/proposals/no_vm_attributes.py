"""No huge pages where private or shared is an attribute of the VM.

Proposed by Sean Christopherson (KVM), 2026-01-28; how, by Yan Zhao in RFC v5 45/45: tdx_huge_page
is off with vm_memory_attributes=Y.
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
    "Sean Christopherson (KVM), 2026-01-28, review of 15/24; agreed with Yan Zhao",
    "huge pages are off with vm_memory_attributes=Y",
    on_v3(tdx=NoVmAttributesTdx),
    scenarios=("finding-attributes-enomem", "reference-per-vm"),
)
