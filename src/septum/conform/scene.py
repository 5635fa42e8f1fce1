"""A small TD built by hand-made SEAMCALLs: where tables, automata, fuzzing and bench begin.

The layout is fixed: TDMRs of 1 GB at 1 GB and at 3 GB. Control pages (TDR, TDCX, TDVPR, S-EPT) come
from the 2 MB range at CONTROL, small private pages from SMALL, large ones from LARGE up. With
Dynamic PAMT the first two have a page pair from the start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from septum.abi.leaves import SEAMCALL_LEAVES, TDCALL_LEAVES, VERSION_SHIFT
from septum.abi.regs import Regs
from septum.abi.status import status_name
from septum.conform.testbed import RECORDED_PROFILE, Testbed, td_params_bytes
from septum.conform.transcript import TdParams
from septum.machine import MachineConfig, Tdmr

if TYPE_CHECKING:
    from septum.module import GuestOutcome, ModuleProfile
    from septum.sim import Sim

CONTROL = 0x4000_0000
SMALL = 0x4100_0000
LARGE = 0x4200_0000
PAMT_PAGES = 0x4040_0000
SECOND_TDMR = 0xC000_0000
GIGABYTE = 0x1_0000_0000
"""Where a TDMR lies, if there is one, with nothing else in it, for 1 GB pages."""
TD_PARAMS = 0x1000
GPA = 0x4000_0000
"""Where the tables put the entry they look at."""
TDR = CONTROL
TDVPR = CONTROL + 0x1_0000
SECOND_TDVPR = TDVPR + 0x8000
FIRST_FREE_CONTROL = CONTROL + 0x4_0000
MIN_TDVPS_PAGES = 6
MIN_TDCS_PAGES = 6


PARAMS = TdParams(xfam="0x3", max_vcpus=4, eptp_controls="0x1e", tsc_frequency=100)


def scene_config(dynamic_pamt: bool, num_packages: int = 1, num_lps: int = 4) -> MachineConfig:
    """Two TDMRs of 1 GB; the last 2 MB of the second are reserved."""
    return MachineConfig(
        num_lps=num_lps,
        num_packages=num_packages,
        dynamic_pamt=dynamic_pamt,
        tdmrs=(
            Tdmr(CONTROL, 1 << 30, (), 0x1000_0000, 0x1000_1000, 0x1010_0000),
            Tdmr(
                SECOND_TDMR,
                1 << 30,
                ((0x3FE0_0000, 2 << 20),),
                0x1200_0000,
                0x1200_1000,
                0x1210_0000,
            ),
        ),
        seamrr_base=0x1_C000_0000,
        seamrr_size=64 << 20,
    )


class SceneDefect(Exception):
    """A step that the scene relies on failed: the module (or a mutant of it) is broken."""


class Scene(Testbed):
    """A test bed with short ways to make calls, and the TD that they build."""

    def __init__(
        self,
        config: MachineConfig,
        profile: ModuleProfile = RECORDED_PROFILE,
        sim: Sim | None = None,
    ) -> None:
        super().__init__(config, profile, sim)
        self.next_control = FIRST_FREE_CONTROL
        self.next_pamt_page = PAMT_PAGES

    # ---- calls

    def call(
        self, name: str, rcx: int = 0, rdx: int = 0, *, lp: int = 0, version: int = 0, **more: int
    ) -> Regs:
        """A SEAMCALL by name; its registers afterwards."""
        regs = Regs(SEAMCALL_LEAVES[name] | version << VERSION_SHIFT, rcx, rdx, **more)
        self.module.seamcall(self.machine.lps[lp], regs)
        return regs

    def must(self, name: str, rcx: int = 0, rdx: int = 0, **more: int) -> Regs:
        """A SEAMCALL that has to succeed."""
        regs = self.call(name, rcx, rdx, **more)
        if regs.rax:
            raise SceneDefect(f"{name}({rcx:#x}, {rdx:#x}): {status_name(regs.rax)}")
        return regs

    def enter(self, lp: int = 0, tdvpr: int = TDVPR) -> Regs | None:
        """TDH.VP.ENTER: None when the vCPU now runs on `lp`, else the registers."""
        regs = Regs(SEAMCALL_LEAVES["TDH.VP.ENTER"], tdvpr)
        return None if self.module.vp_enter(self.machine.lps[lp], regs) else regs

    def exit(self, lp: int = 0) -> None:
        """An interrupt makes the vCPU on `lp` leave the TD."""
        self.module.external_interrupt(self.machine.lps[lp])

    def accept(self, rcx: int, lp: int = 0) -> tuple[GuestOutcome, Regs]:
        """TDG.MEM.PAGE.ACCEPT by the vCPU on `lp`: the outcome and the guest's registers."""
        regs = Regs(TDCALL_LEAVES["TDG.MEM.PAGE.ACCEPT"], rcx)
        return self.module.tdcall_step(self.machine.lps[lp], regs), regs

    # ---- building

    def control_page(self) -> int:
        """The next unused page of the control range."""
        self.next_control += 0x1000
        return self.next_control - 0x1000

    def pamt_pair(self) -> tuple[int, int]:
        """Two pages for a Dynamic PAMT pair."""
        self.next_pamt_page += 0x2000
        return self.next_pamt_page - 0x2000, self.next_pamt_page - 0x1000

    def add_pair(self, hpa: int) -> None:
        """Give the 2 MB range at `hpa` a PAMT page pair, in Dynamic PAMT mode."""
        if self.machine.config.dynamic_pamt:
            page0, page1 = self.pamt_pair()
            self.must("TDH.PHYMEM.PAMT.ADD", hpa | 1, page0, r8=page1)

    def create_td(
        self, tdr: int = TDR, hkid: int = 33, *, params: TdParams = PARAMS, init: bool = True
    ) -> None:
        """MNG.CREATE to MNG.INIT. The TDCX pages follow the TDR page."""
        self.must("TDH.MNG.CREATE", tdr, hkid)
        for lp in range(self.machine.config.num_packages):
            self.must("TDH.MNG.KEY.CONFIG", tdr, lp=lp)
        for index in range(MIN_TDCS_PAGES):
            self.must("TDH.MNG.ADDCX", tdr + (index + 1 << 12), tdr)
        self.write_shared(TD_PARAMS, td_params_bytes(params))
        if init:
            self.must("TDH.MNG.INIT", tdr, TD_PARAMS)

    def create_vcpu(self, tdvpr: int = TDVPR, tdr: int = TDR, lp: int = 0) -> None:
        """VP.CREATE to VP.INIT. The TDCX pages follow the TDVPR page."""
        self.must("TDH.VP.CREATE", tdvpr, tdr)
        for index in range(1, MIN_TDVPS_PAGES):
            self.must("TDH.VP.ADDCX", tdvpr + (index << 12), tdvpr)
        self.must("TDH.VP.INIT", tdvpr, lp=lp)

    def add_sept(self, gpa: int, level: int, tdr: int = TDR) -> int:
        """SEPT.ADD of the table below `gpa`'s entry at `level`; its page."""
        page = self.control_page()
        aligned = gpa & ~((1 << 12 + 9 * level) - 1)
        self.must("TDH.MEM.SEPT.ADD", aligned | level, tdr, r8=page)
        return page

    def aug(self, gpa: int, level: int, hpa: int, tdr: int = TDR) -> None:
        """PAGE.AUG that has to succeed."""
        self.must("TDH.MEM.PAGE.AUG", gpa | level, tdr, r8=hpa)

    def track(self, tdr: int = TDR) -> None:
        """MEM.TRACK that has to succeed."""
        self.must("TDH.MEM.TRACK", tdr)

    def block_and_track(self, gpa: int, level: int, tdr: int = TDR) -> None:
        """Block an entry and complete TLB tracking (no vCPU is inside)."""
        self.must("TDH.MEM.RANGE.BLOCK", gpa | level, tdr)
        self.track(tdr)


def runnable_scene(
    dynamic_pamt: bool,
    *,
    vcpus: int = 1,
    params: TdParams = PARAMS,
    finalize: bool = True,
    num_packages: int = 1,
    profile: ModuleProfile = RECORDED_PROFILE,
    sim: Sim | None = None,
) -> Scene:
    """A TD with vCPUs and S-EPT tables down to the 2 MB entry of GPA, RUNNABLE if finalized."""
    scene = Scene(scene_config(dynamic_pamt, num_packages), profile, sim)
    scene.add_pair(CONTROL)
    scene.add_pair(SMALL)
    scene.create_td(params=params)
    for index in range(vcpus):
        scene.create_vcpu(TDVPR + index * 0x8000, lp=index)
    scene.add_sept(GPA, 3)
    scene.add_sept(GPA, 2)
    if finalize:
        scene.must("TDH.MR.FINALIZE", TDR)
    return scene


def second_vcpu(
    scene: Scene, pages: int = 6, version: int = 0, x2apic_id: int = 0, init: bool = True
) -> int:
    """A second vCPU in `scene` with its first `pages` pages; the status of its VP.INIT."""
    scene.must("TDH.VP.CREATE", SECOND_TDVPR, TDR)
    for index in range(1, pages):
        scene.must("TDH.VP.ADDCX", SECOND_TDVPR + (index << 12), SECOND_TDVPR)
    if not init:
        return 0
    return scene.call("TDH.VP.INIT", SECOND_TDVPR, version=version, r8=x2apic_id).rax


def gigabyte_of_large_pages() -> Scene:
    """512 large pages of one TDMR at GPA. The TD is not finalized, so nothing is tracked."""
    config = scene_config(False)
    tdmr = msgspec.structs.replace(config.tdmrs[0], base=GIGABYTE)
    scene = Scene(msgspec.structs.replace(config, tdmrs=(*config.tdmrs, tdmr)))
    scene.create_td()
    scene.add_sept(GPA, 3)
    scene.add_sept(GPA, 2)
    for index in range(512):
        scene.aug(GPA + (index << 21), 1, GIGABYTE + (index << 21))
    return scene
