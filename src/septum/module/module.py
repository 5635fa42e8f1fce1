"""The module's front door: dispatch of SEAMCALLs and TDCALLs, and the views for checks."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, cast

from septum.abi import leaves
from septum.abi.features import TDX_TD_ATTR_DEBUG, TDX_XFAM_FIXED0
from septum.abi.leaves import (
    LEAF_MASK,
    RAX_RESERVED,
    TDH_PHYMEM_PAGE_WBINVD,
    VERSION_SHIFT,
    VERSIONED_SEAMCALLS,
    VERSIONED_TDCALLS,
)
from septum.abi.sept import HPA_MASK, IPAT, MT_WB, PS, RWX, SVE, X
from septum.abi.status import (
    OPERAND_ID_RAX,
    STATUS_MASK,
    TDX_HOST_PRIORITY_BUSY_TIMEOUT,
    TDX_OPERAND_BUSY,
    TDX_OPERAND_BUSY_HOST_PRIORITY,
    TDX_OPERAND_INVALID,
)
from septum.abi.types import PMD_SIZE, PTRS_PER_TABLE
from septum.module import views
from septum.module.common import CONTROL_TOKEN
from septum.module.dispatch import SEAMCALLS, TDCALLS
from septum.module.events import GuestAccessEvent, TdcallEvent
from septum.module.guest import access_step
from septum.module.locks_held import LockHold, hold_lock
from septum.module.outcome import RETURNED, GuestOutcome, OutcomeKind
from septum.module.pamt import MAX_PA_BITS, Pamt, PamtWalk
from septum.module.profile import DEFAULT_PROFILE, ModuleProfile
from septum.module.state import (
    HP_LOCK_TIMEOUT_NS,
    LAST_EXIT_ASYNC_TRAP,
    CacheWb,
    Kot,
    LpState,
    Td,
    Vcpu,
)
from septum.module.steps import Steps
from septum.module.telling import operands, seamcall_event, sept_entry
from septum.module.vp_enter import async_exit, enter, external_interrupt_exit, note_vm_exit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from septum.abi.regs import Regs
    from septum.machine import LogicalProcessor, Machine, TlbEntry

NATIVE_TSC_HZ = 2_000_000_000
PLATFORM_XFAM = 0x7
"""Extended state that the processors have: x87, SSE, AVX."""
GUEST_VE = -1
"""`guest_access`: the access raised #VE (see TDG.VP.VEINFO.GET)."""


class Module(Steps):
    """The TDX module of one machine, whose `seam` it becomes.

    MODEL: system initialisation is not modelled: the module is SYS_READY, all logical processors
    and TDMRs are initialised, in the Dynamic PAMT mode of `machine.config`.
    """

    __slots__ = (
        "all_packages",
        "caches",
        "counts",
        "demote_interruptible",
        "entered",
        "global_hkid",
        "has_5_level_ept",
        "hkid_shift",
        "kot",
        "leaf_view",
        "lp_states",
        "machine",
        "max_pa",
        "mem",
        "native_tsc_hz",
        "pamt",
        "pfn_mask",
        "private_hkid_min",
        "profile",
        "seamrr",
        "sim",
        "tables",
        "td_by_hpa",
        "tds",
        "vcpus",
        "xfam_fixed0",
    )

    demote_blocking: ClassVar[bool] = True
    """TDH.MEM.PAGE.DEMOTE wants the page blocked, and tracked since."""
    pamt_class: ClassVar[type[Pamt]] = Pamt

    def __init__(
        self,
        machine: Machine,
        profile: ModuleProfile = DEFAULT_PROFILE,
        *,
        has_5_level_ept: bool = False,
    ) -> None:
        config = machine.config
        self.machine = machine
        self.sim = machine.sim
        self.mem = machine.mem
        self.tables = machine.tables
        self.profile = profile
        self.demote_interruptible = profile.demote_interruptible
        self.has_5_level_ept = has_5_level_ept
        self.max_pa = config.max_pa
        self.hkid_shift = config.hkid_shift
        self.private_hkid_min = config.private_hkid_min
        self.global_hkid = config.global_hkid
        self.all_packages = (1 << config.num_packages) - 1
        self.seamrr = (config.seamrr_base, config.seamrr_base + config.seamrr_size)
        self.native_tsc_hz = NATIVE_TSC_HZ
        self.xfam_fixed0 = TDX_XFAM_FIXED0 & PLATFORM_XFAM
        self.pamt = self.pamt_class(config, profile.has_dynamic_pamt and config.dynamic_pamt)
        # The HPA in an S-EPT entry without HKID; and what a host may see of a leaf entry.
        self.pfn_mask = HPA_MASK & ~self.pamt.hkid_mask
        self.leaf_view = (RWX | MT_WB | X << 1 | IPAT | PS | HPA_MASK | SVE) & ~self.pamt.hkid_mask
        self.kot = Kot(config.private_hkid_min, config.private_hkid_max, config.global_hkid)
        self.caches = [CacheWb() for _ in range(config.num_packages)]
        self.lp_states = [LpState() for _ in range(config.num_lps)]
        self.tds: dict[int, Td] = {}
        self.td_by_hpa: dict[int, Td] = {}
        self.vcpus: dict[int, Vcpu] = {}
        self.entered: dict[int, PamtWalk] = {}  # TDVPR PAMT locks of the vCPUs inside their TD
        self.counts: dict[tuple[int, int], int] = {}

    # ---- SEAMCALL

    def seamcall(self, lp: LogicalProcessor, regs: Regs) -> None:
        """One SEAMCALL. RAX in: leaf | version << 16. Out: RAX the status, outputs in `regs`.

        TDH.VP.ENTER runs the guest through `machine.run_guest` and returns the exit registers.
        """
        rax = regs.rax
        leaf = rax & LEAF_MASK
        sim = self.sim
        inputs = operands(regs) if sim.tracing else None
        if rax & RAX_RESERVED:
            status = TDX_OPERAND_INVALID | OPERAND_ID_RAX
        else:
            version = rax >> VERSION_SHIFT
            function = SEAMCALLS.get(leaf)
            if function is None or (version and leaf not in VERSIONED_SEAMCALLS):
                status = TDX_OPERAND_INVALID | OPERAND_ID_RAX
            elif leaf:
                status = function(self, lp, regs, version)
            elif self.vp_enter(lp, regs):
                self._run(lp, regs)
                return
            else:
                status = regs.rax
        regs.rax = status
        counts = self.counts
        key = (leaf, status >> 32)
        counts[key] = counts.get(key, 0) + 1
        if inputs is not None:
            sim.emit(seamcall_event(self, lp, rax, inputs, regs))

    def wbinvd_2m(self, rcx: int) -> bool:
        """The effect of TDH.PHYMEM.PAGE.WBINVD of all 512 pages of the 2 MB at `rcx`, when each of
        the calls would succeed; False, and nothing done, when one might not."""
        hpa = rcx & ~self.pamt.hkid_mask
        all_succeed = not hpa & (PMD_SIZE - 1) and self.pamt.is_free_2m(hpa)
        if all_succeed:
            self.mem.wbinvd_pages(hpa >> 12, PTRS_PER_TABLE, self.hkid_of(rcx))
            key = (TDH_PHYMEM_PAGE_WBINVD, 0)
            self.counts[key] = self.counts.get(key, 0) + PTRS_PER_TABLE
        return all_succeed

    def _run(self, lp: LogicalProcessor, regs: Regs) -> None:
        """The guest runs until it leaves; its exit registers become the result of VP.ENTER."""
        vcpu = lp.guest
        assert isinstance(vcpu, Vcpu)
        key = (leaves.TDH_VP_ENTER, 0)
        self.counts[key] = self.counts.get(key, 0) + 1
        exit_regs = self.machine.run_guest(lp, vcpu.tdvpr_pfn)
        regs.copy_from(cast("Regs", exit_regs))

    def vp_enter(self, lp: LogicalProcessor, regs: Regs) -> bool:
        """The entry half of TDH.VP.ENTER. True: the vCPU now runs on `lp`. False: refused,
        status and outputs are in `regs`."""
        status = enter(self, lp, regs)
        if status:
            regs.rax = status
            return False
        return True

    # ---- TDCALL

    def tdcall(self, lp: LogicalProcessor, regs: Regs) -> None:
        """One TDCALL of the vCPU on `lp`; returns when the instruction has completed.

        A TD exit goes through `machine.exit_to_host`; after re-entry ACCEPT runs again and
        VMCALL has completed. An interrupted ACCEPT lets the interrupt in and runs again.
        """
        while True:
            is_vmcall = regs.rax & LEAF_MASK == leaves.TDG_VP_VMCALL
            outcome = self.tdcall_step(lp, regs)
            if outcome.kind == OutcomeKind.TD:
                return
            if outcome.kind == OutcomeKind.TD_EXIT:
                completed = is_vmcall or outcome.event == LAST_EXIT_ASYNC_TRAP
                lp = self.machine.exit_to_host(lp, outcome.exit)
                if completed:
                    return
            elif lp.interrupt_pending():
                context = lp.context
                self.external_interrupt(lp)
                assert context is not None and context.lp is not None
                lp = context.lp

    def tdcall_step(self, lp: LogicalProcessor, regs: Regs) -> GuestOutcome:
        """One TDCALL attempt by the vCPU on `lp`; `regs` is updated if it returned (kind TD)."""
        vcpu = lp.guest
        assert isinstance(vcpu, Vcpu)
        note_vm_exit(vcpu)
        rax, rcx = regs.rax, regs.rcx
        leaf = rax & LEAF_MASK
        version = rax >> VERSION_SHIFT
        function = TDCALLS.get(leaf)
        result: int | GuestOutcome
        if rax & RAX_RESERVED or function is None or (version and leaf not in VERSIONED_TDCALLS):
            result = TDX_OPERAND_INVALID | OPERAND_ID_RAX
        else:
            result = function(self, lp, vcpu, regs, version)
        if isinstance(result, int):
            outcome = self._tdcall_return(lp, vcpu, regs, result)
        else:
            outcome = result
            # A TD exit skips the place where the module resets the host-priority timeout.
            if outcome.kind != OutcomeKind.TD_EXIT:
                vcpu.hp_busy_since_ns = -1
        if self.sim.tracing:
            current = self.sim.current
            status = regs.rax if outcome.kind == OutcomeKind.TD else 0
            accept = leaf == leaves.TDG_MEM_PAGE_ACCEPT
            self.sim.emit(
                TdcallEvent(
                    current.time_ns,
                    current.name,
                    lp.id,
                    leaf,
                    vcpu.td.tdr_pfn,
                    vcpu.index,
                    rcx,
                    outcome.kind,
                    status,
                    sept_entry(self, vcpu.td, rcx) if accept else -1,
                )
            )
        return outcome

    def _tdcall_return(
        self, lp: LogicalProcessor, vcpu: Vcpu, regs: Regs, status: int
    ) -> GuestOutcome:
        """The guest's RAX; a lock that host priority kept busy for too long is a TD exit."""
        if status & STATUS_MASK == TDX_OPERAND_BUSY_HOST_PRIORITY:
            status = TDX_OPERAND_BUSY | status & ~STATUS_MASK
            now = self.sim.now_ns()
            if vcpu.hp_busy_since_ns < 0:
                vcpu.hp_busy_since_ns = now
            elif now - vcpu.hp_busy_since_ns >= HP_LOCK_TIMEOUT_NS:
                vcpu.hp_busy_since_ns = -1
                regs.rax = status
                vcpu.retire()
                vcpu.guest_regs = regs
                exit_regs = async_exit(
                    self, lp, TDX_HOST_PRIORITY_BUSY_TIMEOUT, last_exit=LAST_EXIT_ASYNC_TRAP
                )
                return GuestOutcome(OutcomeKind.TD_EXIT, exit_regs, LAST_EXIT_ASYNC_TRAP)
        else:
            vcpu.hp_busy_since_ns = -1
        regs.rax = status
        vcpu.retire()
        return RETURNED

    # ---- guest memory

    def guest_access(
        self, lp: LogicalProcessor, gpa: int, access: int, token: int | None = None
    ) -> int | None:
        """A guest access (1 read, 2 write, 3 both) to a private GPA, until it is done.

        Writes `token` if `access` has bit 1 set, and returns the content token (of a read, what
        was there). GUEST_VE: the access raised #VE.
        """
        entry = self._translate(lp, gpa, access)
        if entry is None:
            return GUEST_VE
        pfn = entry.pfn + (gpa >> 12) - entry.gfn
        if access & 2 and token is not None:
            self.mem.write(pfn, entry.hkid, token)
            return token
        return self.mem.read(pfn, entry.hkid)

    def guest_access_range(
        self, lp: LogicalProcessor, gpa: int, nr_pages: int, access: int, token: int | None = None
    ) -> tuple[int, int]:
        """`guest_access` to the first of `nr_pages` pages, as many as one translation covers.

        Returns (pages done, token): a write does them all, a read stops where the content
        changes. (0, GUEST_VE): the first access raised #VE.
        """
        entry = self._translate(lp, gpa, access)
        if entry is None:
            return 0, GUEST_VE
        offset = (gpa >> 12) - entry.gfn
        nr = min(nr_pages, (1 << 9 * (entry.level - 1)) - offset)
        pfn = entry.pfn + offset
        if access & 2 and token is not None:
            self.mem.fill(pfn, nr, entry.hkid, token)
            return nr, token
        found = self.mem.read(pfn, entry.hkid)
        done = 1
        while done < nr and self.mem.read(pfn + done, entry.hkid) == found:
            done += 1
        return done, found

    def _translate(self, lp: LogicalProcessor, gpa: int, access: int) -> TlbEntry | None:
        """The TLB entry for a guest access, after whatever the host had to do; None on #VE."""
        gfn = gpa >> 12
        while True:
            vcpu = lp.guest
            assert isinstance(vcpu, Vcpu)
            entry = lp.tlb.lookup(vcpu.td.tdr_pfn, gfn)
            if entry is not None:
                vcpu.retire()
                return entry
            outcome = self.guest_access_step(lp, gpa, access)
            if outcome.kind == OutcomeKind.EVENT:
                return None
            if outcome.kind == OutcomeKind.TD_EXIT:
                lp = self.machine.exit_to_host(lp, outcome.exit)

    def guest_access_step(self, lp: LogicalProcessor, gpa: int, access: int) -> GuestOutcome:
        """One access attempt without a cached translation: TD (ok), EVENT (#VE) or TD_EXIT."""
        vcpu = lp.guest
        outcome = access_step(self, lp, gpa, access)
        if self.sim.tracing:
            assert isinstance(vcpu, Vcpu)
            current = self.sim.current
            self.sim.emit(
                GuestAccessEvent(
                    current.time_ns,
                    current.name,
                    lp.id,
                    vcpu.td.tdr_pfn,
                    vcpu.index,
                    gpa,
                    access,
                    outcome.kind,
                )
            )
        return outcome

    def external_interrupt(self, lp: LogicalProcessor) -> Regs:
        """Asynchronous TD exit (exit reason 1) of the vCPU on `lp`; its exit registers.

        With a guest program running, it returns when the vCPU has been entered again.
        """
        exit_regs = external_interrupt_exit(self, lp)
        if lp.context is not None:
            self.machine.exit_to_host(lp, exit_regs)
        return exit_regs

    # ---- for the leaves

    def shared_hpa_invalid(self, hpa: int, size: int) -> bool:
        """A shared HPA operand is misaligned, above 52 bits, in SEAMRR, or has a private HKID.

        Source: shared_hpa_check_with_pwr_2_alignment.
        """
        if hpa & (size - 1 | MAX_PA_BITS):
            return True
        address = hpa & ~self.pamt.hkid_mask
        start, end = self.seamrr
        if address < end and start < address + size:
            return True
        return self.hkid_of(hpa) >= self.private_hkid_min

    def hkid_of(self, hpa: int) -> int:
        """The HKID bits of an HPA."""
        return (hpa & self.pamt.hkid_mask) >> self.hkid_shift

    def lacks_debug(self, tdr_hpa: int) -> bool:
        """There is a TD at `tdr_hpa`, and it is not a DEBUG TD."""
        td = self.td_by_hpa.get(tdr_hpa)
        return td is not None and not td.attributes & TDX_TD_ATTR_DEBUG

    def host_interrupt_pending(self, lp: LogicalProcessor) -> bool:
        """Interruptible leaves: an interrupt waits for the host (or the schedule says so)."""
        return lp.interrupt_pending() or bool(self.sim.choose("seamcall_interrupted"))

    def init_pamt_pages(self, page0: int, page1: int) -> None:
        """The module writes a new PAMT page pair with its own key.

        MODEL: dirty lines of the host over the pair go back to memory before. No host of the series
        flushes them (see tdh_phymem_pamt_add()), and no source says what hardware makes of it.
        """
        for pfn in (page0 >> 12, page1 >> 12):
            self.mem.clflush(pfn)
            self.mem.write(pfn, self.global_hkid, CONTROL_TOKEN)

    # ---- for tests and transcripts

    def hold_lock(
        self,
        obj: str,
        mode: str = "ex",
        *,
        hpa: int = 0,
        level: int = 0,
        td: int = 0,
        gpa: int = 0,
        by: str = "host",
    ) -> LockHold:
        """Let "another logical processor" hold a module lock, until `release_lock`.

        `obj`: "pamt" (hpa, level, mode; levels above are held shared too), "op_state",
        "secure_ept", "epoch" (td = TDR address, mode), "kot" (mode),
        "sept_entry" (td, gpa, level, by "host" | "guest"). Raises ValueError if it is not free.
        """
        return hold_lock(self, obj, mode, hpa, level, td, gpa, by)

    def release_lock(self, hold: LockHold) -> None:
        """Drop a lock taken with `hold_lock`, with the release semantics of its kind."""
        hold.release()

    # ---- ground truth, for checks

    def sept_entry(self, tdr_pfn: int, gpa: int) -> tuple[int, int]:
        """(level, raw entry) where a walk for `gpa` ends."""
        return views.sept_entry(self, self.tds[tdr_pfn], gpa)

    def sept_leaves(
        self, tdr_pfn: int, first_gpa: int = 0, last_gpa: int = (1 << 52) - 1
    ) -> Iterator[tuple[int, int, int]]:
        """(gpa, level, raw entry) of every leaf that overlaps [first_gpa, last_gpa], in order."""
        return views.sept_leaves(self, self.tds[tdr_pfn], first_gpa, last_gpa)

    def sept_tables(self, tdr_pfn: int) -> Iterator[tuple[int, int, int]]:
        """(gpa, level of its entries, pfn) of every S-EPT page, the root first."""
        return views.sept_tables(self, self.tds[tdr_pfn])
