"""A machine with a TDX module and one TD, for the tests of this room."""

from __future__ import annotations

import pytest

from septum.abi import leaves
from septum.abi.regs import Regs
from septum.abi.status import status_name
from septum.abi.td_params import pack_td_params
from septum.machine import LogicalProcessor, Machine, MachineConfig, Tdmr
from septum.module import PROFILES, GuestOutcome, Module, OutcomeKind
from septum.sim import Sim

GB = 1 << 30
MB2 = 2 << 20
TDMR = 0x40000000
TDR = TDMR
POOL = TDMR + 4096  # 4 KB pages for control structures and S-EPT, from the TDR's 2 MB on
POOL_END = TDMR + 4 * MB2
PAIRS = TDMR + (64 << 20)  # pages for PAMT pairs, in a range without a pair
PAGES_4K = TDMR + (16 << 20)  # 4 KB guest pages
PAGES_2M = TDMR + (32 << 20)  # 2 MB guest pages
PARAMS = 0x1000
GPA = 0x40000000


class Bench:
    """Drives the module by SEAMCALLs, as a host would; every step of the set-up must succeed."""

    def __init__(
        self,
        *,
        dynamic: bool = False,
        profile: str = "1.5.25",
        packages: int = 1,
        third_tdmr: int = 0,
    ) -> None:
        tdmrs = (Tdmr(TDMR, GB), Tdmr(TDMR + 2 * GB, GB, reserved=((GB - MB2, MB2),)))
        if third_tdmr:
            tdmrs += (Tdmr(third_tdmr, GB),)
        config = MachineConfig(
            dynamic_pamt=dynamic,
            num_packages=packages,
            tdmrs=tdmrs,
            seamrr_base=0x1C0000000,
            seamrr_size=0x4000000,
        )
        self.sim = Sim()
        self.machine = Machine(self.sim, config)
        self.m = Module(self.machine, PROFILES[profile])
        self.machine.seam = self.m
        self.dynamic = dynamic
        self._next = iter(range(POOL, POOL_END, 4096))
        self._next_pair = iter(range(PAIRS, PAIRS + MB2, 4096))
        self.vcpus: list[int] = []
        self.tdr = 0

    # calls

    @property
    def lp(self) -> LogicalProcessor:
        """Logical processor 0."""
        return self.machine.lps[0]

    def call(
        self, name: str, rcx: int = 0, rdx: int = 0, *, lp: int = 0, version: int = 0, **k: int
    ) -> Regs:
        """A SEAMCALL by its name; returns the registers after it."""
        rax = leaves.SEAMCALL_LEAVES[name] | version << 16
        regs = Regs(rax=rax, rcx=rcx, rdx=rdx, **k)
        if name == "TDH.VP.ENTER":
            if self.m.vp_enter(self.machine.lps[lp], regs):
                regs.rax = 0
        else:
            self.m.seamcall(self.machine.lps[lp], regs)
        return regs

    def ok(self, name: str, rcx: int = 0, rdx: int = 0, **k: int) -> Regs:
        """A SEAMCALL that must succeed."""
        regs = self.call(name, rcx, rdx, **k)
        assert regs.rax == 0, f"{name}: {status_name(regs.rax)}"
        return regs

    def tdcall(self, name: str, lp: int = 0, **k: int) -> tuple[GuestOutcome, Regs]:
        """A TDCALL attempt by its name."""
        regs = Regs(rax=leaves.TDCALL_LEAVES[name], **k)
        return self.m.tdcall_step(self.machine.lps[lp], regs), regs

    # pages

    def page(self) -> int:
        """A free 4 KB page that the TDX module can use."""
        return next(self._next)

    def pair(self) -> dict[str, int]:
        """R12 and R13 for DEMOTE: a free PAMT page pair, or nothing in static mode."""
        if not self.dynamic:
            return {}
        return {"r12": next(self._next_pair), "r13": next(self._next_pair)}

    def back_4k(self, hpa: int) -> None:
        """Make the 2 MB range of `hpa` usable for 4 KB pages."""
        if self.dynamic:
            pages = next(self._next_pair), next(self._next_pair)
            self.ok("TDH.PHYMEM.PAMT.ADD", hpa >> 21 << 21 | 1, pages[0], r8=pages[1])

    # building

    def create(self, hkid: int = 33) -> None:
        """TDR, key, TDCS pages."""
        if self.dynamic:
            for start in (*range(TDR, POOL_END, MB2), PAGES_4K):
                self.back_4k(start)
        self.tdr = TDR
        self.ok("TDH.MNG.CREATE", TDR, hkid)
        for lp in range(self.machine.config.num_packages):
            self.ok("TDH.MNG.KEY.CONFIG", TDR, lp=lp)
        for _ in range(6):
            self.ok("TDH.MNG.ADDCX", self.page(), TDR)

    def init(self, *, vcpus: int = 2, **params: int) -> None:
        """MNG.INIT and vCPUs; vCPU i is initialised on LP i + 1."""
        params.setdefault("max_vcpus", 4)
        self.machine.mem.load_bytes(PARAMS >> 12, 0, pack_td_params(**params))
        self.ok("TDH.MNG.INIT", TDR, PARAMS)
        for index in range(vcpus):
            tdvpr = self.page()
            self.ok("TDH.VP.CREATE", tdvpr, TDR)
            for _ in range(5):
                self.ok("TDH.VP.ADDCX", self.page(), tdvpr)
            self.ok("TDH.VP.INIT", tdvpr, lp=index + 1)
            self.vcpus.append(tdvpr)

    def build(self, *, finalize: bool = True, tables: bool = True, **params: int) -> Bench:
        """A TD with S-EPT pages for 2 MB entries at GPA, ready to run if `finalize`."""
        self.create()
        self.init(**params)
        if tables:
            self.sept_page(0, 3)
            self.sept_page(GPA, 2)
        if finalize:
            self.ok("TDH.MR.FINALIZE", TDR)
        return self

    def sept_page(self, gpa: int, level: int) -> int:
        """Add an S-EPT page below the entry of `level`."""
        page = self.page()
        self.ok("TDH.MEM.SEPT.ADD", gpa | level, TDR, r8=page)
        return page

    def track(self) -> None:
        """TDH.MEM.TRACK."""
        self.ok("TDH.MEM.TRACK", TDR)

    def enter(self, vcpu: int = 0, lp: int = 1) -> None:
        """A vCPU enters the TD on `lp`."""
        self.ok("TDH.VP.ENTER", self.vcpus[vcpu], lp=lp)

    def leave(self, lp: int = 1) -> Regs:
        """The vCPU on `lp` leaves by an external interrupt."""
        return self.m.external_interrupt(self.machine.lps[lp])

    def accept(self, gpa: int, level: int, lp: int = 1) -> tuple[GuestOutcome, Regs]:
        """TDG.MEM.PAGE.ACCEPT."""
        return self.tdcall("TDG.MEM.PAGE.ACCEPT", lp, rcx=gpa | level)

    def accept_ok(self, gpa: int, level: int, lp: int = 1) -> None:
        """An ACCEPT that must succeed."""
        outcome, regs = self.accept(gpa, level, lp)
        assert outcome.kind == OutcomeKind.TD and regs.rax == 0, status_name(regs.rax)

    def put(self, gpa: int, level: int, state: str, hpa: int) -> None:
        """Bring the entry of `gpa` at `level` (FREE now) into a state, from INITIALIZED-free calls.

        Needs a runnable TD; a vCPU enters and leaves where a guest is needed.
        """
        if state == "FREE":
            return
        if state.startswith("NL"):
            self.sept_page(gpa, level)
        else:
            self.ok("TDH.MEM.PAGE.AUG", gpa | level, TDR, r8=hpa)
            if "PENDING" not in state:
                self.enter()
                self.accept_ok(gpa, level)
                self.leave()
        if "BLOCKED" in state:
            self.ok("TDH.MEM.RANGE.BLOCK", gpa | level, TDR)
            self.track()


@pytest.fixture(params=[False, True], ids=["static", "dynamic"])
def bench(request: pytest.FixtureRequest) -> Bench:
    """A runnable TD, in both PAMT modes."""
    return Bench(dynamic=request.param).build()


@pytest.fixture
def make_bench() -> type[Bench]:
    """The class, for tests that build their own."""
    return Bench
