"""What all of vmx/tdx.c stands on: TDX_BUG_ON, the file's variables, the all-the-locks guard."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.errno import EBUSY
from septum.abi.status import STATUS_MASK, TDX_OPERAND_BUSY, status_name
from septum.linux.unit import Unit

if TYPE_CHECKING:
    from septum.linux.host import Host
    from septum.linux.kvm.types import Kvm, KvmTdx, KvmVcpu


class KvmTdxState:
    """The file's static variables."""

    __slots__ = ("associated_tdvcpus", "enable_tdx_huge_page")

    def __init__(self, nr_cpus: int, enable_tdx_huge_page: bool) -> None:
        self.enable_tdx_huge_page = enable_tdx_huge_page
        # Per CPU: the vCPUs that TDH.VP.ENTER associated with it.
        self.associated_tdvcpus: list[list[KvmVcpu]] = [[] for _ in range(nr_cpus)]


def tdx_operand_busy(err: int) -> bool:
    """IS_TDX_OPERAND_BUSY(): whatever the operand."""
    return err & STATUS_MASK == TDX_OPERAND_BUSY


def is_hkid_assigned(kvm_tdx: KvmTdx) -> bool:
    """is_hkid_assigned()."""
    return kvm_tdx.hkid > 0


class TdxBase(Unit):
    """The base of the parts of vmx/tdx.c."""

    __slots__ = ("state",)

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.state = KvmTdxState(len(self.machine.lps), host.params.tdx_huge_page)

    def tdx_bringup(self) -> int:
        """Load kvm_intel with tdx=1: read the module's information and settle the module
        parameters. Source: __tdx_bringup() with patch 24."""
        x86 = self.host.x86_tdx
        x86.get_tdx_sys_info()
        self.state.enable_tdx_huge_page = self.host.params.tdx_huge_page
        if self.state.enable_tdx_huge_page and not x86.tdx_demote_usable():
            self.state.enable_tdx_huge_page = False
        return 0

    def tdx_bug_on(self, err: int, op: str, kvm: Kvm | None, *outs: int) -> bool:
        """TDX_BUG_ON(), _1, _2, _3: whether `err` is a failure, which then bugs the VM.

        `kvm` None is a WARN only. `outs` are the extra outputs that the message shows.
        """
        if not err:
            return False
        extra = "".join(f", {out:#x}" for out in outs)
        text = f"SEAMCALL {op} failed: {err:#x}{extra} ({status_name(err)})"
        if kvm is None:
            self.sim.find("no-bug", text, where="tdx.c")
        else:
            self.host.main.kvm_bug_on(kvm, True, text)
        return True

    # CLASS(tdx_vm_state_guard)

    def tdx_acquire_vm_state_locks(self, kvm: Kvm) -> int:
        """Take kvm->lock, every vcpu->mutex and slots_lock, in this order. 0 or -EBUSY.

        Source: commit 15945e9ec195.
        """
        kvm.lock.lock()
        if kvm.created_vcpus != len(kvm.vcpus):
            kvm.lock.unlock()
            return -EBUSY
        self.host.main.kvm_lock_all_vcpus(kvm)
        kvm.slots_lock.lock()
        return 0

    def tdx_release_vm_state_locks(self, kvm: Kvm) -> None:
        """Undo `tdx_acquire_vm_state_locks`."""
        kvm.slots_lock.unlock()
        self.host.main.kvm_unlock_all_vcpus(kvm)
        kvm.lock.unlock()
