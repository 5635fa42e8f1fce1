"""Huge pages on TDX modules whose DEMOTE is interrupted: with and without a retry.

v3 turns huge pages off there (patches 02 and 24): nothing bounds how often
TDX_INTERRUPTED_RESTARTABLE comes back, NMIs included. Before it, RFC v2 had the question open
(2025-08); the cover letter of v3 sums it up, design 2.2. The tree of v3 still has the retry, as a
patch not to be merged, "Loop for TDX_INTERRUPTED_RESTARTABLE in tdh_mem_page_demote()", for tests
on older modules. Run these with a module before 1.5.28 (`[machine] module`); an interrupt is the
choice point `seamcall_interrupted`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.status import STATUS_MASK, TDX_INTERRUPTED_RESTARTABLE
from septum.designs.ablations.wrappers import DemoteOnAnyModule
from septum.designs.registry import Design, on_v3
from septum.sim import RunStopped

if TYPE_CHECKING:
    from septum.abi.regs import Regs

WATCHDOG_REPEATS = 64


class RestartableRetryTdxArch(DemoteOnAnyModule):
    """DEMOTE on any module, again and again while it is interrupted.

    Assumed: without a bound, as the module gives none, and under the locks that are held.
    MODEL: the watchdog for soft lockups barks after so many times, and ends the run.
    """

    __slots__ = ()

    def _seamcall_demote(self, regs: Regs) -> int:
        for _ in range(WATCHDOG_REPEATS):
            err = super()._seamcall_demote(regs)
            if err & STATUS_MASK != TDX_INTERRUPTED_RESTARTABLE:
                return err
            self.sim.point("cpu_relax")
        self.sim.find(
            "progress",
            f"soft lockup: TDH.MEM.PAGE.DEMOTE was interrupted {WATCHDOG_REPEATS} times in a row, "
            "with mmu_lock held for writing",
            where="tdh_mem_page_demote",
        )
        raise RunStopped(self.sim.findings[-1])


FATAL = Design(
    "restartable-fatal",
    "before PATCH v3 02/24; its log, 2026-01-06",
    "huge pages on modules whose DEMOTE is interrupted, and no retry",
    on_v3(x86_tdx=DemoteOnAnyModule),
    breaks=("no-bug", "mapping-in-folio", "cache", "teardown"),
    scenarios=("demote-interrupted",),
)

RETRY = Design(
    "restartable-retry",
    "PATCH v3 00/24, 2026-01-06, design 2.2, and the workaround [11] in its tree",
    "huge pages on modules whose DEMOTE is interrupted, and a retry without a bound",
    on_v3(x86_tdx=RestartableRetryTdxArch),
    breaks=("progress",),
    scenarios=("demote-interrupted", "interrupt-storm"),
)
