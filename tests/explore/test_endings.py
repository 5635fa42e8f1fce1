"""What no event of a run tells and a story says all the same: how operations come to an error, what
became of a task that was preempted, who waits."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from septum.abi.leaves import TDH_PHYMEM_PAGE_RECLAIM
from septum.abi.status import TDX_TD_ASSOCIATED_PAGES_EXIST
from septum.cli.main import app
from septum.explore.stories.endings import Note, adjust
from septum.explore.stories.module_watch import ModuleWatcher
from septum.machine.config import MachineConfig, Tdmr
from septum.module.events import SeamcallEvent
from septum.module.pamt import PT_REG, PT_TDR, Pamt

MIB = 1 << 20
GIB = 1 << 30

MODE = """
from septum.linux.kvm.tdx import KvmTdxUnit

class ModeBeforeOn(KvmTdxUnit):
    __slots__ = ()
    def tdx_deliver_interrupt(self, vcpu):
        desc = vcpu.pi_desc
        if desc.on:
            return
        mode = vcpu.mode
        self.sim.point("vcpu->mode")
        desc.on = True
        if mode == 1:
            self.machine.notify_posted(vcpu.cpu, desc)
        else:
            self.host.main.kvm_vcpu_wake_up(vcpu)
"""
PINNED = """
summary = "A page is pinned while it should become private."
source = "a test"
setup = ["host: set-attributes pages 0-7 to shared", "host: touch page 3"]
[vm]
in-place = true
ve = true
"""
EXPECTING = """
summary = "The host touches shared pages."
source = "a test"
setup = ["host: set-attributes pages 0-1 to shared"]
[vm]
backing = "4k"
"""
NOT_GIVEN_BACK = """
summary = "One page of a VM that goes is not given back."
source = "a test"
[vm]
memory = "16K"
backing = "4k"
[host]
kill = ["destroy vm"]
[failures]
inject = ["seamcall:TDH.PHYMEM.PAGE.RECLAIM=error @2"]
[expect]
may-break = ["no-bug"]
"""
BY_THE_VMM = """
[host]
vmm = ["pin page 3", "set-attributes pages 0-7 to private", "read page 0", "unpin page 3"]
"""
BY_THE_GUEST = """
[guest]
vcpu0 = ["convert pages 0-7 to private"]
[expect]
pages = { "page 0" = "gone" }
"""


def explored(scenario: str, *words: str) -> str:
    """What a search prints, on one line, without the lanes."""
    output = CliRunner().invoke(app, ["explore", scenario, "--no-watch", "--workers", "1", *words])
    return " ".join(output.output.replace("|", " ").split())


def of_text(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return explored(str(path))


def test_what_became_of_a_task_that_was_preempted(tmp_path: Path) -> None:
    """It goes on and ends where no event tells; and the other one waits from where it does."""
    path = tmp_path / "mode.py"
    path.write_text(MODE, encoding="utf-8")
    story = explored("wake-before-halt", "--design", f"{path}:ModeBeforeOn")
    assert re.search(
        r"\d+ \* vcpu0 waits for an event that wakes vm1 vcpu0 from HLT"
        r" \d+ \* wake vcpu0 -> ok, and host\.device ends"
        r" \d+ XX \* promise progress is broken",
        story,
    )


def test_where_an_operation_comes_to_an_error(tmp_path: Path) -> None:
    """With the function that it began in, what the scenario says, and who has which page."""
    story = of_text(tmp_path, PINNED + BY_THE_VMM)
    step = re.search(
        r"(\d+) \* set-attributes pages 0-7 to private -> -EAGAIN at page 3, not ok"
        r" \[kvm_gmem_convert, patch 16\] ",
        story,
    )
    assert step is not None
    why = story.partition("Why: ")[2]
    assert why.startswith(f"step {step[1]}: kvm_gmem_convert finds GFN 0x8000")
    assert "1 of GUP, which has it pinned: host.vmm since after step 1" in why


def test_an_error_that_an_event_tells(tmp_path: Path) -> None:
    """Of the guest's own conversion, whose operation goes on."""
    story = of_text(
        tmp_path, PINNED.replace('page 3"]', 'page 3", "host: pin page 3"]') + BY_THE_GUEST
    )
    step = re.search(r"(\d+) \* convert to private \S+ 0x8000 bytes by map_gpa -> -EAGAIN", story)
    assert step is not None
    assert f"Why: step {step[1]}: kvm_gmem_convert finds GFN 0x8000" in story


@pytest.mark.parametrize("left_out", [(False, True, False), (True, True, False)])
def test_notes_stay_where_they_are_when_beats_are_left_out(left_out: tuple[bool, ...]) -> None:
    notes = [Note(0, "a", "begins"), Note(1, "a", "goes on"), Note(3, "a", "ends")]
    adjust(notes, left_out)
    kept = [at for at in range(4) if at == 3 or not left_out[at]]
    assert [note.at for note in notes] == [0, 1 - left_out[0], len(kept) - 1]


def test_a_wrong_end_of_an_operation_is_told_up_to_there(tmp_path: Path) -> None:
    """No step of who goes on, nor of how the VM is taken down."""
    ops = '"write 0x11 page 0 => -EFAULT", "set-attributes pages 0-1 to private"'
    output = of_text(tmp_path, f"{EXPECTING}[host]\none = [{ops}]\n")
    told = r"1 \* write 0x11 page 0 \(GFN 0x80000\) -> ok, not -EFAULT \.\.\. \d+ events later"
    assert re.search(told, output)
    assert "2 XX an end that is not expected" in output


def test_what_keeps_a_tdr_from_being_reclaimed(tmp_path: Path) -> None:
    """A page that the module did not give back: which, and of what kind."""
    output = of_text(tmp_path, NOT_GIVEN_BACK)
    reclaim = "TDH.PHYMEM.PAGE.RECLAIM"
    why = output.partition("Why: ")[2]
    said = (
        rf"TDX_TD_ASSOCIATED_PAGES_EXIST: the TD still has PFN (\w+) \(TDCX\), and no {reclaim} of"
    )
    (pfn,) = re.findall(said, why)
    assert f"{reclaim} {int(pfn, 16) << 12:#x}" not in output, "of all others it has succeeded"
    (last,) = re.findall(rf"{reclaim} (\w+) -> TDX_TD_ASSOCIATED_PAGES_EXIST", output)
    assert f"TDH_PHYMEM_PAGE_RECLAIM failed: 0xc000010000000000, {pfn}000" in output
    assert last != f"{pfn}000"


@pytest.mark.parametrize("split", [False, True])
def test_all_pages_that_keep_a_tdr(split: bool) -> None:
    """A huge page is one; those that a DEMOTE has made of it are 512, of which none has a record of
    its own; no other TD's, and not the TDR."""
    pamt = Pamt(MachineConfig(tdmrs=(Tdmr(base=GIB, size=GIB),)), dynamic=False)
    tdr = (GIB >> 12) + 5
    owners = {GIB + 2 * MIB: tdr, GIB + 4 * MIB: tdr + 1}
    page = pamt.entry_2m(GIB).child(5)
    page.pt, page.owner = PT_TDR, tdr
    for hpa, owner in owners.items():
        leaf = pamt.entry_2m(hpa)
        leaf.pt, leaf.owner = PT_REG, owner
        if split:
            pamt.demote_static(leaf)
    operands = (TDH_PHYMEM_PAGE_RECLAIM, 0, tdr << 12, 0, 0)
    failed = SeamcallEvent(0, "a", 0, *operands, TDX_TD_ASSOCIATED_PAGES_EXIST, 0, 0)
    world = SimpleNamespace(module=SimpleNamespace(pamt=pamt))
    owned = list(ModuleWatcher._owned(SimpleNamespace(world=world), failed))
    first = GIB + 2 * MIB >> 12
    assert owned == [(first + page, PT_REG) for page in range(512 if split else 1)]
