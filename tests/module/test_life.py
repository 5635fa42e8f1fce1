"""A TD from CREATE to the last RECLAIM: life cycle, keys, control pages, vCPUs, configuration."""

import pytest

from septum.abi.features import (
    MD_FIELD_ID_TDCS_VIRT_MAXPA,
    MD_FIELD_ID_TDX_FEATURES0,
    TDX_CONFIG_FLAGS_MAXGPA_VIRT,
    TDX_CONFIG_FLAGS_MAXPA_VIRT,
)
from septum.abi.status import status_name
from septum.abi.td_params import pack_td_params

TDR = 0x40000000
GPA = 0x40000000
PAGE_4K = 0x41000000
PARAMS = 0x1000


def status(bench, name, *args, **k):
    return status_name(bench.call(name, *args, **k).rax)


def flush_all(bench):
    for index, tdvpr in enumerate(bench.vcpus):
        bench.ok("TDH.VP.FLUSH", tdvpr, lp=index + 1)


def test_teardown_gives_back_every_page_and_the_hkid(bench):
    bench.put(GPA, 1, "MAPPED", 0x42000000)
    owned = [bench.m.pamt.entry_2m(start) for start in range(0x40000000, 0x44000000, 2 << 20)]
    flush_all(bench)
    bench.ok("TDH.MNG.VPFLUSHDONE", TDR)
    assert status(bench, "TDH.MNG.KEY.FREEID", TDR) == "TDX_WBCACHE_NOT_COMPLETE"
    bench.ok("TDH.PHYMEM.CACHE.WB", 0)
    assert status(bench, "TDH.PHYMEM.PAGE.RECLAIM", 0x42000000) == "TDX_LIFECYCLE_STATE_INCORRECT"
    bench.ok("TDH.MNG.KEY.FREEID", TDR)
    assert status(bench, "TDH.PHYMEM.PAGE.RECLAIM", TDR) == "TDX_TD_ASSOCIATED_PAGES_EXIST"
    for entry in owned:
        if entry.pt == 3:
            bench.ok("TDH.PHYMEM.PAGE.RECLAIM", entry.hpa)
        for index in range(512):
            if entry.child_type(index) not in (0, 4):
                bench.ok("TDH.PHYMEM.PAGE.RECLAIM", entry.hpa + index * 4096)
    bench.ok("TDH.PHYMEM.PAGE.RECLAIM", TDR)
    assert not bench.m.tds and not bench.m.vcpus and not bench.machine.tables
    assert all(entry.used == 0 and entry.pt != 3 for entry in owned)
    bench.ok("TDH.MNG.CREATE", TDR, 33)


def test_key_life_cycle_on_two_packages(make_bench):
    bench = make_bench(packages=2)
    bench.ok("TDH.MNG.CREATE", TDR, 40)
    bench.ok("TDH.MNG.KEY.CONFIG", TDR, lp=0)
    assert status(bench, "TDH.MNG.KEY.CONFIG", TDR, lp=2) == "TDX_KEY_CONFIGURED"
    assert status(bench, "TDH.MNG.ADDCX", bench.page(), TDR) == "TDX_TD_KEYS_NOT_CONFIGURED"
    bench.ok("TDH.MNG.KEY.CONFIG", TDR, lp=1)
    assert status(bench, "TDH.MNG.KEY.CONFIG", TDR, lp=1) == "TDX_LIFECYCLE_STATE_INCORRECT"
    bench.ok("TDH.MNG.VPFLUSHDONE", TDR)
    bench.ok("TDH.PHYMEM.CACHE.WB", 0, lp=0)
    assert status(bench, "TDH.MNG.KEY.FREEID", TDR) == "TDX_WBCACHE_NOT_COMPLETE"
    bench.ok("TDH.PHYMEM.CACHE.WB", 0, lp=3)
    bench.ok("TDH.MNG.KEY.FREEID", TDR)
    bench.ok("TDH.MNG.KEY.RECLAIMID", TDR)
    assert status(bench, "TDH.PHYMEM.CACHE.WB", 0) == "TDX_NO_HKID_READY_TO_WBCACHE"


@pytest.mark.parametrize(
    "hkid,expected",
    [
        (31, "TDX_OPERAND_INVALID|RDX"),
        (64, "TDX_OPERAND_INVALID|RDX"),
        (33 | 1 << 16, "TDX_OPERAND_INVALID|RDX"),
        (32, "TDX_HKID_NOT_FREE"),
    ],
)
def test_create_checks_the_hkid(make_bench, hkid, expected):
    assert status(make_bench(), "TDH.MNG.CREATE", TDR, hkid) == expected


def test_cache_wb_is_interrupted_and_resumed(bench):
    flush_all(bench)
    bench.ok("TDH.MNG.VPFLUSHDONE", TDR)
    assert status(bench, "TDH.PHYMEM.CACHE.WB", 1) == "TDX_WBCACHE_RESUME_ERROR"
    assert status(bench, "TDH.PHYMEM.CACHE.WB", 2) == "TDX_OPERAND_INVALID|RCX"
    bench.lp.ipi_pending = True
    assert status(bench, "TDH.PHYMEM.CACHE.WB", 0) == "TDX_INTERRUPTED_RESUMABLE"
    for _ in range(6):
        assert status(bench, "TDH.PHYMEM.CACHE.WB", 1) == "TDX_INTERRUPTED_RESUMABLE"
    bench.ok("TDH.PHYMEM.CACHE.WB", 1)
    bench.ok("TDH.MNG.KEY.FREEID", TDR)


def test_tdcs_pages(make_bench):
    """Six are needed, nine are the most, and after INIT there is no more adding."""
    bench = make_bench()
    bench.create()
    for _ in range(3):
        bench.ok("TDH.MNG.ADDCX", bench.page(), TDR)
    assert status(bench, "TDH.MNG.ADDCX", bench.page(), TDR) == "TDX_TDCX_NUM_INCORRECT"
    bench = make_bench()
    bench.create()
    bench.init()
    page = bench.page()
    assert status(bench, "TDH.MNG.ADDCX", page, TDR) == "TDX_OP_STATE_INCORRECT|1"
    assert bench.machine.mem.key_of(page >> 12) == 33, "the page was written all the same"


@pytest.mark.parametrize(
    "params,expected",
    [
        ({"attributes": 1 << 1}, "TDX_OPERAND_INVALID|ATTRIBUTES"),
        ({"attributes": 1 | 1 << 29}, "TDX_OPERAND_INVALID|ATTRIBUTES"),
        ({"xfam": 2}, "TDX_OPERAND_INVALID|XFAM"),
        ({"xfam": 1 << 63 | 3}, "TDX_OPERAND_INVALID|XFAM"),
        ({"max_vcpus": 0}, "TDX_OPERAND_INVALID|MAX_VCPUS"),
        ({"max_vcpus": 577}, "TDX_OPERAND_INVALID|MAX_VCPUS"),
        ({"num_l2_vms": 1}, "TDX_OPERAND_INVALID|NUM_L2_VMS"),
        ({"config_flags": 1 << 5}, "TDX_OPERAND_INVALID|EXEC_CONTROLS"),
        ({"config_flags": 3 << 3}, "TDX_OPERAND_INVALID|EXEC_CONTROLS"),
        ({"eptp_controls": 0x26}, "TDX_OPERAND_INVALID|EPTP_CONTROLS"),
        ({"eptp_controls": 0x5E}, "TDX_OPERAND_INVALID|EPTP_CONTROLS"),
        ({"config_flags": 1}, "TDX_OPERAND_INVALID|EPTP_CONTROLS"),
        ({"tsc_frequency": 3}, "TDX_OPERAND_INVALID|TSC_FREQUENCY"),
        ({"tsc_frequency": 401}, "TDX_OPERAND_INVALID|TSC_FREQUENCY"),
        ({}, "TDX_SUCCESS"),
    ],
)
def test_init_checks_td_params(make_bench, params, expected):
    bench = make_bench()
    bench.create()
    bench.machine.mem.load_bytes(PARAMS >> 12, 0, pack_td_params(**params))
    assert status(bench, "TDH.MNG.INIT", TDR, PARAMS) == expected


@pytest.mark.parametrize(
    ("flags", "expected"),
    [(0, 52), (TDX_CONFIG_FLAGS_MAXPA_VIRT, 48), (TDX_CONFIG_FLAGS_MAXGPA_VIRT, 48)],
)
def test_the_virtual_maximum_of_physical_addresses(make_bench, flags, expected):
    """That of the platform, where the TD does not ask for its own. GPAs are bounded by both."""
    bench = make_bench()
    bench.m.max_pa = 52
    bench.create()
    bench.init(config_flags=flags)
    assert bench.ok("TDH.MNG.RD", TDR, MD_FIELD_ID_TDCS_VIRT_MAXPA).r8 == expected
    assert status(bench, "TDH.MEM.SEPT.RD", 1 << 48 | 3, TDR) == "TDX_OPERAND_INVALID|RCX"


@pytest.mark.parametrize("address", [PARAMS + 512, 33 << 40 | PARAMS, 1 << 52, 0x1C0000000])
def test_init_checks_where_td_params_are(make_bench, address):
    bench = make_bench()
    bench.create()
    assert status(bench, "TDH.MNG.INIT", TDR, address) == "TDX_OPERAND_INVALID|RDX"


def test_vcpu_needs_six_pages_and_is_initialised_once(make_bench):
    bench = make_bench()
    bench.create()
    bench.init(vcpus=0, max_vcpus=1)
    tdvpr = bench.page()
    bench.ok("TDH.VP.CREATE", tdvpr, TDR)
    assert status(bench, "TDH.VP.INIT", tdvpr) == "TDX_TDCX_NUM_INCORRECT"
    for _ in range(14):
        bench.ok("TDH.VP.ADDCX", bench.page(), tdvpr)
    assert status(bench, "TDH.VP.ADDCX", bench.page(), tdvpr) == "TDX_TDCX_NUM_INCORRECT"
    assert status(bench, "TDH.MR.FINALIZE", TDR) == "TDX_NO_VCPUS"
    bench.ok("TDH.VP.INIT", tdvpr, version=1, r8=7)
    assert status(bench, "TDH.VP.INIT", tdvpr) == "TDX_VCPU_STATE_INCORRECT|2"
    assert status(bench, "TDH.VP.ADDCX", bench.page(), tdvpr) == "TDX_VCPU_STATE_INCORRECT|2"
    other = bench.page()
    bench.ok("TDH.VP.CREATE", other, TDR)
    for _ in range(5):
        bench.ok("TDH.VP.ADDCX", bench.page(), other)
    assert status(bench, "TDH.VP.INIT", other) == "TDX_MAX_VCPUS_EXCEEDED"


def test_x2apic_ids_are_unique(make_bench):
    bench = make_bench()
    bench.create()
    bench.init(vcpus=1)
    tdvpr = bench.page()
    bench.ok("TDH.VP.CREATE", tdvpr, TDR)
    for _ in range(5):
        bench.ok("TDH.VP.ADDCX", bench.page(), tdvpr)
    init = ("TDH.VP.INIT", tdvpr)
    assert status(bench, *init, version=1, r8=1 << 32) == "TDX_OPERAND_INVALID|R8"
    assert status(bench, *init, version=1, r8=0) == "TDX_X2APIC_ID_NOT_UNIQUE|0"
    assert status(bench, *init, version=2) == "TDX_OPERAND_INVALID"
    bench.ok(*init, version=1, r8=5)


def test_association(bench):
    """A vCPU belongs to one processor until it is flushed there."""
    enter = ("TDH.VP.ENTER", bench.vcpus[0])
    assert status(bench, *enter, lp=0) == "TDX_VCPU_ASSOCIATED"
    assert status(bench, "TDH.VP.FLUSH", bench.vcpus[0], lp=0) == "TDX_VCPU_NOT_ASSOCIATED"
    bench.enter()
    assert status(bench, *enter, lp=0) == "TDX_VCPU_STATE_INCORRECT|4"
    assert status(bench, "TDH.VP.FLUSH", bench.vcpus[0], lp=1) == "TDX_OPERAND_BUSY|RCX"
    bench.leave()
    bench.ok("TDH.VP.FLUSH", bench.vcpus[0], lp=1)
    # Flags are looked at after the association is made, which stands.
    assert status(bench, "TDH.VP.ENTER", bench.vcpus[0] | 1 << 53, lp=0) == (
        "TDX_OPERAND_INVALID|RCX"
    )
    bench.ok("TDH.VP.FLUSH", bench.vcpus[0], lp=0)


def test_nothing_exclusive_on_the_tdr_while_a_vcpu_is_inside(bench):
    bench.enter()
    assert status(bench, "TDH.MNG.VPFLUSHDONE", TDR) == "TDX_OPERAND_BUSY|RCX"
    assert status(bench, "TDH.MEM.PAGE.ADD", GPA, TDR, r8=PAGE_4K) == "TDX_OPERAND_BUSY|RDX"
    bench.leave()


def test_profiles(make_bench):
    """Bit 51 of TDX_FEATURES0, and what goes with it: DEMOTE that is not interrupted."""
    for profile, interruptible in (("1.5.01", True), ("1.5.25", True), ("1.5.28", False)):
        bench = make_bench(profile=profile).build()
        regs = bench.ok("TDH.SYS.RD", 0, MD_FIELD_ID_TDX_FEATURES0)
        assert bool(regs.r8 >> 51 & 1) is not interruptible
        assert bool(regs.r8 >> 36 & 1) is (profile != "1.5.01")
        bench.put(GPA, 1, "PENDING_BLOCKED", 0x42000000)
        bench.lp.ipi_pending = True
        regs = bench.call("TDH.MEM.PAGE.DEMOTE", GPA | 1, TDR, r8=bench.page())
        if interruptible:
            assert (status_name(regs.rax), regs.rcx, regs.rdx) == (
                "TDX_INTERRUPTED_RESTARTABLE",
                GPA | 1,
                TDR,
            )
        else:
            assert regs.rax == 0


def test_dispatcher(bench):
    """Reserved bits, unknown leaves and versions are refused before anything is touched."""
    for rax in (1 << 24 | 6, 6 | 1 << 16, 200, 6 | 1 << 63):
        regs = bench.call("TDH.SYS.RD")
        regs.rax, regs.rcx, regs.rdx = rax, 5, 6
        bench.m.seamcall(bench.lp, regs)
        assert (regs.rax, regs.rcx, regs.rdx) == (0xC000010000000000, 5, 6)
    regs = bench.call("TDH.MEM.SEPT.ADD", 5, 6, version=2)
    assert (status_name(regs.rax), regs.rcx, regs.rdx) == ("TDX_OPERAND_INVALID", 0, 0)


def test_counts(make_bench):
    bench = make_bench()
    bench.create()
    assert bench.m.counts[1, 0] == 6
    status(bench, "TDH.MNG.ADDCX", TDR, TDR)
    assert bench.m.counts[1, 0x80000200] == 1


def test_1_5_01_promotes_with_the_tree_shared(make_bench):
    """From 1.5.01 to 1.5.25, PROMOTE went from the shared to the exclusive S-EPT tree lock."""
    for profile, expected in (("1.5.01", "TDX_SUCCESS"), ("1.5.25", "TDX_OPERAND_BUSY|SEPT_TREE")):
        bench = make_bench(profile=profile).build()
        bench.put(GPA, 1, "PENDING_BLOCKED", 0x42000000)
        bench.ok("TDH.MEM.PAGE.DEMOTE", GPA | 1, TDR, r8=bench.page())
        bench.ok("TDH.MEM.RANGE.BLOCK", GPA | 1, TDR)
        bench.track()
        held = bench.m.hold_lock("secure_ept", "sh", td=TDR)
        assert status(bench, "TDH.MEM.PAGE.PROMOTE", GPA | 1, TDR) == expected
        bench.m.release_lock(held)
