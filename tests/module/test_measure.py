"""MRTD is SHA-384 over what PAGE.ADD and MR.EXTEND feed it, and fields read it back."""

import hashlib

from septum.abi.features import MD_FIELD_ID_TDCS_MRTD
from septum.abi.status import status_name

TDR = 0x40000000
GPA = 0x40000000
PAGE_4K = 0x41000000
SOURCE = 0x5000


def build(make_bench):
    """A TD before FINALIZE with a 4 KB page table at GPA, and 4096 known bytes in shared memory."""
    bench = make_bench().build(finalize=False)
    bench.sept_page(GPA, 1)
    data = bytes(range(256)) * 16
    bench.machine.mem.load_bytes(SOURCE >> 12, 0, data)
    return bench, data


def expected_mrtd(data, pages, chunks):
    """The hash written out independently: 128-byte buffers, and 256 bytes of data per chunk."""
    stream = b""
    for page in pages:
        stream += b"MEM.PAGE.ADD".ljust(16, b"\0") + page.to_bytes(8, "little") + bytes(104)
    for chunk in chunks:
        stream += b"MR.EXTEND".ljust(16, b"\0") + chunk.to_bytes(8, "little") + bytes(104)
        stream += data[chunk & 0xFFF :][:256]
    return hashlib.sha384(stream).digest()


def test_mrtd(make_bench):
    bench, data = build(make_bench)
    bench.ok("TDH.MEM.PAGE.ADD", GPA, TDR, r8=PAGE_4K, r9=SOURCE)
    chunks = [GPA + offset for offset in range(0, 4096, 256)]
    for chunk in chunks:
        bench.ok("TDH.MR.EXTEND", chunk, TDR)
    bench.ok("TDH.MR.FINALIZE", TDR)
    mrtd = expected_mrtd(data, [GPA], chunks)
    assert bench.m.tds[TDR >> 12].mrtd == mrtd
    words = [bench.ok("TDH.MNG.RD", TDR, MD_FIELD_ID_TDCS_MRTD + i).r8 for i in range(6)]
    assert b"".join(word.to_bytes(8, "little") for word in words) == mrtd


def test_content_counts_only_where_it_is_extended(make_bench):
    digests = []
    for content in (b"one", b"two"):
        bench, _ = build(make_bench)
        bench.machine.mem.load_bytes(SOURCE >> 12, 0, content)
        bench.ok("TDH.MEM.PAGE.ADD", GPA, TDR, r8=PAGE_4K, r9=SOURCE)
        bench.ok("TDH.MR.FINALIZE", TDR)
        digests.append(bench.m.tds[TDR >> 12].mrtd)
    assert digests[0] == digests[1]


def test_the_added_page_is_mapped_with_the_source_content(make_bench):
    bench, data = build(make_bench)
    bench.ok("TDH.MEM.PAGE.ADD", GPA, TDR, r8=PAGE_4K, r9=SOURCE)
    mem = bench.machine.mem
    assert mem.page_bytes(PAGE_4K >> 12) == data
    assert mem.key_of(PAGE_4K >> 12) == 33
    assert bench.ok("TDH.MEM.SEPT.RD", GPA, TDR).rdx == 0x400


def test_extend_refuses_what_is_not_there(make_bench):
    bench, _ = build(make_bench)

    def status(*args):
        return status_name(bench.call("TDH.MR.EXTEND", *args).rax)

    assert status(GPA, TDR) == "TDX_EPT_ENTRY_NOT_PRESENT|RCX"
    bench.ok("TDH.MEM.PAGE.AUG", GPA, TDR, r8=PAGE_4K)
    assert status(GPA, TDR) == "TDX_EPT_ENTRY_NOT_PRESENT|RCX", "pending"
    assert status(GPA + 128, TDR) == "TDX_OPERAND_INVALID|RCX"
    assert status(1 << 47, TDR) == "TDX_OPERAND_INVALID|RCX"
    regs = bench.call("TDH.MR.EXTEND", 0x80000000, TDR)
    assert (regs.rcx, regs.rdx) == (1 << 63, 2), "where the walk stopped"


def test_add_checks_its_source_before_its_page(make_bench):
    bench, _ = build(make_bench)

    def status(r8, r9):
        return status_name(bench.call("TDH.MEM.PAGE.ADD", GPA, TDR, r8=r8, r9=r9).rax)

    for source in (SOURCE + 1, 1 << 52, 0x1C0001000, 32 << 40 | SOURCE):
        assert status(1, source) == "TDX_OPERAND_INVALID|R9"
    assert status(1, 31 << 40 | SOURCE) == "TDX_OPERAND_INVALID|R8", "a shared key is fine"
    assert status(TDR, SOURCE) == "TDX_OPERAND_BUSY|R8", "locked by this very call"
    bench.ok("TDH.MEM.PAGE.ADD", GPA, TDR, r8=PAGE_4K, r9=SOURCE)
    assert status(PAGE_4K + 4096, SOURCE) == "TDX_EPT_ENTRY_STATE_INCORRECT|RCX"


def test_finalize_ends_building(make_bench):
    bench, _ = build(make_bench)
    bench.ok("TDH.MR.FINALIZE", TDR)
    for name in ("TDH.MEM.PAGE.ADD", "TDH.MR.EXTEND"):
        assert status_name(bench.call(name, GPA, TDR).rax) == "TDX_OP_STATE_INCORRECT|2"
    assert status_name(bench.call("TDH.MR.FINALIZE", TDR).rax) == "TDX_OP_STATE_INCORRECT|2"
