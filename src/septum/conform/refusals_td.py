"""What is refused of a TD's own pages, its vCPUs and its guest: MNG.*, VP.*, TDG.*."""

from __future__ import annotations

import msgspec

from septum.abi.leaves import TDCALL_LEAVES
from septum.abi.regs import Regs
from septum.conform.refusals import case
from septum.conform.scene import (
    GPA,
    LARGE,
    PARAMS,
    SECOND_TDVPR,
    TD_PARAMS,
    TDR,
    TDVPR,
    Scene,
    runnable_scene,
    scene_config,
    second_vcpu,
)
from septum.conform.testbed import td_params_bytes
from septum.module import OutcomeKind

# ---- the TD's own pages


@case("TDX_TDCX_NUM_INCORRECT")
def tenth_tdcx_page() -> int:
    scene = Scene(scene_config(False))
    scene.create_td(init=False)
    for _ in range(3):
        scene.must("TDH.MNG.ADDCX", scene.control_page(), TDR)
    return scene.call("TDH.MNG.ADDCX", scene.control_page(), TDR).rax


def _init_with(**fields: object) -> int:
    scene = Scene(scene_config(False))
    scene.create_td(params=msgspec.structs.replace(PARAMS, **fields), init=False)
    return scene.call("TDH.MNG.INIT", TDR, TD_PARAMS).rax


def _init_with_byte(offset: int) -> int:
    scene = Scene(scene_config(False))
    scene.create_td(init=False)
    params = bytearray(td_params_bytes(PARAMS))
    params[offset] = 0x40
    scene.write_shared(TD_PARAMS, bytes(params))
    return scene.call("TDH.MNG.INIT", TDR, TD_PARAMS).rax


@case("TDX_OPERAND_INVALID|RDX")
def init_with_params_that_are_not_aligned() -> int:
    scene = Scene(scene_config(False))
    scene.create_td(init=False)
    return scene.call("TDH.MNG.INIT", TDR, TD_PARAMS + 0x200).rax


@case("TDX_OPERAND_INVALID|ATTRIBUTES")
def init_with_a_reserved_attribute() -> int:
    return _init_with(attributes="0x2")


@case("TDX_OPERAND_INVALID|ATTRIBUTES")
def init_with_migratable_and_debug() -> int:
    return _init_with(attributes=hex(1 << 29 | 1))


@case("TDX_OPERAND_INVALID|XFAM")
def init_without_sse() -> int:
    return _init_with(xfam="0x1")


@case("TDX_OPERAND_INVALID|XFAM")
def init_with_a_feature_that_the_processor_lacks() -> int:
    return _init_with(xfam=hex(0x3 | 1 << 17 | 1 << 18))


@case("TDX_OPERAND_INVALID|MAX_VCPUS")
def init_for_no_vcpus() -> int:
    return _init_with(max_vcpus=0)


@case("TDX_OPERAND_INVALID|NUM_L2_VMS")
def init_with_l2_vms() -> int:
    return _init_with(num_l2_vms=1)


@case("TDX_OPERAND_INVALID|RDX")
def init_with_a_reserved_byte_before_eptp() -> int:
    return _init_with_byte(20)


@case("TDX_OPERAND_INVALID|RDX")
def init_with_a_reserved_byte_after_tsc() -> int:
    return _init_with_byte(44)


@case("TDX_OPERAND_INVALID|EXEC_CONTROLS")
def init_with_a_reserved_config_flag() -> int:
    return _init_with(config_flags="0x40")


@case("TDX_OPERAND_INVALID|EPTP_CONTROLS")
def init_with_uncached_tables() -> int:
    return _init_with(eptp_controls="0x18")


@case("TDX_OPERAND_INVALID|EPTP_CONTROLS")
def init_with_3_levels() -> int:
    return _init_with(eptp_controls="0x16")


@case("TDX_OPERAND_INVALID|TSC_FREQUENCY")
def init_with_a_slow_tsc() -> int:
    return _init_with(tsc_frequency=3)


# ---- virtual CPUs


@case("TDX_VCPU_STATE_INCORRECT|2")
def addcx_to_an_initialised_vcpu() -> int:
    scene = runnable_scene(False, finalize=False)
    return scene.call("TDH.VP.ADDCX", scene.control_page(), TDVPR).rax


@case("TDX_TDCX_NUM_INCORRECT")
def sixteenth_page_of_a_vcpu() -> int:
    scene = runnable_scene(False, finalize=False)
    second_vcpu(scene, init=False)
    for _ in range(9):
        scene.must("TDH.VP.ADDCX", scene.control_page(), SECOND_TDVPR)
    return scene.call("TDH.VP.ADDCX", scene.control_page(), SECOND_TDVPR).rax


@case("TDX_TDCX_NUM_INCORRECT")
def init_of_a_vcpu_with_5_pages() -> int:
    return second_vcpu(runnable_scene(False, finalize=False), pages=5)


@case("TDX_MAX_VCPUS_EXCEEDED")
def init_of_one_vcpu_too_many() -> int:
    params = msgspec.structs.replace(PARAMS, max_vcpus=1)
    return second_vcpu(runnable_scene(False, params=params, finalize=False))


@case("TDX_OPERAND_INVALID|R8")
def x2apic_id_of_33_bits() -> int:
    return second_vcpu(runnable_scene(False, finalize=False), version=1, x2apic_id=1 << 32)


@case("TDX_X2APIC_ID_NOT_UNIQUE|0")
def x2apic_id_of_another_vcpu() -> int:
    return second_vcpu(runnable_scene(False, finalize=False), version=1, x2apic_id=0)


def _with_half_a_vcpu() -> Scene:
    scene = runnable_scene(False, finalize=False)
    second_vcpu(scene, pages=3, init=False)
    scene.must("TDH.MR.FINALIZE", TDR)
    return scene


@case("TDX_TDCX_NUM_INCORRECT")
def flush_of_a_vcpu_with_3_pages() -> int:
    return _with_half_a_vcpu().call("TDH.VP.FLUSH", SECOND_TDVPR).rax


def _refused_entry(scene: Scene, rcx: int, lp: int = 0) -> int:
    refused = scene.enter(lp, rcx)
    return 0 if refused is None else refused.rax


@case("TDX_TDCX_NUM_INCORRECT")
def enter_of_a_vcpu_with_3_pages() -> int:
    return _refused_entry(_with_half_a_vcpu(), SECOND_TDVPR)


@case("TDX_OPERAND_INVALID|RCX")
def enter_with_a_hint_after_no_timeout() -> int:
    return _refused_entry(runnable_scene(False), TDVPR | 1 << 52)


@case("TDX_OPERAND_INVALID|RCX")
def enter_to_resume_l1_without_l2() -> int:
    return _refused_entry(runnable_scene(False), TDVPR | 1 << 53)


def _suspected_of_stepping() -> Scene:
    """A vCPU that took seven EPT violations at one GPA without progress: the last is remembered."""
    scene = runnable_scene(False, vcpus=2)
    for _ in range(7):
        if scene.enter() is not None:
            raise AssertionError("VP.ENTER refused too early")
        scene.module.guest_access_step(scene.machine.lps[0], GPA, 1)
    return scene


@case("TDX_SUCCESS|0x30")
def enter_after_seven_faults_without_progress() -> int:
    return _refused_entry(_suspected_of_stepping(), TDVPR)


@case("TDX_OPERAND_BUSY|SEPT_TREE")
def enter_after_seven_faults_while_the_tree_is_locked() -> int:
    scene = _suspected_of_stepping()
    scene.module.hold_lock("secure_ept", "ex", td=TDR)
    return _refused_entry(scene, TDVPR)


@case("TDX_SUCCESS")
def enter_after_seven_faults_when_the_page_is_there() -> int:
    scene = _suspected_of_stepping()
    scene.aug(GPA, 1, LARGE)
    return _refused_entry(scene, TDVPR)


@case("TDX_SUCCESS")
def enter_after_seven_faults_when_another_vcpu_accepted() -> int:
    scene = _suspected_of_stepping()
    scene.aug(GPA, 1, LARGE)
    if scene.enter(1, SECOND_TDVPR) is not None:
        raise AssertionError("VP.ENTER of the second vCPU refused")
    scene.accept(GPA | 1, lp=1)
    scene.exit(1)
    return _refused_entry(scene, TDVPR)


# ---- guest side


def _guest_call(scene: Scene, name: str, rcx: int = 0, rdx: int = 0, **more: int) -> int:
    version = more.pop("version", 0)
    if scene.enter() is not None:
        raise AssertionError("VP.ENTER refused")
    regs = Regs(TDCALL_LEAVES[name] | version << 16, rcx, rdx, **more)
    outcome = scene.module.tdcall_step(scene.machine.lps[0], regs)
    if outcome.kind == OutcomeKind.TD:
        return regs.rax
    return outcome.exit.rax if outcome.exit is not None else 0


@case("TDX_OPERAND_INVALID|RCX")
def vmcall_that_passes_rsp() -> int:
    return _guest_call(runnable_scene(False), "TDG.VP.VMCALL", 1 << 4)


@case("TDX_NO_VALID_VE_INFO")
def veinfo_without_a_ve() -> int:
    return _guest_call(runnable_scene(False), "TDG.VP.VEINFO.GET")


@case("TDX_OPERAND_INVALID")
def veinfo_of_a_version_to_come() -> int:
    return _guest_call(runnable_scene(False), "TDG.VP.VEINFO.GET", version=9)


@case("TDX_OPERAND_INVALID|RCX")
def attributes_of_a_shared_gpa() -> int:
    return _guest_call(runnable_scene(False), "TDG.MEM.PAGE.ATTR.RD", 1 << 47)


@case("TDX_OPERAND_INVALID|RDX")
def attributes_for_an_l2_vm() -> int:
    return _guest_call(runnable_scene(False), "TDG.MEM.PAGE.ATTR.WR", GPA, 1 << 16)


@case("TDX_OPERAND_INVALID|R8")
def attribute_mask_for_an_l2_vm() -> int:
    return _guest_call(runnable_scene(False), "TDG.MEM.PAGE.ATTR.WR", GPA, 0, r8=1 << 16)


@case("TDX_OPERAND_INVALID|RCX")
def attributes_at_level_3() -> int:
    return _guest_call(runnable_scene(False), "TDG.MEM.PAGE.ATTR.WR", 3)


@case("TDX_PAGE_SIZE_MISMATCH|1")
def attributes_of_a_page_mapped_smaller() -> int:
    scene = runnable_scene(False)
    scene.add_sept(GPA, 1)
    return _guest_call(scene, "TDG.MEM.PAGE.ATTR.WR", GPA | 1)
