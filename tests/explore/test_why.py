"""Why-lines: each is said of a whole run where it is true, and of none where it is not.

What a run says is complete: what is not in it is not said of that run.
"""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from septum.abi.leaves import (
    TDH_MEM_PAGE_AUG,
    TDH_MEM_PAGE_DEMOTE,
    TDH_MEM_RANGE_BLOCK,
    TDH_MEM_TRACK,
    TDH_PHYMEM_PAMT_ADD,
)
from septum.abi.status import (
    OPERAND_ID_R8,
    OPERAND_ID_RCX,
    TDX_GPA_RANGE_NOT_BLOCKED,
    TDX_MISSING_PAMT_PAGE_PAIR,
    TDX_OPERAND_BUSY,
    TDX_TLB_TRACKING_NOT_DONE,
)
from septum.explore.api import Search
from septum.explore.command import stories
from septum.explore.replay import find_subject
from septum.explore.stories.module_watch import Held, ModuleLock, ModuleLook, TdLook, VmLook
from septum.explore.stories.recording import Beat, Recorded
from septum.explore.stories.story import consequence_of
from septum.explore.stories.why import why_lines
from septum.explore.wanted import Wanted
from septum.module.events import SeamcallEvent
from septum.sim import Finding
from septum.sim.events import Event

SEARCH_S = 60.0

OWN = {
    "accept-page-against-block": """
summary = "A page is converted while a vCPU is in ACCEPT of it."
source = "a test"
setup = ["host: prefault page 0"]
[vm]
memory = "16K"
backing = "4k"
[guest]
vcpu0 = ["accept 4K page 0 => any"]
[host]
convert = ["set-attributes page 0 to shared"]
""",
}
"""Scenarios that the library has with larger pages only."""

WHY = {
    ("convert-against-write", "no-track"): """
        step 5: TDX_TLB_TRACKING_NOT_DONE|RCX: it needs TDH.MEM.TRACK after step 4,
          which blocked the entry in epoch 1, and there was none
    """,
    ("convert-against-write", "no-kick"): """
        step 6: TDX_OPERAND_BUSY|TD_EPOCH: the epoch lock is held by vcpu0 since
          before step 1, inside TDH.VP.ENTER
        step 7: TDX_TLB_TRACKING_NOT_DONE|RCX: it needs TDH.MEM.TRACK to succeed
          after step 5, which blocked the entry in epoch 1; step 6 returned
          TDX_OPERAND_BUSY|TD_EPOCH
    """,
    ("convert-against-write", "module-exit-epoch"): """
        step 11: TDX_TLB_TRACKING_NOT_DONE|RCX: step 7 began epoch 2, but
          REFCOUNT of epoch 1 is 1, and no vCPU is in the TD in that epoch: the
          TD exit of vcpu0 at step 8 did not count it down
    """,
    ("accept-against-block", "block-busy-ignored"): """
        step 7: TDX_OPERAND_BUSY|RCX: the lock of the S-EPT entry is held by
          vcpu0 since after step 1, inside TDG.MEM.PAGE.ACCEPT, which ends at
          step 9
        step 11: TDX_OPERAND_BUSY|RCX: the S-EPT entry has host priority since
          step 7, where TDH.MEM.RANGE.BLOCK of host.convert was
          TDX_OPERAND_BUSY|RCX, and no call of the host has had its lock since
        step 16: TDX_GPA_RANGE_NOT_BLOCKED|RCX: it needs TDH.MEM.RANGE.BLOCK to
          have succeeded; step 7 returned TDX_OPERAND_BUSY|RCX
    """,
    ("accept-against-block", "module-accept-unlocked"): """
        step 16: TDX_GPA_RANGE_NOT_BLOCKED|RCX: step 7 blocked the entry, and step 9
          (TDG.MEM.PAGE.ACCEPT of vcpu0) unblocked it
    """,
    ("accept-against-block", "module-priority-stays"): """
        step 7: TDX_OPERAND_BUSY|RCX: the lock of the S-EPT entry is held by
          vcpu0 since after step 1, inside TDG.MEM.PAGE.ACCEPT, which ends at
          step 8
        steps 21 and 27: TDX_OPERAND_BUSY|RCX: the S-EPT entry has host priority
          since step 7, where TDH.MEM.RANGE.BLOCK of host.convert was
          TDX_OPERAND_BUSY|RCX, though the host has had its lock at step 10
    """,
    ("fault-against-fault", "not-frozen"): """
        step 14: TDX_EPT_WALK_FAILED|RCX: the S-EPT has no table below its 2M entry of GFN
          0x80000, and the mirror has one: vcpu0 made it at step 8, and no TDH.MEM.SEPT.ADD
          of it has succeeded
        with every step looked at, mirror is broken before that, at step 5 (vcpu0): vm1: GFN
          0x80000 at 1G: the mirror has a table, PFN 0xHOST (0x800000010023c907), the S-EPT
          has FREE (0x80e0000000000000)
    """,
    ("fault-against-fault", "frozen-ignored"): """
        the mirror's entry of GFN 0x80000 is frozen since step 6 (vcpu0)
    """,
    ("convert-against-accept-4k", "stale-after-lock"): """
        step 23: TDX_EPT_ENTRY_STATE_INCORRECT|RCX: step 11 (TDH.MEM.PAGE.DEMOTE of
          host.convert) made a table of the entry
    """,
    ("convert-one-page", "alloc-under-mmu-lock"): """
        vcpu0 has vm1 mmu_lock since after
          step 16
    """,
    ("accept-4k-against-2m", "lock-dropped-early"): """
        GFN 0x80000 is in the S-EPT since step 12 (TDH.MEM.PAGE.AUG of vcpu1),
          and was not when vcpu0 left the TD at step 2
    """,
    ("accept-level-prefault", "accept-level-off-by-one"): """
        step 6 asks for GFN 0x80005 at 4K, and it is 2M pending: nothing has split it
    """,
    ("convert-against-fault-there", "seq-not-bumped"): """
        step 9: it maps GFN 0x80001, which is not private since step 7 (host.convert);
          the fault began before that, at step 4; mmu_invalidate_seq is 0 as then
    """,
    ("convert-against-fault-there", "snapshot-late"): """
        step 9: it maps GFN 0x80001, which is not private since step 7 (host.convert);
          the fault began before that, at step 4; mmu_invalidate_seq was 2 then and is 3
          now
    """,
    ("convert-against-fault", "edges-not-covered"): """
        step 12: it maps GFN 0x80001 with its 2M page, which is not private since step 2
          (host.convert); the fault began after that, at step 7; mmu_invalidate_seq is 2
          as then, and the invalidation under way is of GFN 0x80001 (1 page), which the fault's
          GFN 0x80000 is not in
    """,
    ("slot-delete-against-prefault", "no-srcu"): """
        step 6: host.vmm waits for invalidate_lock vm1.0, held by host.prefault since step 2
        step 10: it maps GFN 0x80000 with its 2M page, which has no memslot since step 5
          (host.vmm)
    """,
    ("punch-enomem", "punch-never-ends"): """
        step 17: the search injects it: the allocation tdp_mmu_alloc_sp_for_split fails
          mmu_invalidate_in_progress is not 0 since after step 16 (host.punch)
    """,
    ("dpamt-fault-against-fault", "pamt-get-not-rechecked"): """
        step 16: vcpu1 waits for pamt_lock, held by vcpu0 since step 10
        step 25: TDX_HPA_RANGE_NOT_FREE|RCX: the frame has a pair already, since step 17
          (TDH.PHYMEM.PAMT.ADD of vcpu0)
    """,
    ("dead-vm-closes", "dead-vm-keeps-pages"): """
        step 13 (TDH.MNG.KEY.FREEID of main) released the HKID
        with every step looked at, mapping-in-folio is broken before that, after step 7
          (main): vm1: the 2M leaf at GFN 0x80000 maps PFN 0xHOST, but no memslot with a
          guest_memfd is there
    """,
    ("prefault-by-thread", "vcpu-moves-unflushed"): """
        step 551: TDX_FLUSHVP_NOT_DONE: vCPU 0 is associated with cpu0 since the
          beginning; TDH.VP.FLUSH was called on cpu2: step 550 returned
          TDX_VCPU_NOT_ASSOCIATED
    """,
    ("convert-one-page", "module-demote-pending"): """
        GFN 0x80000 was 2M blocked mapped, and is 4K pending since step 21
          (TDH.MEM.PAGE.DEMOTE of vcpu0)
        with every step looked at, precise-zap is broken there, too, after step 21 (vcpu0):
          vm1: GFNs [0x80000, 0x80005) (5 pages) lost the guest's ACCEPT though nobody asked
          to take it (asked: KVM_SET_MEMORY_ATTRIBUTES2 [0x80005, 0x80006)); the S-EPT 4K
          entry of GFN 0x80000 is now PENDING PFN 0xHOST
    """,
    ("accept-level-prefault", "module-demote-accepts"): """
        GFN 0x80006, at that frame, was 2M blocked pending, and is mapped since step 9
          (TDH.MEM.PAGE.DEMOTE of vcpu0)
    """,
    ("accept-against-convert", "module-accept-skips-chunk"): """
        GFN 0x80201, at that frame, was 2M pending, and is mapped since step 10
          (TDG.MEM.PAGE.ACCEPT of vcpu0), where it went on from step 8, which was
          interrupted
    """,
    ("write-against-convert", "module-entry-unflushed"): """
        GFN 0x80005 is not mapped since step 16 (TDH.MEM.PAGE.REMOVE of host.convert);
          cpu0 entered the TD in epoch 3 after step 11 and kept it in its TLB
    """,
    ("accept-page-against-block", "module-busy-keeps-tdr"): """
        step 6: TDX_OPERAND_BUSY|RCX: the lock of the S-EPT entry is held by
          vcpu0 since after step 1, inside TDG.MEM.PAGE.ACCEPT, which ends at
          step 7
        step 33: TDX_OPERAND_BUSY|RCX: the lock of the TDR is held by
          TDH.MEM.RANGE.BLOCK of host.convert, which ended at step 6 with
          TDX_OPERAND_BUSY|RCX
    """,
    ("accept-against-block", "entry-not-barred"): """
        step 7: TDX_OPERAND_BUSY|TD_EPOCH: the epoch lock is held by vcpu0 since
          after step 1, inside TDH.VP.ENTER
        step 11: TDX_OPERAND_BUSY|TD_EPOCH: the epoch lock is held by vcpu0
          since after step 9, inside TDH.VP.ENTER
    """,
    ("dpamt-fresh-sept-page", "split-cache-one-pair"): """
        TDX_SW_ERROR is the kernel's own: tdh_mem_page_demote() did not call the
          module, as the VM's split cache has no page, and a pair is 2; step 6
          (TDH.PHYMEM.PAMT.ADD of host.convert) took a pair
    """,
    ("host-fault-against-convert", "host-fault-unlocked"): """
        GFN 0x80001 is private since step 4 (host.convert), and in the S-EPT
          since step 16 (TDH.MEM.PAGE.AUG of vcpu0); host user space uses it:
          host.touch in `touch page 1`
    """,
}


def why_of(
    scenario: str, design: str, strategy: str = "auto", seed: int = 0, ignore: tuple[str, ...] = ()
) -> str:
    """The why-lines of the first story of a search, on one line."""
    subject = find_subject(scenario, design, ignore=ignore)
    options = Wanted(strategy=strategy, time_s=SEARCH_S, seed=seed).options(subject)
    search = Search(subject, options)
    search.start()
    (story,) = stories(search.run(), search.runner, [])
    first = story.index("Why:") + 1
    text = " ".join(" ".join(story[first : story.index("", first)]).split())
    return re.sub(r"PFN 0x[0-9a-f]+", "PFN 0xHOST", text)


@pytest.mark.parametrize(("scenario", "bug"), WHY, ids=[bug for _, bug in WHY])
def test_a_seeded_bug_is_told_why(scenario: str, bug: str, tmp_path: Path) -> None:
    """Sentences of a whole run. A wrong holder, step or cause is another sentence."""
    name = scenario
    if scenario in OWN:
        path = tmp_path / f"{scenario}.toml"
        path.write_text(OWN[scenario], encoding="utf-8")
        name = str(path)
    assert why_of(name, f"bug-{bug}") == " ".join(WHY[scenario, bug].split())


def test_a_pair_that_is_in_use_is_told_why() -> None:
    """Where the search hears only of what comes of a wrong count."""
    why = why_of("dpamt-fault-against-fault", "bug-pamt-get-not-rechecked", ignore=("pamt: ",))
    assert (
        "TDX_PAMT_PAGE_NOT_EMPTY|0: 1 of its 4 KB pages is in use, and the kernel counts 0: PFN"
        " 0xHOST since step 26 (TDH.MEM.PAGE.AUG of vcpu1)"
    ) in why


def test_what_a_zap_took_away_is_told_with_the_call() -> None:
    why = why_of("convert-straddling-per-vm", "bug-split-head-only")
    assert why.startswith(
        "GFN 0x80204 was 2M blocked mapped, and is not mapped since step 31 (TDH.MEM.PAGE.REMOVE"
        " of host.convert) with every step"
    )


def test_a_vcpu_that_nobody_kicked_is_named() -> None:
    """TDH.MEM.TRACK has succeeded: it is not what is missing."""
    assert why_of("convert-against-accept", "bug-no-kick", "random", 1) == (
        "step 11: TDX_TLB_TRACKING_NOT_DONE|RCX: step 10 began epoch 2, but vcpu0 (since step 3) is"
        " in the TD in epoch 1, and no kick has made it leave"
    )


# Not said, where it would not be true: the same events with another operand


TDR, OTHER_TDR = 0x1_0020_1000, 0x1_0044_0000
GPA = 0x8000_0001
FINDING = Finding("no-bug", "it broke", "there", "host", 0)


def call(leaf: int, rcx: int, rdx: int, status: int = 0, r8: int = 0) -> SeamcallEvent:
    return SeamcallEvent(0, "host", 0, leaf, 0, rcx, rdx, r8, status, 0, 0)


def why(*events: Event, **parts: Any) -> list[str]:
    """The lines of events in a world where both TDs are in epoch 1 and nobody holds a lock."""
    td = TdLook(1, (0, 0), ())
    look = ModuleLook({TDR >> 12: td, OTHER_TDR >> 12: td}, {}, parts.get("held", {}), {}, {}, ())
    beats = [Beat(event, (), -1, module=look) for event in events]
    numbers = {id(beat): at for at, beat in enumerate(beats, 1)}
    recording = Recorded()
    recording.beats = beats
    return why_lines(recording, numbers, FINDING)


@pytest.mark.parametrize(
    ("rcx", "rdx", "said"),
    [
        (GPA, TDR, "it needs TDH.MEM.RANGE.BLOCK to have succeeded; step 1 returned"),
        (GPA + 0x20_0000, TDR, "it needs TDH.MEM.RANGE.BLOCK of the entry first"),
        (GPA - 1, TDR, "it needs TDH.MEM.RANGE.BLOCK of the entry first"),
        (GPA, OTHER_TDR, "it needs TDH.MEM.RANGE.BLOCK of the entry first"),
    ],
    ids=["same", "gpa", "level", "td"],
)
def test_a_block_of_something_else_is_no_cause(rcx: int, rdx: int, said: str) -> None:
    block = call(TDH_MEM_RANGE_BLOCK, rcx, rdx, TDX_OPERAND_BUSY | OPERAND_ID_RCX)
    demote = call(TDH_MEM_PAGE_DEMOTE, GPA, TDR, TDX_GPA_RANGE_NOT_BLOCKED | OPERAND_ID_RCX)
    (line,) = why(block, demote)
    assert said in line


def test_what_unblocked_is_not_guessed() -> None:
    """A BLOCK that succeeded, and no event that undid it: the cause is not in the recording."""
    block = call(TDH_MEM_RANGE_BLOCK, GPA, TDR)
    demote = call(TDH_MEM_PAGE_DEMOTE, GPA, TDR, TDX_GPA_RANGE_NOT_BLOCKED | OPERAND_ID_RCX)
    assert why(block, demote) == []


def test_a_track_of_another_td_or_before_the_block_does_not_count() -> None:
    demote = call(TDH_MEM_PAGE_DEMOTE, GPA, TDR, TDX_TLB_TRACKING_NOT_DONE | OPERAND_ID_RCX)
    block = call(TDH_MEM_RANGE_BLOCK, GPA, TDR)
    track, other = (call(TDH_MEM_TRACK, tdr, 0, TDX_OPERAND_BUSY) for tdr in (TDR, OTHER_TDR))
    assert why(track, block, other, demote)[-1].endswith("and there was none")
    assert why(block, track, demote)[-1].endswith("step 2 returned TDX_OPERAND_BUSY")


def test_a_pair_of_another_frame_does_not_count() -> None:
    missing = TDX_MISSING_PAMT_PAGE_PAIR | OPERAND_ID_R8
    aug = call(TDH_MEM_PAGE_AUG, GPA - 1, TDR, missing, r8=0x1_0000_1000)
    here, there = (
        call(TDH_PHYMEM_PAMT_ADD, hpa | 1, 0, TDX_OPERAND_BUSY) for hpa in (1 << 32, 1 << 33)
    )
    assert why(there, aug)[-1].endswith("of its frame first, and there was none")
    assert why(here, aug)[-1].endswith("step 1 returned TDX_OPERAND_BUSY")


def test_what_a_failed_call_leaves_is_not_its_own_cause() -> None:
    """Priority that it asked for, in vain."""
    lock = ModuleLock(TDR >> 12, "tdr")
    busy = call(TDH_MEM_TRACK, TDR, 0, TDX_OPERAND_BUSY | OPERAND_ID_RCX)
    before = call(TDH_MEM_TRACK, TDR, 0)
    assert why(before, busy, held={lock: (Held("host", 1),)}) == []
    (line,) = why(before, busy, held={lock: (Held("host", 0),)})
    assert "is held by TDH.MEM.TRACK of host, which ended at step 1" in line


def test_busy_without_a_known_holder_is_told_without_a_cause() -> None:
    """A call that ends next is not for that reason the one that was in the way."""
    busy = call(TDH_MEM_RANGE_BLOCK, GPA, TDR, TDX_OPERAND_BUSY | OPERAND_ID_RCX)
    other = SeamcallEvent(0, "vcpu0", 0, TDH_MEM_PAGE_AUG, 0, GPA, TDR, 0, 0, 0, 0)
    assert why(busy, other) == []
    elsewhere = ModuleLock(TDR >> 12, "entry", 1, (GPA >> 12) + 0x200)
    assert why(busy, other, held={elsewhere: (Held("vcpu0", -1, True),)}) == []


# The consequence


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("KVM_BUG_ON: SEAMCALL TDH_MEM_PAGE_DEMOTE failed", "every ioctl of the VM fails"),
        ("WARN: TDH_PHYMEM_PAMT_REMOVE failed: 0xc000030600000000", "panic_on_warn"),
        ("machine check: frame 0x100201 read with HKID 33", "the machine check takes"),
        ("vm1 is bugged", "every ioctl of a bugged VM fails"),
        ("SEAMCALL TDH_PHYMEM_PAGE_RECLAIM failed: 0xc000030000000001", "panic_on_warn"),
        ("VM_BUG_ON: gfn 0x80001 and pfn 0x100000 are not alike", "an oops"),
        ("BUG: a present leaf of gfn 0x80000 is replaced by one of another PFN", "an oops"),
    ],
)
def test_a_consequence_is_that_of_the_finding(text: str, says: str) -> None:
    """Only a VM that is bugged refuses its ioctls; only a machine check ends a host at once."""
    said = consequence_of(Finding("no-bug", text, "", "host", 0), "v3")
    assert said.startswith("On real hardware")
    assert says in said
    assert ("-EIO" in said) == ("bugged" in text or text.startswith("KVM_BUG_ON"))
    assert consequence_of(Finding("no-bug", text, "", "host", 0), "") == ""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("down_write(invalidate_lock vm1.0) may sleep, in atomic context (held: x)", "atomic"),
        ("alloc may sleep, in atomic context (held: rcu_read_lock)", "RCU read-side"),
        ("host.convert has ended KVM_RUN and still holds rcu_read_lock", "no grace period ends"),
        ("host.convert has ended KVM_RUN and still holds vm1 srcu", "no grace period ends"),
        ("host.convert has ended KVM_RUN and still holds vm1 mmu_lock", "wants the lock waits"),
        ("lockdep: mmu_lock is not held", "a race"),
        ("host.convert takes vm1 mmu_lock twice", "waits for itself"),
        ("vcpu0 read-locks vm1 mmu_lock while writing", "waits for itself"),
        ("vcpu0 takes vm# lock while it holds pamt_lock, and elsewhere the order is", "deadlock"),
    ],
)
def test_what_comes_of_a_lock_is_said_of_what_was_done_with_it(text: str, says: str) -> None:
    """The promise is of three things, and a story is of one."""
    said = consequence_of(Finding("locking", text, "", "host", 0), "v3")
    assert said.startswith("On real hardware")
    assert says in said
    assert "the first" not in said


def test_pairs_are_taken_since_the_block_and_by_the_task_itself() -> None:
    """Of a DEMOTE that finds no pair: what another task took is not what it misses, nor is what an
    earlier conversion took, whose cache was filled again."""
    add = call(TDH_PHYMEM_PAMT_ADD, GPA, 0)
    others = msgspec.structs.replace(add, task="vcpu1")
    events = [add, call(TDH_MEM_RANGE_BLOCK, GPA, TDR), others, add]
    look = ModuleLook({}, {"vm1": VmLook(TDR >> 12, 0, 0, split_cache=0)}, {}, {}, {}, ())
    recorded = Recorded()
    state: Any = SimpleNamespace(pamt={1: "2 pairs"})
    recorded.beats = [Beat(event, (), -1, state=state, module=look) for event in events]
    numbers = {id(beat): at for at, beat in enumerate(recorded.beats, 1)}
    text = "SEAMCALL TDH_MEM_PAGE_DEMOTE failed: 0xc000f (TDX_SW_ERROR)"
    (line,) = why_lines(recorded, numbers, Finding("no-bug", text, "vm1", "host", 0))
    assert line.endswith("and a pair is 2; step 4 (TDH.PHYMEM.PAMT.ADD of host) took a pair")
