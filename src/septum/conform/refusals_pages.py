"""What is refused of S-EPT leaves: DEMOTE, PROMOTE, ADD, RELOCATE, SEPT.*, MR.*, TRACK, ACCEPT."""

from __future__ import annotations

from septum.conform.refusals import case
from septum.conform.scene import (
    GIGABYTE,
    GPA,
    LARGE,
    SMALL,
    TDR,
    Scene,
    gigabyte_of_large_pages,
    runnable_scene,
)
from septum.conform.tables import put_entry

NULL_PA = (1 << 64) - 1
OUTSIDE = 0x3000_0000
"""An address in no TDMR."""


# ---- DEMOTE


def _demote(
    scene: Scene, r12: int | None = None, r13: int | None = None, *, state: str = "BLOCKED"
) -> int:
    """DEMOTE of the large page at GPA, with PAMT pages that are free unless given."""
    put_entry(scene, 1, state)
    pair = scene.pamt_pair()
    return scene.call(
        "TDH.MEM.PAGE.DEMOTE",
        GPA | 1,
        TDR,
        r8=scene.control_page(),
        r12=pair[0] if r12 is None else r12,
        r13=pair[1] if r13 is None else r13,
    ).rax


@case("TDX_INTERRUPTED_RESTARTABLE")
def demote_when_an_interrupt_waits() -> int:
    scene = runnable_scene(True)
    scene.machine.lps[0].ipi_pending = True
    return _demote(scene, state="PENDING_BLOCKED")


@case("TDX_OPERAND_INVALID|R13")
def demote_with_a_second_pamt_page_that_is_not_aligned() -> int:
    return _demote(runnable_scene(True), r13=0x4040_8800)


@case("TDX_OPERAND_ADDR_RANGE_ERROR|R12")
def demote_with_a_pamt_page_outside_every_tdmr() -> int:
    return _demote(runnable_scene(True), r12=OUTSIDE)


@case("TDX_PAGE_NOT_FREE|R12")
def demote_with_a_pamt_page_that_is_one_already() -> int:
    return _demote(runnable_scene(True), r12=0x4040_0000)


@case("TDX_PAGE_NOT_FREE|R13")
def demote_with_the_same_pamt_page_twice() -> int:
    scene = runnable_scene(True)
    return _demote(scene, r12=0x4041_0000, r13=0x4041_0000)


@case("TDX_PAGE_NOT_FREE|R13")
def demote_with_the_tdr_as_pamt_page() -> int:
    return _demote(runnable_scene(True), r13=TDR)


# ---- PROMOTE


def _demoted() -> Scene:
    """The page at GPA was demoted, and its S-EPT page is blocked and tracked."""
    scene = runnable_scene(False)
    if _demote(scene):
        raise AssertionError("DEMOTE failed")
    scene.block_and_track(GPA, 1)
    return scene


@case("TDX_OPERAND_INVALID")
def promote_of_version_2() -> int:
    return _demoted().call("TDH.MEM.PAGE.PROMOTE", GPA | 1, TDR, version=2).rax


@case("TDX_OPERAND_BUSY|RCX")
def promote_into_a_locked_large_page() -> int:
    scene = _demoted()
    scene.module.hold_lock("pamt", "sh", hpa=LARGE, level=1)
    return scene.call("TDH.MEM.PAGE.PROMOTE", GPA | 1, TDR).rax


@case("TDX_OPERAND_BUSY|RCX")
def promote_into_a_locked_gigabyte() -> int:
    scene = gigabyte_of_large_pages()
    scene.module.hold_lock("pamt", "sh", hpa=GIGABYTE, level=2)
    return scene.call("TDH.MEM.PAGE.PROMOTE", GPA | 2, TDR).rax


@case("TDX_OPERAND_BUSY|RCX")
def sept_remove_of_a_locked_page() -> int:
    scene = runnable_scene(False)
    put_entry(scene, 1, "NL_BLOCKED")
    scene.module.hold_lock("pamt", "sh", hpa=scene.next_control - 0x1000, level=0)
    return scene.call("TDH.MEM.SEPT.REMOVE", GPA | 1, TDR).rax


@case("TDX_OPERAND_INVALID")
def sept_remove_of_version_2() -> int:
    return _demoted().call("TDH.MEM.SEPT.REMOVE", GPA | 1, TDR, version=2).rax


# ---- SEPT.ADD, SEPT.RD


@case("TDX_EPT_ENTRY_STATE_INCORRECT|RCX")
def sept_add_over_a_page_even_where_existing_is_allowed() -> int:
    scene = runnable_scene(False)
    put_entry(scene, 1, "PENDING")
    return scene.call("TDH.MEM.SEPT.ADD", GPA | 1, TDR | 1, r8=scene.control_page()).rax


@case("TDX_EPT_ENTRY_STATE_INCORRECT|RCX")
def sept_add_without_a_page_where_none_is() -> int:
    l2 = {"r8": NULL_PA, "r9": NULL_PA, "r10": NULL_PA, "r11": NULL_PA}
    return runnable_scene(False).call("TDH.MEM.SEPT.ADD", GPA | 1, TDR, version=1, **l2).rax


@case("TDX_OPERAND_INVALID|R10")
def sept_add_of_an_l2_page() -> int:
    scene = runnable_scene(False)
    more = {"r8": scene.control_page(), "r9": NULL_PA, "r10": 0, "r11": NULL_PA}
    return scene.call("TDH.MEM.SEPT.ADD", GPA | 1, TDR, version=1, **more).rax


@case("TDX_OPERAND_INVALID|RDX")
def sept_rd_of_l2_attributes_without_debug() -> int:
    return runnable_scene(False).call("TDH.MEM.SEPT.RD", GPA | 1, TDR | 1).rax


# ---- PAGE.ADD, RELOCATE, MR.EXTEND


def _building() -> Scene:
    """A TD that is not finalized, with a table for 4 KB pages at GPA."""
    scene = runnable_scene(False, finalize=False)
    scene.add_sept(GPA, 1)
    return scene


@case("TDX_OPERAND_INVALID|RCX")
def page_add_of_2_mb() -> int:
    return _building().call("TDH.MEM.PAGE.ADD", GPA | 1, TDR, r8=LARGE, r9=0x2000).rax


@case("TDX_EPT_WALK_FAILED|RCX")
def page_add_without_a_table() -> int:
    return _building().call("TDH.MEM.PAGE.ADD", GPA + (2 << 20), TDR, r8=SMALL, r9=0x2000).rax


@case("TDX_OPERAND_INVALID|R8")
def relocate_onto_itself() -> int:
    scene = runnable_scene(False)
    put_entry(scene, 0, "BLOCKED")
    return scene.call("TDH.MEM.PAGE.RELOCATE", GPA, TDR, r8=SMALL).rax


@case("TDX_EPT_ENTRY_STATE_INCORRECT|RCX")
def relocate_of_nothing() -> int:
    return _building().call("TDH.MEM.PAGE.RELOCATE", GPA, TDR, r8=SMALL).rax


@case("TDX_OPERAND_INVALID|RCX")
def extend_of_half_a_chunk() -> int:
    return _building().call("TDH.MR.EXTEND", GPA + 0x80, TDR).rax


@case("TDX_EPT_ENTRY_NOT_PRESENT|RCX")
def extend_of_nothing() -> int:
    return _building().call("TDH.MR.EXTEND", GPA, TDR).rax


@case("TDX_NO_VCPUS")
def finalize_without_vcpus() -> int:
    return runnable_scene(False, vcpus=0, finalize=False).call("TDH.MR.FINALIZE", TDR).rax


# ---- tracking and ACCEPT


@case("TDX_PREVIOUS_TLB_EPOCH_BUSY")
def track_while_a_vcpu_is_two_epochs_back() -> int:
    scene = runnable_scene(False)
    scene.enter()
    scene.track()
    return scene.call("TDH.MEM.TRACK", TDR, lp=1).rax


@case("TDX_OPERAND_BUSY|RCX")
def accept_after_a_host_failed_on_the_entry() -> int:
    scene = runnable_scene(False)
    put_entry(scene, 1, "PENDING")
    scene.enter()
    hold = scene.module.hold_lock("sept_entry", td=TDR, gpa=GPA, level=1, by="guest")
    scene.call("TDH.MEM.SEPT.RD", GPA | 1, TDR, lp=1)
    scene.module.release_lock(hold)
    return scene.accept(GPA | 1)[1].rax
