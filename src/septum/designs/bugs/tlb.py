"""BLOCK, TRACK, kick, the second attempt with vCPUs kept out, and the flush of shared memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.kvm import KVM_REQ_OUTSIDE_GUEST_MODE
from septum.abi.status import STATUS_MASK, TDX_OPERAND_BUSY
from septum.designs.bugs._seeded import seeded
from septum.linux.kvm.main import KvmMain
from septum.linux.kvm.tdx import KvmTdxUnit

if TYPE_CHECKING:
    from collections.abc import Callable

    from septum.linux.kvm.types import Kvm, KvmVcpu
    from septum.linux.x86.seamcall import SeamcallRet


class NoTrack(KvmTdxUnit):
    """Kicks the vCPUs without a new epoch."""

    __slots__ = ()

    def tdx_track(self, kvm: Kvm) -> None:
        self.host.main.kvm_make_all_cpus_request(kvm, KVM_REQ_OUTSIDE_GUEST_MODE)


class NoKick(KvmTdxUnit):
    """Starts a new epoch and leaves the vCPUs of the old one where they are."""

    __slots__ = ()

    def tdx_track(self, kvm: Kvm) -> None:
        self.host.x86_tdx.tdh_mem_track(kvm.tdx)


class KickFirst(KvmTdxUnit):
    """Kicks the vCPUs before the new epoch: one can be back, in the old epoch, by then."""

    __slots__ = ()

    def tdx_track(self, kvm: Kvm) -> None:
        self.host.main.kvm_make_all_cpus_request(kvm, KVM_REQ_OUTSIDE_GUEST_MODE)
        self.host.x86_tdx.tdh_mem_track(kvm.tdx)


class BlockBusyIgnored(KvmTdxUnit):
    """A split goes on when BLOCK was BUSY."""

    __slots__ = ()

    def _block_and_track(self, kvm: Kvm, gpa: int, level: int) -> int:
        self.host.x86_tdx.tdh_mem_range_block(kvm.tdx, gpa, level - 1)
        self.tdx_track(kvm)
        return 0


class BusyGivenUp(KvmTdxUnit):
    """A SEAMCALL that is BUSY is tried again three times, and the vCPUs stay where they are."""

    __slots__ = ()

    def tdh_do_no_vcpus(
        self, tdh_func: Callable[..., SeamcallRet], kvm: Kvm, *args: object
    ) -> SeamcallRet:
        left = 3
        ret = tdh_func(*args)
        while ret[0] & STATUS_MASK == TDX_OPERAND_BUSY and left:
            left -= 1
            self.sim.retry("cpu_relax")
            ret = tdh_func(*args)
        return ret


class NotBarred(KvmTdxUnit):
    """Kicks for the second attempt, but lets vCPUs enter again before it."""

    __slots__ = ()

    def tdx_no_vcpus_enter_start(self, kvm: Kvm) -> None:
        self.host.main.kvm_make_all_cpus_request(kvm, KVM_REQ_OUTSIDE_GUEST_MODE)


class BarredLate(KvmTdxUnit):
    """Kicks the vCPUs out, then keeps them out: one can slip in between."""

    __slots__ = ()

    def tdx_no_vcpus_enter_start(self, kvm: Kvm) -> None:
        self.host.main.kvm_make_all_cpus_request(kvm, KVM_REQ_OUTSIDE_GUEST_MODE)
        kvm.tdx.wait_for_sept_zap = True


class KickOnlyWakes(KvmMain):
    """A signal wakes a vCPU that halts, and does not interrupt one that is in its guest."""

    __slots__ = ()

    def kvm_vcpu_kick(self, vcpu: KvmVcpu) -> None:
        self.kvm_vcpu_wake_up(vcpu)


class SharedNotFlushed(KvmMain):
    """vCPUs go on with what they have cached of the shared EPT."""

    __slots__ = ()

    def kvm_flush_remote_tlbs(self, kvm: Kvm) -> None:
        """Nothing."""


DESIGNS = (
    seeded(
        "no-track",
        "tdx.c tdx_track(); v3 patch 08",
        "No TDH.MEM.TRACK between BLOCK and DEMOTE or REMOVE",
        "convert-against-write",
        "no-bug",
        tdx=NoTrack,
    ),
    seeded(
        "no-kick",
        "tdx.c tdx_track(); v3 patch 08",
        "vCPUs are not kicked after TDH.MEM.TRACK",
        "convert-against-write",
        "no-bug",
        tdx=NoKick,
    ),
    seeded(
        "kick-before-track",
        "tdx.c tdx_track(); v3 patch 08",
        "The kick comes before TDH.MEM.TRACK, not after it",
        "convert-against-write",
        "no-bug",
        tdx=KickFirst,
    ),
    seeded(
        "block-busy-ignored",
        "canonical/tdx #213",
        "OPERAND_BUSY from TDH.MEM.RANGE.BLOCK is ignored before DEMOTE",
        "accept-against-block",
        "no-bug",
        tdx=BlockBusyIgnored,
    ),
    seeded(
        "busy-given-up",
        "tdx.c tdh_do_no_vcpus()",
        "A SEAMCALL that is BUSY is tried three times more, without a kick, and then fails",
        "accept-against-block",
        "no-bug",
        tdx=BusyGivenUp,
    ),
    seeded(
        "entry-not-barred",
        "tdx.c tdh_do_no_vcpus()",
        "vCPUs may enter between the kick and the second attempt of a SEAMCALL",
        "accept-against-block",
        "no-bug",
        tdx=NotBarred,
    ),
    seeded(
        "entry-barred-late",
        "tdx.c tdh_do_no_vcpus()",
        "wait_for_sept_zap is set after the kick, not before it",
        "accept-against-block",
        "no-bug",
        tdx=BarredLate,
    ),
    seeded(
        "kick-only-wakes",
        "kvm_main.c kvm_vcpu_kick()",
        "A signal for a vCPU that is in its guest sends no IPI: it leaves when it likes",
        "destroy-halted",
        "progress",
        main=KickOnlyWakes,
    ),
    seeded(
        "shared-not-flushed",
        "kvm_main.c kvm_flush_remote_tlbs()",
        "vCPUs are not asked to flush what they have cached of the shared EPT",
        "discard-shared",
        "expectation",
        "tlb",
        main=SharedNotFlushed,
    ),
)
