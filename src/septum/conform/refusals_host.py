"""What is refused of the host: the dispatcher, S-EPT leaves, PAMT, keys and caches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from septum.abi.leaves import SEAMCALL_LEAVES
from septum.abi.regs import Regs
from septum.conform.refusals import case
from septum.conform.scene import (
    GIGABYTE,
    GPA,
    LARGE,
    SECOND_TDMR,
    SMALL,
    TDR,
    TDVPR,
    Scene,
    gigabyte_of_large_pages,
    runnable_scene,
    second_vcpu,
)
from septum.conform.tables import put_entry
from septum.sim import Sim

if TYPE_CHECKING:
    from collections.abc import Callable

NULL_PA = (1 << 64) - 1


class MeetingSim(Sim):
    """A simulator in which another processor's call falls into one scheduling point of a call."""

    __slots__ = ("at", "meet")

    def __init__(self) -> None:
        super().__init__()
        self.at = ""
        self.meet: Callable[[], object] | None = None

    def point(self, kind: str, obj: object = None) -> None:
        """At point `at`, `meet` runs, once."""
        if kind == self.at and self.meet is not None:
            meet, self.meet = self.meet, None
            meet()


# ---- the dispatcher


@case("TDX_OPERAND_INVALID")
def reserved_bit_of_rax() -> int:
    """The dispatcher refuses before the leaf zeroes RCX."""
    scene = runnable_scene(False)
    regs = Regs(SEAMCALL_LEAVES["TDH.MEM.SEPT.REMOVE"] | 1 << 24, GPA | 1, TDR)
    scene.module.seamcall(scene.machine.lps[0], regs)
    return regs.rax if regs.rcx == GPA | 1 else 0


@case("TDX_OPERAND_INVALID")
def sept_add_of_version_2() -> int:
    scene = runnable_scene(False)
    l2 = {"r9": NULL_PA, "r10": NULL_PA, "r11": NULL_PA}
    page = scene.control_page()
    return scene.call("TDH.MEM.SEPT.ADD", GPA | 1, TDR, version=2, r8=page, **l2).rax


@case("TDX_OPERAND_INVALID")
def vp_init_of_version_2() -> int:
    scene = runnable_scene(False, finalize=False)
    return second_vcpu(scene, version=2)


# ---- S-EPT leaves


@case("TDX_OPERAND_INVALID|R8")
def sept_add_without_a_page_of_version_0() -> int:
    scene = runnable_scene(False)
    scene.add_sept(GPA, 1)
    return scene.call("TDH.MEM.SEPT.ADD", GPA | 1, TDR, r8=NULL_PA).rax


@case("TDX_OPERAND_BUSY|R12")
def demote_with_a_locked_pamt_page() -> int:
    scene = runnable_scene(True)
    put_entry(scene, 1, "BLOCKED")
    r12, r13 = scene.pamt_pair()
    scene.module.hold_lock("pamt", "ex", hpa=r12, level=1)
    return scene.call(
        "TDH.MEM.PAGE.DEMOTE", GPA | 1, TDR, r8=scene.control_page(), r12=r12, r13=r13
    ).rax


@case("TDX_OPERAND_BUSY|R12")
def demote_with_its_own_new_page_as_pamt_page() -> int:
    scene = runnable_scene(True)
    put_entry(scene, 1, "BLOCKED")
    page = scene.control_page()
    r13 = scene.pamt_pair()[1]
    return scene.call("TDH.MEM.PAGE.DEMOTE", GPA | 1, TDR, r8=page, r12=page, r13=r13).rax


@case("TDX_INTERRUPTED_BUSY")
def demote_while_a_block_waits_for_the_tree() -> int:
    sim = MeetingSim()
    scene = runnable_scene(False, sim=sim)
    put_entry(scene, 1, "BLOCKED")
    sim.at = "module.pamt"
    sim.meet = lambda: scene.call("TDH.MEM.RANGE.BLOCK", GPA | 1, TDR, lp=1)
    return scene.call("TDH.MEM.PAGE.DEMOTE", GPA | 1, TDR, r8=scene.control_page()).rax


def _gigabyte_scene() -> Scene:
    """A 1 GB page at GPA, made by PROMOTE."""
    scene = gigabyte_of_large_pages()
    scene.must("TDH.MEM.PAGE.PROMOTE", GPA | 2, TDR)
    return scene


@case("TDX_OPERAND_BUSY|RCX")
def demote_of_a_gigabyte_whose_entry_is_read() -> int:
    scene = _gigabyte_scene()
    scene.module.hold_lock("pamt", "sh", hpa=GIGABYTE, level=2)
    return scene.call("TDH.MEM.PAGE.DEMOTE", GPA | 2, TDR, r8=scene.control_page()).rax


@case("TDX_OPERAND_BUSY|RCX")
def reclaim_of_a_gigabyte_whose_entry_is_read() -> int:
    scene = _gigabyte_scene()
    scene.must("TDH.MNG.VPFLUSHDONE", TDR)
    scene.must("TDH.PHYMEM.CACHE.WB", 0)
    scene.must("TDH.MNG.KEY.FREEID", TDR)
    scene.module.hold_lock("pamt", "sh", hpa=GIGABYTE, level=2)
    return scene.call("TDH.PHYMEM.PAGE.RECLAIM", GIGABYTE).rax


def _small_pages(scene: Scene, first_hpa: int) -> None:
    scene.add_sept(GPA, 1)
    for index in range(512):
        scene.aug(GPA + (index << 12), 0, first_hpa + (index << 12))


@case("TDX_EPT_INVALID_PROMOTE_CONDITIONS|RCX")
def promote_of_pages_that_are_not_aligned() -> int:
    scene = runnable_scene(False, finalize=False)
    _small_pages(scene, LARGE + 0x1000)
    return scene.call("TDH.MEM.PAGE.PROMOTE", GPA | 1, TDR).rax


@case("TDX_EPT_INVALID_PROMOTE_CONDITIONS|RCX")
def promote_of_pages_that_are_all_blocked() -> int:
    scene = runnable_scene(False, finalize=False)
    _small_pages(scene, LARGE)
    for index in range(512):
        scene.must("TDH.MEM.RANGE.BLOCK", GPA + (index << 12), TDR)
    return scene.call("TDH.MEM.PAGE.PROMOTE", GPA | 1, TDR).rax


@case("TDX_OPERAND_INVALID|R9")
def page_add_from_seamrr() -> int:
    scene = runnable_scene(False, finalize=False)
    scene.add_sept(GPA, 1)
    return scene.call("TDH.MEM.PAGE.ADD", GPA, TDR, r8=SMALL, r9=0x1_C000_0000).rax


# ---- PAMT


@case("TDX_OPERAND_BUSY|R8")
def aug_below_a_locked_gigabyte() -> int:
    scene = runnable_scene(False)
    scene.module.hold_lock("pamt", "ex", hpa=SECOND_TDMR, level=2)
    return scene.call("TDH.MEM.PAGE.AUG", GPA | 1, TDR, r8=SECOND_TDMR).rax


@case("TDX_OPERAND_BUSY|RCX")
def pamt_remove_while_the_entry_is_read() -> int:
    scene = runnable_scene(True)
    scene.add_pair(LARGE)
    scene.module.hold_lock("pamt", "sh", hpa=LARGE, level=1)
    return scene.call("TDH.PHYMEM.PAMT.REMOVE", LARGE | 1).rax


# ---- keys and caches


def _blocked_td() -> Scene:
    """A TD whose vCPUs are flushed and whose HKID is being given up."""
    scene = runnable_scene(False)
    scene.must("TDH.VP.FLUSH", TDVPR)
    scene.must("TDH.MNG.VPFLUSHDONE", TDR)
    return scene


@case("TDX_OPERAND_BUSY|KOT")
def freeid_while_the_kot_is_locked() -> int:
    scene = _blocked_td()
    scene.must("TDH.PHYMEM.CACHE.WB", 0)
    scene.module.hold_lock("kot", "sh")
    return scene.call("TDH.MNG.KEY.FREEID", TDR).rax


@case("TDX_OPERAND_BUSY|KOT")
def cache_wb_while_the_kot_is_locked() -> int:
    scene = _blocked_td()
    scene.module.hold_lock("kot", "ex")
    return scene.call("TDH.PHYMEM.CACHE.WB", 0).rax


@case("TDX_OPERAND_BUSY|WBCACHE")
def cache_wb_while_another_runs() -> int:
    sim = MeetingSim()
    scene = runnable_scene(False, sim=sim)
    scene.must("TDH.VP.FLUSH", TDVPR)
    scene.must("TDH.MNG.VPFLUSHDONE", TDR)
    inner: list[int] = []
    sim.at = "module.cache_sub_block"
    sim.meet = lambda: inner.append(scene.call("TDH.PHYMEM.CACHE.WB", 0, lp=1).rax)
    scene.must("TDH.PHYMEM.CACHE.WB", 0)
    return inner[0]


@case("TDX_TD_KEYS_NOT_CONFIGURED")
def flush_in_a_td_that_gave_up_its_keys() -> int:
    return _blocked_td().call("TDH.VP.FLUSH", TDVPR).rax
