"""Fuzz the module: any call with any operands, with its invariants watched.

A run is a function of (seed, number of calls). It is cut into episodes, each on a fresh machine of
its own kind. After each call the statuses allowed by the facts, the locks at hand and the page
counts are checked; every `sweep_every` calls everything is (`invariants`).
"""

from __future__ import annotations

import textwrap
from collections import Counter, deque
from random import Random
from typing import TYPE_CHECKING

import msgspec

from septum.abi.leaves import SEAMCALL_LEAVES, SEAMCALL_NAMES, TDCALL_LEAVES
from septum.abi.regs import Regs
from septum.abi.status import status_name
from septum.conform.allowed import ALLOWED, status_allowed
from septum.conform.decide import raised_at
from septum.conform.fuzz_calls import ANY_LP, GPAS, OPERANDS, TDRS, Call, CallSource
from septum.conform.invariants import broken_invariants, expected_readers
from septum.conform.scene import GIGABYTE, TD_PARAMS, Scene, scene_config
from septum.conform.testbed import td_params_bytes
from septum.conform.transcript import TdParams
from septum.json_text import json_text
from septum.machine import Tdmr
from septum.module import PROFILES, OutcomeKind
from septum.module.locks import HP, READER
from septum.module.state import NO_LP, TD_KEYS_CONFIGURED, Vcpu

if TYPE_CHECKING:
    from septum.machine import LogicalProcessor
    from septum.module.locks_held import LockHold

MASK64 = (1 << 64) - 1
EPISODE_CALLS = 5000
_HISTORY = 12
_GUEST_LEAVES = tuple(TDCALL_LEAVES)


class FuzzReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a fuzz run did. `broken` is empty when everything held."""

    schema: str = "septum.module-fuzz"
    version: int = 1
    seed: int
    calls: int
    episodes: int
    sweeps: int
    outcomes: dict[str, dict[str, int]]
    broken: tuple[str, ...]
    history: tuple[str, ...]
    """The last calls before the first thing that broke, oldest first."""

    @property
    def holds(self) -> bool:
        """Nothing broke."""
        return not self.broken

    def to_json(self) -> str:
        """The report as JSON, indented."""
        return json_text(self)


class _Episode:
    """A fresh machine, and what is known about it between calls."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        profile = rng.choice(tuple(PROFILES.values()))
        config = scene_config(
            profile.has_dynamic_pamt and rng.random() < 0.6, rng.choice((1, 1, 2))
        )
        config = msgspec.structs.replace(config, tdmrs=(*config.tdmrs, Tdmr(GIGABYTE, 1 << 30)))
        self.scene = scene = Scene(config, profile)
        self.source = CallSource(scene, rng)
        self.readers: dict[int, int] = {}
        self.chldcnt = 0  # of all TDs together
        self.history: deque[tuple[object, ...]] = deque(maxlen=_HISTORY)
        self._write_params()
        for tdr in TDRS[: rng.choice((1, 2, 3))]:
            self.source.plan_build(tdr)
        if rng.random() < 0.15:
            self.source.plan_gigabyte(TDRS[0], rng.choice((0x80_0000_0000, 0xC000_0000)))

    def _write_params(self) -> None:
        """TD_PARAMS for the next MNG.INIT, now and then with a byte of anything."""
        rng = self.rng
        params = TdParams(
            attributes=rng.choice(("0x0", "0x10000000", "0x1")),
            xfam="0x3",
            max_vcpus=rng.choice((1, 4, 4, 4)),
            eptp_controls="0x1e",
            tsc_frequency=100,
        )
        data = bytearray(td_params_bytes(params))
        if rng.random() < 0.1:
            data[rng.choice((*range(48), rng.randrange(1024)))] = rng.randrange(256)
        self.scene.write_shared(TD_PARAMS, bytes(data))

    def one_call(self, outcomes: Counter[tuple[str, int]]) -> str:
        """Make one call; returns what broke, or nothing."""
        rng = self.rng
        lp = rng.choice(self.scene.machine.lps)
        if lp.guest is not None:
            return self._guest_step(lp, outcomes)
        if rng.random() < 0.07:
            return self._enter(lp, outcomes)
        return self._host_call(lp, outcomes)

    # ---- host side

    def _host_call(self, lp: LogicalProcessor, outcomes: Counter[tuple[str, int]]) -> str:
        rng = self.rng
        name, version, operands, wanted_lp = self.source.next_call()
        if name == "TDH.MNG.INIT":
            self._write_params()
        rax = SEAMCALL_LEAVES[name] | version << 16
        if rng.random() < 0.002:
            rax = rng.choice(
                (rng.getrandbits(64), rng.randrange(200), rax | 1 << rng.randrange(64))
            )
        if wanted_lp != ANY_LP and self.scene.machine.lps[wanted_lp].guest is None:
            lp = self.scene.machine.lps[wanted_lp]
        regs = Regs(rax, **operands)
        if rng.random() < 0.02:
            for register in OPERANDS:
                if register not in operands:
                    setattr(regs, register, rng.getrandbits(64))
        if rax & 0xFFFF == 0:
            return ""  # VP.ENTER has its own step
        holds = self._hold_something(operands) if rng.random() < 0.04 else []
        lp.ipi_pending = rng.random() < 0.04
        self.history.append((lp.id, rax, operands, regs))
        self.scene.module.seamcall(lp, regs)
        lp.ipi_pending = False
        for hold in holds:
            self.scene.module.release_lock(hold)
        name = SEAMCALL_NAMES.get(rax & 0xFFFF, "?") if rax == rax & 0xFFFFFF else "?"
        status = regs.rax
        outcomes[name, status] += 1
        if not status_allowed(name, status):
            return f"{name} returned {status_name(status)}, which the facts do not allow"
        chldcnt = sum([td.chldcnt for td in self.scene.module.tds.values()])
        if status >> 63 and chldcnt != self.chldcnt:
            return f"{name} failed with {status_name(status)} but changed CHLDCNT"
        self.chldcnt = chldcnt
        if not regs_are_64_bit(regs):
            return f"{name} returned a register that is no 64-bit value: {regs}"
        if name == "TDH.MEM.RANGE.BLOCK" and not status:
            entry = self.scene.module.sept_entry(operands["rdx"] >> 12, operands["rcx"] & ~7)[1]
            self.source.follow_up(operands, entry)
        elif name == "TDH.MEM.PAGE.DEMOTE" and not status and rng.random() < 0.5:
            # Blocked as a whole, it may be promoted again.
            again = {"rcx": operands["rcx"], "rdx": operands["rdx"] & ~1}
            self.source.agenda.appendleft(Call("TDH.MEM.RANGE.BLOCK", 0, again))
        return self._check_locks(operands)

    def _hold_something(self, operands: dict[str, int]) -> list[LockHold]:
        """Another processor holds a lock, mostly one that the call with `operands` will want."""
        rng, module = self.rng, self.scene.module
        obj = rng.choice(("pamt", "pamt", "op_state", "secure_ept", "epoch", "kot", "sept_entry"))
        values = [value for value in operands.values() if value < 1 << 47]
        value = rng.choice(values) if values else self.source.anything() & 0xFFFF_FFFF
        level = value & 7 if value & 7 in (1, 2) else 0
        hpa = value & 0xF_FFFF_FFFF & ~((1 << 12 + 9 * level) - 1)
        tdr = rng.choice([*(td << 12 for td in module.tds), 0])
        for wanted in values:
            if wanted >> 12 in module.tds:
                tdr = wanted >> 12 << 12
        td = module.tds.get(tdr >> 12)
        if obj not in ("pamt", "kot") and (
            td is None or td.root is None or td.lifecycle != TD_KEYS_CONFIGURED
        ):
            return []
        if obj == "pamt" and module.pamt.entry_2m(hpa) is None:
            return []
        gpa = operands.get("rcx", 0)
        if obj == "sept_entry":
            gpa &= 0x7FFF_FFFF_F000 & ~((1 << 12 + 9 * level) - 1)
            level = module.sept_entry(tdr >> 12, gpa)[0]
        try:
            hold = module.hold_lock(
                obj,
                rng.choice(("ex", "sh")),
                hpa=hpa,
                level=level,
                td=tdr,
                gpa=gpa,
                by=rng.choice(("host", "guest")),
            )
        except ValueError:
            return []
        self.history.append(("hold", obj, hpa, level, tdr, gpa))
        return [hold]

    def _check_locks(self, operands: dict[str, int]) -> str:
        """TD locks, and the PAMT entries of the operands, are as free as they should be."""
        module = self.scene.module
        for td in module.tds.values():
            if (td.op_state_lock.lock | td.sept_lock.lock) & ~HP or td.epoch_lock.word:
                return f"TD {td.tdr_hpa:#x} has a lock held between calls"
        if module.kot.lock.word:
            return "the KOT is locked between calls"
        pamt = module.pamt
        readers = self.readers
        for value in operands.values():
            leaf = pamt.entry_2m(value) if value < 1 << 34 else None
            if leaf is None:
                continue
            child = leaf.children.get(value >> 12 & 511)
            for entry in (leaf.parent, leaf) if child is None else (leaf.parent, leaf, child):
                if entry.lock & ~HP != readers.get(id(entry), 0) * READER:
                    return f"PAMT of page {value:#x}: lock word {entry.lock:#x} between calls"
        return ""

    # ---- guest side

    def _enter(self, lp: LogicalProcessor, outcomes: Counter[tuple[str, int]]) -> str:
        source, rng = self.source, self.rng
        tdvpr = rng.choice(source.tdvprs(source.tdr()))
        vcpu = self.scene.module.vcpus.get(tdvpr >> 12)
        if vcpu is not None and vcpu.assoc_lp != NO_LP and rng.random() < 0.8:
            lp = self.scene.machine.lps[vcpu.assoc_lp]
            if lp.guest is not None:
                return ""
        if rng.random() < 0.1:
            tdvpr = source.anything()
        regs = Regs(SEAMCALL_LEAVES["TDH.VP.ENTER"], tdvpr)
        self.history.append((lp.id, 0, {"rcx": tdvpr}, regs))
        tdr = vcpu.td.tdr_hpa if vcpu is not None else 0
        holds = self._hold_something({"rcx": tdvpr, "rdx": tdr}) if rng.random() < 0.05 else []
        entered = self.scene.module.vp_enter(lp, regs)
        for hold in holds:
            self.scene.module.release_lock(hold)
        if entered:
            outcomes["TDH.VP.ENTER", 0] += 1
            self._note_readers()
            return ""
        outcomes["TDH.VP.ENTER", regs.rax] += 1
        if not status_allowed("TDH.VP.ENTER", regs.rax):
            return f"TDH.VP.ENTER returned {status_name(regs.rax)}, which the facts do not allow"
        return self._check_locks({"rcx": tdvpr})

    def _note_readers(self) -> None:
        self.readers = expected_readers(self.scene.module, self.scene.machine.lps)

    def _guest_step(self, lp: LogicalProcessor, outcomes: Counter[tuple[str, int]]) -> str:
        rng, module = self.rng, self.scene.module
        chance = rng.random()
        gpa = rng.choice(GPAS) if rng.random() < 0.9 else self.source.anything() & MASK64
        lp.ipi_pending = rng.random() < 0.1
        broken = ""
        vcpu = lp.guest
        assert isinstance(vcpu, Vcpu)
        if chance < 0.35:
            self.history.append((lp.id, "VMEXIT.EXTINT"))
            module.external_interrupt(lp)
            outcomes["VMEXIT.EXTINT", 0] += 1
        elif chance < 0.45:
            self.history.append((lp.id, "GUEST.ACCESS", gpa))
            gpa &= ~vcpu.td.gpa_bad
            outcome = module.guest_access_step(lp, gpa, rng.choice((1, 2, 3)))
            outcomes["GUEST.ACCESS", outcome.kind] += 1
        else:
            name, regs = self._tdcall(chance, gpa)
            self.history.append((lp.id, name, regs.rax, regs.rcx))
            outcome = module.tdcall_step(lp, regs)
            if outcome.kind == OutcomeKind.TD:
                outcomes[name, regs.rax] += 1
                if name in ALLOWED and not status_allowed(name, regs.rax):
                    broken = (
                        f"{name} returned {status_name(regs.rax)}, which the facts do not allow"
                    )
        lp.ipi_pending = False
        if lp.guest is None:
            self._note_readers()
        return broken or self._check_locks({"rcx": vcpu.tdvpr_hpa, "rdx": vcpu.td.tdr_hpa})

    def _tdcall(self, chance: float, gpa: int) -> tuple[str, Regs]:
        rng = self.rng
        if chance < 0.93:
            level = rng.choice((0, 0, 0, 1, 1, 2))
            if rng.random() < 0.95:
                gpa &= ~((1 << 12 + 9 * level) - 1)
            return "TDG.MEM.PAGE.ACCEPT", Regs(TDCALL_LEAVES["TDG.MEM.PAGE.ACCEPT"], gpa | level)
        name = rng.choice(_GUEST_LEAVES)
        regs = Regs(TDCALL_LEAVES[name], *(self.source.anything() for _ in range(6)))
        if rng.random() < 0.1:
            regs.rax = rng.getrandbits(64)
            name = "?"
        return name, regs


def regs_are_64_bit(regs: Regs) -> bool:
    """Every register is an int in 0..2**64-1."""
    return (
        0 <= regs.rcx <= MASK64
        and 0 <= regs.rdx <= MASK64
        and 0 <= regs.r8 <= MASK64
        and 0 <= regs.r9 <= MASK64
        and 0 <= regs.r10 <= MASK64
        and 0 <= regs.r11 <= MASK64
        and 0 <= regs.r12 <= MASK64
        and 0 <= regs.r13 <= MASK64
        and 0 <= regs.rax <= MASK64
    )


def fuzz_module(
    calls: int, seed: int = 0, *, sweep_every: int = 500, episode_calls: int = EPISODE_CALLS
) -> FuzzReport:
    """Make `calls` calls. Stops at the first thing that breaks, which includes any exception."""
    outcomes: Counter[tuple[str, int]] = Counter()
    broken: list[str] = []
    done = episodes = sweeps = 0
    episode: _Episode | None = None
    while done < calls and not broken:
        episode = _Episode(Random(f"{seed}/{episodes}"))
        episodes += 1
        for index in range(min(episode_calls, calls - done)):
            done += 1
            try:
                text = episode.one_call(outcomes)
            except Exception as error:
                text = f"{type(error).__name__}: {error} at {raised_at(error)}"
            if text:
                broken.append(text)
            elif (index + 1) % sweep_every == 0 or done == calls:
                sweeps += 1
                broken += broken_invariants(episode.scene)
            if broken:
                break
    history = [history_text(*item) for item in episode.history] if episode and broken else []
    return FuzzReport(
        seed=seed,
        calls=done,
        episodes=episodes,
        sweeps=sweeps,
        outcomes=_by_call(outcomes),
        broken=tuple(broken),
        history=tuple(history),
    )


def _by_call(outcomes: Counter[tuple[str, int]]) -> dict[str, dict[str, int]]:
    table: dict[str, dict[str, int]] = {}
    for (name, status), count in sorted(outcomes.items()):
        text = OutcomeKind(status).name if name == "GUEST.ACCESS" else status_name(status)
        row = table.setdefault(name, {})
        row[text] = row.get(text, 0) + count
    return table


def history_text(lp: object, *what: object) -> str:
    """One made call in words."""
    if len(what) == 3 and isinstance(what[0], int) and isinstance(what[1], dict):
        rax, operands, regs = what
        assert isinstance(rax, int) and isinstance(operands, dict) and isinstance(regs, Regs)
        name = SEAMCALL_NAMES.get(rax & 0xFFFF, hex(rax))
        inputs = " ".join(f"{register}={value:#x}" for register, value in operands.items())
        return f"LP {lp} {name} {inputs} -> {status_name(regs.rax)}"
    return f"LP {lp} " + " ".join(hex(w) if isinstance(w, int) else str(w) for w in what)


def render_fuzz(report: FuzzReport) -> str:
    """The report as text of at most 80 columns."""
    reached = sum(
        1
        for call, row in report.outcomes.items()
        for status in ALLOWED.get(call, ())
        if status_name(status) in row
    )
    allowed = sum(len(statuses) for statuses in ALLOWED.values())
    verdict = "holds" if report.holds else "BROKEN"
    lines = [
        f"fuzz-module: {verdict} after {report.calls} calls, seed {report.seed}",
        f"{report.episodes} machines, {report.sweeps} full sweeps of the invariants",
        f"{reached} of {allowed} (leaf, status) pairs that the facts allow were seen",
    ]
    shown = [("", text) for text in report.broken[:10]]
    if report.history:
        shown += [("last calls:", ""), *(("", text) for text in report.history)]
    for heading, text in shown:
        lines += (
            [heading]
            if heading
            else textwrap.wrap(text, 80, initial_indent="  ", subsequent_indent="      ")
        )
    return "\n".join(lines) + "\n"
