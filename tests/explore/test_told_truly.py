"""What a story says besides its steps is true of the run: what was injected, accepted, asked."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from septum.abi.leaves import TDH_MEM_RANGE_BLOCK
from septum.abi.status import TDX_OPERAND_BUSY
from septum.cli.main import app
from septum.explore.stories.recording import Beat, how_it_goes
from septum.linux.kvm.events import KvmTdpMmuSpteChanged
from septum.module.events import SeamcallEvent
from septum.sim.events import Event, SwitchEvent


def told(*words: str) -> str:
    """The output of a command, on one line."""
    return " ".join(CliRunner().invoke(app, [*words]).output.split())


def explored(folder: Path, text: str, *words: str) -> str:
    """The search of a scenario of that text."""
    path = folder / "mine.toml"
    path.write_text(f'summary = "A scenario."\n{text}', encoding="utf-8")
    return told("explore", str(path), "--no-watch", "--workers", "1", *words)


def test_what_the_scenario_injects_is_counted_and_is_not_the_schedules() -> None:
    story = told("report", "finding-demote-busy-dpamt")
    assert "0 preemptions, 0 injected failures; 1 that the scenario injects. >>" in story
    assert "as the VM's split cache has no page, and a pair is 2" in story
    assert "and step 7 (TDH.MEM.PAGE.DEMOTE of host.convert) took a pair" in story


def test_a_page_that_nobody_accepted(tmp_path: Path) -> None:
    story = explored(tmp_path, '[guest]\nvcpu0 = ["touch page 1"]\n')
    assert (
        "Why: GFN 0x80001 is pending since step 8 (TDH.MEM.PAGE.AUG of vcpu0), and no step accepts"
        " it No passing" in story
    )


def test_a_page_that_was_not_accepted_because_its_frame_is_not_alike(tmp_path: Path) -> None:
    story = explored(
        tmp_path,
        'setup = ["host: set-attributes page 5 to shared"]\n'
        '[guest]\nvcpu0 = ["accept 2M frame 0 => any", "write page 3"]\n',
    )
    assert "GFN 0x80003 is pending since step" in story
    assert "and the guest has not accepted it: step" in story
    assert "(TDG.MEM.PAGE.ACCEPT of vcpu0) returned TDX_PAGE_SIZE_MISMATCH|1 No passing" in story


@pytest.fixture(scope="module")
def of_two_vms() -> str:
    """The story of a host that splits for the first of two VMs."""
    words = ("--design", "bug-split-first-vm-only", "--ignore", "guest-data: ")
    return told("explore", "two-vms-straddling", *words)


def test_of_two_vms_on_one_file_what_was_asked_is_told_once(of_two_vms: str) -> None:
    story = of_two_vms
    assert "(asked: KVM_SET_MEMORY_ATTRIBUTES2 [0x801f4, 0x80258))" in story


def test_of_two_vms_each_step_says_whose_it_is(of_two_vms: str) -> None:
    story = of_two_vms
    assert "vm1 (a) GFN 0x80200+0x200: private, not mapped vm2 (b) GFN 0x80200" in story
    assert "mirror SPTE of vm1 gfn 0x80000 2M: page 0x" in story
    assert "split gfn 0x80000 2M for conversion" in story
    assert "TDH.MEM.RANGE.BLOCK of vm2 0x80200000 2M" in story
    assert "guest_memfd of vm2 gfn 0x80200 + 0x200 pages: 4K folios" in story


def test_a_td_that_loses_its_key_loses_no_page_of_its_s_ept() -> None:
    """TDH.MNG.VPFLUSHDONE writes no S-EPT entry; from then on nobody can look at one."""
    story = told("explore", "dead-vm-closes", "--design", "bug-dead-vm-keeps-pages")
    after = story.partition("TDH.MNG.VPFLUSHDONE")[2].partition("TDH.MNG.KEY.FREEID")
    assert "~ TD: TD_KEYS_CONFIGURED -> TD_BLOCKED" in after[0]
    assert "~ TD: TD_BLOCKED -> TD_TEARDOWN" in after[2]
    assert "S-EPT GFN" not in after[0]
    assert "~ vm1: gone from vm_list" in after[2]


def test_who_waits_for_one_that_goes_round_is_said() -> None:
    story = told("explore", "slot-delete-against-prefault", "--design", "bug-prefaults-going-slot")
    assert "= host.vmm waits for synchronize_srcu(vm1 srcu) 6 XX" in story


def test_a_place_is_where_the_kernel_allocates() -> None:
    """Not the page allocator: all allocations are in there."""
    story = told("explore", "convert-against-accept-4k", "--design", "bug-stale-after-lock")
    assert "is at `alloc` in tdp_mmu_alloc_sp_for_split <" in story
    assert "get_zeroed_page" not in story


def test_a_schedule_that_passes_for_want_of_a_failure_says_so(tmp_path: Path) -> None:
    """That another task runs first is not all that is different."""
    story = explored(
        tmp_path,
        'setup = ["vcpu0: accept 2M frame 0"]\n[vm]\nmemory = "1G"\nbacking = "hugetlb-1g"\n'
        '[guest]\nvcpu0 = ["touch page 1 => any"]\n'
        '[host]\nconvert = ["set-attributes pages 1-2 to shared => any"]\n'
        '[failures]\nallow = ["alloc:hugetlb_vmemmap_restore*"]\n',
        "--keep-going",
        "--preemptions",
        "0",
    )
    assert "vcpu0 runs, and not host.convert, at the beginning; nothing is injected there." in story


def test_who_works_at_page_after_page_does_not_go_round() -> None:
    """A search takes it for one that goes round, and counts no preemption where another runs."""

    def beat(event: Event) -> Beat:
        return Beat(event, (), 0)

    done, busy = (
        beat(SeamcallEvent(0, "host.del", 0, TDH_MEM_RANGE_BLOCK, 0, 0, 0, 0, status, 0, 0))
        for status in (0, TDX_OPERAND_BUSY)
    )
    changed = beat(KvmTdpMmuSpteChanged(0, "host.del", 0, 0, 1, 0, 0, mirror=True))
    other = beat(SwitchEvent(0, "vcpu0", 0, to="host.del", at="x"))
    assert how_it_goes([other, done, busy], "host.del") == "comes by again"
    assert how_it_goes([other, changed], "host.del") == "comes by again"
    assert how_it_goes([other, busy], "host.del") == "goes round"
    assert how_it_goes([done, other], "host.del") == "goes round"


TWO_VMS = """
[vm.a]
in-place = true
ve = true
[vm.b]
in-place = true
ve = true
shares-memory-with = "a"
[guest.a]
vcpu0 = ["touch page 3 => any"]
[guest.b]
vcpu0 = ["touch page 4 => any"]
[host]
kill = ["destroy vm in b => any"]
"""
FAILS = """
[vm]
in-place = true
ve = true
[host]
fail = ["fail page 5 => any", "set-attributes page 5 to shared => any"]
"""
OF_1G = """
[vm]
memory = "1G"
backing = "hugetlb-1g"
in-place = true
ve = true
[guest]
vcpu0 = ["accept 2M frame 0 => any"]
[host]
convert = ["set-attributes frame 1 to shared => any"]
"""


def test_a_frame_that_another_vm_has(tmp_path: Path) -> None:
    """And a VM that earlier runs have destroyed has its name."""
    story = explored(tmp_path, TWO_VMS)
    assert "vm1 (a) GFN 0x80000+0x200: private, not mapped vm2 (b) GFN 0x80000+0x200: " in story
    assert "TDX_PAGE_METADATA_INCORRECT|R8: PFN 0x" in story
    assert " is in the S-EPT of vm" in story.partition("Why: ")[2]


def test_a_folio_that_failed_says_when(tmp_path: Path) -> None:
    story = explored(tmp_path, 'setup = ["vcpu0: accept 2M frame 0"]\n' + FAILS)
    assert "Cause: WARN: a poisoned folio is split" in story
    kept = (
        "513 references: 512 of the page cache, 1 that memory_failure() keeps for good: host.fail"
    )
    assert f" has {kept} since after step 1 " in story.partition("Why: ")[2]


def test_a_leaf_whose_folio_is_split(tmp_path: Path) -> None:
    story = explored(tmp_path, OF_1G, "--check", "quiet")
    why = story.partition("Why: ")[2]
    assert why.startswith("the leaf of GFN 0x80000 is there since step ")
    assert " (TDH.MEM.PAGE.AUG of vcpu0), and the folio under it is split since step " in why
