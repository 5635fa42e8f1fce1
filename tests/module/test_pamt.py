"""Dynamic PAMT: page pairs, bitmap, page counts; what AUG, DEMOTE and PROMOTE do to them."""

import pytest

from septum.abi.status import status_name

TDR = 0x40000000
GPA = 0x40000000
PAGE_2M = 0x42000000
PAGE_4K = 0x41000000
FREE_2M = 0x42400000
PAIR = 0x44100000
HINT = 1 << 62


@pytest.fixture
def bench(make_bench):
    """A runnable TD in Dynamic PAMT mode."""
    return make_bench(dynamic=True).build()


def rdmd(bench, hpa, level=0):
    """Type, owner, size, BEPOCH and page pair of a page."""
    regs = bench.ok("TDH.PHYMEM.PAGE.RDMD", hpa | level)
    return regs.rcx, regs.rdx, regs.r8, regs.r9, regs.r10, regs.r11


def status(bench, name, *args, **k):
    return status_name(bench.call(name, *args, **k).rax)


def demoted(bench):
    """A 2 MB page, blocked, tracked and demoted; returns the pair it took."""
    bench.put(GPA, 1, "PENDING_BLOCKED", PAGE_2M)
    pair = bench.pair()
    bench.ok("TDH.MEM.PAGE.DEMOTE", GPA | 1, TDR, r8=bench.page(), **pair)
    return pair


def test_add_and_remove_a_pair(bench):
    assert rdmd(bench, FREE_2M, 1)[0] == 0
    bench.ok("TDH.PHYMEM.PAMT.ADD", FREE_2M | 1, PAIR, r8=PAIR + 4096)
    node = rdmd(bench, FREE_2M, 1)
    assert node == (15 | 1 << 63, 0, 1, 0, PAIR, PAIR + 4096)
    assert rdmd(bench, PAIR) == (15, 0, 0, 0, 0, 0)
    regs = bench.ok("TDH.PHYMEM.PAMT.REMOVE", FREE_2M | 1)
    assert (regs.rdx, regs.r8) == (PAIR, PAIR + 4096)
    # What is left of the page address shows as the owner of the free entry.
    assert rdmd(bench, FREE_2M, 1)[:2] == (0, PAIR << 4)
    assert status(bench, "TDH.PHYMEM.PAMT.REMOVE", FREE_2M | 1) == "TDX_NO_PAMT_PAGE_PAIR|RCX"


def test_the_pair_may_lie_in_the_range_it_describes(bench):
    bench.ok("TDH.PHYMEM.PAMT.ADD", FREE_2M | 1, FREE_2M, r8=FREE_2M + 4096)
    assert status(bench, "TDH.MEM.PAGE.AUG", GPA | 1, TDR, r8=FREE_2M) == (
        "TDX_PAGE_METADATA_INCORRECT|R8"
    )
    bench.sept_page(GPA, 1)
    assert status(bench, "TDH.MEM.PAGE.AUG", GPA, TDR, r8=FREE_2M) == (
        "TDX_PAGE_METADATA_INCORRECT|R8"
    ), "a PAMT page"
    bench.ok("TDH.MEM.PAGE.AUG", GPA, TDR, r8=FREE_2M + 8192)


def test_add_refuses_what_is_not_free(bench):
    add = "TDH.PHYMEM.PAMT.ADD"
    assert status(bench, add, FREE_2M | 1, PAIR, r8=PAIR) == "TDX_PAGE_NOT_FREE|R8"
    assert status(bench, add, FREE_2M | 1, TDR, r8=PAIR) == "TDX_PAGE_NOT_FREE|RDX"
    assert status(bench, add, PAGE_4K | 1, PAIR, r8=PAIR + 4096) == "TDX_HPA_RANGE_NOT_FREE|RCX"
    assert status(bench, add, FREE_2M, PAIR, r8=PAIR + 4096) == "TDX_OPERAND_INVALID|RCX"
    bench.ok(add, FREE_2M | 1, PAIR, r8=PAIR + 4096)


def test_static_mode_has_no_pairs(make_bench):
    bench = make_bench(dynamic=False).build()
    assert status(bench, "TDH.PHYMEM.PAMT.ADD", FREE_2M | 1) == "TDX_OPERAND_INVALID"


def test_4k_pages_need_a_pair_and_2m_pages_must_not_have_one(bench):
    bench.sept_page(GPA, 1)
    assert status(bench, "TDH.MEM.PAGE.AUG", GPA, TDR, r8=FREE_2M) == (
        "TDX_MISSING_PAMT_PAGE_PAIR|R8"
    )
    gpa = GPA + (2 << 20)
    bench.ok("TDH.PHYMEM.PAMT.ADD", FREE_2M | 1, PAIR, r8=PAIR + 4096)
    assert status(bench, "TDH.MEM.PAGE.AUG", gpa | 1, TDR, r8=FREE_2M) == (
        "TDX_PAGE_METADATA_INCORRECT|R8"
    ), "even an empty pair"
    bench.ok("TDH.PHYMEM.PAMT.REMOVE", FREE_2M | 1)
    bench.ok("TDH.MEM.PAGE.AUG", gpa | 1, TDR, r8=FREE_2M)


def test_page_count_and_removal_hint(bench):
    bench.sept_page(GPA, 1)
    for index in range(2):
        gpa = GPA + index * 4096
        bench.ok("TDH.MEM.PAGE.AUG", gpa, TDR, r8=PAGE_4K + index * 4096)
        bench.ok("TDH.MEM.RANGE.BLOCK", gpa, TDR)
        bench.track()
    assert status(bench, "TDH.PHYMEM.PAMT.REMOVE", PAGE_4K | 1) == "TDX_PAMT_PAGE_NOT_EMPTY|0"
    first = bench.ok("TDH.MEM.PAGE.REMOVE", GPA, TDR)
    assert first.rcx == PAGE_4K
    second = bench.ok("TDH.MEM.PAGE.REMOVE", GPA + 4096, TDR)
    assert second.rcx == PAGE_4K + 4096 | HINT
    bench.ok("TDH.PHYMEM.PAMT.REMOVE", PAGE_4K | 1)


def test_pamt_page_not_empty_says_which_page(bench):
    bench.sept_page(GPA, 1)
    bench.ok("TDH.MEM.PAGE.AUG", GPA, TDR, r8=PAGE_4K + 300 * 4096)
    assert status(bench, "TDH.PHYMEM.PAMT.REMOVE", PAGE_4K | 1) == "TDX_PAMT_PAGE_NOT_EMPTY|1"


def test_demote_takes_a_pair_and_promote_gives_it_back(bench):
    pair = demoted(bench)
    assert rdmd(bench, PAGE_2M, 1)[4:] == (pair["r12"], pair["r13"])
    assert rdmd(bench, PAGE_2M + 4096)[:3] == (3, TDR, 0)
    bench.ok("TDH.MEM.RANGE.BLOCK", GPA | 1, TDR)
    bench.track()
    regs = bench.ok("TDH.MEM.PAGE.PROMOTE", GPA | 1, TDR)
    assert (regs.r12, regs.r13) == (pair["r12"], pair["r13"])
    assert rdmd(bench, PAGE_2M, 1)[:3] == (3, TDR, 1)
    bench.ok("TDH.PHYMEM.PAMT.ADD", FREE_2M | 1, pair["r12"], r8=pair["r13"])


@pytest.mark.parametrize(
    "r12,r13,expected",
    [
        (0, 0, "TDX_OPERAND_ADDR_RANGE_ERROR|R12"),
        (PAIR, 0, "TDX_OPERAND_ADDR_RANGE_ERROR|R13"),
        (PAIR + 1, 0, "TDX_OPERAND_INVALID|R12"),
        (0, PAIR + 1, "TDX_OPERAND_INVALID|R13"),
        (PAIR, PAIR, "TDX_PAGE_NOT_FREE|R13"),
        (PAIR, TDR, "TDX_PAGE_NOT_FREE|R13"),
        (TDR, PAIR, "TDX_PAGE_NOT_FREE|R12"),
        (PAGE_2M, PAIR, "TDX_OPERAND_BUSY|R12"),
        (PAIR, PAGE_2M + 4096, "TDX_OPERAND_BUSY|R13"),
    ],
)
def test_demote_checks_its_pair_last(bench, r12, r13, expected):
    """On these failures the S-EPT page has been written; the page is whole, the pair free."""
    bench.put(GPA, 1, "PENDING_BLOCKED", PAGE_2M)
    sept = bench.page()
    before = bench.machine.mem.token_of(sept >> 12)
    assert status(bench, "TDH.MEM.PAGE.DEMOTE", GPA | 1, TDR, r8=sept, r12=r12, r13=r13) == expected
    assert bench.machine.mem.token_of(sept >> 12) != before
    assert bench.machine.mem.key_of(sept >> 12) == 33
    assert rdmd(bench, sept)[0] == 0
    pair = {"r12": PAIR, "r13": PAIR + 4096}
    bench.ok("TDH.MEM.PAGE.DEMOTE", GPA | 1, TDR, r8=sept, **pair)


def test_r12_that_is_the_new_sept_page_is_busy(bench):
    bench.put(GPA, 1, "PENDING_BLOCKED", PAGE_2M)
    sept = bench.page()
    assert status(bench, "TDH.MEM.PAGE.DEMOTE", GPA | 1, TDR, r8=sept, r12=sept, r13=PAIR) == (
        "TDX_OPERAND_BUSY|R12"
    )


def test_reserved_pages(make_bench):
    """The last 2 MB of the second TDMR are reserved: no page of them can be used."""
    reserved = 0xC0000000 + (1 << 30) - (2 << 20)
    for dynamic in (False, True):
        bench = make_bench(dynamic=dynamic).build()
        assert status(bench, "TDH.MEM.PAGE.AUG", GPA | 1, TDR, r8=reserved) == (
            "TDX_PAGE_METADATA_INCORRECT|R8"
        )
        assert bench.m.pamt.lookup(reserved)[1] == (15 if dynamic else 1)


def test_the_owner_of_a_free_page_stays_readable(bench):
    bench.put(GPA, 1, "PENDING_BLOCKED", PAGE_2M)
    bench.ok("TDH.MEM.PAGE.REMOVE", GPA | 1, TDR)
    assert rdmd(bench, PAGE_2M, 1)[:2] == (0, TDR)


def test_1g_promote_and_demote(make_bench):
    """512 2 MB pages become one 1 GB page and 512 again, in both modes."""
    for dynamic in (False, True):
        bench = make_bench(dynamic=dynamic).build()
        big = 0xC0000000 + (1 << 30)
        assert bench.m.pamt.entry_2m(big) is None, "the second TDMR ends before"
        gpa = 2 << 30
        base = 0x100000000
        bench = make_bench(dynamic=dynamic, third_tdmr=base).build()
        bench.sept_page(gpa, 2)
        for index in range(512):
            bench.ok("TDH.MEM.PAGE.AUG", gpa + (index << 21) | 1, TDR, r8=base + (index << 21))
        bench.ok("TDH.MEM.RANGE.BLOCK", gpa | 2, TDR)
        bench.track()
        sept = bench.ok("TDH.MEM.PAGE.PROMOTE", gpa | 2, TDR).rcx & ~HINT
        regs = bench.ok("TDH.MEM.SEPT.RD", gpa | 2, TDR)
        assert (regs.rcx & ~0xFFF, regs.rdx) == (1 << 63 | base, 0x202)
        assert bench.m.pamt.lookup(base + 12345 * 4096)[:3] == (2, 3, TDR >> 12)
        bench.ok("TDH.MEM.RANGE.BLOCK", gpa | 2, TDR)
        bench.track()
        bench.ok("TDH.MEM.PAGE.DEMOTE", gpa | 2, TDR, r8=sept)
        regs = bench.ok("TDH.MEM.SEPT.RD", gpa + (511 << 21) | 1, TDR)
        assert (regs.rcx & ~0xFFF, regs.rdx) == (1 << 63 | base + (511 << 21), 0x201)
        assert bench.m.pamt.lookup(base + (511 << 21))[:3] == (1, 3, TDR >> 12)


def test_reclaim_says_hint_in_r9(bench):
    bench.sept_page(GPA, 1)
    bench.ok("TDH.MEM.PAGE.AUG", GPA, TDR, r8=PAGE_4K)
    for index, tdvpr in enumerate(bench.vcpus):
        bench.ok("TDH.VP.FLUSH", tdvpr, lp=index + 1)
    bench.ok("TDH.MNG.VPFLUSHDONE", TDR)
    bench.ok("TDH.PHYMEM.CACHE.WB", 0)
    bench.ok("TDH.MNG.KEY.FREEID", TDR)
    regs = bench.ok("TDH.PHYMEM.PAGE.RECLAIM", PAGE_4K)
    assert (regs.rcx, regs.rdx, regs.r8, regs.r9) == (3, TDR, 0, HINT)
