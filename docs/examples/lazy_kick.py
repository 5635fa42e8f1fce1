"""A new TLB epoch without a kick: the vCPUs take it up when they next exit by themselves."""

from septum.abi.kvm import KVM_REQ_OUTSIDE_GUEST_MODE
from septum.abi.status import STATUS_MASK, TDX_TLB_TRACKING_NOT_DONE
from septum.linux.kvm.tdx import KvmTdxUnit
from septum.linux.kvm.tdx_defs import TD_STATE_RUNNABLE


class NoKick(KvmTdxUnit):
    """tdx_track() calls TDH.MEM.TRACK and kicks nobody."""

    __slots__ = ()

    def tdx_track(self, kvm):
        if kvm.tdx.state != TD_STATE_RUNNABLE:
            return
        err, _, _ = self.tdh_do_no_vcpus(self.host.x86_tdx.tdh_mem_track, kvm, kvm.tdx)
        if err:
            self.tdx_bug_on(err, "TDH_MEM_TRACK", kvm)


class KickWhenTold(NoKick):
    """As NoKick; when the module says that a vCPU still runs in the old epoch, kick, call again."""

    __slots__ = ()

    def tdh_do_no_vcpus(self, tdh_func, kvm, *args):
        ret = super().tdh_do_no_vcpus(tdh_func, kvm, *args)
        if ret[0] & STATUS_MASK == TDX_TLB_TRACKING_NOT_DONE:
            self.host.main.kvm_make_all_cpus_request(kvm, KVM_REQ_OUTSIDE_GUEST_MODE)
            ret = super().tdh_do_no_vcpus(tdh_func, kvm, *args)
        return ret
