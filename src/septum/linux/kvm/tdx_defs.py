"""Numbers of KVM's TDX code and its user ABI. Source: vmx/tdx.h, vmx/tdx_arch.h, uapi/asm/kvm.h."""

from __future__ import annotations

import msgspec

from septum.abi.td_params import pack_td_params

# enum kvm_tdx_state, vcpu_tdx_state
TD_STATE_UNINITIALIZED = 0
TD_STATE_INITIALIZED = 1
TD_STATE_RUNNABLE = 2
VCPU_TD_STATE_UNINITIALIZED = 0
VCPU_TD_STATE_INITIALIZED = 1

# enum kvm_tdx_cmd_id
KVM_TDX_CAPABILITIES = 0
KVM_TDX_INIT_VM = 1
KVM_TDX_INIT_VCPU = 2
KVM_TDX_INIT_MEM_REGION = 3
KVM_TDX_FINALIZE_VM = 4
KVM_TDX_GET_CPUID = 5
KVM_TDX_MEASURE_MEMORY_REGION = 1 << 0

# The shared bit, as a GFN bit.
TDX_SHARED_BIT_PWL_5 = 1 << (51 - 12)
TDX_SHARED_BIT_PWL_4 = 1 << (47 - 12)

# TD_PARAMS.EPTP_CONTROLS
VMX_EPTP_MT_WB = 6
VMX_EPTP_PWL_4 = 3 << 3
VMX_EPTP_PWL_5 = 4 << 3

# VMX exit reasons that a TD shows.
EXIT_REASON_EXCEPTION_NMI = 0
EXIT_REASON_EXTERNAL_INTERRUPT = 1
EXIT_REASON_TRIPLE_FAULT = 2
EXIT_REASON_CPUID = 10
EXIT_REASON_HLT = 12
EXIT_REASON_VMCALL = 18
EXIT_REASON_IO_INSTRUCTION = 30
EXIT_REASON_MSR_READ = 31
EXIT_REASON_MSR_WRITE = 32
EXIT_REASON_EPT_VIOLATION = 48
EXIT_REASON_EPT_MISCONFIG = 49
EXIT_REASON_OTHER_SMI = 6
EXIT_REASON_TDCALL = 77
EXIT_REASON_NONE = 0xFFFF_FFFF
EXIT_REASON_NAMES = {
    EXIT_REASON_EXCEPTION_NMI: "EXCEPTION_NMI",
    EXIT_REASON_EXTERNAL_INTERRUPT: "EXTERNAL_INTERRUPT",
    EXIT_REASON_TRIPLE_FAULT: "TRIPLE_FAULT",
    EXIT_REASON_OTHER_SMI: "OTHER_SMI",
    EXIT_REASON_CPUID: "CPUID",
    EXIT_REASON_HLT: "HLT",
    EXIT_REASON_VMCALL: "VMCALL",
    EXIT_REASON_IO_INSTRUCTION: "IO_INSTRUCTION",
    EXIT_REASON_MSR_READ: "MSR_READ",
    EXIT_REASON_MSR_WRITE: "MSR_WRITE",
    EXIT_REASON_EPT_VIOLATION: "EPT_VIOLATION",
    EXIT_REASON_EPT_MISCONFIG: "EPT_MISCONFIG",
    EXIT_REASON_TDCALL: "TDCALL",
}

# Exit qualification of an EPT violation.
EPT_VIOLATION_ACC_READ = 1 << 0
EPT_VIOLATION_ACC_WRITE = 1 << 1
EPT_VIOLATION_ACC_INSTR = 1 << 2
EPT_VIOLATION_PROT_MASK = 7 << 3
EPT_VIOLATION_EXEC_FOR_RING3_LIN = 1 << 6
EPT_VIOLATION_GVA_IS_VALID = 1 << 7
EPT_VIOLATION_GVA_TRANSLATED = 1 << 8

# TDG.VP.VMCALL: what septum.abi.tdvmcall does not name.
TDVMCALL_GET_TD_VM_CALL_INFO = 0x10000
TDVMCALL_SETUP_EVENT_NOTIFY_INTERRUPT = 0x10004
TDVMCALL_STATUS_SUBFUNC_UNSUPPORTED = 0x8000_0000_0000_0003
TDX_MAP_GPA_MAX_LEN = 2 << 20

KVM_SYSTEM_EVENT_TDX_FATAL = 4
KVM_MAP_GPA_RANGE_DECRYPTED = 0

# fastpath_t
EXIT_FASTPATH_NONE = 0
EXIT_FASTPATH_REENTER_GUEST = 1
EXIT_FASTPATH_EXIT_HANDLED = 2

# KVM_MP_STATE_*
KVM_MP_STATE_RUNNABLE = 0
KVM_MP_STATE_UNINITIALIZED = 1
KVM_MP_STATE_HALTED = 3

# What completes a user-space exit at the next KVM_RUN (vcpu->arch.complete_userspace_io).
COMPLETE_NONE = 0
COMPLETE_HYPERCALL = 1
COMPLETE_MAP_GPA = 2
COMPLETE_IO_IN = 3
COMPLETE_IO_OUT = 4
COMPLETE_MMIO_READ = 5
COMPLETE_TDX_SIMPLE = 6
COMPLETE_GET_TD_VM_CALL_INFO = 7


class KvmTdxCmd(msgspec.Struct):
    """struct kvm_tdx_cmd. `data` is the command's own structure, or a number."""

    id: int
    flags: int = 0
    data: object = None
    hw_error: int = 0


class KvmTdxInitVm(msgspec.Struct):
    """struct kvm_tdx_init_vm, without the CPUID list: `gpaw_52` says GPAW 52 instead of 48."""

    attributes: int = 0
    xfam: int = 3
    gpaw_52: bool = False
    mrconfigid: bytes = bytes(48)
    mrowner: bytes = bytes(48)
    mrownerconfig: bytes = bytes(48)


class KvmTdxInitMemRegion(msgspec.Struct):
    """struct kvm_tdx_init_mem_region. `source_addr` is a user address; it moves with the work."""

    source_addr: int
    gpa: int
    nr_pages: int


class TdParams(msgspec.Struct):
    """struct td_params: what TDH.MNG.INIT reads, 1024 bytes."""

    attributes: int = 0
    xfam: int = 0
    max_vcpus: int = 0
    eptp_controls: int = 0
    config_flags: int = 0
    tsc_frequency: int = 0
    mrconfigid: bytes = bytes(48)
    mrowner: bytes = bytes(48)
    mrownerconfig: bytes = bytes(48)

    def pack(self) -> bytes:
        """The 1024 bytes, CPUID values all zero."""
        return pack_td_params(**msgspec.structs.asdict(self))
