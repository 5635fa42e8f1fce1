"""What arch/x86/virt/vmx/tdx/tdx.c keeps: module information, key ids, PAMT reference counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.features import (
    TDX_FEATURES0_DYNAMIC_PAMT,
    TDX_FEATURES0_ENHANCE_DEMOTE_INTERRUPTIBILITY,
)

if TYPE_CHECKING:
    from septum.abi.regs import Regs
    from septum.sim import Mutex, SpinLock

# Bits of a status. Source: tdx_errno.h.
TDX_ERROR = 1 << 63
TDX_NON_RECOVERABLE = 1 << 62

TDX_PS_4K = 0
TDX_PS_2M = 1
TDX_PS_1G = 2

RDRAND_RETRY_LOOPS = 10
PTE_SHIFT = 9
PTRS_PER_PMD = 512
TDX_EXTENDMR_CHUNKSIZE = 256


class TdxSysInfo:
    """struct tdx_sys_info: what the module says of itself."""

    __slots__ = (
        "dynamic_pamt_configured",
        "max_vcpus_per_td",
        "pamt_4k_entry_size",
        "tdcs_base_size",
        "tdvps_base_size",
        "tdx_features0",
        "xfam_fixed0",
        "xfam_fixed1",
    )

    def __init__(self) -> None:
        self.tdx_features0 = 0
        self.tdcs_base_size = 0  # bytes
        self.tdvps_base_size = 0  # bytes
        self.pamt_4k_entry_size = 0  # bytes
        self.max_vcpus_per_td = 0
        self.xfam_fixed0 = 0
        self.xfam_fixed1 = 0
        # TDH.SYS.CONFIG with the Dynamic PAMT bit.
        self.dynamic_pamt_configured = False

    def tdx_supports_dynamic_pamt(self) -> bool:
        """tdx_supports_dynamic_pamt().

        The kernel asks for the feature bit only, as it configures Dynamic PAMT wherever the module
        has it; here a machine may be set up either way.
        """
        return self.dynamic_pamt_configured and bool(
            self.tdx_features0 & TDX_FEATURES0_DYNAMIC_PAMT
        )

    def tdx_supports_demote_nointerrupt(self) -> bool:
        """Patch 02: DEMOTE does not return TDX_INTERRUPTED_RESTARTABLE."""
        return bool(self.tdx_features0 & TDX_FEATURES0_ENHANCE_DEMOTE_INTERRUPTIBILITY)


class TdxArchState:
    """The file's static variables."""

    __slots__ = (
        "inject",
        "inject_busy_only",
        "keyid_ida",
        "pamt_lock",
        "pamt_refcounts",
        "regs_pool",
        "sysinfo",
        "tdx_lock",
    )

    def __init__(self, tdx_lock: Mutex, pamt_lock: SpinLock) -> None:
        self.sysinfo = TdxSysInfo()
        self.tdx_lock = tdx_lock  # serialises what takes the module's global lock
        self.pamt_lock = pamt_lock
        self.pamt_refcounts: dict[int, int] = {}  # 2 MB frame number -> 4 KB pages in TDX use
        self.keyid_ida: set[int] = set()  # private HKIDs in use
        self.regs_pool: list[Regs] = []
        # SEAMCALL leaves whose outcome is a choice point `seamcall:<leaf>`.
        self.inject: frozenset[int] = frozenset()
        # Those of them that can be BUSY, but not fail for good.
        self.inject_busy_only: frozenset[int] = frozenset()
