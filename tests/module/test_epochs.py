"""TD epochs and TLB tracking: when a blocked page may be taken, and what VP.ENTER flushes."""

from septum.abi.status import status_name
from septum.module import common

TDR = 0x40000000
GPA = 0x40000000
PAGE_2M = 0x42000000
PAGE_4K = 0x41000000
VIOLATION = "TDX_SUCCESS|0x30"


def status(bench, name, *args, **k):
    return status_name(bench.call(name, *args, **k).rax)


def test_a_page_is_free_once_everyone_left_the_epoch_it_was_blocked_in(bench):
    """The sequence of the facts: enter, BLOCK, TRACK, and who must leave before REMOVE."""
    bench.put(GPA, 1, "PENDING", PAGE_2M)
    bench.enter()
    bench.ok("TDH.MEM.RANGE.BLOCK", GPA | 1, TDR)
    not_done = "TDX_TLB_TRACKING_NOT_DONE|RCX"
    assert status(bench, "TDH.MEM.PAGE.REMOVE", GPA | 1, TDR) == not_done
    bench.track()
    assert status(bench, "TDH.MEM.PAGE.REMOVE", GPA | 1, TDR) == not_done
    assert status(bench, "TDH.MEM.RANGE.UNBLOCK", GPA | 1, TDR) == not_done
    assert status(bench, "TDH.MEM.TRACK", TDR) == "TDX_PREVIOUS_TLB_EPOCH_BUSY"
    bench.leave()
    bench.enter()
    bench.ok("TDH.MEM.PAGE.REMOVE", GPA | 1, TDR)


def test_relocate_sees_that_the_page_is_there_already_before_it_asks_for_tracking(bench):
    """Whatever is in bits 63:52 of the new frame (a removal hint, say): that is looked at last."""
    bench.sept_page(GPA, 1)
    bench.ok("TDH.MEM.PAGE.AUG", GPA, TDR, r8=PAGE_4K)
    for blocked, tracking in (
        (False, "TDX_GPA_RANGE_NOT_BLOCKED"),
        (True, "TDX_TLB_TRACKING_NOT_DONE"),
    ):
        if blocked:
            bench.ok("TDH.MEM.RANGE.BLOCK", GPA, TDR)
        for r8, expected in (
            (PAGE_4K, "TDX_OPERAND_INVALID|R8"),
            (PAGE_4K | 1 << 62, "TDX_OPERAND_INVALID|R8"),
            (PAGE_4K + 4096 | 1 << 62, f"{tracking}|RCX"),
        ):
            assert status(bench, "TDH.MEM.PAGE.RELOCATE", GPA, TDR, r8=r8) == expected


def test_a_module_that_forgets_refcounts_lets_a_running_page_go(bench, monkeypatch):
    """What the test above rests on: without REFCOUNT the page goes while a vCPU may use it."""
    monkeypatch.setattr(common, "check_tracked", lambda td, bepoch: 0)
    bench.put(GPA, 1, "PENDING", PAGE_2M)
    bench.enter()
    bench.ok("TDH.MEM.RANGE.BLOCK", GPA | 1, TDR)
    assert status(bench, "TDH.MEM.PAGE.REMOVE", GPA | 1, TDR) == "TDX_SUCCESS"


def test_before_finalize_nothing_needs_tracking(make_bench):
    bench = make_bench().build(finalize=False)
    bench.ok("TDH.MEM.PAGE.AUG", GPA | 1, TDR, r8=PAGE_2M)
    bench.ok("TDH.MEM.PAGE.DEMOTE", GPA | 1, TDR, r8=bench.page())
    bench.ok("TDH.MEM.PAGE.PROMOTE", GPA | 1, TDR)
    bench.ok("TDH.MEM.PAGE.REMOVE", GPA | 1, TDR)


def test_entry_in_a_new_epoch_flushes_the_tlb(bench):
    bench.put(GPA, 1, "MAPPED", PAGE_2M)
    lp = bench.machine.lps[1]
    bench.enter()
    bench.m.guest_access_step(lp, GPA, 1)
    assert lp.tlb.lookup(TDR >> 12, GPA >> 12) is not None
    bench.leave()
    bench.enter()
    assert lp.tlb.lookup(TDR >> 12, GPA >> 12) is not None, "same epoch, same vCPU: kept"
    bench.leave()
    bench.track()
    bench.enter()
    assert lp.tlb.lookup(TDR >> 12, GPA >> 12) is None


def test_who_leaves_no_translation_behind_forgets_its_epoch(bench):
    """There is nothing for the next entry to flush; REFCOUNT goes by the epoch of the entry."""
    bench.put(GPA, 1, "MAPPED", PAGE_2M)
    td, vcpu = bench.m.tds[TDR >> 12], bench.m.vcpus[bench.vcpus[0] >> 12]
    bench.enter()
    bench.track()
    assert td.refcount == [0, 1]
    bench.leave()
    assert (td.refcount, vcpu.vcpu_epoch) == ([0, 0], 0)
    bench.enter()
    bench.m.guest_access_step(bench.machine.lps[1], GPA, 1)
    bench.leave()
    assert (td.refcount, vcpu.vcpu_epoch) == ([0, 0], td.td_epoch)


def test_another_vcpu_on_the_same_processor_flushes_the_tlb(bench):
    bench.put(GPA, 1, "MAPPED", PAGE_2M)
    lp = bench.machine.lps[1]
    bench.enter()
    bench.m.guest_access_step(lp, GPA, 1)
    bench.leave()
    bench.ok("TDH.VP.FLUSH", bench.vcpus[1], lp=2)
    bench.enter(vcpu=1, lp=1)
    assert lp.tlb.lookup(TDR >> 12, GPA >> 12) is None


def test_vp_flush_flushes_the_tlb(bench):
    bench.put(GPA, 1, "MAPPED", PAGE_2M)
    lp = bench.machine.lps[1]
    bench.enter()
    bench.m.guest_access_step(lp, GPA, 1)
    bench.leave()
    bench.ok("TDH.VP.FLUSH", bench.vcpus[0], lp=1)
    assert lp.tlb.lookup(TDR >> 12, GPA >> 12) is None


def test_a_blocked_upper_entry_hides_everything_below(bench):
    bench.sept_page(GPA, 1)
    bench.ok("TDH.MEM.RANGE.BLOCK", GPA | 2, TDR)
    regs = bench.call("TDH.MEM.PAGE.AUG", GPA, TDR, r8=0x41000000)
    assert (status_name(regs.rax), regs.rcx, regs.rdx) == ("TDX_EPT_WALK_FAILED|RCX", 0, 0x8102)


def test_zero_step_mitigation_refuses_entry_while_the_page_would_fault_still(bench):
    """Seven EPT violations at one instruction, then VP.ENTER itself looks at the S-EPT."""
    for _ in range(7):
        bench.enter()
        outcome = bench.m.guest_access_step(bench.machine.lps[1], GPA, 2)
        assert outcome.exit.rax == 0x30
    regs = bench.call("TDH.VP.ENTER", bench.vcpus[0], lp=1)
    assert (regs.rax, regs.rcx, regs.rdx, regs.r8) == (0x30, 2, 0, GPA)
    held = bench.m.hold_lock("secure_ept", "ex", td=TDR)
    assert status(bench, "TDH.VP.ENTER", bench.vcpus[0], lp=1) == "TDX_OPERAND_BUSY|SEPT_TREE"
    bench.m.release_lock(held)
    bench.ok("TDH.MEM.PAGE.AUG", GPA | 1, TDR, r8=PAGE_2M)
    bench.enter()
    assert bench.m.tds[TDR >> 12].refcount == [0, 1]


def test_1_5_01_looks_at_the_tree_alone_before_it_refuses_entry(make_bench):
    """From 1.5.01 to 1.5.25, zero-step mitigation went to the shared S-EPT tree lock."""
    expected = {"1.5.01": "TDX_OPERAND_BUSY|SEPT_TREE", "1.5.25": VIOLATION, "1.5.28": VIOLATION}
    for profile, met in expected.items():
        bench = make_bench(profile=profile).build()
        for _ in range(7):
            bench.enter()
            bench.m.guest_access_step(bench.machine.lps[1], GPA, 2)
        held = bench.m.hold_lock("secure_ept", "sh", td=TDR)
        assert status(bench, "TDH.VP.ENTER", bench.vcpus[0], lp=1) == met, profile
        bench.m.release_lock(held)
        assert bench.call("TDH.VP.ENTER", bench.vcpus[0], lp=1).rax == 0x30
        bench.ok("TDH.MEM.PAGE.AUG", GPA | 1, TDR, r8=PAGE_2M)
        bench.enter()
