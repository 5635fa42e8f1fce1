"""A run as reports see it: a 4 GiB guest at login, with everything that a map can show."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from septum.report import (
    Bank,
    FindingRecord,
    LockRecord,
    PageKind,
    PromiseResult,
    Region,
    RunResult,
    Snapshot,
)

MIB = 1 << 20
GIB = 1 << 30
GOLDEN = Path(__file__).parent / "golden"


def region(gpa: int, end: int, kind: PageKind) -> Region:
    return Region(gpa >> 12, (end - gpa) >> 12, kind)


def q35_banks(memory_bytes: int) -> list[Bank]:
    return [
        Bank("ram-below-4g", 0, 2 * GIB),
        Bank("ram-above-4g", 4 * GIB, memory_bytes - 2 * GIB),
        Bank("bios", 4 * GIB - 4 * MIB, 4 * MIB),
    ]


def login_regions(memory_bytes: int) -> list[Region]:
    end = 2 * GIB + memory_bytes
    swiotlb = 0x682BD000
    swiotlb_end = 0x782BD000
    return [
        region(0, 8 * MIB, PageKind.PRIVATE_2M),
        region(8 * MIB, 10 * MIB, PageKind.PRIVATE_4K),
        region(10 * MIB, 0x20000000, PageKind.PRIVATE_2M),
        region(0x20000000, 0x20008000, PageKind.PRIVATE_4K),
        region(0x20008000, 0x2000C000, PageKind.SHARED),
        region(0x2000C000, 0x20200000, PageKind.PRIVATE_4K),
        region(0x20200000, 0x68200000, PageKind.PRIVATE_2M),
        region(0x68200000, swiotlb, PageKind.PRIVATE_4K),
        region(swiotlb, swiotlb_end, PageKind.SHARED),
        region(swiotlb_end, 0x78400000, PageKind.PRIVATE_4K),
        region(0x78400000, 2 * GIB, PageKind.PRIVATE_2M),
        region(4 * GIB - 4 * MIB, 4 * GIB, PageKind.PRIVATE_4K),
        region(4 * GIB, 4 * GIB + 492 * MIB, PageKind.PRIVATE_2M),
        region(4 * GIB + 520 * MIB, 4 * GIB + 522 * MIB, PageKind.PENDING),
        region(4 * GIB + 522 * MIB, 4 * GIB + 524 * MIB, PageKind.BLOCKED),
        region(end - 90 * MIB, end, PageKind.PRIVATE_2M),
    ]


LOGIN_STATS = {
    "pages_4k": 5054,
    "pages_2m": 1179,
    "pf_taken": 3425,
    "pf_fixed": 3424,
    "exits": 173029,
    "ept_violation.accept.2m": 1316,
    "ept_violation.accept.4k": 2108,
    "pf_fixed.private.2m": 1316,
    "pf_fixed.private.4k": 2108,
    "split.accept": 2,
    "split.conversion": 137,
    "kick": 69723,
    "ipi": 165739,
    "accept_level.checked": 3424,
    "accept_level.write_lock": 7,
    "mmu_lock_write.tdp_mmu_split_huge_pages_root": 137,
}


def make_result(memory_bytes: int = 4 * GIB, nr_vcpus: int = 8) -> RunResult:
    snapshot = Snapshot(
        name="login",
        title="The guest's memory at login",
        time_ns=2_000_000_000,
        stats=LOGIN_STATS,
        regions=login_regions(memory_bytes),
    )
    promises = [
        PromiseResult(
            name="mirror",
            sentence="Outside a frozen transition, the mirror page table and the Secure EPT agree:"
            " presence, level, pfn.",
            nr_looks=40,
        ),
        PromiseResult(
            name="guest-data",
            sentence="A guest reads back what it last wrote, unless it gave the page up.",
            consequence="The guest loses data that it believes to have.",
            nr_looks=40,
        ),
    ]
    return RunResult(
        septum_version="0.1.0",
        command="septum run --memory 4G --vcpus 8 --design v3",
        token="septum1." + "eNprYJnKxgABPZ9h5R4cWZ" * 8,
        design="v3",
        design_origin="PATCH v3 00/24, 2026-01-06, 20260106101646",
        memory_bytes=memory_bytes,
        nr_vcpus=nr_vcpus,
        schedule="random",
        seed=7,
        module="1.5.28",
        firmware="Firmware: /usr/share/ovmf/OVMF.fd, installed here.",
        mrtd="4c" * 48,
        check="quiet",
        ended="the guest powered off",
        promises=promises,
        time_ns=2_345_678_901,
        stats={**LOGIN_STATS, "pages_4k": 5566, "pages_2m": 1178},
        seamcalls={
            "TDH.MEM.PAGE.AUG": {
                "TDX_SUCCESS": 3424,
                "TDX_OPERAND_BUSY": 3,
                "TDX_EPT_ENTRY_STATE_INCORRECT": 12,
            },
            "TDH.MEM.TRACK": {"TDX_SUCCESS": 74106},
        },
        user_exits={"memory_fault": 4, "hypercall": 4497},
        locks=[
            LockRecord(name="mmu_lock", nr_read=3995, nr_write=14510, max_write_hold_ns=1_234_567)
        ],
        banks=q35_banks(memory_bytes),
        snapshots=[snapshot],
    )


def broken_result() -> RunResult:
    result = make_result()
    result.promises[1] = PromiseResult(
        name="guest-data",
        sentence=result.promises[1].sentence,
        consequence=result.promises[1].consequence,
        nr_looks=40,
        nr_broken=1,
    )
    result.findings = [
        FindingRecord(
            promise="guest-data",
            text="vCPU 3 wrote 0x1234 to GPA 0x12345000 and reads 0x0",
            where="guest vcpu3",
            task="vmm0.vcpu3",
            time_ns=123_456_789,
        )
    ]
    result.cause = "The zap of a partly converted 2 MB leaf took pages that the guest had accepted."
    return result


@pytest.fixture
def held() -> RunResult:
    return make_result()


@pytest.fixture
def broken() -> RunResult:
    return broken_result()


@pytest.fixture
def big() -> RunResult:
    return make_result(64 * GIB, 16)


@pytest.fixture
def golden() -> Callable[[str, str], None]:
    """Compare with tests/report/golden; SEPTUM_UPDATE_GOLDEN=1 writes instead."""

    def compare(name: str, text: str) -> None:
        path = GOLDEN / name
        if os.environ.get("SEPTUM_UPDATE_GOLDEN"):
            path.write_text(text, encoding="utf-8")
        assert text == path.read_text(encoding="utf-8")

    return compare
