"""How the kernel makes a SEAMCALL: the retry stub, injected failures, cache lines, key ids.

Source: arch/x86/virt/vmx/tdx/tdx.c seamcall(), sc_retry(), tdx_clflush_page(),
tdx_quirk_reset_paddr(), tdx_guest_keyid_alloc().
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.errno import ENOSPC
from septum.abi.features import (
    MD_FIELD_ID_MAX_VCPUS_PER_TD,
    MD_FIELD_ID_PAMT_4K_ENTRY_SIZE,
    MD_FIELD_ID_TDCS_BASE_SIZE,
    MD_FIELD_ID_TDVPS_BASE_SIZE,
    MD_FIELD_ID_TDX_FEATURES0,
    MD_FIELD_ID_XFAM_FIXED0,
    MD_FIELD_ID_XFAM_FIXED1,
)
from septum.abi.leaves import LEAF_MASK, TDH_SYS_RD, seamcall_name
from septum.abi.regs import Regs
from septum.abi.status import (
    OPERAND_ID_SEPT_TREE,
    TDX_OPERAND_BUSY,
    TDX_OPERAND_INVALID,
    TDX_RND_NO_ENTROPY,
)
from septum.linux.unit import Unit
from septum.linux.x86.state import RDRAND_RETRY_LOOPS, TdxArchState
from septum.sim import Mutex, SimDefect, SpinLock

if TYPE_CHECKING:
    from septum.linux.host import Host
    from septum.linux.mm.folio import Folio

SeamcallRet = tuple[int, int, int]
"""(status, ext_err1, ext_err2)."""

INJECTED_BUSY = 1
INJECTED_ERROR = 2


class TdxSeamcall(Unit):
    """The base of the wrappers."""

    __slots__ = ("hkid_shift", "state")

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.hkid_shift = self.machine.config.hkid_shift
        self.state = TdxArchState(Mutex(self.sim, "tdx_lock"), SpinLock(self.sim, "pamt_lock"))

    # Module information

    def get_tdx_sys_info(self) -> None:
        """get_tdx_sys_info(): read the module's global metadata. Raises when the module refuses
        a field, as a host without TDX is nothing to model."""
        info = self.state.sysinfo
        info.tdx_features0 = self.read_sys_metadata_field(MD_FIELD_ID_TDX_FEATURES0)
        info.tdcs_base_size = self.read_sys_metadata_field(MD_FIELD_ID_TDCS_BASE_SIZE)
        info.tdvps_base_size = self.read_sys_metadata_field(MD_FIELD_ID_TDVPS_BASE_SIZE)
        info.pamt_4k_entry_size = self.read_sys_metadata_field(MD_FIELD_ID_PAMT_4K_ENTRY_SIZE)
        info.max_vcpus_per_td = self.read_sys_metadata_field(MD_FIELD_ID_MAX_VCPUS_PER_TD)
        info.xfam_fixed0 = self.read_sys_metadata_field(MD_FIELD_ID_XFAM_FIXED0)
        info.xfam_fixed1 = self.read_sys_metadata_field(MD_FIELD_ID_XFAM_FIXED1)
        info.dynamic_pamt_configured = self.machine.config.dynamic_pamt

    def read_sys_metadata_field(self, field_id: int) -> int:
        """TDH.SYS.RD of one global field."""
        regs = Regs(rdx=field_id)
        err = self.seamcall(TDH_SYS_RD, regs)
        if err:
            raise SimDefect(f"TDH.SYS.RD of {field_id:#x} returned {err:#x}")
        return regs.r8

    # SEAMCALL

    def seamcall(self, fn: int, regs: Regs) -> int:
        """One SEAMCALL with sc_retry(): the status; outputs are left in `regs`."""
        machine = self.machine
        cpu = self.sim.current.cpu
        if self.state.inject:
            injected = self._injected(fn)
            if injected:
                return injected
        regs.rax = fn
        machine.seamcall(cpu, regs)
        err = regs.rax
        if err == TDX_RND_NO_ENTROPY:
            retry = RDRAND_RETRY_LOOPS - 1
            while retry and err == TDX_RND_NO_ENTROPY:
                regs.rax = fn
                machine.seamcall(cpu, regs)
                err = regs.rax
                retry -= 1
        return err

    def _injected(self, fn: int) -> int:
        """The status that the choice point of this leaf puts in the module's place; 0: none."""
        leaf = fn & LEAF_MASK
        if leaf not in self.state.inject:
            return 0
        outcomes = 2 if leaf in self.state.inject_busy_only else 3
        outcome = self.sim.choose(f"seamcall:{seamcall_name(leaf)}", outcomes)
        if outcome == INJECTED_BUSY:
            return TDX_OPERAND_BUSY | OPERAND_ID_SEPT_TREE
        if outcome == INJECTED_ERROR:
            return TDX_OPERAND_INVALID
        return 0

    def seamcall_ret(self, fn: int, rcx: int, rdx: int = 0) -> SeamcallRet:
        """seamcall_ret() of a leaf that takes RCX and RDX alone: (status, RCX, RDX after it).

        Register sets are used again, as zaps and splits make these calls by the thousand.
        """
        pool = self.state.regs_pool
        regs = pool.pop() if pool else Regs()
        regs.rcx = rcx
        regs.rdx = rdx
        err = self.seamcall(fn, regs)
        pool.append(regs)
        return err, regs.rcx, regs.rdx

    # Guest memory

    def _folio_holds(self, folio: Folio, start_idx: int, npages: int) -> bool:
        """Whether [start_idx, start_idx + npages) lies in the folio: what the wrappers that take a
        folio check. Source: patches 01, 03, 04, 05, 23.
        """
        return start_idx + npages <= 1 << folio.order

    # Cache lines and keys

    def mk_keyed_paddr(self, hkid: int, pfn: int) -> int:
        """mk_keyed_paddr(): the physical address of `pfn` with the key id in its upper bits."""
        return pfn << 12 | hkid << self.hkid_shift

    def tdx_clflush_page(self, pfn: int) -> None:
        """tdx_clflush_page(): so that no dirty host line is written over the TD's data."""
        self.machine.mem.clflush(pfn)

    def tdx_quirk_reset_paddr(self, pfn: int, nr_pages: int) -> None:
        """tdx_quirk_reset_paddr(): MOVDIR64B over the pages on parts with the partial-write
        machine check erratum, nothing on others.

        Finding `no-bug` where the first page has been freed already, on any part.
        """
        if not self.host.mm.is_allocated(pfn):
            text = f"use after free: tdx_quirk_reset_paddr() of pfn {pfn:#x}, which is free"
            self.sim.find("no-bug", text, where="tdx")
        if self.host.params.x86_bug_tdx_pw_mce:
            self.machine.mem.movdir64b(pfn, nr_pages)

    # Key ids

    def tdx_guest_keyid_alloc(self) -> int:
        """ida_alloc_range(): the lowest free private HKID, or -ENOSPC."""
        config = self.machine.config
        used = self.state.keyid_ida
        for hkid in range(config.private_hkid_min, config.private_hkid_max + 1):
            if hkid != config.global_hkid and hkid not in used:
                used.add(hkid)
                return hkid
        return -ENOSPC

    def tdx_guest_keyid_free(self, hkid: int) -> None:
        """ida_free()."""
        self.state.keyid_ida.discard(hkid)
