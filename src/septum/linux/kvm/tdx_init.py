"""The beginning of a TD: KVM_TDX_INIT_VM, KVM_TDX_INIT_VCPU, KVM_TDX_FINALIZE_VM.

Source: vmx/tdx.c as of 6.19-rc with Dynamic PAMT v4 09/16 and 10/16.
"""

from __future__ import annotations

from septum.abi.errno import EAGAIN, EBUSY, EINVAL, EIO, ENOMEM
from septum.abi.features import (
    MD_FIELD_ID_TDCS_TSC_MULTIPLIER,
    MD_FIELD_ID_TDCS_TSC_OFFSET,
    TDX_ATTRIBUTES_FIXED0,
    TDX_CONFIG_FLAGS_GPAW,
    TDX_CONFIG_FLAGS_NO_RBP_MOD,
    TDX_TD_ATTR_SEPT_VE_DISABLE,
)
from septum.abi.kvm import PT64_ROOT_4LEVEL, PT64_ROOT_5LEVEL
from septum.abi.status import STATUS_MASK, TDX_OPERAND_INVALID, TDX_RND_NO_ENTROPY
from septum.abi.types import PAGE_SIZE, Pfn
from septum.linux.kvm.events import KvmTdEvent
from septum.linux.kvm.tdx_base import is_hkid_assigned, tdx_operand_busy
from septum.linux.kvm.tdx_defs import (
    KVM_MP_STATE_RUNNABLE,
    TD_STATE_INITIALIZED,
    TD_STATE_RUNNABLE,
    TD_STATE_UNINITIALIZED,
    TDX_SHARED_BIT_PWL_4,
    TDX_SHARED_BIT_PWL_5,
    VCPU_TD_STATE_INITIALIZED,
    VCPU_TD_STATE_UNINITIALIZED,
    VMX_EPTP_MT_WB,
    VMX_EPTP_PWL_4,
    VMX_EPTP_PWL_5,
    KvmTdxCmd,
    KvmTdxInitVm,
    TdParams,
)
from septum.linux.kvm.tdx_teardown import TdxTeardown
from septum.linux.kvm.types import Kvm, KvmTdx, KvmVcpu

# What KVM lets user space choose of the attributes.
KVM_SUPPORTED_TD_ATTRS = TDX_TD_ATTR_SEPT_VE_DISABLE
# MODEL: the guest's TSC runs at 2.5 GHz, in units of 25 MHz.
TSC_FREQUENCY_25MHZ = 100

# VMCS fields that KVM sets in a new TDVPS: (field id, value, mask). The element size is in bits
# 33:32. MODEL: POSTED_INTR_DESC_ADDR is left alone; the machine is given the descriptor itself.
TDVPS_POSTED_INTR_NV = 1 << 32 | 0x0002
TDVPS_PIN_BASED_CTLS = 2 << 32 | 0x4000
TDVPS_SHARED_EPTP = 3 << 32 | 0x203C
POSTED_INTR_VECTOR = 0xF2
PIN_BASED_POSTED_INTR = 1 << 7


class TdxInit(TdxTeardown):
    """Set-up ioctls."""

    __slots__ = ()

    def tdx_vm_init(self, kvm: Kvm) -> int:
        """x86 op vm_init: no SEAMCALL yet."""
        kvm.arch.has_protected_state = True
        kvm.arch.has_private_mem = True
        kvm.arch.shadow_mmio_value = 0
        kvm.max_vcpus = min(kvm.max_vcpus, len(self.machine.lps))
        kvm.tdx.state = TD_STATE_UNINITIALIZED
        return 0

    # KVM_TDX_INIT_VM

    def setup_tdparams(self, kvm: Kvm, params: TdParams, init_vm: KvmTdxInitVm) -> int:
        """Check what user space wants and fill TD_PARAMS. 0, -EBUSY or -EINVAL."""
        if kvm.created_vcpus:
            return -EBUSY
        if init_vm.attributes & ~(KVM_SUPPORTED_TD_ATTRS & TDX_ATTRIBUTES_FIXED0):
            return -EINVAL
        sysinfo = self.host.x86_tdx.state.sysinfo
        if init_vm.xfam & ~sysinfo.xfam_fixed0:
            return -EINVAL
        params.max_vcpus = kvm.max_vcpus
        params.attributes = init_vm.attributes
        params.xfam = init_vm.xfam | sysinfo.xfam_fixed1
        params.config_flags = TDX_CONFIG_FLAGS_NO_RBP_MOD
        params.tsc_frequency = TSC_FREQUENCY_25MHZ
        if init_vm.gpaw_52:
            params.eptp_controls = VMX_EPTP_MT_WB | VMX_EPTP_PWL_5
            params.config_flags |= TDX_CONFIG_FLAGS_GPAW
        else:
            params.eptp_controls = VMX_EPTP_MT_WB | VMX_EPTP_PWL_4
        params.mrconfigid = init_vm.mrconfigid
        params.mrowner = init_vm.mrowner
        params.mrownerconfig = init_vm.mrownerconfig
        return 0

    def tdx_td_init(self, kvm: Kvm, cmd: KvmTdxCmd) -> int:
        """KVM_TDX_INIT_VM."""
        kvm_tdx = kvm.tdx
        if kvm_tdx.state != TD_STATE_UNINITIALIZED or cmd.flags:
            return -EINVAL
        init_vm = cmd.data
        if not isinstance(init_vm, KvmTdxInitVm):
            return -EINVAL
        params_page = self.host.mm.alloc_page("td_params")
        if params_page is None:
            return -ENOMEM
        ret = self._td_init(kvm, cmd, init_vm, params_page)
        self.host.mm.free_page(params_page)
        return ret

    def _td_init(self, kvm: Kvm, cmd: KvmTdxCmd, init_vm: KvmTdxInitVm, params_page: Pfn) -> int:
        kvm_tdx = kvm.tdx
        td_params = TdParams()
        ret = self.setup_tdparams(kvm, td_params, init_vm)
        if ret:
            return ret
        self.machine.mem.load_bytes(params_page, 0, td_params.pack())
        ret, cmd.hw_error = self.do_tdx_td_init(kvm, params_page)
        if ret:
            return ret
        kvm_tdx.tsc_offset = self.td_tdcs_exec_read64(kvm_tdx, MD_FIELD_ID_TDCS_TSC_OFFSET)
        kvm_tdx.tsc_multiplier = self.td_tdcs_exec_read64(kvm_tdx, MD_FIELD_ID_TDCS_TSC_MULTIPLIER)
        kvm_tdx.attributes = td_params.attributes
        kvm_tdx.xfam = td_params.xfam
        if td_params.config_flags & TDX_CONFIG_FLAGS_GPAW:
            kvm.arch.gfn_direct_bits = TDX_SHARED_BIT_PWL_5
            kvm.arch.root_level = PT64_ROOT_5LEVEL
        else:
            kvm.arch.gfn_direct_bits = TDX_SHARED_BIT_PWL_4
            kvm.arch.root_level = PT64_ROOT_4LEVEL
        kvm_tdx.state = TD_STATE_INITIALIZED
        return 0

    def td_tdcs_exec_read64(self, kvm_tdx: KvmTdx, field: int) -> int:
        """A field of the TDCS; 0 when it cannot be read, which the kernel only logs. Source:
        vmx/tdx.h."""
        err, data = self.host.x86_tdx.tdh_mng_rd(kvm_tdx, field)
        return 0 if err else data

    def do_tdx_td_init(self, kvm: Kvm, params_page: Pfn) -> tuple[int, int]:
        """__tdx_td_init(): key id, control pages, TDH.MNG.*: (errno, status for user space)."""
        kvm_tdx = kvm.tdx
        x86 = self.host.x86_tdx
        hkid = x86.tdx_guest_keyid_alloc()
        if hkid < 0:
            return hkid, 0
        kvm_tdx.hkid = hkid
        tdr_page = x86.tdx_alloc_page("tdr")
        if tdr_page is None:
            self.tdx_hkid_free(kvm_tdx)
            return -ENOMEM, 0
        tdcs_pages: list[Pfn] = []
        for _ in range(x86.state.sysinfo.tdcs_base_size // PAGE_SIZE):
            page = x86.tdx_alloc_page("tdcs")
            if page is None:
                self._free_td_pages(kvm, tdr_page, tdcs_pages)
                return -ENOMEM, 0
            tdcs_pages.append(page)

        with x86.state.tdx_lock:
            kvm_tdx.tdr_page = tdr_page
            err = x86.tdh_mng_create(kvm_tdx, hkid)
            if self.sim.tracing and not err:
                task = self.sim.current
                self.sim.emit(KvmTdEvent(task.time_ns, task.name, task.cpu, kvm.id, tdr_page))
        if err == TDX_RND_NO_ENTROPY:
            self._free_td_pages(kvm, tdr_page, tdcs_pages)
            return -EAGAIN, 0
        if self.tdx_bug_on(err, "TDH_MNG_CREATE", kvm):
            self._free_td_pages(kvm, tdr_page, tdcs_pages)
            return -EIO, 0

        ret = self._configure_keys(kvm)
        if ret:
            return self._td_init_teardown(kvm, tdcs_pages, 0, ret), 0
        return self._add_tdcs_and_init(kvm, params_page, tdcs_pages)

    def _configure_keys(self, kvm: Kvm) -> int:
        """TDH.MNG.KEY.CONFIG on one CPU of every package. 0 or -EIO."""
        packages: set[int] = set()
        for lp in self.machine.lps:
            if lp.package in packages:
                continue
            packages.add(lp.package)
            err = self.host.main.smp_call_on_cpu(
                lp.id, self.host.x86_tdx.tdh_mng_key_config, kvm.tdx
            )
            if self.tdx_bug_on(err, "TDH_MNG_KEY_CONFIG", kvm):
                return -EIO
        return 0

    def _add_tdcs_and_init(
        self, kvm: Kvm, params_page: Pfn, tdcs_pages: list[Pfn]
    ) -> tuple[int, int]:
        """The part of __tdx_td_init() from TDH.MNG.ADDCX on."""
        kvm_tdx = kvm.tdx
        x86 = self.host.x86_tdx
        for i, page in enumerate(tdcs_pages):
            err = x86.tdh_mng_addcx(kvm_tdx, page)
            if err == TDX_RND_NO_ENTROPY:
                return self._td_init_teardown(kvm, tdcs_pages, i, -EAGAIN), 0
            if self.tdx_bug_on(err, "TDH_MNG_ADDCX", kvm):
                return self._td_init_teardown(kvm, tdcs_pages, i, -EIO), 0
            kvm_tdx.tdcs_pages.append(page)

        added = len(tdcs_pages)
        err, rcx = x86.tdh_mng_init(kvm_tdx, params_page << 12)
        if err & STATUS_MASK == TDX_OPERAND_INVALID:
            # User space gave the operands: tell it which one, without a warning.
            return self._td_init_teardown(kvm, tdcs_pages, added, -EINVAL), err
        if self.tdx_bug_on(err, "TDH_MNG_INIT", kvm, rcx):
            return self._td_init_teardown(kvm, tdcs_pages, added, -EIO), 0
        return 0, 0

    def _td_init_teardown(self, kvm: Kvm, tdcs_pages: list[Pfn], added: int, ret: int) -> int:
        """teardown: of __tdx_td_init(): free what was not added, reclaim the rest."""
        for page in tdcs_pages[added:]:
            self.host.x86_tdx.tdx_free_page(page)
        self.tdx_mmu_release_hkid(kvm)
        self.tdx_reclaim_td_control_pages(kvm)
        return ret

    def _free_td_pages(self, kvm: Kvm, tdr_page: Pfn, tdcs_pages: list[Pfn]) -> None:
        """free_tdcs:, free_tdr: and free_hkid: of __tdx_td_init()."""
        for page in tdcs_pages:
            self.host.x86_tdx.tdx_free_page(page)
        self.host.x86_tdx.tdx_free_page(tdr_page)
        kvm.tdx.tdr_page = None
        self.tdx_hkid_free(kvm.tdx)

    # KVM_CREATE_VCPU, KVM_TDX_INIT_VCPU

    def tdx_vcpu_create(self, vcpu: KvmVcpu) -> int:
        """x86 op vcpu_create: -EIO before KVM_TDX_INIT_VM, -EINVAL without a split irqchip."""
        if vcpu.kvm.tdx.state != TD_STATE_INITIALIZED:
            return -EIO
        if not vcpu.kvm.arch.irqchip_split:
            return -EINVAL
        vcpu.tdx.state = VCPU_TD_STATE_UNINITIALIZED
        return 0

    def tdx_vcpu_init(self, vcpu: KvmVcpu, cmd: KvmTdxCmd) -> int:
        """KVM_TDX_INIT_VCPU; `cmd.data` is the guest's initial RCX."""
        if cmd.flags or vcpu.tdx.state != VCPU_TD_STATE_UNINITIALIZED:
            return -EINVAL
        if not isinstance(cmd.data, int):
            return -EINVAL
        ret = self.tdx_td_vcpu_init(vcpu, cmd.data)
        if ret:
            return ret
        self.td_vmcs_write(vcpu, TDVPS_POSTED_INTR_NV, POSTED_INTR_VECTOR, 0xFFFF)
        self.td_vmcs_write(vcpu, TDVPS_PIN_BASED_CTLS, PIN_BASED_POSTED_INTR, PIN_BASED_POSTED_INTR)
        vcpu.tdx.state = VCPU_TD_STATE_INITIALIZED
        return 0

    def td_vmcs_write(self, vcpu: KvmVcpu, field: int, value: int, mask: int) -> None:
        """td_vmcs_write16/32/64(), td_vmcs_setbit32()."""
        err = self.host.x86_tdx.tdh_vp_wr(vcpu.tdx, field, value, mask)
        self.tdx_bug_on(err, "TDH_VP_WR", vcpu.kvm)

    def tdx_load_mmu_pgd(self, vcpu: KvmVcpu, root_hpa: int, pgd_level: int) -> None:
        """x86 op load_mmu_pgd: tell the module the shared EPT's root."""
        shared_bit = TDX_SHARED_BIT_PWL_5 if pgd_level == 5 else TDX_SHARED_BIT_PWL_4
        if self.host.main.kvm_bug_on(
            vcpu.kvm, shared_bit != vcpu.kvm.arch.gfn_direct_bits, "shared bit and root level"
        ):
            return
        self.td_vmcs_write(vcpu, TDVPS_SHARED_EPTP, root_hpa, (1 << 64) - 1)

    def tdx_flush_tlb_current(self, vcpu: KvmVcpu) -> None:
        """x86 op flush_tlb_current. Shared translations have the private EPTP as their tag, which
        KVM does not know: INVEPT of all contexts."""
        self._ept_sync_global()

    def tdx_flush_tlb_all(self, vcpu: KvmVcpu) -> None:
        """x86 op flush_tlb_all: of shared translations; for private ones the epoch sees to it."""
        self._ept_sync_global()

    def _ept_sync_global(self) -> None:
        """ept_sync_global(): INVEPT of all contexts on this CPU. Source: vmx_ops.h."""
        self.machine.lps[self.sim.current.cpu].tlb.flush_all()

    def tdx_td_vcpu_init(self, vcpu: KvmVcpu, vcpu_rcx: int) -> int:
        """Control pages and TDH.VP.CREATE, ADDCX, INIT. 0, -ENOMEM or -EIO."""
        tdx = vcpu.tdx
        kvm = vcpu.kvm
        x86 = self.host.x86_tdx
        tdvpr_page = x86.tdx_alloc_page("tdvpr")
        if tdvpr_page is None:
            return -ENOMEM
        tdx.tdvpr_page = tdvpr_page
        tdcx_pages: list[Pfn] = []
        for _ in range(x86.state.sysinfo.tdvps_base_size // PAGE_SIZE - 1):
            page = x86.tdx_alloc_page("tdcx")
            if page is None:
                return self._free_tdcx(vcpu, tdcx_pages, -ENOMEM)
            tdcx_pages.append(page)
        err = x86.tdh_vp_create(kvm.tdx, tdx)
        if self.tdx_bug_on(err, "TDH_VP_CREATE", kvm):
            return self._free_tdcx(vcpu, tdcx_pages, -EIO)
        for i, page in enumerate(tdcx_pages):
            err = x86.tdh_vp_addcx(tdx, page)
            if self.tdx_bug_on(err, "TDH_VP_ADDCX", kvm):
                # Those that were added are reclaimed with the vCPU.
                for rest in tdcx_pages[i:]:
                    x86.tdx_free_page(rest)
                return -EIO
            tdx.tdcx_pages.append(page)
        # VP.INIT can take the TDR exclusively, which would make S-EPT operations that must not
        # fail BUSY (commit 9a89894f30d5).
        kvm.mmu_lock.write_lock()
        err = x86.tdh_vp_init(tdx, vcpu_rcx, vcpu.vcpu_id)
        bug = self.tdx_bug_on(err, "TDH_VP_INIT", kvm)
        kvm.mmu_lock.write_unlock()
        if bug:
            return -EIO
        vcpu.mp_state = KVM_MP_STATE_RUNNABLE
        return 0

    def _free_tdcx(self, vcpu: KvmVcpu, tdcx_pages: list[Pfn], ret: int) -> int:
        """free_tdcx: and free_tdvpr: of tdx_td_vcpu_init()."""
        for page in tdcx_pages:
            self.host.x86_tdx.tdx_free_page(page)
        self.host.x86_tdx.tdx_free_page(vcpu.tdx.tdvpr_page)
        vcpu.tdx.tdvpr_page = None
        return ret

    # KVM_TDX_FINALIZE_VM

    def tdx_td_finalize(self, kvm: Kvm, cmd: KvmTdxCmd) -> int:
        """KVM_TDX_FINALIZE_VM: the measurement is closed, vCPUs may run."""
        kvm_tdx = kvm.tdx
        if not is_hkid_assigned(kvm_tdx) or kvm_tdx.state == TD_STATE_RUNNABLE:
            return -EINVAL
        cmd.hw_error = self.host.x86_tdx.tdh_mr_finalize(kvm_tdx)
        if tdx_operand_busy(cmd.hw_error):
            return -EBUSY
        if self.tdx_bug_on(cmd.hw_error, "TDH_MR_FINALIZE", kvm):
            return -EIO
        kvm_tdx.state = TD_STATE_RUNNABLE
        kvm.arch.pre_fault_allowed = True
        return 0
