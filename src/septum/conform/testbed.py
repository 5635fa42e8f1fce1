"""A machine with a TDX module and nothing else, on which the steps of a transcript are done.

There is no kernel and no guest program. The module's two halves of VP.ENTER, entry and exit, are
called separately, so an LP can be "in the TD" while the caller makes calls on others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.leaves import SEAMCALL_LEAVES, TDCALL_LEAVES, VERSION_SHIFT
from septum.abi.regs import Regs
from septum.conform.transcript import (
    COMPARED,
    GUEST_ACCESS,
    TDH_VP_ENTER,
    VMEXIT_EXTINT,
    HeldLock,
    Step,
    TdParams,
    TranscriptConfig,
)
from septum.machine import Machine, MachineConfig, Tdmr
from septum.module import PROFILES, GuestOutcome, Module, ModuleProfile, OutcomeKind
from septum.sim import Sim

if TYPE_CHECKING:
    from collections.abc import Callable

    from septum.machine import LogicalProcessor
    from septum.module.locks_held import LockHold

RECORDED_PROFILE = PROFILES["1.5.25"]
"""The module version whose transcripts exist."""

Answer = dict[str, int | str]
"""The outcome of one step: `ret` says how it ended, the rest are registers, event or access."""


def machine_config(config: TranscriptConfig) -> MachineConfig:
    """The machine that a transcript asks for."""
    return MachineConfig(
        num_lps=config.num_lps,
        num_packages=config.num_packages,
        max_pa=config.max_pa,
        hkid_bits=config.hkid_bits,
        private_hkid_min=config.private_hkid_min,
        private_hkid_max=config.private_hkid_max,
        global_hkid=config.global_hkid,
        dynamic_pamt=config.dynamic_pamt,
        tdmrs=tuple(
            Tdmr(
                base=int(t.base, 16),
                size=int(t.size, 16),
                reserved=tuple((int(o, 16), int(s, 16)) for o, s in t.reserved),
                pamt_1g=int(t.pamt_1g, 16),
                pamt_2m=int(t.pamt_2m, 16),
                pamt_4k=int(t.pamt_4k, 16),
            )
            for t in config.tdmrs
        ),
        seamrr_base=int(config.seamrr[0], 16),
        seamrr_size=int(config.seamrr[1], 16),
    )


def td_params_bytes(params: TdParams) -> bytes:
    """The TD_PARAMS structure (1024 bytes) with the given fields."""
    page = bytearray(1024)
    page[0:8] = int(params.attributes, 16).to_bytes(8, "little")
    page[8:16] = int(params.xfam, 16).to_bytes(8, "little")
    page[16:18] = params.max_vcpus.to_bytes(2, "little")
    page[18] = params.num_l2_vms
    page[19] = params.msr_config_ctls
    page[24:32] = int(params.eptp_controls, 16).to_bytes(8, "little")
    page[32:40] = int(params.config_flags, 16).to_bytes(8, "little")
    page[40:42] = params.tsc_frequency.to_bytes(2, "little")
    return bytes(page)


class Testbed:
    """A machine and its module, and `perform` for a step."""

    __test__ = False  # not a test class, whatever its name says

    def __init__(
        self,
        config: MachineConfig,
        profile: ModuleProfile = RECORDED_PROFILE,
        sim: Sim | None = None,
    ) -> None:
        self.sim = sim if sim is not None else Sim()
        self.machine = Machine(self.sim, config)
        self.module = Module(self.machine, profile)
        self.machine.seam = self.module
        self.hkid_mask = ((1 << config.hkid_bits) - 1) << config.hkid_shift

    def write_shared(self, pa: int, data: bytes) -> None:
        """Put `data` at `pa` (HKID bits name a shared key), within one page."""
        hkid = (pa & self.hkid_mask) >> self.machine.config.hkid_shift
        pfn = (pa & ~self.hkid_mask) >> 12
        self.machine.mem.load_bytes(pfn, hkid, bytes(pa & 0xFFF) + data)

    def hold(self, lock: HeldLock) -> LockHold:
        """Another LP takes `lock`. ValueError when it is not free."""
        return self.module.hold_lock(
            lock.obj,
            lock.mode,
            hpa=int(lock.hpa, 16),
            level=lock.level,
            td=int(lock.td, 16),
            gpa=int(lock.gpa, 16),
            by=lock.by,
        )

    def perform(self, step: Step, before_call: Callable[[], None] | None = None) -> Answer:
        """Do one step with its `env` and memory; `before_call` runs when these are in place."""
        if step.mem is not None and step.mem.td_params is not None:
            rdx = int(step.inputs.get("rdx", "0x0"), 16)
            self.write_shared(rdx, td_params_bytes(step.mem.td_params))
        env = step.env
        lp = self.machine.lps[step.lp]
        holds: list[LockHold] = []
        try:
            for lock in env.locks:
                holds.append(self.hold(lock))
            if step.call.startswith("TDG."):
                lp.ipi_pending = env.guest_interrupt_pending
            elif step.call.startswith("TDH."):
                lp.ipi_pending = env.interrupt_pending
            if before_call is not None:
                before_call()
            return self._call(step, lp)
        finally:
            lp.ipi_pending = False
            for hold in reversed(holds):
                self.module.release_lock(hold)

    def _call(self, step: Step, lp: LogicalProcessor) -> Answer:
        call = step.call
        if call == VMEXIT_EXTINT:
            return td_exit_answer(self.module.external_interrupt(lp))
        inputs = {name: int(value, 16) for name, value in step.inputs.items()}
        if call == GUEST_ACCESS:
            outcome = self.module.guest_access_step(
                lp, inputs.get("gpa", 0), inputs.get("access", 0)
            )
            return outcome_answer(outcome, None)
        regs = Regs(**inputs)
        if call in TDCALL_LEAVES:
            regs.rax = TDCALL_LEAVES[call] | step.version << VERSION_SHIFT
            return outcome_answer(self.module.tdcall_step(lp, regs), regs)
        regs.rax = SEAMCALL_LEAVES[call] | step.version << VERSION_SHIFT
        if call == TDH_VP_ENTER and not step.version:  # the dispatcher refuses other versions
            if self.module.vp_enter(lp, regs):
                return {"ret": "td"}
            return seamret_answer(regs)
        self.module.seamcall(lp, regs)
        return seamret_answer(regs)


def seamret_answer(regs: Regs) -> Answer:
    """SEAMCALL came back with `regs`."""
    return {"ret": "seamret"} | {name: getattr(regs, name) for name in COMPARED}


def td_exit_answer(regs: Regs) -> Answer:
    """The TD exited to the host with `regs`."""
    return {"ret": "td_exit"} | {name: getattr(regs, name) for name in COMPARED}


def outcome_answer(outcome: GuestOutcome, regs: Regs | None) -> Answer:
    """A guest-side step (`regs`: the registers of a TDCALL, None for an access) as an answer."""
    if outcome.kind == OutcomeKind.TD_EXIT:
        assert outcome.exit is not None
        return td_exit_answer(outcome.exit)
    if outcome.kind == OutcomeKind.INTERRUPTED:
        return {"ret": "td", "interrupted": 1}
    if outcome.kind == OutcomeKind.EVENT:
        return {"ret": "td", "event": outcome.event}
    if regs is None:
        return {"ret": "td", "access": "ok"}
    return {"ret": "td"} | {name: getattr(regs, name) for name in COMPARED}


def recorded_answer(step: Step) -> Answer:
    """What the real module answered, in the shape that `perform` returns."""
    out = step.out
    ret = str(out.get("ret", "seamret"))
    answer: Answer = {"ret": ret}
    if out.get("interrupted"):
        answer["interrupted"] = 1
    elif "event" in out:
        answer["event"] = int(str(out["event"]), 16)
    elif "access" in out:
        answer["access"] = str(out["access"])
    elif ret != "td" or "rax" in out:
        for name in COMPARED:
            value = out.get(name)
            if value is None:
                value = "0x0" if ret == "td_exit" else step.inputs.get(name, "0x0")
            answer[name] = int(str(value), 16)
    return answer
