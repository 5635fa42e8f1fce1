"""What is refused of PHYMEM.*, of keys, and of a TD that is not complete."""

from __future__ import annotations

from septum.conform.refusals import case
from septum.conform.scene import (
    CONTROL,
    LARGE,
    SMALL,
    TDR,
    TDVPR,
    Scene,
    runnable_scene,
    scene_config,
)
from septum.conform.tables import put_entry

OUTSIDE = 0x3000_0000


def _bare(dynamic_pamt: bool = True) -> Scene:
    """A machine with no TD; with Dynamic PAMT, the control range has its pair."""
    scene = Scene(scene_config(dynamic_pamt, num_packages=2))
    scene.add_pair(CONTROL)
    return scene


# ---- PAMT.ADD, PAMT.REMOVE


def _pamt_add(rcx: int, rdx: int = 0x4040_4000, r8: int = 0x4040_5000, dynamic: bool = True) -> int:
    return _bare(dynamic).call("TDH.PHYMEM.PAMT.ADD", rcx, rdx, r8=r8).rax


@case("TDX_OPERAND_INVALID|RCX")
def pamt_add_of_level_0() -> int:
    return _pamt_add(LARGE)


@case("TDX_OPERAND_ADDR_RANGE_ERROR|RCX")
def pamt_add_for_a_range_outside_every_tdmr() -> int:
    return _pamt_add(OUTSIDE | 1)


@case("TDX_OPERAND_INVALID|R8")
def pamt_add_of_a_page_that_is_not_aligned() -> int:
    return _pamt_add(LARGE | 1, r8=0x4040_5010)


@case("TDX_OPERAND_ADDR_RANGE_ERROR|RDX")
def pamt_add_of_a_page_outside_every_tdmr() -> int:
    return _pamt_add(LARGE | 1, rdx=OUTSIDE)


@case("TDX_PAGE_NOT_FREE|RDX")
def pamt_add_of_a_pamt_page() -> int:
    return _pamt_add(LARGE | 1, rdx=0x4040_0000)


@case("TDX_PAGE_NOT_FREE|R8")
def pamt_add_of_one_page_twice() -> int:
    return _pamt_add(LARGE | 1, r8=0x4040_4000)


@case("TDX_OPERAND_INVALID")
def pamt_remove_without_dynamic_pamt() -> int:
    return _bare(False).call("TDH.PHYMEM.PAMT.REMOVE", LARGE | 1).rax


@case("TDX_OPERAND_INVALID|RCX")
def pamt_remove_of_level_2() -> int:
    return _bare().call("TDH.PHYMEM.PAMT.REMOVE", LARGE | 2).rax


@case("TDX_OPERAND_ADDR_RANGE_ERROR|RCX")
def pamt_remove_outside_every_tdmr() -> int:
    return _bare().call("TDH.PHYMEM.PAMT.REMOVE", OUTSIDE | 1).rax


@case("TDX_MISSING_PAMT_PAGE_PAIR|RCX")
def create_where_there_is_no_pair() -> int:
    return _bare().call("TDH.MNG.CREATE", SMALL, 33).rax


# ---- RDMD, RECLAIM


@case("TDX_OPERAND_INVALID|RCX")
def rdmd_of_level_1_without_dynamic_pamt() -> int:
    return _bare(False).call("TDH.PHYMEM.PAGE.RDMD", LARGE | 1).rax


@case("TDX_OPERAND_INVALID|RCX")
def rdmd_of_an_address_with_hkid() -> int:
    return _bare().call("TDH.PHYMEM.PAGE.RDMD", CONTROL | 33 << 40).rax


@case("TDX_OPERAND_INVALID|RCX")
def reclaim_of_an_address_with_hkid() -> int:
    return _bare().call("TDH.PHYMEM.PAGE.RECLAIM", CONTROL | 33 << 40).rax


@case("TDX_OPERAND_INVALID|RCX")
def reclaim_from_the_middle_of_a_large_page() -> int:
    scene = runnable_scene(False)
    put_entry(scene, 1, "PENDING")
    return scene.call("TDH.PHYMEM.PAGE.RECLAIM", LARGE + 0x1000).rax


# ---- keys and caches


@case("TDX_OPERAND_BUSY|KOT")
def create_while_the_kot_is_read() -> int:
    scene = _bare()
    scene.module.hold_lock("kot", "sh")
    return scene.call("TDH.MNG.CREATE", TDR, 33).rax


@case("TDX_KEY_CONFIGURED")
def key_config_twice_on_one_package() -> int:
    scene = _bare()
    scene.must("TDH.MNG.CREATE", TDR, 33)
    scene.must("TDH.MNG.KEY.CONFIG", TDR)
    return scene.call("TDH.MNG.KEY.CONFIG", TDR, lp=2).rax


@case("TDX_LIFECYCLE_STATE_INCORRECT")
def key_config_when_all_packages_are_done() -> int:
    scene = _bare()
    scene.must("TDH.MNG.CREATE", TDR, 33)
    scene.must("TDH.MNG.KEY.CONFIG", TDR)
    scene.must("TDH.MNG.KEY.CONFIG", TDR, lp=1)
    return scene.call("TDH.MNG.KEY.CONFIG", TDR).rax


@case("TDX_TD_KEYS_NOT_CONFIGURED")
def addcx_before_the_key() -> int:
    scene = _bare()
    scene.must("TDH.MNG.CREATE", TDR, 33)
    return scene.call("TDH.MNG.ADDCX", TDR + 0x1000, TDR).rax


@case("TDX_OP_STATE_INCORRECT|1")
def seventh_tdcx_page_after_init() -> int:
    scene = runnable_scene(False, finalize=False)
    return scene.call("TDH.MNG.ADDCX", scene.control_page(), TDR).rax


@case("TDX_TDCS_NOT_ALLOCATED")
def init_with_too_few_tdcx_pages() -> int:
    scene = _bare(False)
    scene.must("TDH.MNG.CREATE", TDR, 33)
    scene.must("TDH.MNG.KEY.CONFIG", TDR)
    scene.must("TDH.MNG.KEY.CONFIG", TDR, lp=1)
    for index in range(1, 6):
        scene.must("TDH.MNG.ADDCX", TDR + index * 0x1000, TDR)
    return scene.call("TDH.MNG.INIT", TDR, 0x1000).rax


def _flushed() -> Scene:
    """The TD has given up its HKID; no cache was written back yet."""
    scene = runnable_scene(False)
    scene.must("TDH.VP.FLUSH", TDVPR)
    scene.must("TDH.MNG.VPFLUSHDONE", TDR)
    return scene


@case("TDX_WBCACHE_NOT_COMPLETE")
def freeid_before_the_caches_are_written() -> int:
    return _flushed().call("TDH.MNG.KEY.FREEID", TDR).rax


@case("TDX_LIFECYCLE_STATE_INCORRECT")
def vpflushdone_twice() -> int:
    return _flushed().call("TDH.MNG.VPFLUSHDONE", TDR).rax


@case("TDX_OPERAND_INVALID|RCX")
def cache_wb_of_an_unknown_command() -> int:
    return _flushed().call("TDH.PHYMEM.CACHE.WB", 2).rax


@case("TDX_NO_HKID_READY_TO_WBCACHE")
def cache_wb_for_nothing() -> int:
    return runnable_scene(False).call("TDH.PHYMEM.CACHE.WB", 0).rax


@case("TDX_WBCACHE_RESUME_ERROR")
def cache_wb_resumed_but_never_interrupted() -> int:
    return _flushed().call("TDH.PHYMEM.CACHE.WB", 1).rax


@case("TDX_INTERRUPTED_RESUMABLE")
def cache_wb_when_an_interrupt_waits() -> int:
    scene = _flushed()
    scene.machine.lps[0].ipi_pending = True
    return scene.call("TDH.PHYMEM.CACHE.WB", 0).rax


# ---- virtual CPUs


@case("TDX_VCPU_STATE_INCORRECT|2")
def init_of_a_vcpu_that_is_initialised() -> int:
    return runnable_scene(False, finalize=False).call("TDH.VP.INIT", TDVPR).rax


@case("TDX_VCPU_STATE_INCORRECT|4")
def enter_of_a_vcpu_that_is_inside() -> int:
    scene = runnable_scene(False)
    scene.enter()
    refused = scene.enter(1)
    return 0 if refused is None else refused.rax
