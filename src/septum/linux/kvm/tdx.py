"""arch/x86/kvm/vmx/tdx.c: KVM's TDX code. Its parts are in the tdx_*.py files beside this one.

| part | what is there |
| --- | --- |
| `tdx_base` | TDX_BUG_ON, the all-the-locks guard, bring-up |
| `tdx_teardown` | reclaim, vCPU flush, HKID release |
| `tdx_init` | KVM_TDX_INIT_VM, INIT_VCPU, FINALIZE_VM |
| `tdx_sept` | map, link, remove, free; tdx_track, tdh_do_no_vcpus |
| `tdx_split` | demotion, the per-VM split cache |
| `tdx_mem` | KVM_TDX_INIT_MEM_REGION, the ioctl multiplexer |
| `tdx_fault` | EPT violations, the guest's accept level |
| `tdx_tdvmcall` | TDG.VP.VMCALL |
| `tdx_run` | TDH.VP.ENTER, exits |
"""

from septum.linux.kvm.tdx_run import TdxRun


class KvmTdxUnit(TdxRun):
    """vmx/tdx.c."""

    __slots__ = ()
