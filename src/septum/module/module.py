"""The module's front door: dispatch of SEAMCALLs and TDCALLs, and the views for checks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NewType

from septum.abi.regs import Regs
from septum.module.outcome import GuestOutcome
from septum.module.profile import DEFAULT_PROFILE, ModuleProfile

if TYPE_CHECKING:
    from septum.machine import LogicalProcessor, Machine

LockHold = NewType("LockHold", int)


class Module:
    """The TDX module of one machine. `machine.seam` is set to it by whoever builds the machine.

    Module state is SYS_READY from the start and all TDMRs are initialised
    (`machine.config.tdmrs`, `machine.config.dynamic_pamt`).
    """

    counts: dict[tuple[int, int], int]
    """(leaf, status class = RAX >> 32) -> number of SEAMCALLs that ended so."""

    def __init__(self, machine: Machine, profile: ModuleProfile = DEFAULT_PROFILE) -> None:
        raise NotImplementedError

    # ---- SeamModule protocol
    def seamcall(self, lp: LogicalProcessor, regs: Regs) -> None:
        """One SEAMCALL. RAX in: leaf | version << 16. Out: RAX the status, outputs in `regs`.

        TDH.VP.ENTER runs the guest through `machine.run_guest` and returns the exit registers.
        """
        raise NotImplementedError

    def tdcall(self, lp: LogicalProcessor, regs: Regs) -> None:
        """One TDCALL of the vCPU on `lp`; returns when the instruction has completed.

        A TD exit goes through `machine.exit_to_host`; after re-entry ACCEPT restarts and
        VMCALL completes. Interrupted ACCEPT lets the interrupt exit happen and restarts.
        """
        raise NotImplementedError

    def guest_access(
        self, lp: LogicalProcessor, gpa: int, access: int, token: int | None = None
    ) -> int:
        """A guest access (1 read, 2 write, 3 both) to a private GPA; returns the content token.

        #VE (pending page without SEPT_VE_DISABLE) raises GuestVe.
        """
        raise NotImplementedError

    def external_interrupt(self, lp: LogicalProcessor) -> Regs:
        """Asynchronous TD exit (exit reason 1) of the vCPU on `lp`; its exit registers."""
        raise NotImplementedError

    # ---- halves, for transcript replay and for tests without a coroutine
    def vp_enter(self, lp: LogicalProcessor, regs: Regs) -> bool:
        """The entry half of TDH.VP.ENTER. True: the vCPU now runs on `lp`. False: refused,
        status and outputs are in `regs`."""
        raise NotImplementedError

    def tdcall_step(self, lp: LogicalProcessor, regs: Regs) -> GuestOutcome:
        """One TDCALL attempt by the vCPU on `lp`; `regs` is updated if it returned (kind TD)."""
        raise NotImplementedError

    def guest_access_step(self, lp: LogicalProcessor, gpa: int, access: int) -> GuestOutcome:
        """One access attempt without a cached translation: TD (ok), EVENT (#VE) or TD_EXIT."""
        raise NotImplementedError

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
        "secure_ept", "epoch" (td = TDR address, mode), "kot" (mode), "wbcache",
        "sept_entry" (td, gpa, level, by "host" | "guest"). Raises ValueError if it is not free.
        """
        raise NotImplementedError

    def release_lock(self, hold: LockHold) -> None:
        """Drop a lock taken with `hold_lock`, with the release semantics of its kind."""
        raise NotImplementedError

    # ---- views
    def guest_walk(self, tdr_pfn: int, gpa: int) -> tuple[int, int]:
        """(level, S-EPT entry) where a walk for `gpa` ends. Ground truth, no locks."""
        raise NotImplementedError

    def leaves(self, tdr_pfn: int, first_gpa: int, last_gpa: int) -> Iterator[tuple[int, int, int]]:
        """(gpa, level, entry) of every S-EPT leaf that overlaps [first_gpa, last_gpa]."""
        raise NotImplementedError
