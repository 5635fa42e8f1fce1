"""The guest side: ACCEPT in chunks, private accesses, #VE, VMCALL, with a program running."""

import pytest

from septum.abi import leaves
from septum.abi.regs import Regs
from septum.abi.status import status_name
from septum.machine import GuestContext
from septum.module import OutcomeKind
from septum.module.module import GUEST_VE
from septum.module.state import Vcpu

TDR = 0x40000000
GPA = 0x40000000
PAGE_2M = 0x42000000
PAGE_4K = 0x41000000
HKID = 33


def run(bench, program, lp=1, vcpu=0):
    """Give a vCPU a program, enter it, and return the registers of its first exit."""
    pfn = bench.vcpus[vcpu] >> 12
    bench.machine.guest_contexts[pfn] = GuestContext("guest", program)
    return enter(bench, lp, vcpu)


def enter(bench, lp=1, vcpu=0, **k):
    """TDH.VP.ENTER through the machine; the exit registers."""
    regs = Regs(rax=leaves.TDH_VP_ENTER, rcx=bench.vcpus[vcpu], **k)
    bench.machine.seamcall(lp, regs)
    return regs


def vmcall(bench, lp, **k):
    """TDG.VP.VMCALL of the guest on `lp`; its registers afterwards."""
    regs = Regs(rax=leaves.TDG_VP_VMCALL, **k)
    bench.machine.tdcall(lp, regs)
    return regs


def test_accept_zeroes_with_the_tds_key(bench):
    mem = bench.machine.mem
    mem.fill(PAGE_2M >> 12, 512, 0, 77)
    bench.put(GPA, 1, "MAPPED", PAGE_2M)
    pages = range(PAGE_2M >> 12, (PAGE_2M >> 12) + 512)
    assert {(mem.token_of(p), mem.key_of(p)) for p in pages} == {(0, HKID)}


def test_interrupted_accept_goes_on_where_it_stopped(bench):
    """A pending interrupt stops ACCEPT after one chunk; the entry shows how far it came."""
    lp = bench.machine.lps[1]
    bench.put(GPA, 1, "PENDING", PAGE_2M)
    bench.machine.mem.fill(PAGE_2M >> 12, 512, 0, 77)
    bench.enter()
    for done in (1, 2):
        lp.ipi_pending = True
        outcome, regs = bench.accept(GPA, 1)
        assert outcome.kind == OutcomeKind.INTERRUPTED
        assert regs.rax == leaves.TDG_MEM_PAGE_ACCEPT, "RAX is as it was"
        lp.ipi_pending = False
        view = bench.ok("TDH.MEM.SEPT.RD", GPA | 1, TDR)
        assert view.rcx == 0x80000000420000F0 | done << 12
    assert bench.machine.mem.token_of((PAGE_2M >> 12) + 2) == 77
    bench.accept_ok(GPA, 1)
    assert bench.ok("TDH.MEM.SEPT.RD", GPA | 1, TDR).rcx == 0x80000000420004F7


def test_block_starts_accept_over(bench):
    lp = bench.machine.lps[1]
    bench.put(GPA, 1, "PENDING", PAGE_2M)
    bench.enter()
    lp.ipi_pending = True
    bench.accept(GPA, 1)
    lp.ipi_pending = False
    bench.ok("TDH.MEM.RANGE.BLOCK", GPA | 1, TDR)
    assert bench.ok("TDH.MEM.SEPT.RD", GPA | 1, TDR).rcx == 0x80000000420000F0


@pytest.mark.parametrize("rcx", [GPA | 2, GPA | 8, GPA + 4096 | 1, 1 << 47, 1 << 46, 1 << 63 | GPA])
def test_accept_operand(bench, rcx):
    bench.enter()
    outcome, regs = bench.tdcall("TDG.MEM.PAGE.ACCEPT", 1, rcx=rcx)
    assert outcome.kind == OutcomeKind.TD
    assert status_name(regs.rax) == "TDX_OPERAND_INVALID|RCX"


def test_access_to_a_pending_page(make_bench):
    """#VE, or with SEPT_VE_DISABLE a TD exit whose extended qualification says 6."""
    for disable in (False, True):
        bench = make_bench().build(attributes=disable << 28)
        bench.put(GPA, 1, "PENDING", PAGE_2M)
        bench.enter()
        outcome = bench.m.guest_access_step(bench.machine.lps[1], GPA + 0x123, 2)
        if disable:
            assert outcome.kind == OutcomeKind.TD_EXIT
            out = outcome.exit
            assert (out.rax, out.rcx, out.rdx, out.r8) == (0x30, 2, 6, GPA)
            continue
        assert (outcome.kind, outcome.event) == (OutcomeKind.EVENT, 0x80000314)
        again = bench.m.guest_access_step(bench.machine.lps[1], GPA, 1)
        assert again.event == 0x80000B08, "the first was not read yet: double fault"
        _, regs = bench.tdcall("TDG.VP.VEINFO.GET", 1)
        assert (regs.rax, regs.rcx, regs.rdx, regs.r9) == (0, 0x30, 0x182, GPA + 0x123)
        _, regs = bench.tdcall("TDG.VP.VEINFO.GET", 1)
        assert status_name(regs.rax) == "TDX_NO_VALID_VE_INFO"


def test_page_attributes(bench):
    """L1 has no attributes: reading shows size and pending, writing accepts only zeros."""
    bench.put(GPA, 1, "PENDING", PAGE_2M)
    bench.enter()
    _, regs = bench.tdcall("TDG.MEM.PAGE.ATTR.RD", 1, rcx=GPA + 0x5000)
    assert (regs.rax, regs.rcx, regs.rdx) == (0, GPA | 1 | 1 << 63, 0)
    _, regs = bench.tdcall("TDG.MEM.PAGE.ATTR.WR", 1, rcx=GPA | 1)
    assert (regs.rax, regs.rcx) == (0, GPA | 1 | 1 << 63)
    _, regs = bench.tdcall("TDG.MEM.PAGE.ATTR.WR", 1, rcx=GPA | 1, rdx=1)
    assert status_name(regs.rax) == "TDX_OPERAND_INVALID|RDX"
    _, regs = bench.tdcall("TDG.MEM.PAGE.ATTR.WR", 1, rcx=GPA | 1, r8=1 << 48)
    assert status_name(regs.rax) == "TDX_OPERAND_INVALID|R8"
    outcome, _ = bench.tdcall("TDG.MEM.PAGE.ATTR.WR", 1, rcx=GPA)
    assert outcome.exit.rdx == 5 | (0 | 1 << 3 | 2 << 6 | 1 << 14) << 32


def test_vp_info(bench):
    bench.enter(vcpu=1, lp=2)
    _, regs = bench.tdcall("TDG.VP.INFO", 2)
    assert (regs.rcx, regs.r8, regs.r9) == (48, 2 | 4 << 32, 1)


def test_the_registers_of_a_vmcall_are_kept_until_the_vcpu_is_entered_again(bench):
    kept = []
    vcpu = bench.m.vcpus[bench.vcpus[0] >> 12]

    def program():
        lp = bench.machine.lps[1]
        vmcall(bench, lp, rcx=0)
        kept.append(vcpu.guest_regs)
        vmcall(bench, lp, rcx=0)

    run(bench, program)
    assert vcpu.guest_regs is not None
    enter(bench)
    assert kept == [None] and vcpu.guest_regs is not None


def test_vmcall_passes_the_registers_it_names(bench):
    seen = []

    def program():
        lp = bench.machine.lps[1]
        regs = vmcall(bench, lp, rcx=0x0C00 | 0x8, r10=0, r11=0x10001, rbx=5, r12=9)
        seen.append((regs.rax, regs.r10, regs.r11, regs.rbx, regs.r12))
        vmcall(bench, lp, rcx=0)

    out = run(bench, program)
    assert (out.rax, out.rcx, out.r10, out.r11, out.rbx, out.r12) == (77, 0xC08, 0, 0x10001, 5, 0)
    enter(bench, r10=1, r11=2, rbx=3, r12=4)
    assert seen == [(0, 1, 2, 3, 9)]


def test_vmcall_refuses_registers_that_never_pass(bench):
    bench.enter()
    for mask in (1, 2, 1 << 4, 1 << 32):
        outcome, regs = bench.tdcall("TDG.VP.VMCALL", 1, rcx=mask)
        assert outcome.kind == OutcomeKind.TD
        assert status_name(regs.rax) == "TDX_OPERAND_INVALID|RCX"


def test_accept_of_an_absent_page_runs_again_after_the_host_mapped_it(bench):
    """The EPT violation tells the level; the guest never sees that it left."""
    done = []

    def program():
        lp = bench.machine.lps[1]
        regs = Regs(rax=leaves.TDG_MEM_PAGE_ACCEPT, rcx=GPA | 1)
        bench.machine.tdcall(lp, regs)
        done.append(regs.rax)
        vmcall(bench, lp, rcx=0)

    out = run(bench, program)
    assert (out.rax, out.rdx & 0xF, out.rdx >> 32 & 7, out.r8) == (0x30, 1, 1, GPA)
    bench.ok("TDH.MEM.PAGE.AUG", GPA | 1, TDR, r8=PAGE_2M)
    assert enter(bench).rax == 77
    assert done == [0]


def test_guest_reads_what_it_wrote_and_loses_it_with_the_page(bench):
    values = []

    def program():
        lp = bench.machine.lps[1]
        access = bench.m.guest_access
        access(lp, GPA, 2, 1234)
        values.append(access(lp, GPA, 1))
        vmcall(bench, lp, rcx=0)
        values.append(access(lp, GPA, 1))
        vmcall(bench, lp, rcx=0)

    bench.put(GPA, 1, "MAPPED", PAGE_2M)
    run(bench, program)
    bench.ok("TDH.MEM.RANGE.BLOCK", GPA | 1, TDR)
    bench.track()
    bench.ok("TDH.MEM.PAGE.REMOVE", GPA | 1, TDR)
    assert enter(bench).rax == 0x30, "the epoch changed, the TLB was flushed, the page is gone"
    bench.ok("TDH.MEM.PAGE.AUG", GPA | 1, TDR, r8=PAGE_2M)
    assert enter(bench).rax == 77
    assert values == [1234, GUEST_VE], "pending again: #VE"


def test_accept_meets_an_interrupt_and_finishes_on_another_processor(bench):
    """The interrupt is taken after a chunk; the vCPU moves, and ACCEPT completes there."""
    result = []
    bench.put(GPA, 1, "PENDING", PAGE_2M)

    def program():
        regs = Regs(rax=leaves.TDG_MEM_PAGE_ACCEPT, rcx=GPA | 1)
        bench.machine.tdcall(bench.machine.lps[1], regs)
        vcpu = bench.m.vcpus[bench.vcpus[0] >> 12]
        assert isinstance(vcpu, Vcpu) and vcpu.lp is not None
        result.append((regs.rax, vcpu.lp.id))
        vmcall(bench, vcpu.lp, rcx=0)

    bench.machine.lps[1].ipi_pending = True
    assert run(bench, program).rax == 1, "external interrupt"
    bench.machine.lps[1].ipi_pending = False
    bench.ok("TDH.VP.FLUSH", bench.vcpus[0], lp=1)
    assert enter(bench, lp=0).rax == 77
    assert result == [(0, 0)]
